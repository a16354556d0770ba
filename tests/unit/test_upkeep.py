"""A drain ends when it says, whatever else is due or stuck; time is the test's own."""

from __future__ import annotations

import asyncio
import itertools
import os
import selectors
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent import records, upkeep
from dpop_agent.agent.keys import RETIRED_S, State
from dpop_agent.agent.ledger import Contents, Ledger
from dpop_agent.agent.records import Records
from dpop_agent.errors import NotDurable, SignerFailed
from tests.faults.around_records import AroundRecords
from tests.faults.test_machine import DictStore, Fate

LATE_S = 2 * upkeep.MIN_TICK_S
"""Seconds that a drain's end may be noticed late; of the test's own time."""


class _Hurried(selectors.SelectSelector):
    """Whoever waits for a time has waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout is not None and timeout > 0:
            self.now += timeout
        return found


class Time(asyncio.SelectorEventLoop):
    """An event loop whose time passes as soon as everybody waits for it."""

    def __init__(self) -> None:
        self._hurried = _Hurried()
        super().__init__(self._hurried)

    def time(self) -> float:
        return self._hurried.now


class Place:
    """An agent's upkeep over a dictionary, in its own time."""

    def __init__(self, ledger: Ledger, loop: Time) -> None:
        self.loop = loop
        self.store = DictStore(Fate())
        self.records = Records(ledger)
        around = AroundRecords(self.records, dict=self.store)
        self.lifecycle, self.upkeep = around.lifecycle, around.upkeep

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        async def with_upkeep() -> None:
            watching = asyncio.ensure_future(self.upkeep.watch_time())
            try:
                await story()
            finally:
                watching.cancel()
                await asyncio.wait([watching])

        self.loop.run_until_complete(with_upkeep())

    async def draining(self, name: str = "shop", *, drain_s: int = 5) -> None:
        """A key whose first generation drains from now on."""
        await self.lifecycle.create({"key": name, "origins": []}, "dict")
        await self.lifecycle.rotate({"key": name, "drain_s": drain_s})

    async def retired_after_s(self, name: str = "shop") -> float:
        """Seconds from now until its first generation is."""
        began = self.loop.time()
        while self.records.keys[name].generation(1).state is State.DRAINING:
            await self.records.changed.wait()
        assert self.records.keys[name].generation(1).state is State.RETIRED
        return self.loop.time() - began

    async def age(self, name: str, number: int = 1) -> None:
        """Have a generation be in its state for longer than a retired one is kept."""
        old = self.records.keys[name].generation(number)
        older = replace(old, since_s=old.since_s - RETIRED_S)
        await self.records.write(lambda keys: keys.with_(keys[name].with_(older)))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    async def at_once(_: Records, work: Callable[..., None], *arguments: Any) -> None:
        work(*arguments)

    with closing(Time()) as loop, closing(Ledger(str(tmp_path))) as ledger:
        monkeypatch.setattr(records, "boottime", loop.time)
        monkeypatch.setattr(Records, "_in_thread", at_once)  # threads have no part in this time
        monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
        yield Place(ledger, loop)


@pytest.mark.parametrize("drain_s", [0, 1, 2, 5, 59, 61, 7200])
def test_a_drain_ends_when_it_says(place: Place, drain_s: int) -> None:
    async def story() -> None:
        await asyncio.sleep(0.7)
        await place.draining(drain_s=drain_s)
        assert drain_s - 1 <= await place.retired_after_s() <= drain_s + LATE_S

    place.run(story)


def test_a_drain_that_is_extended_by_use_ends_when_the_use_does(place: Place) -> None:
    async def story() -> None:
        await place.draining()
        old = place.records.keys["shop"].generation(1)
        for _ in range(10):
            await asyncio.sleep(4)
            place.records.used(old.jkt, "https://shop.example")
        assert 4 <= await place.retired_after_s() <= 5 + LATE_S

    place.run(story)


def test_a_drain_ends_though_something_else_is_due_and_cant_be_done(place: Place) -> None:
    """A retired object that its store doesn't delete, and a rotation that it doesn't make."""

    async def story() -> None:
        await place.draining("old", drain_s=0)
        await place.retired_after_s("old")
        await place.draining("shop", drain_s=5)
        place.store.fails = True
        await place.age("old")
        await place.lifecycle.set({"key": "old", "rotate_every_s": 1})
        assert await place.retired_after_s() <= 5 + LATE_S

    place.run(story)


def test_a_drain_ends_though_a_store_doesnt_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(op: str, **_members: Any) -> dict[str, Any]:
        await asyncio.sleep(1000)
        raise SignerFailed("it didn't answer")

    async def story() -> None:
        await place.draining("old", drain_s=0)
        await place.retired_after_s("old")
        await place.draining("shop", drain_s=5)
        monkeypatch.setattr(place.store, "ask", hangs)
        await place.age("old")
        await asyncio.sleep(1)
        assert await place.retired_after_s() <= 5 + LATE_S

    place.run(story)


def test_one_drain_after_the_other_ends_when_it_says(place: Place) -> None:
    async def story() -> None:
        for number in range(1, 8):
            await place.draining(f"k{number}", drain_s=number)
        began = place.loop.time()
        for number in range(1, 8):
            await place.retired_after_s(f"k{number}")
            assert place.loop.time() - began <= number + LATE_S

    place.run(story)


def test_a_drain_whose_end_cant_be_written_is_tried_again_with_growing_pauses(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def full(_ledger: Ledger, _contents: Contents) -> None:
        tried.append(place.loop.time())
        raise NotDurable("no space is left")

    async def story() -> None:
        await place.draining()
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "write", full)
            await asyncio.sleep(600)
        pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
        assert 5 < len(tried) < 40
        assert max(pauses) <= upkeep.SAVE_S + LATE_S
        assert await place.retired_after_s() <= upkeep.SAVE_S + LATE_S

    place.run(story)


def test_a_retired_object_and_a_rotation_have_their_time_too(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SAVE_S", 3600.0)

    async def story() -> None:
        await place.draining(drain_s=0)
        await place.retired_after_s()
        await place.lifecycle.set({"key": "shop", "rotate_every_s": 30 * 24 * 3600})
        began = place.loop.time()
        while place.records.keys["shop"].generation(1).state is State.RETIRED:
            await place.records.changed.wait()
        assert RETIRED_S - 1 <= place.loop.time() - began <= RETIRED_S + upkeep.SAVE_S
        assert len(place.records.keys["shop"].generations) == 2
        while len(place.records.keys["shop"].generations) == 2:
            await place.records.changed.wait()
        assert 0 <= place.loop.time() - 30 * 24 * 3600 <= upkeep.SAVE_S

    place.run(story)
