"""Which access token a request presents, and which generation signs its renewal.

A `Grant` has an access token and renews it. Which generation signs the requests that `renew` makes,
a `Renewal` says in a context variable: neither other threads nor other tasks see it, and nested
renewals say their own.
"""

from __future__ import annotations

import contextvars
import threading
import time
from contextlib import contextmanager
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING

from dpop_agent.client.exchange import awaiting, blocking
from dpop_agent.client.stores import AWAITING, BLOCKING
from dpop_agent.client.token import BoundToken
from dpop_agent.errors import ConfigurationError, KeyMismatch, KeyUnusable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Any

    from dpop_agent.client.answers import Proof
    from dpop_agent.client.exchange import Calls, Response
    from dpop_agent.client.hop import Done
    from dpop_agent.client.stores import Doing, Held, TokenStore

RENEW_BEFORE_S = 30.0
"""An access token is renewed this long before it expires, a short-lived one at half its life."""


LEAVE_BEFORE_S = 300
"""Seconds before a draining generation stops signing in which a grant leaves it, if it may."""


class Renewal:
    """A renewal under way, known to what it calls.

    Its requests stay with one generation of a key, whatever is rotated meanwhile: a code and a
    refresh token are of no use with another (RFC 9449 sections 5 and 10).

    Attributes:
        grant: whose renewal it is.
        pin: the generation that the grant was made with; None where a new one may sign.
        lost: the agent gives no proofs by `pin` any more.
        refused: a server takes the code or the refresh token no more (RFC 6749 section 5.2).
        outer: the renewal that this one is part of.
    """

    __slots__ = ("_signers", "done", "grant", "lost", "outer", "pin", "refused")

    def __init__(self, grant: Grant, pin: str | None, outer: Renewal | None) -> None:
        self.grant = grant
        self.pin = pin
        self.outer = outer
        self.lost = False
        self.refused = False
        self.done = False
        self._signers: dict[tuple[str, str], str] = {}

    def hop(
        self,
        hop_by: Callable[[str | None], Calls[tuple[Response, Done]]],
        *,
        agent: str,
        key: str,
    ) -> Calls[tuple[Response, Done]]:
        """Do one hop of the renewal's by the right generation.

        Args:
            hop_by: does it by the generation with that jkt, by the active one where None.
            agent: the path of the agent's socket.
            key: the key's name.
        """
        jkt = self._signers.get((agent, key), self.pin)
        try:
            response, done = yield from hop_by(jkt)
        except KeyMismatch:
            # The grant is another key's.
            response, done = yield from hop_by(None)
        except KeyUnusable:
            if jkt is not None and jkt == self.pin:
                self.lost = True
            raise
        self.refused = done.refused_grant
        if done.proof is not None:
            # What follows stays with the generation that signed first.
            self._signers.setdefault((agent, key), done.proof.jkt)
        return response, done


_renewal: contextvars.ContextVar[Renewal | None] = contextvars.ContextVar("renewal", default=None)


def current_renewal() -> Renewal | None:
    """The renewal that this code is part of."""
    renewal = _renewal.get()
    # A task that `renew` started can outlive it.
    while renewal is not None and renewal.done:
        renewal = renewal.outer
    return renewal


class Grant:
    """An access token and how it is renewed.

    Args:
        renew: gets the old access token, or None for a new grant; returns a BoundToken.
        token: one from earlier.
        on_token: gets each new one.
        rebind: whether the active generation signs renewals.
        store: where it is, if other processes have it too.
    """

    _doing: Doing

    def __init__(
        self,
        renew: Callable[[BoundToken | None], Any],
        *,
        token: BoundToken | None,
        on_token: Callable[[BoundToken], Any] | None,
        rebind: bool,
        store: TokenStore | None = None,
    ) -> None:
        if token is not None and store is not None:
            raise ConfigurationError(
                "both token and store were given", hint="store.save(token), once"
            )
        self._store = store
        self._unsaved: tuple[BoundToken | None, BoundToken] | None = None
        self._renew = renew
        self._on_token = on_token
        self._access_token = token
        self._rebind = rebind
        self._renew_at = _renew_at(token, RENEW_BEFORE_S)
        self._overdue: BoundToken | None = None
        self._left: str | None = None

    def replaces(self, access_token: BoundToken, done: Done, *, repeatable: bool) -> bool:
        """Hear what came of presenting an access token.

        Args:
            access_token: the one that was presented.
            done: what came of the request.
            repeatable: whether the request can be sent again; if not, the next request gets
                another access token.

        Returns:
            Whether to send the request again with another access token (RFC 6750 section 3.1).
        """
        refused = done.refused_access_token
        if self._leaves_early(access_token, done.proof) or (refused and not repeatable):
            self._overdue = access_token
        return refused and repeatable

    def _leaves_early(self, access_token: BoundToken, proof: Proof | None) -> bool:
        """Whether another generation had better take over, as this one is about to stop signing.

        Not for a grant that stays with its generation: renewed, it would be as near to its end, and
        some servers refuse the old access token from then on, in requests under way too.
        """
        stays = access_token.refresh_token is not None and not self._rebind
        left_s = None if proof is None else proof.drain_left_s
        if stays or left_s is None or left_s > LEAVE_BEFORE_S or access_token.jkt == self._left:
            return False
        self._left = access_token.jkt  # once for each generation
        return True

    def _usable(self, *, but: BoundToken | None) -> BoundToken | None:
        access_token = self._access_token
        if access_token is but or access_token is self._overdue:
            return None
        return access_token if time.time() < self._renew_at else None

    def _renewed(self, old: BoundToken | None) -> Calls[BoundToken]:
        if self._store is None:
            return (yield from self._new(old, None))
        # Another process may have renewed it.
        stored = self._that_counts((yield partial(self._doing.do, self._store.load)))
        if found := self._found(stored):
            return found
        held = yield from self._store.taken(self._doing)
        try:
            stored = self._that_counts(held.token)
            if found := self._found(stored):
                return found
            yield partial(self._doing.do, held.begin)
            return (yield from self._new(stored, held))
        finally:
            held.release()

    def _that_counts(self, stored: BoundToken | None) -> BoundToken | None:
        """What is stored, unless it is what ours replaced, which couldn't be written."""
        if self._unsaved is not None and stored == self._unsaved[0]:
            return self._unsaved[1]
        return stored

    def _found(self, stored: BoundToken | None) -> BoundToken | None:
        """The access token in the store, if it is another than ours and can be presented."""
        ours = self._access_token
        if stored is None or (ours is not None and stored.access_token == ours.access_token):
            return None
        self._keep(stored)
        return self._usable(but=None)

    def _new(self, old: BoundToken | None, held: Held | None) -> Calls[BoundToken]:
        with self._renewing(old) as renewal:
            try:
                access_token: BoundToken = yield partial(self._renew, old)
            except Exception as e:
                lost = renewal.lost and isinstance(e, KeyUnusable)
                used_up = renewal.refused and held is not None and held.abandoned
                if old is None or not (lost or used_up):
                    raise
            else:
                self._keep(access_token)
                if held is not None:
                    yield from self._stored(access_token, held)
                if self._on_token is not None:
                    yield partial(self._on_token, access_token)
                return access_token
        return (yield from self._new(None, held))

    def _stored(self, access_token: BoundToken, held: Held) -> Calls[None]:
        self._unsaved = held.token, access_token
        yield partial(self._doing.do, partial(held.keep, access_token))
        self._unsaved = None

    @contextmanager
    def _renewing(self, old: BoundToken | None) -> Iterator[Renewal]:
        # Should renewing fail, the access token at hand is tried once more.
        self._overdue = None
        pin = None
        if old is not None and old.refresh_token is not None and not self._rebind:
            pin = old.jkt
        renewal = Renewal(self, pin, _renewal.get())
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
        left_s = (access_token.expires_at or 0.0) - time.time()
        self._renew_at = _renew_at(access_token, min(RENEW_BEFORE_S, left_s / 2))
        self._access_token = access_token

    def _refuse_recursion(self) -> None:
        renewal = _renewal.get()
        while renewal is not None:
            if renewal.grant is self and not renewal.done:
                raise ConfigurationError(
                    "renew made a request that itself needs the access token being renewed",
                    hint="give the token request an auth of its own, or none",
                )
            renewal = renewal.outer


class BlockingGrant(Grant):
    """A grant for threads: one of them renews, the others wait for it."""

    _doing = BLOCKING

    def __init__(
        self,
        renew: Callable[[BoundToken | None], BoundToken],
        *,
        token: BoundToken | None,
        on_token: Callable[[BoundToken], object] | None,
        rebind: bool,
        store: TokenStore | None = None,
    ) -> None:
        super().__init__(renew, token=token, on_token=on_token, rebind=rebind, store=store)
        self._lock = threading.Lock()

    def access_token(self, *, but: BoundToken | None = None) -> BoundToken:
        """The access token to present, which isn't the one that was refused.

        Raises:
            ConfigurationError: its own renewal asks for it; `renew` returned something else.
            Exception: what `renew` and `on_token` raise.
        """
        self._refuse_recursion()
        if access_token := self._usable(but=but):
            return access_token
        with self._lock:
            if access_token := self._usable(but=but):
                return access_token
            return blocking(self._renewed(self._access_token))


class _Turn:
    """A lock that tasks of several event loops share, of asyncio's or of trio's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: list[Callable[[], object]] = []

    async def __aenter__(self) -> None:
        while True:
            with self._lock:
                if not self._taken:
                    self._taken = True
                    return
                wake, woken = _alarm()
                self._waiting.append(wake)
            await woken()

    async def __aexit__(self, *exc_info: object) -> None:
        with self._lock:
            self._taken = False
            waiting, self._waiting = self._waiting, []
        # All of them: one that was cancelled, or whose loop has ended, would pass it on to nobody.
        for wake in waiting:
            wake()


def _alarm() -> tuple[Callable[[], None], Callable[[], Awaitable[object]]]:
    """What any thread may call, and what this task awaits until then."""
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio_alarm()
    rang = asyncio.Event()

    def ring() -> None:
        try:
            loop.call_soon_threadsafe(rang.set)
        except RuntimeError:
            pass  # the loop was closed, and its tasks with it

    return ring, rang.wait


def _trio_alarm() -> tuple[Callable[[], None], Callable[[], Awaitable[object]]]:
    import trio

    rang, token = trio.Event(), trio.lowlevel.current_trio_token()

    def ring() -> None:
        try:
            token.run_sync_soon(rang.set)
        except trio.RunFinishedError:
            pass

    return ring, rang.wait


class AsyncGrant(Grant):
    """A grant for tasks, of one event loop or several: one of them renews, the others wait."""

    _doing = AWAITING

    def __init__(
        self,
        renew: Callable[[BoundToken | None], Awaitable[BoundToken]],
        *,
        token: BoundToken | None,
        on_token: Callable[[BoundToken], Awaitable[object] | object] | None,
        rebind: bool,
        store: TokenStore | None = None,
    ) -> None:
        on_token = _awaitable(on_token) if on_token is not None else None
        super().__init__(renew, token=token, on_token=on_token, rebind=rebind, store=store)
        self._turn = _Turn()

    async def access_token(self, *, but: BoundToken | None = None) -> BoundToken:
        """`BlockingGrant.access_token`, async."""
        self._refuse_recursion()
        if access_token := self._usable(but=but):
            return access_token
        async with self._turn:
            if access_token := self._usable(but=but):
                return access_token
            return await awaiting(self._renewed(self._access_token))


def _awaitable(
    on_token: Callable[[BoundToken], Awaitable[object] | object],
) -> Callable[[BoundToken], Awaitable[None]]:
    async def tell(access_token: BoundToken) -> None:
        told = on_token(access_token)
        if isawaitable(told):
            await told

    return tell


def _renew_at(access_token: BoundToken | None, before_s: float) -> float:
    if access_token is None or access_token.expires_at is None:
        return float("inf")
    return access_token.expires_at - before_s
