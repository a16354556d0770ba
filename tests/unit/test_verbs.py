"""What is done to keys, by people and by time; the store is a dictionary."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent import records
from dpop_agent.agent.keys import Key
from dpop_agent.agent.ledger import Ledger
from dpop_agent.agent.records import Records
from dpop_agent.errors import InvalidParams
from tests.faults.around_records import AroundRecords
from tests.faults.test_machine import DictStore, Fate, no_touch

SHOP, API = "https://shop.example", "https://api.example"


class Place:
    """A ledger and a store, and the clock that the agent sees."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot = 0.0
        monkeypatch.setattr(records, "boottime", lambda: self.boot)
        self.store = DictStore(Fate())
        self.ledger = Ledger(str(folder))
        self.records = Records(self.ledger)
        around = AroundRecords(self.records, dict=self.store)
        self.lifecycle, self.making, self.upkeep = around.lifecycle, around.making, around.upkeep

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)

    async def create(self, name: str, **params: Any) -> Key:
        return await self.lifecycle.create({"key": name, "origins": [], **params}, "dict")

    async def adopt(self, name: str, **params: Any) -> Key:
        """A key whose newest generation is an object that was there."""
        ref = f"ff{len(self.store.objects):030x}"
        self.store._generate(ref)
        asked = {"key": name, "ref": ref, **params}
        return await self.lifecycle.adopt(asked, "dict", on_touch=no_touch)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(tmp_path, monkeypatch)
    yield place
    place.ledger.close()


# Safe by default


@pytest.mark.parametrize("verb", ["create", "adopt"])
def test_a_new_key_is_refused_where_nothing_says_which_servers_it_is_for(
    place: Place, verb: str
) -> None:
    async def story() -> None:
        create = place.lifecycle.create({"key": "shop"}, "dict")
        with pytest.raises(InvalidParams) as refused:
            await (place.adopt("shop") if verb == "adopt" else create)
        create.close()
        for says in ("origins", "[] for any", "--origin https://", "--any-origin"):
            assert says in refused.value.hint
        assert "shop" not in place.records.keys

    place.run(story())


@pytest.mark.parametrize(("origins", "kept"), [([SHOP, API], (SHOP, API)), ([], ())])
@pytest.mark.parametrize("verb", ["create", "adopt"])
def test_a_new_key_is_for_the_servers_that_it_was_given(
    place: Place, verb: str, origins: list[str], kept: tuple[str, ...]
) -> None:
    made = place.run(getattr(place, verb)("shop", origins=origins))
    assert made.origins == kept


def test_adopting_into_a_key_leaves_its_servers_as_they_are(place: Place) -> None:
    async def story() -> None:
        await place.create("shop", origins=[SHOP])
        assert (await place.adopt("shop")).origins == (SHOP,)
        for origins in ([], [SHOP], [API]):
            with pytest.raises(InvalidParams, match="keeps the origins that it has"):
                await place.adopt("shop", origins=origins)
        assert place.records.keys["shop"].origins == (SHOP,)

    place.run(story())


def test_a_key_goes_from_some_servers_to_any_and_back_by_command(place: Place) -> None:
    async def story() -> None:
        await place.create("shop", origins=[SHOP])
        assert (await place.lifecycle.set({"key": "shop", "origins": []})).origins == ()
        assert (await place.lifecycle.set({"key": "shop", "drain_s": 5})).origins == ()
        assert (await place.lifecycle.set({"key": "shop", "origins": [API]})).origins == (API,)

    place.run(story())


def test_a_key_that_exists_keeps_what_it_has(place: Place) -> None:
    place.run(place.create("shop"))
    again = Records(place.ledger)
    assert again.keys["shop"].origins == ()
