"""better-auth's provider of OAuth, run here."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from tests.exchanges.exchange import APPS, Curl, Exchange, Keys
from tests.exchanges.proofs import Key, ath, other_signature, proof
from tests.processes import NodeServer
from tests.servers import node

SERVER = "better-auth 1.7.5, @better-auth/oauth-provider 1.7.5"
SCRIPT = APPS / "better_auth.mjs"
REDIRECT = "http://127.0.0.1/callback"


def exchanges(folder: Path, keys: Keys, curl: Curl) -> Iterator[Exchange]:
    registered = Key()
    public = {**registered.jwk, "alg": "ES256", "kid": "client"}
    command: list[str | Path] = [node.node(), SCRIPT, node.packages(), json.dumps(public)]
    server = NodeServer(command, log=folder / "better-auth.log")
    try:
        auth = Auth(server, curl)
        yield from at_the_token_endpoint(auth, keys)
        yield from of_assertions(auth, keys)
        yield from at_userinfo(auth, keys)
    finally:
        server.close()


class Auth:
    """It, its access tokens, and curl to it."""

    def __init__(self, server: NodeServer, curl: Curl) -> None:
        self.origin = server.origin
        self.at = f"{server.origin}/api/auth"
        self.token, self.userinfo = f"{self.at}/oauth2/token", f"{self.at}/oauth2/userinfo"
        found = re.search("^clients (.*)$", server.log, re.MULTILINE)
        assert found, server.log
        self.clients: dict[str, str] = json.loads(found[1])
        self._curl = curl
        account = {"email": "alice@example.com", "password": "any-will-do"}
        origin = {"Origin": self.origin}
        signed_in = httpx.post(f"{self.at}/sign-in/email", json=account, headers=origin)
        self._cookies = signed_in.raise_for_status().cookies

    def ask(self, form: dict[str, str], *values: str, traced: bool = False) -> str:
        """A token request."""
        headers = [("DPoP", value) for value in values]
        return self._curl("POST", self.token, headers, form=form, traced=traced)

    def get(self, token: str, *values: str, scheme: str = "DPoP") -> str:
        """A request to userinfo."""
        headers = [("Authorization", f"{scheme} {token}"), *(("DPoP", value) for value in values)]
        return self._curl("GET", self.userinfo, headers)

    def code(
        self, key: Key | None, client: str = "native", scope: str = "openid"
    ) -> dict[str, str]:
        """The token request for a code, once alice has logged in; bound to this key."""
        verifier = secrets.token_urlsafe(48)
        asked = {
            "client_id": self.clients[client],
            "response_type": "code",
            "redirect_uri": REDIRECT,
            "scope": f"{scope} offline_access",
            "state": "any",
            "code_challenge": ath(verifier),
            "code_challenge_method": "S256",
            **({"dpop_jkt": key.jkt} if key else {}),
        }
        answer = httpx.get(f"{self.at}/oauth2/authorize?{urlencode(asked)}", cookies=self._cookies)
        query = parse_qs(urlsplit(answer.headers["Location"]).query)
        return {
            "client_id": self.clients[client],
            "grant_type": "authorization_code",
            "code": query["code"][0],
            "code_verifier": verifier,
            "redirect_uri": REDIRECT,
        }

    def grant(self, key: Key | None, **more: str) -> dict[str, Any]:
        """A token response."""
        headers = {"DPoP": proof(key, "POST", self.token)} if key else {}
        response = httpx.post(self.token, data=self.code(key, **more), headers=headers)
        found: dict[str, Any] = response.raise_for_status().json()
        return found


def at_the_token_endpoint(auth: Auth, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, auth.token
    code = auth.code(key)  # none of those that fail uses it up

    def signed(made: Key = key, **wrong: Any) -> str:
        return proof(made, wrong.pop("htm", "POST"), wrong.pop("htu", uri), **wrong)

    def once(name: str, cause: str, note: str, *values: str) -> Exchange:
        return Exchange(name, cause, note, auth.ask(auth.code(key), *values))

    yield once("token-without-proof", "no_proof", "a token request without a proof")
    yield once("token-two-proofs", "several_proofs", "two DPoP headers", signed(), signed())
    yield once(
        "token-typ", "proof_malformed", "the header's typ is JWT", signed(header={"typ": "JWT"})
    )
    yield once(
        "token-without-jti", "proof_malformed", "the proof has no jti", signed(without="jti")
    )
    private = {"jwk": dict(key.private.as_dict(private=True))}
    yield once(
        "token-private-jwk",
        "proof_malformed",
        "the header's jwk holds the private key too, a throwaway",
        signed(header=private),
    )
    yield once(
        "token-signature",
        "proof_signature",
        "64 random bytes for a signature",
        other_signature(signed()),
    )
    yield once("token-alg", "alg_not_accepted", "ES384", signed(Key("ES384")))
    yield once("token-htm", "htm_mismatch", "htm is GET in a POST", signed(htm="GET"))
    yield once(
        "token-htu",
        "htu_mismatch",
        "htu lacks the base path",
        signed(htu=f"{auth.origin}/oauth2/token"),
    )
    yield once("token-iat-old", "iat_old", "iat is 15 minutes old", signed(age_s=900))
    yield once("token-iat-ahead", "iat_ahead", "iat is 30 s ahead", signed(age_s=-30))
    used = signed()
    auth.ask(code, used)
    yield once("token-replay", "jti_seen", "a proof sent a second time", used)
    yield Exchange(
        "token-of-another-key",
        "code_of_another_key",
        "the code's dpop_jkt is another key's",
        auth.ask(auth.code(key), signed(keys.other), traced=True),
    )
    refresh = {
        "client_id": auth.clients["native"],
        "grant_type": "refresh_token",
        "refresh_token": auth.grant(keys.draining)["refresh_token"],
    }
    yield Exchange(
        "refresh-of-another-key",
        "refresh_token_of_another_key",
        "a refresh token that is bound to the generation before",
        auth.ask(refresh, signed(), traced=True),
    )
    yield Exchange(
        "good-refresh",
        None,
        "the same refresh token with its own key",
        auth.ask(refresh, signed(keys.draining)),
    )
    yield Exchange("good-token", None, "an access token, bound", auth.ask(auth.code(key), signed()))


def of_assertions(auth: Auth, keys: Keys) -> Iterator[Exchange]:
    client, now = auth.clients["asserting"], int(time.time())
    claims = {
        "iss": client,
        "sub": client,
        "aud": auth.token,
        "jti": secrets.token_urlsafe(16),
        "iat": now,
        "exp": now + 60,
    }
    form = {
        "grant_type": "client_credentials",
        "client_id": client,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": keys.active.sign({"alg": "ES256", "kid": "client"}, claims),
    }
    value = proof(keys.active, "POST", auth.token)
    yield Exchange(
        "token-assertion-key",
        "assertion_key",
        "the client assertion is signed with the DPoP key, not the client's",
        auth.ask(form, value, traced=True),
    )


def at_userinfo(auth: Auth, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, auth.userinfo
    token, another = (str(auth.grant(key)["access_token"]) for _ in range(2))

    def signed(made: Key = key, **wrong: Any) -> str:
        return proof(made, wrong.pop("htm", "GET"), uri, **{"access_token": token, **wrong})

    yield Exchange("userinfo-without-proof", "no_proof", "the access token alone", auth.get(token))
    yield Exchange(
        "userinfo-as-bearer",
        "scheme_bearer",
        "a bound access token as if it were a Bearer one",
        auth.get(token, scheme="Bearer"),
    )
    yield Exchange(
        "userinfo-ath-missing",
        "ath_missing",
        "the proof has no ath",
        auth.get(token, signed(access_token=None)),
    )
    yield Exchange(
        "userinfo-ath-mismatch",
        "ath_mismatch",
        "the proof's ath is another access token's",
        auth.get(token, signed(access_token=another)),
    )
    yield Exchange(
        "userinfo-of-another-key",
        "access_token_of_another_key",
        "the proof is another key's than the access token",
        auth.get(token, signed(keys.other)),
    )
    plain = str(auth.grant(None, client="lax")["access_token"])
    yield Exchange(
        "userinfo-not-bound",
        "access_token_not_bound",
        "an access token that isn't bound",
        auth.get(plain, signed(access_token=plain)),
    )
    yield Exchange(
        "userinfo-unknown-token",
        "access_token_invalid",
        "an access token that the server never made",
        auth.get("unknown", signed(access_token="unknown")),
    )
    small = str(auth.grant(key, scope="profile")["access_token"])
    yield Exchange(
        "userinfo-scope",
        "scope",
        "an access token without the scope openid",
        auth.get(small, signed(access_token=small)),
    )
    yield Exchange("good-userinfo", None, "userinfo", auth.get(token, signed()))
