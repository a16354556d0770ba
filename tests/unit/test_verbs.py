"""What is done to keys, by people and by time; the store is a dictionary."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent import keys as keys_module
from dpop_agent.agent import records
from dpop_agent.agent.keys import Key, State
from dpop_agent.agent.ledger import Ledger
from dpop_agent.agent.records import Records
from dpop_agent.errors import (
    DPoPAgentError,
    IllegalTransition,
    InvalidParams,
    KeyCompromised,
    KeyDestroyed,
    KeyExists,
    KeyUnknown,
    NoActive,
    ObjectLeft,
    SignerFailed,
)
from tests.faults.around_records import AroundRecords
from tests.faults.test_machine import DictStore, Fate, no_touch

SHOP, API = "https://shop.example", "https://api.example"


class Place:
    """A ledger and a store, and the clock that the agent sees."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot = 0.0
        monkeypatch.setattr(records, "boottime", lambda: self.boot)
        self.store = DictStore(Fate())
        self.folder = str(folder)
        self.ledger = Ledger(self.folder)
        self.open()

    def open(self) -> None:
        self.records = Records(self.ledger)
        around = AroundRecords(self.records, dict=self.store)
        self.lifecycle, self.making, self.upkeep = around.lifecycle, around.making, around.upkeep

    def restart(self) -> None:
        """The same from what is on the disk."""
        self.ledger.close()
        self.ledger = Ledger(self.folder)
        self.open()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)

    async def create(self, name: str, **params: Any) -> Key:
        return await self.lifecycle.create({"key": name, "origins": [], **params}, "dict")

    async def destroy(self, name: str, number: int = 1) -> Key:
        return await self.lifecycle.destroy({"key": name, "generation": number})

    def refusal(self, jkt: str) -> type[DPoPAgentError]:
        """What who wants a proof by that one is told."""
        with pytest.raises(DPoPAgentError) as refused:
            self.records.keys.signer(None, jkt, presents_access_token=False)
        assert refused.value.hint
        return refused.type

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


# The last generation, and the name


def test_the_name_of_a_key_that_is_destroyed_says_so_and_what_to_do(place: Place) -> None:
    async def story() -> None:
        await place.create("shop")
        await place.destroy("shop")
        with pytest.raises(KeyExists, match="are destroyed, and its name is taken") as taken:
            await place.create("shop")
        with pytest.raises(NoActive, match="all are destroyed") as none:
            place.records.keys.signer("shop", None, presents_access_token=False)
        for hint in (taken.value.hint, none.value.hint):
            assert "dpop-agent key rotate shop" in hint
            assert "dpop-agent key forget shop" in hint

    place.run(story())


def test_a_name_that_was_forgotten_is_free_and_its_old_jkt_is_known_as_destroyed(
    place: Place,
) -> None:
    async def story() -> None:
        (old,) = (await place.create("shop", drain_s=5)).generations
        await place.destroy("shop")
        await place.lifecycle.forget({"key": "shop"})
        assert "shop" not in place.records.keys
        assert place.refusal(old.jkt) is KeyDestroyed
        made = await place.create("shop", origins=[SHOP])
        assert [(g.generation, g.state) for g in made.generations] == [(1, State.ACTIVE)]
        assert made.generations[0].jkt != old.jkt
        assert (made.origins, made.drain_s) == ((SHOP,), keys_module.DRAIN_S)
        place.restart()
        assert place.refusal(old.jkt) is KeyDestroyed
        assert "shop@1" in str(place.records.keys.forgotten[old.jkt].refusal())

    place.run(story())


@pytest.mark.parametrize(
    "then", [[], ["suspend"], ["compromise"], ["rotate"], ["rotate", "destroy"]]
)
def test_a_key_with_a_generation_that_isnt_destroyed_is_not_forgotten(
    place: Place, then: list[str]
) -> None:
    async def story() -> None:
        await place.create("shop")
        for verb in then:
            await getattr(place.lifecycle, verb)({"key": "shop", "generation": 1})
        with pytest.raises(IllegalTransition) as refused:
            await place.lifecycle.forget({"key": "shop"})
        number = 2 if "destroy" in then else 1
        assert refused.value.hint.endswith(f"dpop-agent key destroy shop@{number}")
        assert "shop" in place.records.keys

    place.run(story())


def test_a_name_that_there_isnt_cant_be_forgotten(place: Place) -> None:
    with pytest.raises(KeyUnknown):
        place.run(place.lifecycle.forget({"key": "shop"}))


def test_what_is_left_in_the_store_is_deleted_first_or_nothing_is_forgotten(place: Place) -> None:
    async def story() -> None:
        await place.create("shop")
        place.store.keeps = True
        with pytest.raises(SignerFailed):
            await place.destroy("shop")
        for verb in (place.lifecycle.forget({"key": "shop"}), place.destroy("shop")):
            with pytest.raises(SignerFailed):
                await verb
            assert place.records.keys["shop"].generations[0].object_left
        place.store.keeps = False
        await place.lifecycle.forget({"key": "shop"})
        assert place.store.objects == {}
        assert "shop" not in place.records.keys

    place.run(story())


def test_destroying_again_deletes_what_was_left(place: Place) -> None:
    async def story() -> None:
        await place.create("shop")
        place.store.keeps = True
        with pytest.raises(SignerFailed):
            await place.destroy("shop")
        place.store.keeps = False
        assert not (await place.destroy("shop")).generations[0].object_left
        with pytest.raises(IllegalTransition):
            await place.destroy("shop")

    place.run(story())


def test_a_key_whose_slot_still_has_its_private_key_is_not_forgotten(place: Place) -> None:
    async def story() -> None:
        (made,) = (await place.create("shop")).generations
        await place.destroy("shop")
        await place.records.write(
            lambda keys: keys.with_(
                keys["shop"].with_(replace(keys["shop"].generation(1), slot="82", object_left=True))
            )
        )
        with pytest.raises(ObjectLeft, match="is still in slot 82"):
            await place.lifecycle.forget({"key": "shop"})
        assert place.refusal(made.jkt) is KeyDestroyed
        assert "shop" in place.records.keys

    place.run(story())


def test_what_was_compromised_never_comes_back_though_its_key_was_forgotten(place: Place) -> None:
    async def story() -> None:
        (marked,) = (await place.create("shop")).generations
        await place.lifecycle.compromise({"key": "shop"})
        await place.destroy("shop")
        await place.lifecycle.forget({"key": "shop"})
        place.restart()
        place.store.objects[marked.ref] = marked.jkt  # from a backup
        for name in ("shop", "other"):
            asked: dict[str, Any] = {"key": name, "ref": marked.ref, "origins": []}
            with pytest.raises(KeyCompromised):
                await place.lifecycle.adopt(asked, "dict", on_touch=no_touch)
        assert place.refusal(marked.jkt) is KeyDestroyed

    place.run(story())


def test_of_forgotten_keys_the_newest_are_known_and_each_that_was_compromised(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "MAX_FORGOTTEN", 2)

    async def story() -> None:
        jkts = []
        for number in range(4):
            (made,) = (await place.create("shop")).generations
            jkts.append(made.jkt)
            if number == 0:
                await place.lifecycle.compromise({"key": "shop"})
            await place.destroy("shop")
            await place.lifecycle.forget({"key": "shop"})
        assert list(place.records.keys.forgotten) == [jkts[0], *jkts[2:]]
        assert place.refusal(jkts[1]) is KeyUnknown

    place.run(story())


def test_forgetting_is_done_once_for_each_request_id(place: Place) -> None:
    async def story() -> None:
        await place.create("shop")
        await place.destroy("shop")
        asked = {"key": "shop", "request_id": "forget-shop-1"}
        await place.lifecycle.forget(asked)
        await place.lifecycle.forget(asked)
        await place.create("shop")
        await place.lifecycle.forget(asked)  # an answer that was lost, asked for late
        assert place.records.keys["shop"].active is not None

    place.run(story())


def test_of_a_forgotten_key_no_use_is_remembered(place: Place) -> None:
    async def story() -> None:
        (made,) = (await place.create("shop")).generations
        place.records.used(made.jkt, SHOP)
        await place.destroy("shop")
        assert made.jkt in place.records.seen.uses
        await place.lifecycle.forget({"key": "shop"})
        assert made.jkt not in place.records.seen.uses

    place.run(story())
