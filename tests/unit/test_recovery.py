"""A lost ledger's keys, found by their labels: what is adopted, and what is left and why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpop_agent.agent import recovery
from dpop_agent.agent.blocks import with_blocks
from dpop_agent.agent.forms import Block
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.labels import label_of, named_by
from dpop_agent.agent.ledger import Contents, Ledger
from dpop_agent.agent.records import Records
from dpop_agent.agent.recovery import Recovery
from dpop_agent.errors import (
    InvalidParams,
    Locked,
    NotDurable,
    SignerFailed,
    StoreUnknown,
)
from dpop_agent.jose import ALGORITHMS
from tests.faults.around_records import AroundRecords
from tests.state_folder import new_public_key

LATER = "2026-02-01T00:00:00Z"
RSA = {"kty": "RSA", "n": "0" + "A" * 341, "e": "AQAB"}


class Store:
    """A store as the agent's side sees it: objects with labels."""

    def __init__(self, name: str = "soft") -> None:
        self.config = SimpleNamespace(name=name)
        self.objects: list[dict[str, Any]] = []
        self.fails_at: dict[str, Exception] = {}
        self.asked: list[str] = []
        self.lists = True

    def add(self, label: str, ref: str | None = None, **known: Any) -> dict[str, Any]:
        made = new_public_key() | {
            "ref": ref if ref is not None else f"{len(self.objects) + 1:032x}",
            "label": label,
            "alg": "ES256",
            "exportable": False,
            "protection": "software-token",
            "local": True,
            "slot": None,
            "touch": None,
        }
        self.objects.append(made | known)
        return self.objects[-1]

    async def ask(self, op: str, **members: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        self.asked.append(op)
        if op == "objects":
            names = ("ref", "label", "jkt", "alg")
            found = [{name: o[name] for name in names} for o in self.objects]
            return {"objects": found if self.lists else None, "more": False, "slots": None}
        assert op == "find"
        if error := self.fails_at.get(members["ref"]):
            raise error
        (made,) = (o for o in self.objects if o["ref"] == members["ref"])
        return {"key": {n: v for n, v in made.items() if n not in ("label", "alg")}, "half": None}


class Place:
    """An agent's records over stores, some of which have keys that it doesn't know."""

    def __init__(self, folder: Path, *stores: Store) -> None:
        self.ledger = Ledger(str(folder))
        self.records = Records(self.ledger)
        around = AroundRecords(self.records, **{store.config.name: store for store in stores})
        self.lifecycle = around.lifecycle
        self.recovery = Recovery(self.records, around.signers, around.inventory, around.making)

    def page(self, **params: Any) -> dict[str, Any]:
        return asyncio.run(self.recovery.adopt_all(params, "soft"))

    def adopt(self, **params: Any) -> dict[str, str]:
        """Adopt all; why what is left is."""
        page = self.page(**params)
        left = {found["label"]: found["reason"] for found in page["left"]}
        while "cursor" in page:
            page = self.page(**params, cursor=page["cursor"])
            left |= {found["label"]: found["reason"] for found in page["left"]}
        return left

    @property
    def known(self) -> dict[str, list[int]]:
        """The numbers of each key's generations, each suspended and shared."""
        for key in self.records.keys.values():
            assert key.policy_lost
            assert all(g.state is State.SUSPENDED and g.shared for g in key.generations)
        return {
            name: [g.generation for g in key.generations] for name, key in self.records.keys.items()
        }


@pytest.fixture
def open_place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    places: list[Place] = []

    def opened(*stores: Store) -> Place:
        if places:
            places.pop().ledger.close()
        places.append(Place(tmp_path / "state", *stores))
        return places[-1]

    yield opened
    for place in places:
        place.ledger.close()


@pytest.mark.parametrize(("name", "number"), [("default", 1), ("a.b-c_d", 40), ("z" * 64, 999_999)])
def test_a_label_says_key_and_generation(name: str, number: int) -> None:
    assert named_by(label_of(name, number)) == (name, number)


@pytest.mark.parametrize(
    "label",
    [
        "",
        "dpop-agent",
        "dpop-agent default",
        "dpop-agent default@",
        "dpop-agent default@0",
        "dpop-agent default@01",
        "dpop-agent default@-1",
        "dpop-agent default@1234567",
        "dpop-agent default@1 ",
        "dpop-agent default@1\n",
        " dpop-agent default@1",
        "dpop-agent Default@1",
        "dpop-agent a b@1",
        "dpop-agent ä@1",
        "dpop-agent default@\N{ARABIC-INDIC DIGIT ONE}",
        f"dpop-agent {'z' * 65}@1",
    ],
)
def test_a_label_of_another_form_says_nothing(label: str) -> None:
    assert named_by(label) is None


def test_many_generations_are_adopted_in_pages_each_of_them_durable(
    open_place: Callable[..., Place],
) -> None:
    store = Store()
    for number in range(150, 0, -1):
        store.add(f"dpop-agent shop@{number}")
        store.add(f"dpop-agent k{number}@1")
    place = open_place(store)
    page = place.page()
    assert len(page["adopted"]) == recovery.AT_ONCE
    listings = store.asked.count("objects")
    place = open_place(store)  # the agent ended in between
    assert sum(map(len, place.known.values())) == recovery.AT_ONCE
    assert place.adopt() == {}
    assert place.known == {f"k{n}": [1] for n in range(1, 151)} | {"shop": [*range(1, 151)]}
    assert store.asked.count("objects") == listings + 1  # for all pages
    assert open_place(store).known["shop"] == [*range(1, 151)]


def test_adopting_again_changes_nothing(open_place: Callable[..., Place]) -> None:
    store = Store()
    store.add("dpop-agent shop@2")
    place = open_place(store)
    assert place.adopt() == {}
    before = place.records.keys
    page = place.page()
    assert (page["adopted"], page["left"]) == ([], [])
    assert place.records.keys is before


def test_what_a_failure_left_out_is_adopted_the_next_time(
    open_place: Callable[..., Place],
) -> None:
    store = Store()
    store.add("dpop-agent shop@1")
    odd = store.add("dpop-agent shop@2")
    store.add("dpop-agent shop@3")
    store.fails_at[odd["ref"]] = SignerFailed("it failed over this one")
    place = open_place(store)
    assert place.adopt() == {"dpop-agent shop@2": "it failed over this one"}
    assert place.known == {"shop": [1, 3]}
    store.fails_at.clear()
    assert place.adopt() == {}
    assert place.known == {"shop": [1, 2, 3]}


def test_where_the_store_goes_away_nothing_of_that_answer_is_adopted(
    open_place: Callable[..., Place],
) -> None:
    store = Store()
    store.add("dpop-agent a@1")
    store.fails_at[store.add("dpop-agent b@1")["ref"]] = Locked("it was locked")
    place = open_place(store)
    with pytest.raises(Locked):
        place.page()
    assert place.known == {}


def test_where_the_ledger_cant_be_written_nothing_of_that_answer_is_adopted(
    open_place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    store.add("dpop-agent a@1")
    place = open_place(store)

    def full(self: Ledger, contents: Contents) -> None:
        raise NotDurable("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "write", full)
        with pytest.raises(NotDurable):
            place.page()
    assert place.known == {}
    assert place.adopt() == {}
    assert place.known == {"a": [1]}


def test_what_isnt_sound_is_left_with_the_reason(open_place: Callable[..., Place]) -> None:
    store = Store()
    pair = store.add("dpop-agent a@1")
    store.add("dpop-agent copy@1", jkt=pair["jkt"], jwk=pair["jwk"])
    store.add("dpop-agent short@1", ref="abcd")
    store.add("dpop-agent nameless@1", ref="")
    store.add("dpop-agent leaves@1", exportable=True)
    store.add("dpop-agent public@1", jkt=None, alg=None)
    store.add("dpop-agent odd@1", alg=None)
    store.add("dpop-agent twice@1")
    store.add("dpop-agent twice@1")
    store.add("somebody else's")
    place = open_place(store)
    left = place.adopt()
    unusable = "its public key isn't there, or isn't one that can be used"
    foreign = "it isn't one of dpop-agent's: "
    assert left == {
        "dpop-agent copy@1": "it is a@1, which is suspended",
        "dpop-agent short@1": foreign + "its id has another length",
        "dpop-agent nameless@1": foreign + "its id has another length",
        "dpop-agent leaves@1": foreign + "it can leave the store, or could once",
        "dpop-agent public@1": unusable,
        "dpop-agent odd@1": unusable,
        "dpop-agent twice@1": "2 private keys have this label",
    }
    assert place.known == {"a": [1]}
    assert place.page()["others"] == 1
    assert open_place(store).known == {"a": [1]}  # its ledger can be read


def test_a_name_in_two_stores_goes_to_the_one_that_is_asked_first(
    open_place: Callable[..., Place],
) -> None:
    soft, card = Store(), Store("card")
    soft.add("dpop-agent default@1")
    card.add("dpop-agent default@2")
    card.add("dpop-agent other@1")
    place = open_place(soft, card)
    assert place.adopt() == {}
    assert place.adopt(store="card") == {
        "dpop-agent default@2": "the key default is for ES256 in the store soft"
    }
    assert place.known == {"default": [1], "other": [1]}


def test_a_pkcs11_token_that_two_stores_name_gives_its_keys_once(
    open_place: Callable[..., Place],
) -> None:
    soft, same = Store(), Store("same")
    soft.add("dpop-agent default@1")
    same.objects = soft.objects
    place = open_place(soft, same)
    assert place.adopt() == {}
    assert place.adopt(store="same") == {
        "dpop-agent default@1": "it is default@1, which is suspended"
    }


def test_an_algorithm_that_the_key_doesnt_tell_can_be_named(
    open_place: Callable[..., Place],
) -> None:
    assert [n for n, row in ALGORITHMS.items() if row.kty == "RSA"] == ["RS256", "PS256"]
    store = Store()
    store.add("dpop-agent rsa@1", alg="RS256")
    store.add("dpop-agent ec@1")
    place = open_place(store)
    with pytest.raises(InvalidParams):
        place.page(alg="none")
    # The fake's key is a P-256 one all the same: in memory nobody minds, a ledger would.
    found = asyncio.run(place.recovery._find("soft", ("rsa", 1), [dict(store.objects[0])], "PS256"))
    assert found.key.alg == "PS256"
    found = asyncio.run(place.recovery._find("soft", ("ec", 1), [dict(store.objects[1])], "PS256"))
    assert found.key.alg == "ES256"


def test_a_key_that_was_resumed_takes_no_more_generations(
    open_place: Callable[..., Place],
) -> None:
    store = Store()
    store.add("dpop-agent shop@1")
    place = open_place(store)
    place.adopt()
    resume = {"key": "shop", "generation": 1}
    with pytest.raises(InvalidParams, match="lost with its ledger"):
        asyncio.run(place.lifecycle.resume(resume))
    asyncio.run(place.lifecycle.resume(resume | {"origins": ["https://a.example/"]}))
    key = place.records.keys["shop"]
    assert (key.rules.origins, key.policy_lost) == (("https://a.example",), False)
    store.add("dpop-agent shop@2")
    assert place.adopt() == {
        "dpop-agent shop@2": "there is a key shop that is in use; to adopt it as another "
        "generation of that: dpop-agent key adopt shop --ref REF"
    }
    assert open_place(store).records.keys["shop"] == key


def test_a_generation_that_was_destroyed_doesnt_come_back_by_its_label(
    open_place: Callable[..., Place],
) -> None:
    store = Store()
    old = store.add("dpop-agent shop@1")
    place = open_place(store)
    place.adopt()

    def bury(keys: Keys) -> Keys:
        gone = keys["shop"].generation(1).become(State.DESTROYED, "2026-11-26T12:00:00Z")
        return keys.with_(keys["shop"].with_(gone.buried()))

    asyncio.run(place.records.write(bury))
    old["ref"] = "ff" * 16  # restored by the HSM's own backup, under another id
    assert place.adopt() == {"dpop-agent shop@1": "it is shop@1, which is destroyed"}


def test_a_store_that_lists_nothing_says_so(open_place: Callable[..., Place]) -> None:
    store = Store()
    store.lists = False
    assert open_place(store).page() == {
        "store": "soft",
        "listed": False,
        "adopted": [],
        "left": [],
        "others": 0,
    }


def test_a_store_that_isnt_there_and_a_cursor_that_isnt_one_are_refused(
    open_place: Callable[..., Place],
) -> None:
    place = open_place(Store())
    with pytest.raises(StoreUnknown):
        place.page(store="none")
    with pytest.raises(InvalidParams, match="cursor"):
        place.page(cursor="1:default@1")


def test_what_the_reserve_says_is_compromised_is_so_when_it_is_found_after_a_lost_ledger() -> None:
    blocks = {Block("shop", "aa" * 16, "2026-01-01T00:00:00Z")}
    found = Generation(1, State.SUSPENDED, "aa" * 16, LATER, LATER, shared=True, **new_public_key())
    for lost, state in ((True, State.COMPROMISED), (False, State.SUSPENDED)):
        key = Key("shop", "dict", "ES256", LATER, generations=(found,), policy_lost=lost)
        keys = with_blocks(Keys([key]), blocks, LATER)
        assert keys["shop"].generations[0].state is state
