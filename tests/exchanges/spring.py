"""Spring Security, Authorization Server and resource server: measured on a run, or read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.exchanges.api import Issuer
from tests.exchanges.exchange import Curl, Exchange, Keys
from tests.exchanges.played import Played, Response, played
from tests.exchanges.proofs import Key, other_signature, proof

SERVER = "Spring Security 7.0.6"
VERIFIER = "spring-projects/spring-security: oauth2/…/authentication/DPoPProofVerifier.java"
PROVIDER = (
    "spring-projects/spring-security: oauth2/…/authentication/DPoPAuthenticationProvider.java"
)
CONVERTER = (
    "spring-projects/spring-security: oauth2/…/authentication/DPoPAuthenticationConverter.java"
)
FILTER = "spring-projects/spring-security: oauth2/…/web/…/BearerTokenAuthenticationFilter.java"
DENIED = "spring-projects/spring-security: oauth2/…/web/access/BearerTokenAccessDeniedHandler.java"
MEASURED = "a run of Spring Security 7.0.6"

ALWAYS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-XSS-Protection", "0"),
    ("Cache-Control", "no-cache, no-store, max-age=0, must-revalidate"),
    ("Pragma", "no-cache"),
    ("Expires", "0"),
    ("X-Frame-Options", "DENY"),
    ("Date", ""),
]
ALGS = "RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512"
RFC6750 = "https://tools.ietf.org/html/rfc6750#section-3.1"
FORM = {"grant_type": "client_credentials", "client_id": "app", "client_secret": "not-much"}


def exchanges(folder: Path, keys: Keys, curl: Curl) -> Iterator[Exchange]:
    with played(folder, "spring.example", curl, ALWAYS) as server:
        yield from at_the_token_endpoint(server, Issuer(), keys)
    with played(folder, "api.example", curl, ALWAYS) as server:
        yield from at_the_api(server, Issuer(), keys)


def read(name: str, cause: str | None, note: str, output: str, source: str) -> Exchange:
    return Exchange(name, cause, note, output, source=source, measured=source == MEASURED)


def at_the_token_endpoint(server: Played, issuer: Issuer, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, f"{server.origin}/oauth2/token"
    refused = Response("400 Bad Request", {"error": "invalid_dpop_proof"})  # it says no more

    def ask(*values: str, answer: Response = refused) -> str:
        return server(answer, "POST", uri, [("DPoP", value) for value in values], form=FORM)

    def signed(made: Key = key, **wrong: Any) -> str:
        return proof(made, wrong.pop("htm", "POST"), wrong.pop("htu", uri), **wrong)

    yield read(
        "token-htu-scheme",
        "htu_mismatch",
        "htu is http, as the server believes behind its proxy, and isn't the request's",
        ask(signed(htu=uri.replace("https:", "http:"))),
        MEASURED,
    )
    yield read(
        "token-htm", "htm_mismatch", "htm is GET in a POST", ask(signed(htm="GET")), VERIFIER
    )
    yield read(
        "token-iat-old", "iat_old", "iat is two minutes old", ask(signed(age_s=120)), VERIFIER
    )
    yield read(
        "token-iat-ahead",
        "iat_ahead",
        "iat is two minutes ahead",
        ask(signed(age_s=-120)),
        VERIFIER,
    )
    yield read(
        "token-without-jti",
        "proof_malformed",
        "the proof has no jti",
        ask(signed(without="jti")),
        VERIFIER,
    )
    yield read(
        "token-signature",
        "proof_signature",
        "64 random bytes for a signature",
        ask(other_signature(signed())),
        VERIFIER,
    )
    granted = Response(
        "200 OK",
        {
            "access_token": issuer.access_token(key),
            "token_type": "DPoP",
            "expires_in": 299,
        },
    )
    value = signed()
    yield read(
        "token-replay",
        "jti_seen",
        "the same proof twice, in one output",
        ask(value, answer=granted) + ask(value),
        MEASURED,
    )
    yield read(
        "good-token", None, "an access token, bound", ask(signed(), answer=granted), MEASURED
    )
    userinfo, token = f"{server.origin}/userinfo", issuer.access_token(key)
    value = proof(key, "GET", userinfo, access_token=token)
    yield read(
        "userinfo-dead-token",
        "access_token_invalid",
        "a revoked access token, and no WWW-Authenticate",
        server(
            Response("401 Unauthorized", {"error": "invalid_token"}),
            "GET",
            userinfo,
            [("Authorization", f"DPoP {token}"), ("DPoP", value)],
        ),
        MEASURED,
    )


def at_the_api(server: Played, issuer: Issuer, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, f"{server.origin}/orders"
    token = issuer.access_token(key)

    def challenge(scheme: str, status: str = "401 Unauthorized", **said: str) -> Response:
        parameters = ", ".join(f'{name}="{text}"' for name, text in said.items())
        return Response(status, None, [("WWW-Authenticate", f"{scheme} {parameters}")])

    refused = challenge("DPoP", error="invalid_dpop_proof", algs=ALGS)

    def get(
        *values: str, answer: Response = refused, token: str = token, scheme: str = "DPoP"
    ) -> str:
        headers = [("Authorization", f"{scheme} {token}"), *(("DPoP", value) for value in values)]
        return server(answer, "GET", uri, headers)

    def signed(made: Key = key, **wrong: Any) -> str:
        htm, htu = wrong.pop("htm", "GET"), wrong.pop("htu", uri)
        return proof(made, htm, htu, **{"access_token": token, **wrong})

    missing = challenge(
        "DPoP",
        error="invalid_request",
        error_description="DPoP proof is missing or invalid.",
        algs=ALGS,
    )
    yield read(
        "api-without-proof",
        "no_proof",
        "the access token alone",
        get(answer=missing),
        CONVERTER,
    )
    yield read(
        "api-two-proofs",
        "several_proofs",
        "two DPoP headers",
        get(signed(), signed(), answer=missing),
        CONVERTER,
    )
    yield read(
        "api-as-bearer",
        "scheme_bearer",
        "a bound access token as if it were a Bearer one",
        get(
            scheme="Bearer",
            answer=challenge(
                "Bearer",
                error="invalid_token",
                error_description="Invalid bearer token",
                error_uri=RFC6750,
            ),
        ),
        FILTER,
    )
    yield read("api-alg", "alg_not_accepted", "EdDSA", get(signed(Key("EdDSA"))), MEASURED)
    yield read(
        "api-htu-query",
        "htu_mismatch",
        "htu has a query",
        get(signed(htu=f"{uri}?page=2")),
        PROVIDER,
    )
    yield read(
        "api-htu-proxy",
        "htu_mismatch",
        "htu is http, the request https",
        get(signed(htu=uri.replace("https:", "http:"))),
        MEASURED,
    )
    yield read(
        "api-ath-missing",
        "ath_missing",
        "the proof has no ath",
        get(signed(access_token=None)),
        PROVIDER,
    )
    yield read(
        "api-ath-mismatch",
        "ath_mismatch",
        "the proof's ath is another access token's",
        get(signed(access_token=issuer.access_token(key, jti="another"))),
        PROVIDER,
    )
    theirs = issuer.access_token(keys.stranger)
    yield read(
        "api-of-a-stranger-key",
        "access_token_of_another_key",
        "an access token of a key that the agent doesn't know",
        get(signed(access_token=theirs), token=theirs),
        PROVIDER,
    )
    plain = issuer.access_token(None)
    yield read(
        "api-not-bound",
        "access_token_not_bound",
        "an access token without cnf",
        get(signed(access_token=plain), token=plain),
        PROVIDER,
    )
    ended = int(time.time()) - 600
    expired = issuer.access_token(key, exp=ended)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ended))
    yield read(
        "api-expired",
        "access_token_invalid",
        "an access token that has run out",
        get(
            signed(access_token=expired),
            token=expired,
            answer=challenge(
                "DPoP",
                error="invalid_token",
                error_description=(
                    f"An error occurred while attempting to decode the Jwt: Jwt expired at {at}"
                ),
                error_uri=RFC6750,
                algs=ALGS,
            ),
        ),
        PROVIDER,
    )
    yield read(
        "api-scope",
        "scope",
        "an access token without the scope that it takes",
        get(
            signed(),
            answer=challenge(
                "Bearer",
                "403 Forbidden",
                error="insufficient_scope",
                error_description=(
                    "The request requires higher privileges than provided by the access token."
                ),
                error_uri=RFC6750,
            ),
        ),
        DENIED,
    )
    yield read("good-api", None, "200", get(signed(), answer=Response("200 OK", [])), MEASURED)
