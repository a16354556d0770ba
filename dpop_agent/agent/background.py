"""Work that nobody waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any

from dpop_agent.errors import DPoPAgentError

log = logging.getLogger("dpop_agent.background")


class Background:
    """Tasks that somebody has to hold, and troubles that are told once."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._said: dict[str, str] = {}

    async def quietly(self, what: str, work: Awaitable[object]) -> None:
        """Work that nobody waits for: its error goes to the log, once as long as it stays."""
        try:
            await work
        except DPoPAgentError as e:
            if self._said.get(what) != e.message:
                self._said[what] = e.message
                log.warning("%s: %s", what, e)
        else:
            self.over(what)

    def over(self, what: str) -> None:
        """There is no such trouble now; the next one is told again."""
        self._said.pop(what, None)

    @staticmethod
    async def unbroken(work: Awaitable[object]) -> None:
        """Work that has to go on another time, whatever comes of it this time."""
        try:
            await work
        except Exception:
            log.exception("keys weren't looked after, in a way that nobody thought of")

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
