"""A Bluesky PDS, run here."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from tests.agent.places import until
from tests.exchanges.exchange import APPS, Curl, Exchange, Keys, header
from tests.exchanges.played import Played, Response, played
from tests.exchanges.proofs import Key, ath, other_signature, proof
from tests.processes import NodeServer
from tests.servers import node

SERVER = "@atproto/pds 0.5.35, @atproto/oauth-provider 0.22.9"

REDIRECT = "http://127.0.0.1/callback"
SCOPE = "atproto transition:generic"
CLIENT = "http://localhost?" + urlencode({"redirect_uri": REDIRECT, "scope": SCOPE})


def exchanges(folder: Path, keys: Keys, curl: Curl) -> Iterator[Exchange]:
    node.install(APPS / "bluesky")
    bind_local, script = node.HERE / "bind_local.mjs", APPS / "bluesky.mjs"
    command: list[str | Path] = [
        node.node(),
        "--import",
        bind_local,
        script,
        node.packages(APPS / "bluesky"),
        folder,
    ]
    server = NodeServer(command, log=folder / "bluesky.log")
    try:
        pds = Pds(server, curl)
        yield from at_the_authorization_server(pds, keys)
        yield from of_refresh_tokens(pds, keys)
        yield from at_xrpc(pds, keys)
        yield from late(pds, keys)
    finally:
        server.close()
    with played(folder, "pds.example", curl, [("Date", "")]) as read:
        yield one_key_for_both(read, keys)


def one_key_for_both(server: Played, keys: Keys) -> Exchange:
    """Wants a client whose metadata are on the web, and so wasn't run."""
    client, uri = "https://app.example/client-metadata.json", f"{server.origin}/oauth/par"
    now = int(time.time())
    claims = {"iss": client, "sub": client, "aud": server.origin, "iat": now, "jti": ath(str(now))}
    form = {
        "client_id": client,
        "response_type": "code",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": keys.active.sign({"alg": "ES256", "kid": "app"}, claims),
    }
    said = "The DPoP proof must be signed with a different key than the client assertion"
    refused = Response(
        "400 Bad Request",
        {"error": "invalid_request", "error_description": said},
        [("DPoP-Nonce", "Nf8V4mTqY2sJxw1cQdZb7LkR0hEuG3pA9oWi6nXtC5M")],
    )
    value = proof(keys.active, "POST", uri, nonce="Nf8V4mTqY2sJxw1cQdZb7LkR0hEuG3pA9oWi6nXtC5M")
    return Exchange(
        "par-one-key-for-both",
        "assertion_key",
        "the client assertion and the proof are by the same key",
        server(refused, "POST", uri, [("DPoP", value)], form=form, traced=True),
        source="@atproto/oauth-provider 0.22.9: oauth-provider.js",
    )


class Pds:
    """It, its access tokens, and curl to it."""

    def __init__(self, server: NodeServer, curl: Curl) -> None:
        self.server = server
        self.origin = f"http://localhost:{server.port}"
        self.par, self.token = f"{self.origin}/oauth/par", f"{self.origin}/oauth/token"
        self.session = f"{self.origin}/xrpc/com.atproto.server.getSession"
        self._curl = curl

    def nonce(self) -> str:
        return str(httpx.post(self.token).headers["DPoP-Nonce"])

    def ask(self, uri: str, form: dict[str, str], *values: str, traced: bool = False) -> str:
        """A request to the authorization server."""
        headers = [("DPoP", value) for value in values]
        return self._curl("POST", uri, headers, "--ipv4", form=form, traced=traced)

    def get(self, token: str, *values: str, scheme: str = "DPoP", uri: str | None = None) -> str:
        """A request to the resource."""
        headers = [("Authorization", f"{scheme} {token}"), *(("DPoP", value) for value in values)]
        return self._curl("GET", uri or self.session, headers, "--ipv4")

    def pushed(self, verifier: str = "v" * 43, **more: str) -> dict[str, str]:
        """A pushed authorization request."""
        return {
            "client_id": CLIENT,
            "response_type": "code",
            "redirect_uri": REDIRECT,
            "scope": SCOPE,
            "state": "any",
            "code_challenge": ath(verifier),
            "code_challenge_method": "S256",
            **more,
        }

    def code(self, key: Key) -> dict[str, str]:
        """The token request for a code that is bound to this key, once alice has logged in."""
        verifier = secrets.token_urlsafe(48)
        headers = {"DPoP": proof(key, "POST", self.par, nonce=self.nonce())}
        pushed = httpx.post(self.par, data=self.pushed(verifier), headers=headers)
        uri = pushed.json()["request_uri"]
        return {
            "client_id": CLIENT,
            "grant_type": "authorization_code",
            "code": self._log_in(uri),
            "code_verifier": verifier,
            "redirect_uri": REDIRECT,
        }

    def grant(self, key: Key) -> dict[str, Any]:
        """A token response."""
        headers = {"DPoP": proof(key, "POST", self.token, nonce=self.nonce())}
        response = httpx.post(self.token, data=self.code(key), headers=headers)
        found: dict[str, Any] = response.raise_for_status().json()
        return found

    def _log_in(self, request_uri: str) -> str:
        """What alice does in her browser; the code."""
        query = urlencode({"client_id": CLIENT, "request_uri": request_uri})
        page = f"{self.origin}/oauth/authorize?{query}"
        navigating = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        shown = httpx.get(page, headers={**navigating, "Sec-Fetch-Site": "none"})
        cookies = dict(shown.raise_for_status().cookies)

        def post(name: str, body: dict[str, Any], **more: str) -> dict[str, Any]:
            response = httpx.post(
                f"{self.origin}/@atproto/oauth-provider/~api/{name}",
                json=body,
                headers={
                    "Origin": self.origin,
                    "Referer": page,
                    "Sec-Fetch-Mode": "same-origin",
                    "Sec-Fetch-Site": "same-origin",
                    "X-CSRF-Token": cookies["csrf-token"],
                    "Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items()),
                    **more,
                },
            )
            cookies.update(response.cookies)
            found: dict[str, Any] = response.raise_for_status().json()
            return found

        signed_in = post(
            "sign-in",
            {"locale": "en", "username": "alice.test", "password": "any-will-do", "remember": True},
        )
        answer = post("consent", {"did": signed_in["account"]["did"], "scope": SCOPE})
        return parse_qs(urlsplit(str(answer["url"])).query)["code"][0]


def at_the_authorization_server(pds: Pds, keys: Keys) -> Iterator[Exchange]:
    key, uri, form = keys.active, pds.par, pds.pushed()
    nonce = pds.nonce()

    def signed(made: Key = key, **wrong: Any) -> str:
        return proof(
            made, wrong.pop("htm", "POST"), wrong.pop("htu", uri), **{"nonce": nonce, **wrong}
        )

    yield Exchange(
        "par-nonce-missing",
        "nonce_missing",
        "no nonce, and nobody answers the challenge",
        pds.ask(uri, form, signed(nonce=None)),
    )
    yield Exchange(
        "par-two-proofs",
        "several_proofs",
        "two DPoP headers",
        pds.ask(uri, form, signed(), signed()),
    )
    yield Exchange(
        "par-typ",
        "proof_malformed",
        "the header's typ is JWT",
        pds.ask(uri, form, signed(header={"typ": "JWT"})),
    )
    yield Exchange(
        "par-without-iat",
        "proof_malformed",
        "the proof has no iat",
        pds.ask(uri, form, signed(without="iat")),
    )
    yield Exchange(
        "par-signature",
        "proof_signature",
        "64 random bytes for a signature",
        pds.ask(uri, form, other_signature(signed())),
    )
    yield Exchange(
        "par-htm", "htm_mismatch", "htm is GET in a POST", pds.ask(uri, form, signed(htm="GET"))
    )
    yield Exchange(
        "par-htu",
        "htu_mismatch",
        "htu is the token endpoint's",
        pds.ask(uri, form, signed(htu=pds.token)),
    )
    numbered = uri.replace("localhost", "127.0.0.1")
    yield Exchange(
        "par-htu-host",
        "htu_mismatch",
        "the request and htu say 127.0.0.1, the server knows itself as localhost",
        pds.ask(numbered, form, signed(htu=numbered)),
    )
    yield Exchange(
        "par-ath",
        "ath_unexpected",
        "the proof has an ath, and no access token goes along",
        pds.ask(uri, form, signed(access_token="any")),
    )
    yield Exchange(
        "par-iat-old", "iat_old", "iat is 15 minutes old", pds.ask(uri, form, signed(age_s=900))
    )
    yield Exchange(
        "par-iat-ahead",
        "iat_ahead",
        "iat is 15 minutes ahead",
        pds.ask(uri, form, signed(age_s=-900)),
    )
    used = signed()
    pds.ask(uri, form, used)
    yield Exchange("par-replay", "jti_seen", "a proof sent a second time", pds.ask(uri, form, used))
    yield Exchange(
        "par-of-another-key",
        "code_of_another_key",
        "a pushed request whose dpop_jkt isn't its proof's key",
        pds.ask(uri, pds.pushed(dpop_jkt=keys.other.jkt), signed(), traced=True),
    )
    yield Exchange("good-par", None, "a pushed request, 201", pds.ask(uri, form, signed()))
    uri = pds.token
    code = pds.code(key)
    yield Exchange(
        "token-of-another-key",
        "code_of_another_key",
        "the code's dpop_jkt is another key's",
        pds.ask(uri, code, signed(keys.other, htu=uri), traced=True),
    )
    yield Exchange(
        "token-without-proof",
        "no_proof",
        "a token request without a proof",
        pds.ask(uri, pds.code(key)),
    )
    yield Exchange(
        "good-token", None, "an access token, bound", pds.ask(uri, pds.code(key), signed(htu=uri))
    )


def of_refresh_tokens(pds: Pds, keys: Keys) -> Iterator[Exchange]:
    for key, name, cause, note in (
        (keys.draining, "good-refresh", None, "a refresh token with its own key"),
        (
            keys.active,
            "refresh-of-another-key",
            "refresh_token_of_another_key",
            "a refresh token that is bound to the generation before; the whole session ends",
        ),
    ):
        form = {
            "client_id": CLIENT,
            "grant_type": "refresh_token",
            "refresh_token": pds.grant(keys.draining)["refresh_token"],
        }
        value = proof(key, "POST", pds.token, nonce=pds.nonce())
        yield Exchange(name, cause, note, pds.ask(pds.token, form, value, traced=True))


def at_xrpc(pds: Pds, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, pds.session
    nonce, token = pds.nonce(), pds.grant(key)["access_token"]

    def signed(made: Key = key, **wrong: Any) -> str:
        return proof(made, "GET", uri, **{"nonce": nonce, "access_token": token, **wrong})

    yield Exchange("xrpc-without-proof", "no_proof", "the access token alone", pds.get(token))
    yield Exchange(
        "xrpc-as-bearer",
        "scheme_bearer",
        "a bound access token as if it were a Bearer one",
        pds.get(token, scheme="Bearer"),
    )
    yield Exchange(
        "xrpc-nonce-missing", "nonce_missing", "no nonce", pds.get(token, signed(nonce=None))
    )
    yield Exchange(
        "xrpc-ath-missing",
        "ath_missing",
        "the proof has no ath",
        pds.get(token, signed(access_token=None)),
    )
    yield Exchange(
        "xrpc-ath-mismatch",
        "ath_mismatch",
        "the proof's ath is another access token's",
        pds.get(token, signed(access_token="another")),
    )
    yield Exchange(
        "xrpc-of-another-key",
        "access_token_of_another_key",
        "the proof is another key's than the access token",
        pds.get(token, signed(keys.other)),
    )
    yield Exchange("good-xrpc", None, "alice's session", pds.get(token, signed()))


def late(pds: Pds, keys: Keys) -> Iterator[Exchange]:
    key = keys.active
    nonce, token = pds.nonce(), pds.grant(key)["access_token"]
    pds.server.tell("400")
    until(lambda: "clock 400" in pds.server.log)
    value = proof(key, "GET", pds.session, nonce=nonce, access_token=token)
    first = pds.get(token, value)
    yield Exchange(
        "xrpc-nonce-stale", "nonce_stale", "the server's nonce of seven minutes ago", first
    )
    fresh = header(first, "DPoP-Nonce")
    value = proof(key, "GET", pds.session, nonce=fresh, access_token=token)
    second = pds.get(token, value)
    yield Exchange("good-xrpc-retry", None, "a stale nonce, then the fresh one", first + second)
    pds.server.tell("7200")
    until(lambda: "clock 7600" in pds.server.log)
    value = proof(key, "GET", pds.session, nonce=pds.nonce(), access_token=token)
    yield Exchange(
        "xrpc-expired",
        "access_token_invalid",
        "an access token two hours after it was made",
        pds.get(token, value),
    )
