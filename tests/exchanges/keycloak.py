"""Keycloak: some of it measured on a run, the rest read in its source."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.exchanges.api import Issuer
from tests.exchanges.exchange import Curl, Exchange, Keys
from tests.exchanges.played import Played, Response, played
from tests.exchanges.proofs import Key, ath, other_signature, proof

SERVER = "Keycloak 26.7.3"
SOURCE = "keycloak/keycloak: services/…/services/util/DPoPUtil.java"
USERINFO = "keycloak/keycloak: services/…/oidc/endpoints/UserInfoEndpoint.java"
REFRESH = "keycloak/keycloak: services/…/protocol/oidc/TokenManager.java"
MEASURED = "a run of Keycloak 26.7.3"

ALWAYS = [
    ("Cache-Control", "no-store"),
    ("Pragma", "no-cache"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]  # no Date
PROXIED = [("Server", "nginx"), ("Date", ""), *ALWAYS]

HOST = "keycloak.example"
REALM = "/realms/demo"
OPENID = f"{REALM}/protocol/openid-connect"
REDIRECT = "http://127.0.0.1/callback"


def exchanges(folder: Path, keys: Keys, curl: Curl) -> Iterator[Exchange]:
    issuer = Issuer()
    with played(folder, HOST, curl, ALWAYS) as server:
        yield from at_the_token_endpoint(server, issuer, keys)
        yield from of_grants(server, issuer, keys)
        yield from at_userinfo(server, issuer, keys)
    with played(folder, HOST, curl, PROXIED) as server:
        yield from about_time(server, keys)


def refused(description: str) -> Response:
    """How its token endpoint refuses a proof."""
    return Response(
        "400 Bad Request", {"error": "invalid_request", "error_description": description}
    )


def code_request() -> dict[str, str]:
    """The form of a public client."""
    return {
        "client_id": "app",
        "grant_type": "authorization_code",
        "code": f"{ath(str(time.time_ns()))}.e2f1.5c1d",
        "code_verifier": ath("a verifier"),
        "redirect_uri": REDIRECT,
    }


def at_the_token_endpoint(server: Played, issuer: Issuer, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, f"{server.origin}{OPENID}/token"

    def signed(made: Key = key, **wrong: Any) -> tuple[str, str]:
        return "DPoP", proof(made, wrong.pop("htm", "POST"), wrong.pop("htu", uri), **wrong)

    def ask(description: str, *values: tuple[str, str]) -> str:
        return server(refused(description), "POST", uri, values, form=code_request())

    def read(name: str, cause: str, note: str, output: str, source: str = SOURCE) -> Exchange:
        return Exchange(name, cause, note, output, source=source, measured=source == MEASURED)

    yield read(
        "token-without-proof",
        "no_proof",
        "a token request without a proof, of a client that needs one",
        ask("DPoP proof is missing"),
    )
    yield read(
        "token-typ",
        "proof_malformed",
        "the header's typ is JWT",
        ask("Invalid or missing type in DPoP header: JWT", signed(header={"typ": "JWT"})),
    )
    yield read(
        "token-without-jti",
        "proof_malformed",
        "the proof has no jti",
        ask("DPoP mandatory claims are missing", signed(without="jti")),
    )
    invalid = "org.keycloak.exceptions.TokenSignatureInvalidException: Invalid token signature"
    yield read(
        "token-signature",
        "proof_signature",
        "64 random bytes for a signature",
        ask(f"DPoP verification failure: {invalid}", ("DPoP", other_signature(signed()[1]))),
    )
    yield read(
        "token-alg",
        "alg_not_accepted",
        "an algorithm of shared secrets",
        ask("Unsupported DPoP algorithm: HS256", signed(header={"alg": "HS256"})),
        MEASURED,
    )
    yield read(
        "token-htm",
        "htm_mismatch",
        "htm is GET in a POST",
        ask("DPoP HTTP method mismatch", signed(htm="GET")),
    )
    inside = f"http://keycloak:8080{OPENID}/token"
    yield read(
        "token-htu-inside",
        "htu_mismatch",
        "htu is the address behind the proxy",
        ask("DPoP HTTP URL mismatch", signed(htu=inside)),
        MEASURED,
    )
    yield read(
        "token-htu-base-path",
        "htu_mismatch",
        "htu has the base path /auth of old releases",
        ask("DPoP HTTP URL mismatch", signed(htu=f"{server.origin}/auth{OPENID}/token")),
        MEASURED,
    )
    yield read(
        "token-htu-proxy",
        "htu_mismatch",
        "htu is right, but the server, behind its proxy, believes in http",
        ask("DPoP HTTP URL mismatch", signed()),
        MEASURED,
    )
    yield read(
        "token-replay",
        "jti_seen",
        "a proof sent a second time",
        ask("DPoP proof has already been used", signed()),
        MEASURED,
    )
    yield read(
        "token-server-error",
        "server_error",
        "iat is exactly 25 s old",
        server(
            Response(
                "500 Internal Server Error",
                {
                    "error": "unknown_error",
                    "error_description": "For more on this error consult the server log.",
                },
            ),
            "POST",
            uri,
            [signed(age_s=25)],
            form=code_request(),
        ),
        MEASURED,
    )


def of_grants(server: Played, issuer: Issuer, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, f"{server.origin}{OPENID}/token"
    value = ("DPoP", proof(key, "POST", uri))
    yield Exchange(
        "token-of-another-key",
        "code_of_another_key",
        "the code's dpop_jkt is another key's",
        server(
            refused("DPoP Proof public key thumbprint does not match dpop_jkt"),
            "POST",
            uri,
            [value],
            form=code_request(),
        ),
        source=SOURCE,
    )
    bound = issuer.access_token(keys.draining, typ="Refresh", iss=f"{server.origin}{REALM}")
    refresh = {"client_id": "app", "grant_type": "refresh_token", "refresh_token": bound}
    mismatch = "DPoP confirmation doesn't match DPoP proof"
    yield Exchange(
        "refresh-of-another-key",
        "refresh_token_of_another_key",
        "a public client's refresh token, bound to the generation before",
        server(
            Response("400 Bad Request", {"error": "invalid_grant", "error_description": mismatch}),
            "POST",
            uri,
            [value],
            form=refresh,
            traced=True,
        ),
        source=REFRESH,
    )
    granted = {
        "access_token": issuer.access_token(key, typ="DPoP", iss=f"{server.origin}{REALM}"),
        "expires_in": 300,
        "refresh_expires_in": 1800,
        "token_type": "DPoP",
        "not-before-policy": 0,
        "scope": "openid",
    }
    form = code_request()
    for name, cause, note, kind in (
        ("good-token", None, "an access token, bound", "DPoP"),
        (
            "token-bearer",
            "token_type_bearer",
            "DPoP is off in this realm, and the proof is ignored",
            "Bearer",
        ),
    ):
        body = {**granted, "token_type": kind}
        if cause:
            body["access_token"] = issuer.access_token(None, typ="Bearer")
        output = server(Response("200 OK", body), "POST", uri, [value], form=form)
        yield Exchange(name, cause, note, output, source=SOURCE)


def at_userinfo(server: Played, issuer: Issuer, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, f"{server.origin}{OPENID}/userinfo"
    said = {"error": "invalid_token", "error_description": "Token verification failed"}

    def token(bound: Key | None, **claims: Any) -> str:
        typ = "DPoP" if bound else "Bearer"
        return issuer.access_token(bound, typ=typ, iss=f"{server.origin}{REALM}", **claims)

    def get(access_token: str, value: str | None, scheme: str = "DPoP") -> str:
        challenge = f'{scheme} realm="demo", ' + ", ".join(
            f'{name}="{text}"' for name, text in said.items()
        )
        headers = [("Authorization", f"{scheme} {access_token}")]
        return server(
            Response("401 Unauthorized", said, [("WWW-Authenticate", challenge)]),
            "GET",
            uri,
            [*headers, ("DPoP", value)] if value else headers,
        )

    def read(name: str, cause: str, note: str, output: str, *, measured: bool = False) -> Exchange:
        source = MEASURED if measured else USERINFO
        return Exchange(name, cause, note, output, source=source, measured=measured)

    mine = token(key)
    yield read("userinfo-without-proof", "no_proof", "the access token alone", get(mine, None))
    yield read(
        "userinfo-as-bearer",
        "scheme_bearer",
        "a bound access token as if it were a Bearer one",
        get(mine, None, "Bearer"),
    )
    yield read(
        "userinfo-ath-missing",
        "ath_missing",
        "the proof has no ath",
        get(mine, proof(key, "GET", uri)),
    )
    yield read(
        "userinfo-ath-mismatch",
        "ath_mismatch",
        "the proof's ath is another access token's",
        get(mine, proof(key, "GET", uri, access_token=token(key, jti="another"))),
    )
    theirs = token(keys.destroyed)
    yield read(
        "userinfo-of-a-destroyed-key",
        "access_token_of_another_key",
        "an access token of a generation that is destroyed",
        get(theirs, proof(key, "GET", uri, access_token=theirs)),
        measured=True,
    )
    plain = token(None)
    yield read(
        "userinfo-not-bound",
        "access_token_not_bound",
        "an access token without cnf, by the scheme DPoP",
        get(plain, proof(key, "GET", uri, access_token=plain)),
    )
    old = token(key, iat=int(time.time()) - 3600, exp=int(time.time()) - 3300)
    yield read(
        "userinfo-expired",
        "access_token_invalid",
        "an access token that has run out",
        get(old, proof(key, "GET", uri, access_token=old)),
        measured=True,
    )
    headers = [
        ("Authorization", f"DPoP {mine}"),
        ("DPoP", proof(key, "GET", uri, access_token=mine)),
    ]
    yield Exchange(
        "good-userinfo",
        None,
        "userinfo",
        server(Response("200 OK", {"sub": "alice"}), "GET", uri, headers),
        source=USERINFO,
    )


def about_time(server: Played, keys: Keys) -> Iterator[Exchange]:
    uri = f"{server.origin}{OPENID}/token"
    for name, cause, age_s in (("old", "iat_old", 120), ("ahead", "iat_ahead", -120)):
        value = ("DPoP", proof(keys.active, "POST", uri, age_s=age_s))
        yield Exchange(
            f"token-iat-{name}",
            cause,
            f"iat is two minutes {name}; the Date is the proxy's, Keycloak sends none",
            server(refused("DPoP proof is not active"), "POST", uri, [value], form=code_request()),
            source=MEASURED,
            measured=True,
        )
