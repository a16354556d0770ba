"""oidc-provider, run here in each of its moods about nonces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from tests.agent.places import until
from tests.exchanges.exchange import Curl, Exchange, Headers, Keys, access_token, header
from tests.exchanges.fronts import front
from tests.exchanges.proofs import Key, ath, other_signature, proof
from tests.processes import NodeServer
from tests.servers import node
from tests.servers.application import CONFIDENTIAL, NATIVE, Answer, Application

SERVER = "oidc-provider 9.13.3"
SCRIPT = node.HERE / "authorization_server.mjs"

CREDENTIALS = {"grant_type": "client_credentials"}


def exchanges(folder: Path, keys: Keys, curl: Curl) -> Iterator[Exchange]:
    with ExitStack() as stack:

        def start(nonces: str) -> Server:
            log = folder / f"{nonces}-{len(started)}.log"
            node_server = NodeServer([node.node(), SCRIPT, node.packages(), nonces], log=log)
            stack.callback(node_server.close)
            started.append(Server(node_server, keys, curl))
            return started[-1]

        started: list[Server] = []
        required = start("required")
        yield from at_the_token_endpoint(required, keys)
        yield from with_nonces(required, start("required"), keys)
        yield from about_algorithms(start("optional"), keys)
        yield from about_time(start("optional"), keys)
        yield from of_other_moods(start("none"), start("misconfigured"), start("off"), keys)
        yield from of_grants(required, keys)
        yield from at_userinfo(required, keys)
        yield from behind_a_front(folder, required, start("optional"), keys)
        yield from late(start("required"), keys)


class Server:
    """One of them, its access tokens, and curl to it."""

    def __init__(self, server: NodeServer, keys: Keys, curl: Curl) -> None:
        self.server = server
        self.origin = server.origin
        self.token = f"{self.origin}/token"
        self.me = f"{self.origin}/me"
        self.curl = curl
        self._keys = {key.jkt: key for key in vars(keys).values()}
        self.application = Application(self._signed, server)

    def nonce(self) -> str:
        """A fresh one."""
        response = httpx.post(
            self.token, data=CREDENTIALS, headers={"DPoP": self._any()}, auth=CONFIDENTIAL.auth
        )
        return str(response.headers["DPoP-Nonce"])

    def _any(self) -> str:
        return proof(Key(), "POST", self.token)

    def ask(
        self, *headers: tuple[str, str], form: dict[str, str] | None = None, **more: Any
    ) -> str:
        """A request for an access token, by the confidential client."""
        return self.curl(
            "POST",
            more.pop("uri", self.token),
            headers,
            *more.pop("options", ()),
            form=form or CREDENTIALS,
            basic=more.pop("basic", CONFIDENTIAL.auth),
            **more,
        )

    def bound(self, key: Key) -> str:
        """An access token of the user's, bound to this key."""
        return self.application.grant(NATIVE, jkt=key.jkt).access_token

    def code(self, key: Key, scope: str = "openid") -> dict[str, str]:
        """The public client's token request, for a code that is bound to this key."""
        fields = self.application.authorize(NATIVE, jkt=key.jkt, scope=scope)
        return {**NATIVE.fields, **fields}

    def refreshable(self, key: Key) -> str:
        """A refresh token of the public client's, bound to this key."""
        found = self.application.grant(NATIVE, jkt=key.jkt).refresh_token
        assert found
        return found

    def _signed(
        self,
        method: str,
        uri: str,
        *,
        jkt: str | None = None,
        access_token: str | None = None,
        data: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Answer:
        assert jkt
        key = self._keys[jkt]

        def once(nonce: str | None) -> httpx.Response:
            headers = {"DPoP": proof(key, method, uri, access_token=access_token, nonce=nonce)}
            if access_token:
                headers["Authorization"] = f"DPoP {access_token}"
            with httpx.Client(auth=auth) as http:
                return http.request(method, uri, data=data, headers=headers)

        response = once(None)
        if response.json().get("error") == "use_dpop_nonce":
            response = once(response.headers["DPoP-Nonce"])
        return Answer(response.status_code, response.json(), jkt)


def dpop(value: str) -> tuple[str, str]:
    return ("DPoP", value)


def with_token(access_token: str, value: str, scheme: str = "DPoP") -> Headers:
    return [("Authorization", f"{scheme} {access_token}"), dpop(value)]


def at_the_token_endpoint(server: Server, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, server.token
    nonce = server.nonce()

    yield Exchange(
        "token-without-proof", "no_proof", "a token request without a proof", server.ask()
    )
    yield Exchange(
        "token-two-proofs",
        "several_proofs",
        "two DPoP headers",
        server.ask(
            dpop(proof(key, "POST", uri, nonce=nonce)), dpop(proof(key, "POST", uri, nonce=nonce))
        ),
    )
    yield Exchange(
        "token-typ",
        "proof_malformed",
        "the header's typ is JWT",
        server.ask(dpop(proof(key, "POST", uri, nonce=nonce, header={"typ": "JWT"}))),
    )
    yield Exchange(
        "token-without-jti",
        "proof_malformed",
        "the proof has no jti",
        server.ask(dpop(proof(key, "POST", uri, nonce=nonce, without="jti"))),
    )
    throwaway = Key()
    private = dict(throwaway.private.as_dict(private=True))
    yield Exchange(
        "token-private-jwk",
        "proof_malformed",
        "the header's jwk holds the private key too, a throwaway",
        server.ask(dpop(proof(throwaway, "POST", uri, nonce=nonce, header={"jwk": private}))),
    )
    yield Exchange(
        "token-signature",
        "proof_signature",
        "64 random bytes for a signature",
        server.ask(dpop(other_signature(proof(key, "POST", uri, nonce=nonce)))),
    )
    yield Exchange(
        "token-htm",
        "htm_mismatch",
        "htm is GET in a POST",
        server.ask(dpop(proof(key, "GET", uri, nonce=nonce))),
    )
    yield Exchange(
        "token-htu-slash",
        "htu_mismatch",
        "htu ends in a slash that the request has not",
        server.ask(dpop(proof(key, "POST", f"{uri}/", nonce=nonce))),
    )
    yield Exchange(
        "token-htu-host",
        "htu_mismatch",
        "htu says localhost, the request 127.0.0.1",
        server.ask(dpop(proof(key, "POST", uri.replace("127.0.0.1", "localhost"), nonce=nonce))),
    )
    used = proof(key, "POST", uri, nonce=nonce)
    server.ask(dpop(used))
    yield Exchange(
        "token-replay",
        "jti_seen",
        "a proof sent a second time; its grant has nothing that could be wrong",
        server.ask(dpop(used), traced=True),
    )
    yield Exchange(
        "token-replay-in-one",
        "jti_seen",
        "curl --next: the same header twice, in one output",
        twice(server, proof(key, "POST", uri, nonce=nonce)),
    )
    yield Exchange(
        "good-token",
        None,
        "an access token, bound",
        server.ask(dpop(proof(key, "POST", uri, nonce=nonce))),
    )
    yield Exchange(
        "good-token-meter",
        None,
        "the same, with curl's progress meter on",
        server.ask(dpop(proof(key, "POST", uri, nonce=nonce)), meter=True),
    )


def twice(server: Server, value: str) -> str:
    """Curl run twice with the same proof."""
    return server.ask(dpop(value)) + server.ask(dpop(value))


def with_nonces(server: Server, elsewhere: Server, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, server.token
    yield Exchange(
        "token-nonce-missing",
        "nonce_missing",
        "no nonce, and nobody answers the challenge",
        server.ask(dpop(proof(key, "POST", uri))),
    )
    theirs = elsewhere.ask(dpop(proof(key, "POST", elsewhere.token)))
    nonce = header(theirs, "DPoP-Nonce")
    yield Exchange(
        "token-nonce-of-another",
        "nonce_of_another_server",
        "a challenge of another server's, then its nonce here",
        theirs + server.ask(dpop(proof(key, "POST", uri, nonce=nonce))),
    )
    challenge = server.ask(dpop(proof(key, "POST", uri)))
    nonce = header(challenge, "DPoP-Nonce")
    yield Exchange(
        "good-token-retry",
        None,
        "a challenge, and the same request with its nonce",
        challenge + server.ask(dpop(proof(key, "POST", uri, nonce=nonce))),
    )


def about_algorithms(server: Server, keys: Keys) -> Iterator[Exchange]:
    metadata = httpx.get(f"{server.origin}/.well-known/openid-configuration").json()
    kept = {
        name: metadata[name]
        for name in ("issuer", "token_endpoint", "dpop_signing_alg_values_supported")
    }
    yield Exchange(
        "token-alg",
        "alg_not_accepted",
        "ES384, which is not among the server's",
        server.ask(dpop(proof(Key("ES384"), "POST", server.token))),
        metadata=kept,
    )
    yield Exchange(
        "good-token-eddsa",
        None,
        "EdDSA, which it takes",
        server.ask(dpop(proof(Key("EdDSA"), "POST", server.token))),
        metadata=kept,
    )


def about_time(server: Server, keys: Keys) -> Iterator[Exchange]:
    for name, cause, age_s in (("old", "iat_old", 900), ("ahead", "iat_ahead", -900)):
        yield Exchange(
            f"token-iat-{name}",
            cause,
            f"iat is {abs(age_s)} s {name}; the server asks for a nonce instead",
            server.ask(dpop(proof(keys.active, "POST", server.token, age_s=age_s))),
        )


def of_other_moods(
    none: Server, misconfigured: Server, off: Server, keys: Keys
) -> Iterator[Exchange]:
    key = keys.active
    yield Exchange(
        "token-nonce-unexpected",
        "nonce_unexpected",
        "a nonce for a server that has none",
        none.ask(dpop(proof(key, "POST", none.token, nonce="eyJ7S_zG.eyJH0-Z.HX4w-7v"))),
    )
    yield Exchange(
        "token-iat-old-without-nonces",
        "iat_old",
        "iat is 900 s old, and the server has no nonces",
        none.ask(dpop(proof(key, "POST", none.token, age_s=900))),
    )
    yield Exchange(
        "token-server-error",
        "server_error",
        "the server wants nonces and has no secret to make them with",
        misconfigured.ask(dpop(proof(key, "POST", misconfigured.token))),
    )
    yield Exchange(
        "token-bearer",
        "token_type_bearer",
        "a server that knows nothing of DPoP",
        off.ask(dpop(proof(key, "POST", off.token))),
    )


def of_grants(server: Server, keys: Keys) -> Iterator[Exchange]:
    key, other, uri = keys.active, keys.other, server.token
    nonce = server.nonce()
    code = server.code(key)
    yield Exchange(
        "token-code-of-another-key",
        "code_of_another_key",
        "the code's dpop_jkt is another key's",
        server.ask(
            dpop(proof(other, "POST", uri, nonce=nonce)), form=code, basic=None, traced=True
        ),
    )
    pushed = {
        "client_id": CONFIDENTIAL.id,
        "response_type": "code",
        "redirect_uri": CONFIDENTIAL.redirect_uri,
        "scope": "openid",
        "code_challenge": ath("a verifier"),
        "code_challenge_method": "S256",
        "dpop_jkt": key.jkt,
    }
    at = f"{server.origin}/request"
    yield Exchange(
        "par-of-another-key",
        "code_of_another_key",
        "a pushed request whose dpop_jkt isn't its proof's key",
        server.ask(dpop(proof(other, "POST", at, nonce=nonce)), form=pushed, uri=at),
    )
    yield Exchange(
        "good-par",
        None,
        "a pushed request, 201",
        server.ask(dpop(proof(key, "POST", at, nonce=nonce)), form=pushed, uri=at),
    )
    refresh = {
        **NATIVE.fields,
        "grant_type": "refresh_token",
        "refresh_token": server.refreshable(keys.draining),
    }
    yield Exchange(
        "refresh-of-another-key",
        "refresh_token_of_another_key",
        "a public client's refresh token, bound to the generation before",
        server.ask(
            dpop(proof(key, "POST", uri, nonce=nonce)), form=refresh, basic=None, traced=True
        ),
    )
    yield Exchange(
        "good-refresh",
        None,
        "the same refresh token with its own key",
        server.ask(dpop(proof(keys.draining, "POST", uri, nonce=nonce)), form=refresh, basic=None),
    )
    now = int(time.time())
    claims = {
        "iss": "asserting",
        "sub": "asserting",
        "aud": server.origin,
        "jti": ath(str(now)),
        "iat": now,
        "exp": now + 60,
    }
    assertion = {
        **CREDENTIALS,
        "client_id": "asserting",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": key.sign({"alg": "ES256"}, claims),
    }
    yield Exchange(
        "token-assertion-key",
        "assertion_key",
        "the client assertion is signed with the DPoP key, not the client's",
        server.ask(
            dpop(proof(key, "POST", uri, nonce=nonce)), form=assertion, basic=None, traced=True
        ),
    )


def at_userinfo(server: Server, keys: Keys) -> Iterator[Exchange]:
    key, uri, curl = keys.active, server.me, server.curl
    nonce = server.nonce()
    token = server.bound(key)
    another = server.bound(key)
    whole: dict[str, Any] = {"access_token": token, "nonce": nonce}

    yield Exchange(
        "userinfo-without-proof",
        "no_proof",
        "the access token alone",
        curl("GET", uri, [("Authorization", f"DPoP {token}")]),
    )
    yield Exchange(
        "userinfo-scheme-bearer",
        "scheme_bearer",
        "a proof, but the scheme is Bearer",
        curl("GET", uri, with_token(token, proof(key, "GET", uri, **whole), "Bearer")),
    )
    yield Exchange(
        "userinfo-as-bearer",
        "scheme_bearer",
        "a bound access token as if it were a Bearer one",
        curl("GET", uri, [("Authorization", f"Bearer {token}")]),
    )
    yield Exchange(
        "userinfo-ath-missing",
        "ath_missing",
        "the proof has no ath",
        curl("GET", uri, with_token(token, proof(key, "GET", uri, nonce=nonce))),
    )
    yield Exchange(
        "userinfo-ath-mismatch",
        "ath_mismatch",
        "the proof's ath is another access token's",
        curl("GET", uri, with_token(another, proof(key, "GET", uri, **whole))),
    )
    asked = server.ask(
        dpop(proof(keys.other, "POST", server.token, nonce=nonce)),
        form=server.code(keys.other),
        basic=None,
    )
    theirs = access_token(asked)
    yield Exchange(
        "userinfo-token-of-another-key",
        "access_token_of_another_key",
        "a token request with one key, then its access token with another",
        asked
        + curl(
            "GET",
            uri,
            with_token(theirs, proof(key, "GET", uri, access_token=theirs, nonce=nonce)),
        ),
    )
    asked = server.ask(
        dpop(proof(key, "POST", server.token, nonce=nonce)),
        form=server.code(key, "read"),
        basic=None,
    )
    mine = access_token(asked)
    yield Exchange(
        "userinfo-scope",
        "scope",
        "an access token without the scope openid",
        curl("GET", uri, with_token(mine, proof(key, "GET", uri, access_token=mine, nonce=nonce))),
    )
    yield Exchange(
        "userinfo-unknown-token",
        "access_token_invalid",
        "an access token that the server never made",
        curl(
            "GET", uri, with_token("kq2", proof(key, "GET", uri, access_token="kq2", nonce=nonce))
        ),
    )
    yield Exchange(
        "userinfo-nonce-missing",
        "nonce_missing",
        "no nonce, at a resource",
        curl("GET", uri, with_token(token, proof(key, "GET", uri, access_token=token))),
    )
    yield Exchange(
        "good-userinfo",
        None,
        "userinfo",
        curl("GET", uri, with_token(token, proof(key, "GET", uri, **whole))),
    )
    nowhere = f"{server.origin}/nowhere"
    yield Exchange(
        "good-not-found",
        None,
        "404, which is no matter of DPoP",
        curl("GET", nowhere, with_token(token, proof(key, "GET", nowhere, **whole))),
    )


def behind_a_front(
    folder: Path, required: Server, optional: Server, keys: Keys
) -> Iterator[Exchange]:
    key, port = keys.active, optional.server.port
    with front(folder, "as.example", target=port) as tls:
        uri = f"{tls.origin}/token"
        yield Exchange(
            "front-scheme",
            "htu_mismatch",
            "TLS ends before the server, which isn't told and expects http; HTTP/2",
            optional.ask(dpop(proof(key, "POST", uri)), uri=uri, options=tls.options),
        )
    with front(folder, "as.example", target=port, forwarded=True) as tls:
        uri = f"{tls.origin}/token"
        yield Exchange(
            "good-front",
            None,
            "TLS ends before the server, which is told; HTTP/2",
            optional.ask(dpop(proof(key, "POST", uri)), uri=uri, options=tls.options),
        )
        yield Exchange(
            "front-port",
            "htu_mismatch",
            "htu has a port that the request has not; HTTP/2",
            optional.ask(
                dpop(proof(key, "POST", f"{tls.origin}:8443/token")), uri=uri, options=tls.options
            ),
        )
    prefixed = {"target": port, "forwarded": True, "prefix": "/oauth2"}
    with front(folder, "as.example", **prefixed) as tls:
        uri = f"{tls.origin}/oauth2/token"
        yield Exchange(
            "front-base-path",
            "htu_mismatch",
            "the proxy takes a base path away",
            optional.ask(dpop(proof(key, "POST", uri)), uri=uri, options=tls.options),
        )
    moved = {"target": required.server.port, "forwarded": True, "moved": {"/userinfo": "/me"}}
    with front(folder, "as.example", **moved) as tls:
        uri = f"{tls.origin}/userinfo"
        token = required.bound(key)
        value = proof(key, "GET", uri, access_token=token, nonce=required.nonce())
        yield Exchange(
            "front-redirect",
            "htu_mismatch",
            "curl --location: the proof of the first URI goes to where it redirects",
            required.curl("GET", uri, with_token(token, value), "--location", *tls.options),
        )


def late(server: Server, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, server.me
    nonce, token = server.nonce(), server.bound(key)
    server.server.tell("600")
    until(lambda: "clock 600" in server.server.log)
    yield Exchange(
        "token-nonce-stale",
        "nonce_stale",
        "the server's nonce of ten minutes ago",
        server.ask(dpop(proof(key, "POST", server.token, nonce=nonce))),
    )
    value = proof(key, "GET", uri, access_token=token, nonce=nonce)
    first = server.curl("GET", uri, with_token(token, value))
    yield Exchange("userinfo-nonce-stale", "nonce_stale", "the same at a resource", first)
    fresh = header(first, "DPoP-Nonce")
    value = proof(key, "GET", uri, access_token=token, nonce=fresh)
    second = server.curl("GET", uri, with_token(token, value))
    yield Exchange("good-userinfo-retry", None, "a stale nonce, then the fresh one", first + second)
    server.server.tell("7200")
    until(lambda: "clock 7800" in server.server.log)
    value = proof(key, "GET", uri, access_token=token, nonce=server.nonce())
    yield Exchange(
        "userinfo-expired",
        "access_token_invalid",
        "an access token two hours after it was made",
        server.curl("GET", uri, with_token(token, value)),
    )
