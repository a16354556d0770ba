"""Which access token to present, and which generation signs its renewal."""

from __future__ import annotations

import contextvars
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dpop_agent.client.token import BoundToken
from dpop_agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

RENEW_BEFORE_S = 30.0
"""An access token is renewed this long before it expires, a short-lived one at half its life."""


class _Renewal:
    """A renewal under way, known to what it calls.

    Its requests stay with one generation of a key, whatever is rotated meanwhile: a code and a
    refresh token are of no use with another (RFC 9449 sections 5 and 10).

    Attributes:
        auth: whose renewal it is.
        pin: the generation that the grant was made with; None where a new one may sign.
        lost: the agent gives no proofs by `pin` any more.
        outer: the renewal that this one is part of.
    """

    __slots__ = ("_signers", "auth", "done", "lost", "outer", "pin")

    def __init__(self, auth: _Chooser, pin: str | None, outer: _Renewal | None) -> None:
        self.auth = auth
        self.pin = pin
        self.outer = outer
        self.lost = False
        self.done = False
        self._signers: dict[tuple[str, str], str] = {}

    def signer(self, agent: str, key: str) -> str | None:
        """The generation that signs, None for the active one."""
        return self._signers.get((agent, key), self.pin)

    def signed(self, agent: str, key: str, response: httpx.Response) -> None:
        """What follows stays with the generation that signed first."""
        if proof := response.extensions.get("dpop"):
            self._signers.setdefault((agent, key), proof.jkt)

    def refused(self, jkt: str | None) -> None:
        """The agent gave no proof by that generation."""
        if jkt is not None and jkt == self.pin:
            self.lost = True


_renewal: contextvars.ContextVar[_Renewal | None] = contextvars.ContextVar("renewal", default=None)


def _current(renewal: _Renewal | None) -> _Renewal | None:
    # A task that `renew` started can outlive it.
    while renewal is not None and renewal.done:
        renewal = renewal.outer
    return renewal


class _Chooser:
    """Which access token to present, without I/O."""

    def __init__(self, access_token: BoundToken | None, *, rebind: bool) -> None:
        self._access_token = access_token
        self._rebind = rebind
        self._renew_at = _renew_at(access_token, RENEW_BEFORE_S)
        self._overdue: BoundToken | None = None
        self._drained: str | None = None

    def _usable(self) -> BoundToken | None:
        access_token = self._access_token
        if access_token is self._overdue or time.time() >= self._renew_at:
            return None
        return access_token

    def _usable_but(self, refused: BoundToken | None) -> BoundToken | None:
        access_token = self._usable()
        return None if access_token is refused else access_token

    @contextmanager
    def _renewing(self, old: BoundToken | None) -> Iterator[_Renewal]:
        # Should renewing fail, the access token at hand is tried once more.
        self._overdue = None
        pin = None
        if old is not None and old.refresh_token is not None and not self._rebind:
            pin = old.jkt
        renewal = _Renewal(self, pin, _renewal.get())
        begun = _renewal.set(renewal)
        try:
            yield renewal
        finally:
            renewal.done = True
            _renewal.reset(begun)

    def _keep(self, access_token: BoundToken) -> None:
        if not isinstance(access_token, BoundToken):
            raise ConfigurationError(
                "renew didn't return a BoundToken", hint="return BoundToken.from_response(…)"
            )
        left = (access_token.expires_at or 0.0) - time.time()
        self._renew_at = _renew_at(access_token, min(RENEW_BEFORE_S, left / 2))
        self._access_token = access_token

    def _refuse_recursion(self) -> None:
        renewal = _renewal.get()
        while renewal is not None:
            if renewal.auth is self and not renewal.done:
                raise ConfigurationError(
                    "renew made a request that wants the access token being renewed",
                    hint="give the token request its own auth, or auth=None",
                )
            renewal = renewal.outer


def _renew_at(access_token: BoundToken | None, before: float) -> float:
    if access_token is None or access_token.expires_at is None:
        return float("inf")
    return access_token.expires_at - before
