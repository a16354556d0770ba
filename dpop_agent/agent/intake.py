"""Whose line is taken in next. Knows no socket.

A turn of the event loop reads and writes what can be, hears signers and looks at deadlines. None of
that ever waits for lines for long, whoever sends how many: they have a millisecond, and as much
more as other things have had since. Those that come too late have the next turn's. Clients take
turns with their lines, as their requests do with a signer (`queue`).

How many requests a client may have under way follows from how many clients have any. Lines beyond
that wait, and a client whose lines wait isn't read from: its own socket makes it wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from dpop_agent.agent.queue import FairQueue, Flow
from dpop_agent.protocol import MAX_REQUESTS

TURN_S = 0.001
"""Seconds that lines may take beyond what other things have had."""

MAX_UNDER_WAY = 4096
"""Requests that all clients together have under way: a second or two of a fast store's work, so
that they are answered long before their deadlines."""


class Client(Protocol):
    """What is asked of a connection."""

    @property
    def flow(self) -> Flow:
        """Whose turns its lines take."""

    @property
    def under_way(self) -> int:
        """How many of its requests are."""

    @property
    def has_line(self) -> bool:
        """Whether one waits that could be taken in."""

    def take_in(self, now: float) -> bool:
        """Take in the next line, at that moment; whether there is another."""


class Intake:
    """Takes in lines, for clients that share its budget."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = monotonic
    ) -> None:
        self._loop = loop
        self._clock = clock  # finer than the loop's, which may stand still for a turn
        self._waiting: FairQueue[Client] = FairQueue()
        self._whole_at = 0.0  # when lines have their time again
        self._turn: asyncio.Handle | None = None
        self._busy = 0
        self._settled: asyncio.Future[None] | None = None

    def offer(self, client: Client) -> None:
        """It has sent lines. If nobody is before it, one is taken in at once."""
        now = self._clock()
        if self._waiting.size or self._whole_at - now >= TURN_S:
            self._wait(client, fresh=not client.under_way)
        elif self._may_take_in(client):
            self._take_in(client, now)

    def go_on(self, client: Client) -> None:
        """It may have a line that can be taken in now; that isn't done before this returns."""
        if self._may_take_in(client):
            self._wait(client, fresh=False)

    def leave(self, client: Client) -> None:
        """It has gone."""
        self._waiting.drop(client.flow)
        if client.under_way:
            self.idle()

    def busy(self) -> None:
        """A client that had nothing under way has something now."""
        self._busy += 1

    def idle(self) -> None:
        """A client has nothing under way any more."""
        self._busy -= 1
        if not self._busy and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    async def settled(self) -> None:
        """Wait until nothing is under way."""
        if self._busy:
            self._settled = self._loop.create_future()
            await self._settled

    def _may_take_in(self, client: Client) -> bool:
        under_way = client.under_way
        return client.has_line and (
            not under_way or under_way < min(MAX_REQUESTS, MAX_UNDER_WAY // self._busy)
        )

    def _wait(self, client: Client, *, fresh: bool) -> None:
        if client.flow not in self._waiting:
            self._waiting.push(client.flow, client, fresh=fresh)
        if self._turn is None:
            self._turn = self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        now = self._whole_at = self._clock()
        try:
            while self._waiting.size and self._whole_at - now < TURN_S:
                client = self._waiting.pop()
                if self._may_take_in(client):
                    self._take_in(client, now)
                    now = self._clock()
        finally:
            self._turn = self._loop.call_soon(self._take_turn) if self._waiting.size else None

    def _take_in(self, client: Client, now: float) -> None:
        has_more = client.take_in(now)
        # What it took, and as long for other things.
        self._whole_at = max(self._whole_at, now) + 2 * (self._clock() - now)
        if has_more:
            self.go_on(client)
