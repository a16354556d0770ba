"""Every cause, in the order in which equally likely ones are named."""

from __future__ import annotations

from collections.abc import Callable

from dpop_agent.client.explaining.case import Case
from dpop_agent.client.explaining.judges.access_token import (
    access_token_invalid,
    access_token_missing,
    access_token_not_bound,
    access_token_of_another_key,
    ath_mismatch,
    ath_missing,
    ath_unexpected,
    scheme_bearer,
    scope,
)
from dpop_agent.client.explaining.judges.nonce import (
    nonce_missing,
    nonce_of_another_server,
    nonce_stale,
    nonce_unexpected,
)
from dpop_agent.client.explaining.judges.opinions import Opinion
from dpop_agent.client.explaining.judges.proof import (
    alg_not_accepted,
    no_proof,
    proof_malformed,
    proof_signature,
    several_proofs,
)
from dpop_agent.client.explaining.judges.request import (
    htm_mismatch,
    htu_mismatch,
    iat_ahead,
    iat_old,
    jti_seen,
)
from dpop_agent.client.explaining.judges.server import server_error
from dpop_agent.client.explaining.judges.token_endpoint import (
    assertion_key,
    code_of_another_key,
    refresh_token_of_another_key,
    token_type_bearer,
)

JUDGES: dict[str, Callable[[Case], Opinion | None]] = {
    judge.__name__: judge
    for judge in (
        several_proofs,
        proof_malformed,
        no_proof,
        alg_not_accepted,
        proof_signature,
        scheme_bearer,
        htm_mismatch,
        htu_mismatch,
        ath_missing,
        ath_mismatch,
        ath_unexpected,
        access_token_missing,
        access_token_not_bound,
        access_token_of_another_key,
        access_token_invalid,
        jti_seen,
        iat_old,
        iat_ahead,
        nonce_missing,
        nonce_stale,
        nonce_of_another_server,
        nonce_unexpected,
        refresh_token_of_another_key,
        code_of_another_key,
        assertion_key,
        token_type_bearer,
        scope,
        server_error,
    )
}
"""Each cause's function, by the cause's name."""
