"""Okta, read in its guide, in its support's articles and in reports to its libraries."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.exchanges.api import Issuer
from tests.exchanges.exchange import Curl, Exchange, Keys
from tests.exchanges.played import Played, Response, played
from tests.exchanges.proofs import proof

SERVER = "Okta"
GUIDE = 'Okta\'s guide "Configure OAuth 2.0 Demonstrating Proof-of-Possession"'
SUPPORT = 'Okta\'s support article "The DPoP Proof JWT Header Is Missing"'
PARSED = "okta/okta-sdk-dotnet, issue 758"
HTU = "okta/okta-sdk-nodejs, issue 453"
ESCAPED = "okta/okta-sdk-python, issue 541"
REPLAYED = "okta/terraform-provider-okta, issue 2392"

HOST = "acme.okta.example"
ALWAYS = [
    ("Date", ""),
    ("Server", "nginx"),
    ("Cache-Control", "no-cache, no-store"),
    ("Pragma", "no-cache"),
    ("X-Content-Type-Options", "nosniff"),
    ("Strict-Transport-Security", "max-age=315360000; includeSubDomains"),
]
FORM = {
    "grant_type": "client_credentials",
    "scope": "okta.users.read",
    "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
}


def exchanges(folder: Path, keys: Keys, curl: Curl) -> Iterator[Exchange]:
    with played(folder, HOST, curl, ALWAYS) as server:
        yield from at_the_token_endpoint(server, keys)
        yield from at_the_api(server, keys)


def at_the_token_endpoint(server: Played, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, f"{server.origin}/oauth2/v1/token"

    def said(error: str, description: str, *headers: tuple[str, str]) -> Response:
        return Response(
            "400 Bad Request", {"error": error, "error_description": description}, headers
        )

    def ask(answer: Response, *values: str) -> str:
        return server(answer, "POST", uri, [("DPoP", value) for value in values], form=FORM)

    yield Exchange(
        "token-without-proof",
        "no_proof",
        "a token request without a proof",
        ask(said("invalid_dpop_proof", "The DPoP proof JWT header is missing.")),
        source=SUPPORT,
    )
    yield Exchange(
        "token-malformed",
        "proof_malformed",
        "two parts instead of three",
        ask(
            said("invalid_dpop_proof", "DPoP proof JWT cannot be parsed."),
            proof(key, "POST", uri).rpartition(".")[0],
        ),
        source=PARSED,
    )
    nonce = secrets.token_urlsafe(24)
    challenge = said(
        "use_dpop_nonce",
        "Authorization server requires nonce in DPoP proof.",
        ("DPoP-Nonce", nonce),
    )
    yield Exchange(
        "token-nonce-missing",
        "nonce_missing",
        "no nonce, and nobody answers the challenge",
        ask(challenge, proof(key, "POST", uri)),
        source=GUIDE,
    )
    granted = {
        "token_type": "DPoP",
        "expires_in": 3600,
        "access_token": Issuer().access_token(key, iss=server.origin),
        "scope": "okta.users.read",
    }
    yield Exchange(
        "good-token-retry",
        None,
        "a challenge, and the same request with its nonce",
        ask(challenge, proof(key, "POST", uri))
        + ask(Response("200 OK", granted), proof(key, "POST", uri, nonce=nonce)),
        source=GUIDE,
    )


def at_the_api(server: Played, keys: Keys) -> Iterator[Exchange]:
    key, issuer = keys.active, Issuer()
    token = issuer.access_token(key, iss=server.origin)

    def refused(description: str, resource: str) -> Response:
        parameters = {
            "algs": "RS256 RS384 RS512 ES256 ES384 ES512",
            "authorization_uri": f"http://{HOST}/oauth2/v1/authorize",
            "realm": f"http://{HOST}",
            "scope": "okta.users.read",
            "error": "invalid_dpop_proof",
            "error_description": description,
            "resource": resource,
        }
        value = "DPoP " + ", ".join(f'{name}="{text}"' for name, text in parameters.items())
        return Response("400 Bad Request", None, [("WWW-Authenticate", value)])

    def get(answer: Response, path: str, **wrong: Any) -> str:
        uri = f"{server.origin}{path}"
        value = proof(key, "GET", wrong.pop("htu", uri), access_token=token, **wrong)
        return server(answer, "GET", uri, [("Authorization", f"DPoP {token}"), ("DPoP", value)])

    invalid = "'htu' claim in the DPoP proof JWT is invalid."
    listing = f"{server.origin}/api/v1/users?limit=2"
    yield Exchange(
        "api-htu-query",
        "htu_mismatch",
        "htu has the query",
        get(refused(invalid, "/api/v1/users"), "/api/v1/users?limit=2", htu=listing),
        source=HTU,
    )
    user = "/api/v1/users/alice%40example.com"
    yield Exchange(
        "api-htu-escape",
        "htu_mismatch",
        "the path has an escape, which the server decodes before it compares",
        get(refused(invalid, "/api/v1/users/alice@example.com"), user),
        source=ESCAPED,
    )
    value = proof(key, "GET", f"{server.origin}/api/v1/users", access_token=token)
    headers = [("Authorization", f"DPoP {token}"), ("DPoP", value)]
    used = "The DPoP proof JWT has already been used."
    busy = Response("429 Too Many Requests", None, [("X-Rate-Limit-Remaining", "0")])
    uri = f"{server.origin}/api/v1/users"
    yield Exchange(
        "api-replay",
        "jti_seen",
        "429, and the same request with the same proof",
        server(busy, "GET", uri, headers)
        + server(refused(used, "/api/v1/users"), "GET", uri, headers),
        source=REPLAYED,
    )
    yield Exchange(
        "good-api", None, "200", get(Response("200 OK", []), "/api/v1/users"), source=GUIDE
    )
