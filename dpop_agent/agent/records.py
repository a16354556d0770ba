"""The keys as the agent knows them now, and how that becomes durable.

What is in memory can be ahead of the ledger in two ways only: uses and observed time, which are
saved about every minute, and a block, which holds from the moment that somebody says `compromise`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dpop_agent.agent import drains
from dpop_agent.agent.keys import MAX_ORIGINS_USED, Generation, Keys, State
from dpop_agent.agent.ledger import Contents, Ledger
from dpop_agent.errors import RequestIdReused

REQUEST_LIFETIME = timedelta(hours=24)
"""How long a request id is remembered."""

Change = Callable[[Keys], Keys]
Command = tuple[str, Mapping[str, Any]]
"""A method and its parameters, as somebody asked for them."""


def now_text() -> str:
    """RFC 3339 UTC, whole seconds."""
    return _text(datetime.now(UTC))


def _text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def boottime() -> float:
    """Seconds that no wall clock moves and that go on in suspend (CLOCK_BOOTTIME)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Records:
    """The ledger's keys, in memory and durable.

    `changed` is set with each change; whoever waits for it clears it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._writing = asyncio.Lock()
        self._blocked: set[tuple[str, str, str]] = set()  # pending ones have no jkt yet
        self._uses: dict[str, tuple[str, dict[str, None]]] = {}
        self._observed = boottime()
        self.changed = asyncio.Event()
        contents = ledger.contents
        self.keys = contents.keys if contents.clean else drains.after_unclean_stop(contents.keys)

    @property
    def path(self) -> str:
        """Where the ledger is."""
        return self._ledger.path

    @property
    def durable(self) -> bool:
        """Whether every block is in the ledger."""
        return all(_compromised(g) == g for _, g in self._blocked_in(self._ledger.contents.keys))

    def block(self, name: str, generations: Iterable[Generation]) -> None:
        """Compromised from now on, a pending one once it is made, whether or not that can be
        written.
        """
        self._blocked |= {(name, g.ref, g.created) for g in generations}
        self.keys = self._with_blocks(self.keys)

    def used(self, jkt: str, origin: str) -> None:
        """Note that a generation signed for an origin."""
        at, origins = now_text(), {}
        if jkt in self._uses:
            origins = self._uses[jkt][1]
        origins.pop(origin, None)
        origins[origin] = None
        if len(origins) > MAX_ORIGINS_USED:
            del origins[next(iter(origins))]
        self._uses[jkt] = (at, origins)

    def current(self, generation: Generation) -> Generation:
        """A generation with the uses that aren't written yet."""
        if generation.jkt not in self._uses:
            return generation
        at, origins = self._uses[generation.jkt]
        return generation.used(at, list(origins))

    def repeated(self, method: str, params: Mapping[str, Any]) -> bool:
        """Whether this very request was carried out before.

        Raises:
            RequestIdReused: its id was, with other parameters.
        """
        known = self._ledger.contents.requests.get(params.get("request_id", ""))
        if known is None:
            return False
        if known["method"] != method or known["params"] != _without_id(params):
            raise RequestIdReused(f"the request_id was used for another {known['method']}")
        return True

    async def write(self, change: Change, *, command: Command | None = None) -> None:
        """Change the keys durably, in one atomic replace, the request's id with its effect.

        Raises:
            NotDurable: nothing was changed, but for what is blocked.
        """
        async with self._writing:
            self._observe()
            keys = self._with_blocks(change(self.keys))
            requests = self._requests()
            if command is not None and "request_id" in command[1]:
                requests[command[1]["request_id"]] = {
                    "method": command[0],
                    "params": _without_id(command[1]),
                    "at": now_text(),
                }
            contents = Contents(keys, requests, clean=False)
            try:
                await self._write_file(contents)
            finally:
                if self._ledger.contents is contents:  # replaced, if perhaps not durably
                    self.keys = self._with_blocks(keys)
                    self.changed.set()

    async def observe(self) -> None:
        """Count the time since the last look, and the uses in it; in memory."""
        async with self._writing:
            self._observe()

    async def save(self, *, clean: bool) -> None:
        """Write what was observed; `clean` says that nothing will be missed after it.

        Raises:
            NotDurable
        """
        async with self._writing:
            self._observe()
            contents = Contents(self.keys, self._requests(), clean=clean)
            if contents != self._ledger.contents:
                await self._write_file(contents)

    async def _write_file(self, contents: Contents) -> None:
        """Write in a thread, and be there until that has ended, cancelled or not."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._ledger.write, contents))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise

    def _observe(self) -> None:
        now = boottime()
        seconds = int(now - self._observed)
        self._observed += seconds
        keys = drains.observe(self.keys, seconds) if seconds > 0 else self.keys
        uses, self._uses = self._uses, {}
        for jkt, (at, origins) in uses.items():
            key, generation = keys.by_jkt[jkt]
            keys = keys.with_(key.with_(generation.used(at, list(origins))))
        self.keys = keys

    def _requests(self) -> dict[str, Mapping[str, Any]]:
        oldest = _text(datetime.now(UTC) - REQUEST_LIFETIME)
        known = self._ledger.contents.requests
        return {i: asked for i, asked in known.items() if asked["at"] > oldest}

    def _with_blocks(self, keys: Keys) -> Keys:
        for name, g in self._blocked_in(keys):
            keys = keys.with_(keys.named(name).with_(_compromised(g)))
        return keys

    def _blocked_in(self, keys: Keys) -> list[tuple[str, Generation]]:
        return [
            (key.name, g)
            for key in keys.values()
            for g in key.generations
            if (key.name, g.ref, g.created) in self._blocked
        ]


def _compromised(generation: Generation) -> Generation:
    if generation.state is State.PENDING:
        return replace(generation, compromised=True)
    if generation.state in (State.COMPROMISED, State.DESTROYED):
        return generation
    return generation.become(State.COMPROMISED, now_text())


def _without_id(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "request_id"}
