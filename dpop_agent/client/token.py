"""`BoundToken`: an access token together with the key that it is bound to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from dpop_agent.errors import TokenNotBound
from dpop_agent.jose import b64url_decode, json_object


@dataclass(frozen=True, slots=True)
class BoundToken:
    """An access token and the `jkt` that it is bound to; no repr shows the secrets.

    Attributes:
        access_token: as the server sent it.
        jkt: thumbprint of the generation that signed the token request.
        expires_at: seconds since 1970, or None where the server didn't say.
        refresh_token: as the server sent it, if it did.
    """

    access_token: str = field(repr=False)
    jkt: str
    expires_at: float | None = None
    refresh_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_response(
        cls, body: Mapping[str, Any], *, jkt: str, refresh_token: str | None = None
    ) -> Self:
        """Take a token response (RFC 6749 section 5.1, RFC 9449 section 5).

        Args:
            body: the response's JSON object.
            jkt: the generation that signed the request: `response.extensions["dpop"].jkt`.
            refresh_token: the one that was used, kept if there is no new one in the response
                (RFC 6749 section 6).

        Raises:
            TokenNotBound: `token_type` isn't DPoP, or `cnf.jkt` is another, in the response or
                in an access token that is a JWT.
        """
        access_token = body.get("access_token")
        if not isinstance(access_token, str) or not access_token:
            raise TokenNotBound(
                "the token response has no access_token", hint="look at its error member"
            )
        token_type = body.get("token_type")
        if not isinstance(token_type, str) or token_type.lower() != "dpop":
            raise TokenNotBound(f"the token response's token_type is {token_type!r:.40}, not DPoP")
        for where, claims in (
            ("the token response", body),
            ("the access token", _jwt_claims(access_token)),
        ):
            bound = _cnf_jkt(claims)
            if bound is not None and bound != jkt:
                raise TokenNotBound(
                    f"cnf.jkt of {where} is {bound!r:.60}, not {jkt}",
                    hint="give the jkt of the generation that signed the token request",
                )
        new = body.get("refresh_token")
        return cls(
            access_token=access_token,
            jkt=jkt,
            expires_at=_expiry(body.get("expires_in")),
            refresh_token=new if isinstance(new, str) else refresh_token,
        )


def _cnf_jkt(claims: Mapping[str, Any]) -> object:
    cnf = claims.get("cnf")
    return cnf.get("jkt") if isinstance(cnf, Mapping) else None


def _jwt_claims(access_token: str) -> dict[str, Any]:
    parts = access_token.split(".")
    if len(parts) != 3:
        return {}
    try:
        return json_object(b64url_decode(parts[1]))
    except ValueError:
        return {}


def _expiry(expires_in: object) -> float | None:
    # Some servers send the number as text.
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float | str):
        return None
    try:
        seconds = float(expires_in)
    except (ValueError, OverflowError):
        return None
    return time.time() + seconds if 0 <= seconds < 1e10 else None
