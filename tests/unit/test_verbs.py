"""What is done to keys, by people and by time; the store is a dictionary."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent import keys as keys_module
from dpop_agent.agent import records
from dpop_agent.agent.keys import Key, State
from dpop_agent.agent.ledger import Contents, Ledger
from dpop_agent.agent.records import Records
from dpop_agent.client import AgentClient
from dpop_agent.errors import (
    DPoPAgentError,
    IllegalTransition,
    InvalidParams,
    KeyCompromised,
    KeyDestroyed,
    KeyExists,
    KeyUnknown,
    LimitReached,
    NoActive,
    NotDurable,
    ObjectLeft,
    SignerFailed,
)
from dpop_agent.jose import access_token_hash
from dpop_agent.protocol import KEY_SETTINGS
from tests.agent.places import until
from tests.faults.around_records import AroundRecords
from tests.faults.test_machine import DictStore, Fate, no_touch
from tests.unit.agent_in_process import AgentInProcess

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
    assert made.rules.origins == kept


def test_adopting_into_a_key_leaves_its_servers_as_they_are(place: Place) -> None:
    async def story() -> None:
        await place.create("shop", origins=[SHOP])
        assert (await place.adopt("shop")).rules.origins == (SHOP,)
        for origins in ([], [SHOP], [API]):
            with pytest.raises(InvalidParams, match="keeps the origins that it has"):
                await place.adopt("shop", origins=origins)
        assert place.records.keys["shop"].rules.origins == (SHOP,)

    place.run(story())


def test_a_key_goes_from_some_servers_to_any_and_back_by_command(place: Place) -> None:
    async def story() -> None:
        await place.create("shop", origins=[SHOP])
        for given, origins in (
            ({"origins": []}, ()),
            ({"drain_s": 5}, ()),
            ({"origins": [API]}, (API,)),
        ):
            key = await place.lifecycle.set({"key": "shop", **given})
            assert key.rules.origins == origins

    place.run(story())


def test_a_key_that_exists_keeps_what_it_has(place: Place) -> None:
    place.run(place.create("shop"))
    again = Records(place.ledger)
    assert again.keys["shop"].rules.origins == ()


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
        assert (made.rules.origins, made.drain_s) == ((SHOP,), keys_module.DRAIN_S)
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


def test_a_request_for_a_key_that_was_forgotten_makes_no_other(place: Place) -> None:
    async def story() -> None:
        asked = {"key": "shop", "origins": [], "request_id": "create-shop-1"}
        await place.lifecycle.create(asked, "dict")
        await place.destroy("shop")
        await place.lifecycle.forget({"key": "shop"})
        with pytest.raises(KeyDestroyed):
            await place.lifecycle.create(asked, "dict")
        again = await place.lifecycle.create(asked | {"request_id": "create-shop-2"}, "dict")
        assert again.active is not None

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


# The log


class Told:
    """What the log says of keys from now on, a line each, without thumbprints."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "dpop_agent.records")
        self._caplog = caplog

    def __call__(self) -> list[str]:
        """What was said since it was asked last."""
        said = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        return [re.sub(r", jkt [A-Za-z0-9_-]{43}", "", line) for line in said]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    return Told(caplog)


def test_each_verb_and_each_end_of_a_drain_is_a_line_with_its_key(place: Place, told: Told) -> None:
    async def story() -> None:
        do = place.lifecycle
        await place.create("shop", origins=[SHOP], drain_s=60)
        assert told() == [
            f"shop is a new key: ES256 in the store dict, origins {SHOP}, allow-sign-proof no, "
            "rotate-every never, drain 1m, max-drain 90d, touch auto",
            "shop@1 is pending, being made in the store dict, jkt not known yet",
            "shop@1 is active, was pending",
        ]
        await do.rotate({"key": "shop", "stage": True})
        assert told()[1:] == ["shop@2 is staged, was pending"]
        await do.rotate({"key": "shop", "drain_s": 5})
        assert told() == [
            "shop@1 is draining, was active, until it is unused for 5s",
            "shop@2 is active, was staged",
        ]
        await do.activate({"key": "shop", "generation": 1})
        assert sorted(told()) == [
            "shop@1 is active, was draining",
            "shop@2 is draining, was active, until it is unused for 1m",
        ]
        place.boot += 61
        await place.upkeep.do_what_is_due()
        assert told() == ["shop@2 is retired, was draining"]
        await do.suspend({"key": "shop", "generation": 1})
        await do.resume({"key": "shop", "generation": 1})
        assert told() == ["shop@1 is suspended, was active", "shop@1 is active, was suspended"]
        await place.destroy("shop", 2)
        assert told() == [
            "shop@2 signs no more and is being destroyed, was retired",
            "shop@2 is destroyed: the store dict has nothing of it any more",
        ]
        await place.adopt("shop")
        assert told() == ["shop@3 is staged, adopted from the store dict"]
        await do.compromise({"key": "shop"})
        assert sorted(told()) == [
            "shop@1 is compromised, was active",
            "shop@3 is compromised, was staged",
        ]
        await place.destroy("shop", 1)
        await place.destroy("shop", 3)
        told()
        await do.forget({"key": "shop"})
        assert told() == ["shop is forgotten, and the name is free"]

    place.run(story())


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("origins", [API, SHOP], f"origins is {API} {SHOP}, was any"),
        ("methods", ["GET", "PUT"], "methods is GET PUT, was any"),
        ("paths", ["/v1"], "paths is /v1, was any"),
        ("require_ath", True, "require-ath is yes, was no"),
        ("rate", {"per_minute": 60}, "rate is 60 a minute, 10 at once, was any"),
        ("confirm_s", 0, "confirm is each, was never"),
        ("confirm_s", 900, "confirm is 15m, was never"),
        ("allow_sign_proof", True, "allow-sign-proof is yes, was no"),
        ("rotate_every_s", 3600, "rotate-every is 1h, was never"),
        ("drain_s", 0, "drain is 0s, was 7d"),
        ("max_drain_s", 5, "max-drain is 5s, was 90d"),
        ("touch", False, "touch is no, was auto"),
    ],
)
def test_each_setting_that_changes_is_a_line_with_its_old_value_and_its_new_one(
    place: Place, told: Told, setting: str, value: object, says: str
) -> None:
    async def story() -> None:
        await place.create("shop")
        told()
        for _ in range(2):
            await place.lifecycle.set({"key": "shop", setting: value})
        assert told() == [f"shop: {says}"]

    place.run(story())
    assert set(KEY_SETTINGS) == {
        "origins",
        *("methods", "paths", "require_ath", "rate", "confirm_s"),
        "allow_sign_proof",
        "rotate_every_s",
        "drain_s",
        "max_drain_s",
        "touch",
    }


def test_what_time_does_is_told_as_what_people_do(place: Place, told: Told) -> None:
    async def story() -> None:
        await place.create("shop", rotate_every_s=3600, drain_s=60)
        told()
        place.boot += 3601
        await place.upkeep.do_what_is_due()
        assert "shop@2 is active, was pending" in told()
        place.boot += 61
        await place.upkeep.do_what_is_due()
        place.boot += keys_module.RETIRED_S
        place.records.used(place.records.keys["shop"].generation(2).jkt, SHOP)
        await place.upkeep.do_what_is_due()
        said = told()
        assert said.index("shop@1 is retired, was draining") < said.index(
            "shop@1 signs no more and is being destroyed, was retired"
        )

    place.run(story())


def test_what_came_to_nothing_and_what_was_refused_is_told_as_that(
    place: Place, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(**_rest: object) -> None:
        raise LimitReached("the store is full")

    async def story() -> None:
        await place.create("shop")
        told()
        monkeypatch.setattr(place.store, "_generate", no_room)
        with pytest.raises(LimitReached):
            await place.lifecycle.rotate({"key": "shop"})
        with pytest.raises(LimitReached):
            await place.create("other")
        assert [line for line in told() if "pending" not in line and "new key" not in line] == [
            "shop@2 wasn't made, and is undone",
            "other@1 wasn't made, and is undone",
        ]
        with pytest.raises(IllegalTransition):
            await place.lifecycle.resume({"key": "shop", "generation": 1})
        assert told() == []

    place.run(story())


def test_a_block_is_told_at_once_though_it_cant_be_written(
    place: Place, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_ledger: Ledger, _contents: Contents) -> None:
        raise NotDurable("no space is left")

    async def story() -> None:
        await place.create("shop")
        told()
        monkeypatch.setattr(Ledger, "write", full)
        with pytest.raises(NotDurable):
            await place.lifecycle.compromise({"key": "shop"})
        assert told() == ["shop@1 is compromised, was active"]

    place.run(story())


def test_with_v_each_proof_is_a_line_of_key_origin_and_client_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "dpop_agent")
    secrets = ("a-secret-path", "a-secret-query", "a-secret-access-token", "a-secret-nonce")
    path, query, access_token, nonce = secrets
    with AgentInProcess() as agent, AgentClient(agent.socket) as client:
        with AgentClient(agent.admin_socket) as admin:
            admin.call("key.create", {"key": "shop", "origins": []})
        url = f"{SHOP}:8443/{path}?q={query}"
        for name in (None, "a client\n1.0"):
            if name:
                client.call("hello", {"client": name})
            caplog.clear()
            proof = client.proof("GET", url, key="shop", access_token=access_token, nonce=nonce)
            who = f"pid {os.getpid()}, uid {os.getuid()}" + (", 'a client\\n1.0'" if name else "")
            line = f"shop@1 signed a proof for {SHOP}:8443, asked by {who}"
            until(lambda: caplog.messages.count(line) == 1)  # noqa: B023  (called at once)
            jti = json.loads(base64.urlsafe_b64decode(str(proof).split(".")[1] + "=="))["jti"]
            for secret in (*secrets, str(proof), jti, access_token_hash(access_token)):
                assert secret not in caplog.text
