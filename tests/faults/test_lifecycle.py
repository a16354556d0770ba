"""What must not be lost between a look and a write; the store is a dictionary."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent import records
from dpop_agent.agent.keys import State
from dpop_agent.agent.ledger import Contents, Ledger, Times
from dpop_agent.agent.records import Records
from dpop_agent.errors import KeyCompromised, KeyExists, NotDurable, ObjectLeft
from tests.faults.around_records import AroundRecords
from tests.faults.test_machine import DictStore, Fate, no_touch

HOUR = 3600


class Place:
    """A ledger and a store, and the clock that the lifecycle sees."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot = 0.0
        monkeypatch.setattr(records, "boottime", lambda: self.boot)
        self.store = DictStore(Fate())
        self.ledger = Ledger(str(folder))
        self.open()

    def open(self) -> None:
        self.records = Records(self.ledger)
        around = AroundRecords(self.records, dict=self.store)
        self.lifecycle, self.upkeep = around.lifecycle, around.upkeep

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(tmp_path, monkeypatch)
    yield place
    place.ledger.close()


def test_a_setting_that_changes_takes_back_no_use(place: Place) -> None:
    async def story() -> None:
        await place.lifecycle.create({"key": "a", "origins": []}, "dict")
        _, old = await place.lifecycle.rotate({"key": "a"})
        assert old is not None
        place.boot += 7 * 24 * HOUR - 60
        place.records.used(old.jkt, "https://api.example.com")
        await place.lifecycle.set({"key": "a", "allow_sign_proof": True})
        _, now = place.records.keys.by_jkt[old.jkt]
        seen = place.records.seen
        assert seen.idle_s(now) == 0
        assert list(seen.uses[old.jkt].origins) == ["https://api.example.com"]

    place.run(story())


def test_a_save_that_is_cancelled_is_over_before_the_next_begins(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on, at_once = 0, threading.Event(), []
    real = Ledger.save

    def slow(ledger: Ledger, times: Times, *, clean: bool) -> None:
        nonlocal writing
        writing += 1
        at_once.append(writing)
        go_on.wait(0.2)
        real(ledger, times, clean=clean)
        writing -= 1

    async def story() -> None:
        await place.lifecycle.create({"key": "a", "origins": []}, "dict")
        monkeypatch.setattr(Ledger, "save", slow)
        first = asyncio.ensure_future(place.records.save(clean=False))
        place.boot += HOUR
        await asyncio.sleep(0.05)
        first.cancel()
        await place.records.save(clean=True)

    place.run(story())
    assert set(at_once) == {1}


def test_an_object_is_adopted_once(place: Place) -> None:
    place.store._generate("ff" * 16)

    async def story() -> None:
        both = await asyncio.gather(
            *(
                place.lifecycle.adopt(
                    {"key": name, "ref": "ff" * 16, "origins": []}, "dict", on_touch=no_touch
                )
                for name in "ab"
            ),
            return_exceptions=True,
        )
        assert sorted(type(one).__name__ for one in both) == ["Key", "KeyExists"]

    place.run(story())


def test_a_store_that_cant_delete_is_asked_once_each_time_that_it_is_opened(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(ref: str, jkt: str, **_rest: object) -> None:
        asked.append(ref)
        raise ObjectLeft("the store can't delete keys")

    async def story() -> None:
        await place.lifecycle.create({"key": "a", "origins": []}, "dict")
        monkeypatch.setattr(place.store, "_destroy", refuse)
        with pytest.raises(ObjectLeft):
            await place.lifecycle.destroy({"key": "a", "generation": 1})
        for _ in range(3):  # each would put off the lock or the release of an idle store
            await place.upkeep.do_what_is_due()
        assert len(asked) == 1
        await place.upkeep.reconcile("dict")
        assert len(asked) == 2

    place.run(story())


def test_an_object_that_is_to_be_deleted_is_not_adopted(place: Place) -> None:
    async def story() -> None:
        await place.lifecycle.create({"key": "a", "origins": []}, "dict")
        ref = place.records.keys["a"].generations[0].ref
        place.store.keeps = True
        with pytest.raises(Exception, match="the store fails"):
            await place.lifecycle.destroy({"key": "a", "generation": 1})
        with pytest.raises(KeyExists):
            await place.lifecycle.adopt(
                {"key": "b", "ref": ref, "origins": []}, "dict", on_touch=no_touch
            )

    place.run(story())


def test_what_was_compromised_once_never_comes_back_by_adoption(place: Place) -> None:
    async def story() -> None:
        await place.lifecycle.create({"key": "a", "origins": []}, "dict")
        (generation,) = place.records.keys["a"].generations
        await place.lifecycle.compromise({"key": "a"})
        await place.lifecycle.destroy({"key": "a", "generation": 1})
        place.store.objects[generation.ref] = generation.jkt  # from a backup
        with pytest.raises(KeyCompromised):
            await place.lifecycle.adopt(
                {"key": "b", "ref": generation.ref, "origins": []}, "dict", on_touch=no_touch
            )

    place.run(story())


def test_a_compromise_holds_against_a_change_that_is_under_way(place: Place) -> None:
    async def story() -> None:
        await place.lifecycle.create({"key": "a", "origins": []}, "dict")
        rotating = asyncio.ensure_future(place.lifecycle.rotate({"key": "a"}))
        await asyncio.sleep(0)
        await place.lifecycle.compromise({"key": "a", "generation": 1})
        await asyncio.gather(rotating, return_exceptions=True)
        assert place.records.keys["a"].generation(1).state is State.COMPROMISED
        assert place.ledger.contents.keys["a"].generation(1).state is State.COMPROMISED

    place.run(story())


def test_compromising_a_key_means_the_generation_that_is_being_made_too(place: Place) -> None:
    async def story() -> None:
        await place.lifecycle.create({"key": "a", "origins": []}, "dict")
        rotating = asyncio.ensure_future(place.lifecycle.rotate({"key": "a"}))
        while len(place.records.keys["a"].generations) == 1:
            await asyncio.sleep(0)
        await place.lifecycle.compromise({"key": "a"})
        with pytest.raises(KeyCompromised):
            await rotating
        for key in (place.records.keys["a"], place.ledger.contents.keys["a"]):
            assert [g.state for g in key.generations] == [State.COMPROMISED] * 2

    place.run(story())


def test_a_block_of_what_is_being_made_is_written_again_until_it_is_durable(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "BLOCK_AGAIN_S", 0.01)

    def full(_ledger: Ledger, _contents: Contents) -> None:
        raise NotDurable("no space is left")

    async def story() -> None:
        making = asyncio.ensure_future(place.lifecycle.create({"key": "a", "origins": []}, "dict"))
        while "a" not in place.records.keys:
            await asyncio.sleep(0)
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "write", full)
            with pytest.raises(NotDurable, match="a is blocked"):
                await place.lifecycle.compromise({"key": "a"})
        async with asyncio.timeout(5):
            while not place.ledger.contents.keys["a"].generation(1).compromised:
                await asyncio.sleep(0.01)

    place.run(story())


def test_blocks_that_cant_be_written_are_tried_again_together_and_their_requests_remembered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "BLOCK_AGAIN_S", 0.01)
    tried = 0

    def full(_ledger: Ledger, _contents: Contents) -> None:
        nonlocal tried
        tried += 1
        raise NotDurable("no space is left")

    async def story() -> None:
        names = [f"k{n}" for n in range(20)]
        for name in names:
            await place.lifecycle.create({"key": name, "origins": []}, "dict")
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "write", full)
            for name in names:
                with pytest.raises(NotDurable, match="stays so if the agent is restarted"):
                    await place.lifecycle.compromise({"key": name, "request_id": f"mark-{name}"})
            before, turns = tried, 0
            while tried < before + 5:
                await asyncio.sleep(0.01)
                turns += 1
            assert tried - before <= turns + 1  # one loop tries, not one for each
            assert len(place.ledger.blocks.kept) == len(names)
        while not place.records.durable:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        contents = place.ledger.contents
        assert {contents.keys[n].generations[0].state for n in names} == {State.COMPROMISED}
        assert set(contents.requests) == {f"mark-{name}" for name in names}
        assert place.ledger.blocks.kept == set()

    place.run(story())


def test_a_generation_that_was_compromised_before_it_was_made_stays_so_after_a_kill(
    place: Place,
) -> None:
    async def story() -> None:
        await place.lifecycle.create({"key": "a", "origins": []}, "dict")
        rotating = asyncio.ensure_future(place.lifecycle.rotate({"key": "a"}))
        while len(place.store.objects) == 1:
            await asyncio.sleep(0)
        await place.lifecycle.compromise({"key": "a"})
        rotating.cancel()
        await asyncio.gather(rotating, return_exceptions=True)
        place.open()
        await place.lifecycle.rotate({"key": "a"})
        states = [g.state for g in place.records.keys["a"].generations]
        assert states == [State.COMPROMISED, State.COMPROMISED, State.ACTIVE]

    place.run(story())
