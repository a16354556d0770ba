"""The processes that host a store beside its first, where its configuration wants several.

They come one after the other once the first has opened the store, and in place of one that died.
Each gets what opens the store, its PIN, from one that lives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from dpop_agent.agent.hosts import Host
from dpop_agent.agent.opening import BackOff, why_not_open
from dpop_agent.agent.queue import Work
from dpop_agent.errors import DPoPAgentError, PinRefused

log = logging.getLogger("dpop_agent.siblings")

LONGEST_PAUSE_S = 60.0
"""Seconds between tries to have one more, where none succeeds: others sign meanwhile."""

LIVED_S = 1.0
"""Seconds after which a process that dies didn't die of its beginning."""


class Siblings:
    """Keeps a store's processes as many as are wanted.

    Attributes:
        error: why they are fewer; None where nothing went wrong.
    """

    def __init__(
        self, store: str, work: Work[Host], *, wanted: int, join: Callable[[], Awaitable[None]]
    ) -> None:
        """Nothing is started yet.

        Args:
            store: its name, for people.
            work: whose hands they are.
            wanted: how many, the first included.
            join: opens the store in one more process, or raises.
        """
        self.error: DPoPAgentError | None = None
        self._store = store
        self._work = work
        self._wanted = wanted
        self._join = join
        self._loop = asyncio.get_running_loop()
        self._back_off = BackOff(LONGEST_PAUSE_S)
        self._next_try: asyncio.TimerHandle | None = None
        self._joining: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """The first has opened the store."""
        self.error = None
        self._back_off.over()
        self.complete()

    @property
    def is_joining(self) -> bool:
        """Whether one is being opened."""
        return self._joining is not None

    def complete(self) -> None:
        """Start those that aren't there, now or when it is time for the next try."""
        if self._joining is not None or not self._are_missing:
            return
        left_s = self._back_off.left_s(self._loop.time())
        if left_s <= 0:
            self._joining = self._loop.create_task(self._complete())
        elif self._next_try is None:
            self._next_try = self._loop.call_later(left_s, self._try_again)

    def lost(self, host: Host) -> None:
        """One of them died, and others live."""
        now = self._loop.time()
        if now - host.opened_at > LIVED_S:
            self._back_off.over()
        self.complete()
        self._back_off.failed(now)

    async def end(self) -> None:
        """Start none any more."""
        if self._next_try is not None:
            self._next_try.cancel()
            self._next_try = None
        joining, self._joining = self._joining, None
        if joining is not None:
            joining.cancel()
            await asyncio.wait([joining])

    def _try_again(self) -> None:
        self._next_try = None
        self.complete()

    @property
    def _are_missing(self) -> bool:
        """Whether the store is open in fewer processes than it may be."""
        if isinstance(self.error, PinRefused):
            return False
        return 0 < len(self._work.taking) < self._wanted

    async def _complete(self) -> None:
        try:
            while self._are_missing and self._back_off.left_s(self._loop.time()) <= 0:
                await self._join()
                self.error = None
        except Exception as e:
            self._failed(why_not_open(e, self._store))
        finally:
            if self._joining is asyncio.current_task():
                self._joining = None
                self.complete()

    def _failed(self, error: DPoPAgentError) -> None:
        if isinstance(error, PinRefused):  # `unlock` alone does nothing for a store that is open
            hint = f"dpop-agent lock {self._store}, then: dpop-agent unlock {self._store}"
            error = PinRefused(error.message, hint=hint, details=error.details)
        if self.error is None or self.error.message != error.message:
            log.warning(
                "store %s has %d of %d signers: %s",
                self._store,
                len(self._work.taking),
                self._wanted,
                error,
            )
        self.error = error
        self._back_off.failed(self._loop.time(), at_least_s=(error.retry_after_ms or 0) / 1000)
