"""With thousands of keys: what a use, a save and a look cost, and what may not grow without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent import background, drains, keys, records
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.ledger import Contents, Ledger
from dpop_agent.agent.records import Records
from dpop_agent.errors import DPoPAgentError, LimitReached, RequestIdReused
from tests.faults.around_records import AroundRecords
from tests.faults.test_machine import DictStore, Fate
from tests.state_folder import new_public_key

MANY = 1000
AT = "2026-11-20T19:05:00Z"
ORIGIN = "https://api.example.com"
DAY = 24 * 3600


def a_key(number: int, public: dict[str, Any]) -> Key:
    made = Generation(1, State.ACTIVE, f"ee{number:030x}", AT, AT, **public)
    return Key(f"key-{number}", "dict", "ES256", AT, rotate_every_s=10**8, generations=(made,))


class Place:
    """A ledger with many keys, and a store that has them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.ledger = Ledger(str(folder))
        self.ledger.write(Contents(Keys(a_key(n, new_public_key()) for n in range(count))))
        self.boot = 0.0

    def open(self) -> None:
        """Inside a running event loop."""
        self.records = Records(self.ledger)
        self.store = DictStore(Fate())
        self.store.objects = {g.ref: jkt for jkt, (_, g) in self.records.keys.by_jkt.items()}
        around = AroundRecords(self.records, dict=self.store)
        self.lifecycle, self.making, self.upkeep = around.lifecycle, around.making, around.upkeep
        self.inventory = around.inventory

    def run(self, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def opened() -> None:
            self.open()
            await story()

        asyncio.run(opened())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(tmp_path / "state", MANY)
    monkeypatch.setattr(records, "boottime", lambda: place.boot)
    yield place
    place.ledger.close()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(tmp_path / "state", 3)
    monkeypatch.setattr(records, "boottime", lambda: place.boot)
    yield place
    place.ledger.close()


def test_uses_and_time_change_no_key_and_never_the_ledgers_file(
    place: Place, tmp_path: Path
) -> None:
    async def story() -> None:
        before, file = place.records.keys, tmp_path / "state" / "ledger.json"
        written = file.stat()
        for jkt in before.by_jkt:
            place.records.used(jkt, ORIGIN)
        place.boot += 60
        await place.records.save(clean=False)
        assert place.records.keys is before
        assert place.records.seen.now_s == 60
        after = file.stat()
        assert (after.st_ino, after.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
        assert len(place.ledger.times.uses) == MANY

    place.run(story)


def test_a_change_of_one_key_makes_no_other_one_anew(place: Place) -> None:
    async def story() -> None:
        before = place.records.keys
        await place.lifecycle.set({"key": "key-7", "allow_sign_proof": True})
        await place.lifecycle.rotate({"key": "key-8"})
        after = place.records.keys
        assert sorted(k.name for k in after.changed_from(before)) == ["key-7", "key-8"]

    place.run(story)


def test_no_look_at_all_keys_keeps_the_event_loop_from_its_other_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two turns of the loop no more keys are looked at than `AT_ONCE`, however many."""
    turn, looked = 0, dict[tuple[str, int], int]()

    def counting(name: str) -> None:
        real = getattr(drains, name)

        def count(*args: Any) -> Any:
            looked[name, turn] = looked.get((name, turn), 0) + 1
            return real(*args)

        monkeypatch.setattr(drains, name, count)

    async def turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def story() -> None:
        for name in ("is_drain_over", "to_destroy", "events_s", "is_rotation_due"):
            counting(name)
        ticking = asyncio.ensure_future(turns())
        await place.upkeep.do_what_is_due()
        await asyncio.sleep(0)
        await place.upkeep.look()
        begun = turn
        await place.inventory.look("dict")
        assert turn - begun >= MANY // background.AT_ONCE
        ticking.cancel()

    place.run(story)
    for name in ("is_drain_over", "to_destroy", "events_s"):
        assert sum(n for (what, _), n in looked.items() if what == name) == MANY
    assert max(looked.values()) <= background.AT_ONCE
    assert place.inventory.unknown == {"dict": []}


def test_names_that_there_are_not_leave_nothing_behind(small: Place) -> None:
    async def story() -> None:
        for number in range(500):
            for verb in ("rotate", "suspend", "compromise"):
                with pytest.raises(DPoPAgentError):
                    await getattr(small.lifecycle, verb)(
                        {"key": f"made-up-{number}", "generation": 1}
                    )
        assert len(small.making._by_name) == 0

    small.run(story)


def test_a_key_has_one_lock_for_as_long_as_somebody_waits_for_it(small: Place) -> None:
    at_once = most = 0

    async def story() -> None:
        async def change() -> None:
            nonlocal at_once, most
            async with small.making.alone("key-1"):
                at_once += 1
                most = max(most, at_once)
                await asyncio.sleep(0)
                at_once -= 1

        await asyncio.gather(*(change() for _ in range(50)))

    small.run(story)
    assert most == 1


# Request ids


def asked(number: int, **params: Any) -> dict[str, Any]:
    return {"key": "key-1", "request_id": f"request-{number}", **params}


@pytest.fixture
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_REQUESTS", 3)


def fill(place: Place) -> Coroutine[Any, Any, None]:
    async def three() -> None:
        for number in range(3):
            await place.lifecycle.set(asked(number, drain_s=number))

    return three()


@pytest.mark.usefixtures("few_requests")
def test_a_request_whose_id_cant_be_remembered_is_refused_and_none_is_forgotten_for_it(
    small: Place,
) -> None:
    async def story() -> None:
        await fill(small)
        before = small.records.keys
        with pytest.raises(LimitReached) as refused:
            await small.lifecycle.rotate(asked(3))
        assert refused.value.retry == "later"
        assert small.records.keys is before
        await small.lifecycle.set(asked(0, drain_s=0))  # once more: nothing is done
        assert small.records.keys is before
        with pytest.raises(RequestIdReused):
            await small.lifecycle.set(asked(0, drain_s=7))
        await small.lifecycle.set({"key": "key-1", "drain_s": 9})
        assert small.records.keys["key-1"].drain_s == 9

    small.run(story)


@pytest.mark.usefixtures("few_requests")
def test_nothing_keeps_a_key_from_being_compromised(small: Place) -> None:
    async def story() -> None:
        await fill(small)
        await small.lifecycle.compromise(asked(3))
        (generation,) = small.ledger.contents.keys["key-1"].generations
        assert generation.state is State.COMPROMISED
        assert len(small.ledger.contents.requests) == 3

    small.run(story)


@pytest.mark.usefixtures("few_requests")
def test_a_request_id_is_remembered_for_a_day_that_the_agent_was_there_to_see(
    small: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await fill(small)
        monkeypatch.setattr(records, "now_text", lambda: "2036-01-01T00:00:00Z")  # a jump
        small.boot += DAY - 1
        with pytest.raises(LimitReached):
            await small.lifecycle.set(asked(3))
        small.boot += 2
        await small.lifecycle.set(asked(3))
        assert list(small.ledger.contents.requests) == ["request-3"]

    small.run(story)


# Tombstones and generations


def test_a_key_that_has_as_many_generations_as_it_may_gets_no_more_and_signs_on(
    small: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpop_agent.agent.making.MAX_GENERATIONS", 3)

    async def story() -> None:
        for _ in range(2):
            await small.lifecycle.rotate({"key": "key-1"})
        before = small.records.keys
        with pytest.raises(LimitReached):
            await small.lifecycle.rotate({"key": "key-1"})
        assert small.records.keys is before

    small.run(story)


def test_what_was_compromised_is_never_forgotten_however_many_were_destroyed_since(
    small: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_TOMBSTONES", 2)

    async def story() -> None:
        marked = small.records.keys["key-1"].generation(1)
        await small.lifecycle.compromise({"key": "key-1", "generation": 1})
        await small.lifecycle.destroy({"key": "key-1", "generation": 1})
        for number in range(2, 8):
            await small.lifecycle.rotate({"key": "key-1"})
            await small.lifecycle.destroy({"key": "key-1", "generation": number})
        kept = small.ledger.contents.keys["key-1"].generations
        assert [g.generation for g in kept] == [1, 5, 6, 7]
        small.store.objects[marked.ref] = marked.jkt  # from a backup
        with pytest.raises(DPoPAgentError, match="key-1@1, compromised"):
            await small.lifecycle.adopt(
                {"key": "other", "ref": marked.ref, "origins": []},
                "dict",
                on_touch=lambda _key, _g: None,
            )

    small.run(story)


def test_one_listing_tells_of_all_keys_of_a_store(place: Place) -> None:
    async def story() -> None:
        asked: list[str | bytes] = []
        ask = place.store.ask

        async def counted(op: str | bytes, **members: Any) -> dict[str, Any]:
            asked.append(op)
            return await ask(op, **members)

        place.store.ask = counted  # type: ignore[method-assign]
        gone = place.records.keys["key-7"].generations[0]
        del place.store.objects[gone.ref]
        other = place.records.keys["key-8"].generations[0]
        place.store.objects[other.ref] = "another"
        place.store.objects["ff" * 16] = "a stranger's"
        await place.upkeep.reconcile("dict")
        assert asked == ["objects"]
        assert place.inventory.missing == {gone.jkt, other.jkt}
        assert {item["ref"] for item in place.inventory.unknown["dict"]} == {"ff" * 16, other.ref}
        place.store.objects[gone.ref] = gone.jkt
        await place.upkeep.reconcile("dict")
        assert place.inventory.missing == {other.jkt}

    place.run(story)


def test_a_key_that_is_made_while_its_store_is_listed_isnt_missing(small: Place) -> None:
    async def story() -> None:
        ask = small.store.ask

        async def listed_first(op: str | bytes, **members: Any) -> dict[str, Any]:
            answer = await ask(op, **members)
            if op == "objects":
                await small.lifecycle.create({"key": "new"}, "dict")
            return answer

        small.store.ask = listed_first  # type: ignore[method-assign]
        await small.upkeep.reconcile("dict")
        assert small.inventory.missing == set()

    small.run(story)
