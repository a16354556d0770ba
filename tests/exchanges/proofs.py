"""Throwaway keys, and proofs that are broken on purpose, one way each."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey

CURVES = {"ES256": "P-256", "ES384": "P-384"}


@dataclass(frozen=True)
class Key:
    """A key of this run alone."""

    alg: str = "ES256"
    private: ECKey | OKPKey = field(init=False, repr=False)

    def __post_init__(self) -> None:
        curve = CURVES.get(self.alg)
        made = (
            ECKey.generate_key(curve, auto_kid=False)
            if curve
            else OKPKey.generate_key("Ed25519", auto_kid=False)
        )
        object.__setattr__(self, "private", made)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public members."""
        return dict(self.private.as_dict(private=False))

    @property
    def jkt(self) -> str:
        return str(self.private.thumbprint())

    def sign(self, header: dict[str, Any], claims: dict[str, Any]) -> str:
        """A JWS in its compact form, whatever the header says."""
        whole = f"{encoded(header)}.{encoded(claims)}"
        algorithm = jws.JWSRegistry.algorithms["EdDSA" if self.alg == "Ed25519" else self.alg]
        signature = algorithm.sign(whole.encode(), self.private)
        return f"{whole}.{b64url(signature)}"


def proof(
    key: Key,
    htm: str,
    htu: str,
    *,
    access_token: str | None = None,
    nonce: str | None = None,
    age_s: int = 0,
    header: dict[str, Any] | None = None,
    without: str | None = None,
    **claims: Any,
) -> str:
    """A proof (RFC 9449 section 4.2), with whatever is wrong about it.

    Args:
        key: signs it.
        htm: the method that it is for.
        htu: the URI that it is for.
        access_token: what its `ath` is of.
        nonce: the server's.
        age_s: how long ago it claims to have been made, in seconds.
        header: members of its header that are other ones.
        without: a claim that it lacks.
        claims: claims that are other ones.
    """
    payload: dict[str, Any] = {
        "jti": secrets.token_urlsafe(16),
        "htm": htm,
        "htu": htu,
        "iat": int(time.time()) - age_s,
    }
    if access_token:
        payload["ath"] = ath(access_token)
    if nonce:
        payload["nonce"] = nonce
    payload |= claims
    if without:
        del payload[without]
    return key.sign({"typ": "dpop+jwt", "alg": key.alg, "jwk": key.jwk} | (header or {}), payload)


def ath(access_token: str) -> str:
    """RFC 9449 section 4.2."""
    return b64url(hashlib.sha256(access_token.encode()).digest())


def other_signature(proof: str) -> str:
    """The same header and claims, signed by somebody else."""
    signed, _, _ = proof.rpartition(".")
    return f"{signed}.{b64url(secrets.token_bytes(64))}"


def encoded(value: dict[str, Any]) -> str:
    return b64url(json.dumps(value, separators=(",", ":")).encode())


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
