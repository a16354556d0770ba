"""What goes wrong at an API whose access tokens are JWTs, whichever library guards it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.exchanges.exchange import Curl, Exchange, Keys
from tests.exchanges.proofs import Key, other_signature, proof

ISSUER = "https://issuer.example/"
AUDIENCE = "https://api.example"


class Issuer:
    """An authorization server that is no more than its key."""

    def __init__(self) -> None:
        self._key = RSAKey.generate_key(2048, {"kid": "issuer", "use": "sig", "alg": "RS256"})

    @property
    def jwks(self) -> dict[str, Any]:
        return {"keys": [self._key.as_dict(private=False)]}

    def access_token(self, key: Key | None, **claims: Any) -> str:
        """A JWT (RFC 9068), bound to this key if there is one."""
        now = int(time.time())
        whole: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice"}
        whole |= {"scope": "read:orders", "iat": now, "exp": now + 300, **claims}
        if key:
            whole["cnf"] = {"jkt": key.jkt}
        return jwt.encode({"alg": "RS256", "typ": "at+jwt", "kid": "issuer"}, whole, self._key)


def exchanges(origin: str, issuer: Issuer, keys: Keys, curl: Curl) -> Iterator[Exchange]:
    """Those that every such library tells apart."""
    key, uri = keys.active, f"{origin}/orders"
    token = issuer.access_token(key)

    def get(value: str | None, token: str = token, scheme: str = "DPoP", uri: str = uri) -> str:
        headers = [("Authorization", f"{scheme} {token}")]
        return curl("GET", uri, [*headers, ("DPoP", value)] if value else headers)

    def signed(made: Key = key, **wrong: Any) -> str:
        htm, htu = wrong.pop("htm", "GET"), wrong.pop("htu", uri)
        return proof(made, htm, htu, **{"access_token": token, **wrong})

    yield Exchange("without-proof", "no_proof", "the access token alone", get(None))
    yield Exchange(
        "without-token",
        "access_token_missing",
        "the proof alone",
        curl("GET", uri, [("DPoP", signed())]),
    )
    yield Exchange(
        "as-bearer",
        "scheme_bearer",
        "a bound access token as if it were a Bearer one",
        get(None, scheme="Bearer"),
    )
    yield Exchange(
        "scheme-bearer",
        "scheme_bearer",
        "a proof and a bound access token, but the scheme is Bearer",
        get(signed(), scheme="Bearer"),
    )
    yield Exchange(
        "typ", "proof_malformed", "the header's typ is JWT", get(signed(header={"typ": "JWT"}))
    )
    yield Exchange(
        "without-jti", "proof_malformed", "the proof has no jti", get(signed(without="jti"))
    )
    yield Exchange(
        "signature",
        "proof_signature",
        "64 random bytes for a signature",
        get(other_signature(signed())),
    )
    yield Exchange("alg", "alg_not_accepted", "EdDSA by its new name", get(signed(Key("Ed25519"))))
    yield Exchange("htm", "htm_mismatch", "htm is POST in a GET", get(signed(htm="POST")))
    yield Exchange(
        "htu-path",
        "htu_mismatch",
        "htu is another resource's",
        get(signed(htu=f"{origin}/invoices")),
    )
    yield Exchange(
        "htu-port",
        "htu_mismatch",
        "htu has no port",
        get(signed(htu="http://127.0.0.1/orders")),
    )
    yield Exchange("iat-old", "iat_old", "iat is 15 minutes old", get(signed(age_s=900)))
    yield Exchange("iat-ahead", "iat_ahead", "iat is 15 minutes ahead", get(signed(age_s=-900)))
    yield Exchange(
        "ath-missing", "ath_missing", "the proof has no ath", get(signed(access_token=None))
    )
    another = issuer.access_token(key, jti="another")
    yield Exchange(
        "ath-mismatch",
        "ath_mismatch",
        "the proof's ath is another access token's",
        get(signed(access_token=another)),
    )
    plain = issuer.access_token(None)
    yield Exchange(
        "not-bound",
        "access_token_not_bound",
        "an access token without cnf",
        get(signed(access_token=plain), plain),
    )
    for name, bound in (("destroyed", keys.destroyed), ("stranger", keys.stranger)):
        theirs = issuer.access_token(bound)
        yield Exchange(
            f"of-a-{name}-key",
            "access_token_of_another_key",
            f"an access token of a {name} key",
            get(signed(access_token=theirs), theirs),
        )
    expired = issuer.access_token(key, exp=int(time.time()) - 600)
    yield Exchange(
        "expired",
        "access_token_invalid",
        "an access token that has run out",
        get(signed(access_token=expired), expired),
    )
    both = [("Authorization", f"DPoP {token}"), ("DPoP", signed(htm="DELETE"))]
    yield Exchange(
        "scope", "scope", "an access token without delete:orders", curl("DELETE", uri, both)
    )
    yield Exchange("good", None, "200", get(signed()))
    both = [("Authorization", f"DPoP {token}"), ("DPoP", signed(htm="POST"))]
    yield Exchange("good-created", None, "201", curl("POST", uri, both, form={"item": "tea"}))
