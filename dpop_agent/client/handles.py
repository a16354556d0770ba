"""What an OAuth library that knows only Bearer is shown in place of tokens. Pure.

    dpop:JKT:ACCESS_TOKEN
    dpop-refresh:JKT:ENDPOINT:REFRESH_TOKEN
    dpop-refused:ID

A handle says by itself which generation its token is bound to, so a stored one needs nothing kept
beside it, whatever is rotated and restarted meanwhile. A refresh token's also says which token
endpoint gave it, in base64url, for it goes to no other. The third kind stands for an access token
that there isn't, and for the error why.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dpop_agent.client.token import BoundToken
from dpop_agent.jose import b64url, b64url_decode

if TYPE_CHECKING:
    from dpop_agent.errors import DPoPAgentError

MAX_REFUSALS = 64
"""Errors that are kept for handles of theirs; a library has one such handle at a time."""

_ACCESS = re.compile(r"dpop:([\w-]{43}):(.+)", re.A | re.S)
_REFRESH = re.compile(r"dpop-refresh:([\w-]{43}):([\w-]+):(.+)", re.A | re.S)
_REFUSED = "dpop-refused:"


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token, the `jkt` of its grant, and the token endpoint that it goes back to."""

    refresh_token: str = field(repr=False)
    jkt: str
    endpoint: str


def shown_access_token(found: BoundToken) -> str:
    """The handle of an access token."""
    return f"dpop:{found.jkt}:{found.access_token}"


def shown_refresh_token(found: RefreshToken) -> str:
    """The handle of a refresh token."""
    endpoint = b64url(found.endpoint.encode())
    return f"dpop-refresh:{found.jkt}:{endpoint}:{found.refresh_token}"


def access_token_of(handle: str) -> BoundToken | None:
    """What a handle stands for; None if it is none of an access token."""
    found = _ACCESS.fullmatch(handle)
    return None if found is None else BoundToken(found[2], found[1])


def refresh_token_of(handle: str) -> RefreshToken | None:
    """What a handle stands for; None if it is none of a refresh token."""
    found = _REFRESH.fullmatch(handle)
    if found is None:
        return None
    try:
        return RefreshToken(found[3], found[1], b64url_decode(found[2]).decode())
    except ValueError:
        return None


class Refusals:
    """Handles in place of access tokens that there aren't, and why."""

    def __init__(self) -> None:
        self._errors: dict[str, DPoPAgentError] = {}

    def shown(self, error: DPoPAgentError) -> str:
        """A handle for this error."""
        handle = _REFUSED + secrets.token_urlsafe(12)
        while len(self._errors) >= MAX_REFUSALS:
            del self._errors[next(iter(self._errors))]
        self._errors[handle] = error
        return handle

    def has(self, handle: str) -> bool:
        """Whether it is such a handle, of this process or of an earlier one."""
        return handle.startswith(_REFUSED)

    def error(self, handle: str) -> DPoPAgentError | None:
        """The error that it stands for; None if that was an earlier process's."""
        return self._errors.get(handle)
