"""Work that nobody waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

from dpop_agent.errors import DPoPAgentError

log = logging.getLogger("dpop_agent.background")

T = TypeVar("T")

AT_ONCE = 128
"""Keys looked at between two turns of the event loop: some tenths of a millisecond."""


async def gently(items: Iterable[T]) -> AsyncIterator[T]:
    """These items, whatever else waits for the event loop being served in between."""
    for number, item in enumerate(items, 1):
        yield item
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)


class Background:
    """Tasks that somebody has to hold, and troubles that are told once."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[str, str] = {}

    async def quietly(self, what: str, work: Awaitable[object]) -> None:
        """Work that nobody waits for: its error goes to the log, once as long as it stays."""
        try:
            await work
        except DPoPAgentError as e:
            if self._told.get(what) != e.message:
                self._told[what] = e.message
                log.warning("%s: %s", what, e)
        else:
            self.over(what)

    def is_told(self, what: str) -> bool:
        """Whether it has such a trouble, which was told."""
        return what in self._told

    def over(self, what: str) -> None:
        """There is no such trouble now; the next one is told again."""
        self._told.pop(what, None)

    @staticmethod
    async def whatever_comes(work: Awaitable[object]) -> None:
        """Work that has to go on another time, whatever comes of it this time."""
        try:
            await work
        except Exception:
            log.exception("unexpected error while looking after keys")

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do it in a task, which is held until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel(self, *, within_s: float) -> None:
        """Break off all of it, and wait until it has come to its end, so long at the most."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
