"""A YubiKey as a store: the emulated card, a real pcscd, Yubico's own module, and a signer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from cryptography import x509

from dpop_agent.cli.main import main
from dpop_agent.client import AgentClient, Touch
from dpop_agent.verify import verify
from tests.agent.places import (
    changed_config,
    memory_of,
    serve_with,
    signers_of,
    store,
    until,
    until_open,
)
from tests.agent.wire import Wire, request
from tests.bench.bars import BACK
from tests.emulators import YUBIKEY, YubiKey, file_of, need
from tests.emulators import yubikey as new_yubikey
from tests.piv_card import NEVER, PIN_TRIES, WRONG_DATA, PinPolicy, Refused, TouchPolicy
from tests.processes import Agent
from tests.state_folder import changed
from tests.stores import conformance
from tests.stores.conformance import (
    HTM,
    HTU,
    TARGET,
    AwayConformance,
    PinConformance,
    StoreConformance,
    signs,
    until_back,
)
from tests.terminal import Terminal, at_a_terminal, unlock
from tests.timing import Measured

SLOTS = (0x9A, 0x9C, 0x9D, 0x9E, *range(0x82, 0x96))
"""In the order of their CKA_IDs, from 1 on."""

FACTORY_KEY = "0102030405060708" * 3


def tokens(yubikey: YubiKey) -> list[dict[str, Any]]:
    """What the signer lists of Yubico's module."""
    done = subprocess.run(
        [sys.executable, "-m", "dpop_agent.signer", "--tokens", file_of("ykcs11")],
        env={**os.environ, **yubikey.token.env},
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def serials(yubikey: YubiKey) -> list[str]:
    return [token["serial"] for token in tokens(yubikey)]


def send_key(path: str, line: str) -> dict[str, Any]:
    """What a signer says to a management key at its socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(path)
        sock.sendall(line.encode() + b"\n")
        said: dict[str, Any] = json.loads(sock.recv(4096))
        return said


def authorize(wire: Wire, yubikey: YubiKey) -> None:
    path = wire.result("store.authorize", store="yubikey")["socket"]
    assert send_key(path, yubikey.card.management_key.hex()) == {"ok": True}


class Authorizing(Wire):
    """A connection that gives the management key where it is wanted."""

    def __init__(self, path: str, yubikey: YubiKey) -> None:
        super().__init__(path, timeout=60)
        self._yubikey = yubikey

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        answer = super().ask(method, **params)
        if answer.get("error", {}).get("data", {}).get("type") == "authorization_required":
            authorize(self, self._yubikey)
            answer = super().ask(method, **params)
        return answer

    def make(self, name: str, **params: Any) -> dict[str, Any]:
        """A new key's generation."""
        (key,) = self.result("key.create", key=name, origins=[], **params)["keys"]
        (generation,) = key["generations"]
        return dict(generation)


@pytest.fixture(scope="module")
def reader() -> Iterator[YubiKey]:
    """A card in a reader, for one test after the other: pcscd takes half a second to find it."""
    need(*YUBIKEY)
    with new_yubikey() as found:
        yield found


@pytest.fixture
def yubikey(reader: YubiKey) -> Iterator[YubiKey]:
    """The card as good as new, in its reader."""
    pin, card = reader.token.pin_file.read_text(), reader.card
    yield reader
    if reader.card is not card or not card.plugged:
        reader.pull()
        reader.card = card
        reader.plug()
    reader.token.pin_file.write_text(pin)
    card.pin = pin.strip()
    card.forget_keys()


@pytest.fixture
def agent(yubikey: YubiKey, make_agent: Callable[..., Agent]) -> Agent:
    agent = make_agent(yubikey.token.config).start()
    until_open(agent)
    return agent


@pytest.fixture
def wire(agent: Agent, yubikey: YubiKey) -> Iterator[Authorizing]:
    with Authorizing(agent.admin_socket, yubikey) as wire:
        yield wire


def prove(wire: Wire, **params: Any) -> str:
    """The jkt of a proof that is right."""
    result = wire.result("proof", **TARGET, nonce="n-1", **params)
    return verify(result["proof"], htm=HTM, htu=HTU, nonce="n-1").jkt


def listed(wire: Wire, name: str) -> list[dict[str, Any]]:
    """A key's generations, the destroyed ones too."""
    (key,) = wire.result("key.list", key=name, include_destroyed=True)["keys"]
    generations: list[dict[str, Any]] = key["generations"]
    return generations


def free(agent: Agent) -> int:
    """How many slots `status` says are free."""
    until(lambda: store(agent)["slots"])  # counted soon after it was opened
    slots = store(agent)["slots"]
    assert slots["total"] == len(SLOTS)
    return int(slots["free"])


class TestYubiKey(StoreConformance, PinConformance, AwayConformance):
    ALGS = ("ES256", "ES384", "RS256", "PS256")
    PROTECTION = "hardware"
    LABELS = False

    @pytest.fixture
    def agent(self, agent: Agent) -> Agent:
        return agent

    @pytest.fixture
    def wire(self, wire: Authorizing) -> Authorizing:
        return wire

    @pytest.fixture
    def held(self, yubikey: YubiKey) -> Callable[[], list[str]]:
        return lambda: [f"{n:02x}" for n, slot in enumerate(SLOTS, 1) if slot in yubikey.card.keys]

    @pytest.fixture
    def delete(self, yubikey: YubiKey) -> Callable[[str], None]:
        def delete(ref: str) -> None:
            slot = SLOTS[int(ref, 16) - 1]
            del yubikey.card.keys[slot]
            yubikey.card.objects.pop(bytes([0x5F, 0xC1, slot - 0x82 + 0x0D]))

        return delete

    @pytest.fixture
    def wrong_pin(self, yubikey: YubiKey) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def wrong() -> Iterator[None]:
            with other_pin(yubikey):
                yield
            assert yubikey.card.tries == PIN_TRIES - 1

        return wrong

    @pytest.fixture
    def taken_away(self, yubikey: YubiKey) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def away() -> Iterator[None]:
            yubikey.pull()
            yield
            yubikey.plug()

        return away

    def test_a_destroyed_key_is_gone_from_the_store_and_the_others_stay(
        self, wire: Wire, held: Callable[[], list[str]]
    ) -> None:
        """Signs no more; PKCS#11 can't delete it from its slot, and the agent says so."""
        self.create(wire, "first")
        made = self.create(wire, "second")
        before = held()
        wire.result("key.destroy", key="second", generation=1)
        assert held() == before
        (gone,) = listed(wire, "second")
        assert (gone["state"], gone["object_left"], gone["slot"]) == ("destroyed", True, "83")
        error = wire.error("proof", **TARGET, jkt=made["jkt"])
        assert (error["type"], error["retry"]) == ("key_destroyed", "no")
        self.prove(wire, "first")


def other_pin(yubikey: YubiKey) -> AbstractContextManager[None]:
    """The agent's source has another PIN than the card."""
    return conformance.other_pin(yubikey.token, f"{(int(yubikey.card.pin) + 1) % 10**6:06}")


# The emulated card


def test_yubicos_module_shows_the_card_and_listing_it_asks_for_no_pin(yubikey: YubiKey) -> None:
    serial = str(yubikey.card.serial)
    assert serials(yubikey) == [serial]
    (token,) = tokens(yubikey)
    assert token["label"] == yubikey.token.label == f"YubiKey PIV #{serial}"
    assert token["manufacturer"] == "Yubico (www.yubico.com)"
    assert token["initialized"] is True
    assert yubikey.card.pins == 0


def test_who_looks_for_a_card_that_another_program_holds_is_told_so(
    yubikey: YubiKey, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in yubikey.token.env.items():
        monkeypatch.setenv(name, value)
    with yubikey.held():
        assert main(["init", "--dry-run", "--module", file_of("ykcs11")]) == 1
    assert "another program holds the card for itself alone" in capsys.readouterr().err


def test_an_agent_logs_in_to_the_card_with_one_pin(agent: Agent, yubikey: YubiKey) -> None:
    assert store(agent)["serial"] == str(yubikey.card.serial)
    assert (yubikey.card.pins, yubikey.card.tries) == (1, PIN_TRIES)


# Slots


def test_a_key_has_the_slot_that_was_asked_for_else_the_first_free_retired_one(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    assert free(agent) == 24
    assert wire.make("first")["slot"] == "82"
    assert wire.make("named", slot="9a")["slot"] == "9a"
    assert wire.make("far", slot="84")["slot"] == "84"
    assert [wire.make(name)["slot"] for name in ("next", "last")] == ["83", "85"]
    assert free(agent) == 19
    assert set(yubikey.card.keys) == {0x82, 0x9A, 0x84, 0x83, 0x85, 0xF9}
    for name in ("first", "named", "far", "next", "last"):
        assert prove(wire, key=name) == listed(wire, name)[0]["jkt"]


def test_an_occupied_slot_is_never_overwritten(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    wire.make("mine", slot="9a")
    mine = yubikey.card.keys[0x9A].private
    for params in ({"slot": "9a"}, {"slot": "9a", "reuse_slot": True}):
        assert wire.error("key.create", key="other", origins=[], **params)["type"] == "slot_taken"
    # Somebody else's, made while the agent runs: a key, or a certificate alone.
    yubikey.card.keys[0x82] = yubikey.card.keys[0xF9]
    yubikey.card.objects[bytes.fromhex("5fc10e")] = next(iter(yubikey.card.objects.values()))
    for slot in ("82", "83"):
        for more in ({}, {"reuse_slot": True}):
            error = wire.error("key.create", key="other", slot=slot, origins=[], **more)
            assert (error["type"], error["retry"]) == ("slot_taken", "no"), slot
    assert wire.make("other")["slot"] == "84"
    assert yubikey.card.keys[0x9A].private is mine
    assert yubikey.card.keys[0x82] is yubikey.card.keys[0xF9]


def test_the_attestation_key_is_neither_listed_nor_taken_in_nor_overwritten(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    there = yubikey.card.keys[0xF9]
    assert store(agent)["unknown"] == []
    assert wire.error("key.adopt", key="f9", ref="19", origins=[])["type"] == "key_missing"
    assert wire.error("key.create", key="f9", slot="f9", origins=[])["type"] == "invalid_params"
    assert yubikey.card.keys[0xF9] is there


def test_a_key_that_was_brought_to_the_card_is_listed_and_hides_nothing(
    agent: Agent, yubikey: YubiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.stop()
    yubikey.card.make_key(0x82)
    monkeypatch.setattr(yubikey.card, "_attest", no_attestation)  # a card attests none of those
    agent.start()
    assert free(agent) == 23
    assert [found["ref"] for found in store(agent)["unknown"]] == ["05"]


def no_attestation(_slot: int) -> bytes:
    raise Refused(WRONG_DATA)


def test_a_rotation_takes_another_slot_and_the_old_key_signs_on(wire: Authorizing) -> None:
    old = wire.make("shop")
    new = wire.result("key.rotate", key="shop")["new"]
    assert (new["slot"], new["state"]) == ("83", "active")
    assert prove(wire, key="shop") == new["jkt"]
    assert prove(wire, jkt=old["jkt"]) == old["jkt"]


def test_a_card_without_a_free_slot_says_which_can_be_used_again(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    wire.make("old")
    wire.result("key.destroy", key="old", generation=1)
    for slot in SLOTS[5:]:
        yubikey.card.keys[slot] = yubikey.card.keys[0xF9]
    error = wire.error("key.create", key="shop", origins=[])
    assert (error["type"], error["retry"]) == ("no_slot", "no")
    assert error["free"] == ["9a", "9c", "9d", "9e"]
    assert error["reusable"] == ["82"]
    assert "82 (old@1, destroyed)" in error["hint"]
    assert "--reuse-slot" in error["hint"]
    # Such a slot is used again by explicit command alone.
    assert wire.error("key.create", key="shop", slot="82", origins=[])["type"] == "slot_taken"
    made = wire.make("shop", slot="82", reuse_slot=True)
    assert prove(wire, key="shop") == made["jkt"]
    (gone,) = listed(wire, "old")
    assert (gone["state"], gone["object_left"]) == ("destroyed", False)
    assert free(agent) == 4


def test_a_retired_generation_is_overwritten_by_explicit_command_and_destroyed_then(
    agent: Agent, wire: Authorizing
) -> None:
    old = wire.make("shop", drain_s=0)
    wire.result("key.rotate", key="shop")
    until(lambda: listed(wire, "shop")[0]["state"] == "retired")
    assert "key still in slot 82" in agent.run("key", "list").stdout
    error = wire.error("key.rotate", key="shop", slot="83", reuse_slot=True)
    assert "shop@2, which is active" in error["message"]
    new = wire.result("key.rotate", key="shop", slot="82", reuse_slot=True)["new"]
    assert new["slot"] == "82"
    assert listed(wire, "shop")[0]["state"] == "destroyed"
    assert prove(wire, key="shop") == new["jkt"]
    assert wire.error("proof", **TARGET, jkt=old["jkt"])["type"] == "key_destroyed"


def test_a_destroyed_generation_is_left_in_its_slot_and_the_slot_is_free_once_it_is_emptied(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    wire.make("shop")
    assert "stays in slot 82" in agent.run("key", "destroy", "shop@1", "--yes").stdout
    agent.stop()
    before = len(agent.log.read_text())
    agent.start()
    until(lambda: free(agent) == 23)
    after = agent.log.read_text()[before:]
    assert "WARNING" not in after
    assert "aren't the agent's" not in after
    assert agent.run("key", "list", "--all").stdout.count("key still in slot 82") == 1
    agent.stop()
    yubikey.card.keys.pop(0x82)
    yubikey.card.objects.pop(bytes.fromhex("5fc10d"))
    agent.start()
    until(lambda: free(agent) == 24)
    with Authorizing(agent.admin_socket, yubikey) as again:
        assert not listed(again, "shop")[0]["object_left"]
        assert again.make("next")["slot"] == "82"


def test_a_slot_whose_reuse_was_cut_short_has_the_old_key_or_the_new_one(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    old = wire.make("shop", drain_s=0)
    wire.result("key.rotate", key="shop")
    until(lambda: listed(wire, "shop")[0]["state"] == "retired")

    def killed_with_an_intent() -> list[str]:
        """The states after a start of an agent that wrote its intent and no more."""
        agent.stop()
        with changed(agent.state / "ledger.json") as contents:
            intent = contents["keys"][0]["generations"][0] | {"generation": 3, "state": "pending"}
            contents["keys"][0]["generations"].append(intent | {"jkt": "", "jwk": {}})
        agent.start()
        with Wire(agent.socket) as again:
            until(lambda: "pending" not in [g["state"] for g in listed(again, "shop")])
            assert listed(again, "shop")[0]["jkt"] == old["jkt"]
            return [g["state"] for g in listed(again, "shop")]

    assert killed_with_an_intent() == ["retired", "active"]
    yubikey.card.make_key(0x82)
    assert killed_with_an_intent() == ["destroyed", "active", "staged"]


# The management key


def test_the_management_key_is_asked_for_once_and_kept_for_one_key_alone(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    key = yubikey.card.management_key.hex()
    create = ("key", "create", "shop", "--any-origin")
    status, shown = at_a_terminal(agent, *create, prompt="Management key of", typed=key)
    assert status == 0, shown
    assert key not in shown
    assert "slot 82" in shown
    assert Wire.ask(wire, "key.rotate", key="shop")["error"]["data"] == {
        "type": "authorization_required",
        "hint": "dpop-agent key create and key rotate ask for it in a terminal",
        "retry": "no",
        "store": "yubikey",
    }
    status, shown = at_a_terminal(agent, "key", "rotate", "shop", prompt="Management", typed=key)
    assert status == 0, shown
    assert "shop@2 is active" in shown
    for file in [agent.log, *agent.state.rglob("*")]:
        assert file.is_dir() or key not in file.read_text()
    assert not list(agent.runtime.glob("key-*"))


def test_an_empty_line_means_the_management_key_that_cards_come_with(
    agent: Agent, yubikey: YubiKey
) -> None:
    yubikey.card.management_key = bytes.fromhex(FACTORY_KEY)
    create = ("key", "create", "shop", "--any-origin")
    status, shown = at_a_terminal(agent, *create, prompt="Management key of", typed="")
    assert status == 0, shown
    assert "trying the factory default management key" in shown


def test_a_wrong_management_key_is_refused_and_nothing_is_made(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    create = ("key", "create", "shop", "--any-origin")
    for typed, says in (("zz", "isn't a management key"), ("00" * 24, "refused its management")):
        status, shown = at_a_terminal(agent, *create, prompt="Management key of", typed=typed)
        assert status == 1
        assert says in shown
        assert "Traceback" not in shown
    assert wire.result("key.list")["keys"] == []
    assert set(yubikey.card.keys) == {0xF9}
    assert store(agent)["state"] == "ready"
    assert wire.make("shop")["slot"] == "82"


def test_the_card_signs_while_somebody_types_the_management_key(
    wire: Authorizing, yubikey: YubiKey
) -> None:
    made = wire.make("shop")
    path = wire.result("store.authorize", store="yubikey")["socket"]
    with socket.socket(socket.AF_UNIX) as sock:
        assert prove(wire, key="shop") == made["jkt"]
        sock.connect(path)
        assert prove(wire, key="shop") == made["jkt"]
        sock.sendall(yubikey.card.management_key.hex()[:10].encode())
        assert prove(wire, key="shop") == made["jkt"]
        sock.sendall(yubikey.card.management_key.hex()[10:].encode() + b"\n")
        assert json.loads(sock.recv(4096)) == {"ok": True}
    assert Wire.result(wire, "key.rotate", key="shop")["new"]["state"] == "active"


def test_a_socket_that_somebody_removed_harms_nothing_and_another_one_is_made(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    signer = store(agent)["signer_pid"]
    os.unlink(wire.result("store.authorize", store="yubikey")["socket"])
    assert wire.make("shop")["slot"] == "82"
    assert store(agent)["signer_pid"] == signer
    assert "Traceback" not in agent.log.read_text()


def test_a_schedule_is_a_notice_where_keys_need_the_management_key(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    made = wire.make("shop", rotate_every_s=1)
    until(lambda: wire.result("status")["rotations_due"] == ["shop"])
    until(lambda: "the rotation of shop is due" in agent.log.read_text())
    assert "rotation due" in agent.run("key", "list").stdout
    assert "rotation due: shop" in agent.run("status").stdout
    assert agent.log.read_text().count("the rotation of shop is due") == 1
    assert [g["state"] for g in listed(wire, "shop")] == ["active"]
    assert prove(wire, key="shop") == made["jkt"]


def test_a_rotation_that_falls_due_while_keys_change_is_told_too(
    agent: Agent, wire: Authorizing
) -> None:
    """Whoever looks for what is due is interrupted by each change, and looks again."""
    wire.make("other")
    wire.make("shop", rotate_every_s=1)
    for number in range(8):
        wire.result("key.set", key="other", drain_s=1000 + number)
        time.sleep(0.3)
    until(lambda: "the rotation of shop is due" in agent.log.read_text())


# PIN policies and touches


def test_a_key_that_wants_the_pin_each_time_gets_it(wire: Authorizing, yubikey: YubiKey) -> None:
    always = wire.make("always", slot="9c")
    unsaid = wire.make("unsaid")
    other = wire.make("other")
    yubikey.card.keys[0x82].pin = PinPolicy.ALWAYS
    for _ in range(3):
        assert prove(wire, key="always") == always["jkt"]
        assert prove(wire, key="unsaid") == unsaid["jkt"]
        assert prove(wire, key="other") == other["jkt"]
    assert yubikey.card.tries == PIN_TRIES


def test_a_pin_that_was_changed_meanwhile_is_tried_once(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    wire.make("always", slot="9c")
    wire.result("proof", **TARGET, key="always")
    yubikey.card.pin = "94949494"
    for _ in range(10):
        error = wire.error("proof", **TARGET, key="always")
        assert (error["type"], error["retry"]) == ("pin_refused", "no")
    assert yubikey.card.tries == PIN_TRIES - 1
    yubikey.token.pin_file.write_text("94949494\n")
    wire.result("unlock", store=store(agent)["store"])
    until_open(agent)
    wire.result("proof", **TARGET, key="always")


def test_a_self_test_sends_no_pin_whatever_policy_the_key_says_or_doesnt_say(
    wire: Authorizing, yubikey: YubiKey
) -> None:
    wire.make("always", slot="9c")
    wire.make("unsaid")
    yubikey.card.keys[0x82].pin = PinPolicy.ALWAYS
    pins = yubikey.card.pins
    assert wire.result("store.self_test", store="yubikey")["reason"] == "attended"
    wire.make("quick")
    pins_for_making = yubikey.card.pins
    assert wire.result("store.self_test", store="yubikey")["key"] == "quick"
    assert (yubikey.card.pins, yubikey.card.tries) == (pins_for_making, PIN_TRIES)
    assert pins_for_making > pins  # they are counted


def test_a_self_test_of_a_card_that_was_put_in_anew_logs_in_no_more(
    wire: Authorizing, yubikey: YubiKey
) -> None:
    wire.make("shop")
    yubikey.pull()
    yubikey.plug()
    pins = yubikey.card.pins
    assert wire.result("store.self_test", store="yubikey")["reason"] == "stale"
    assert yubikey.card.pins == pins


def test_doctor_tells_how_many_pin_tries_are_left_and_spends_none(
    agent: Agent, yubikey: YubiKey
) -> None:
    agent.run("lock", check=True)
    for tries, says, status in (
        (2, "two PIN tries are left", 0),
        (1, "one PIN try is left", 0),
        (0, "its PIN is locked", 1),
    ):
        yubikey.card.tries = tries
        done = agent.run("doctor")
        assert (says in done.stdout, done.returncode) == (True, status), done.stdout
        assert yubikey.card.tries == tries
    yubikey.card.tries = PIN_TRIES


def take_in(wire: Wire, yubikey: YubiKey, name: str, slot: int, **policies: int) -> dict[str, Any]:
    """The generation of a key that its owner made with Yubico's tool, touched at once."""
    yubikey.card.make_key(slot, **policies)
    wire.result("key.adopt", key=name, ref=f"{SLOTS.index(slot) + 1:02x}", origins=[])
    (key,) = wire.result("key.activate", key=name, generation=1)["keys"]
    return dict(key["generations"][0])


def test_a_touch_that_is_due_is_announced_and_waited_for_longer_than_anything_else(
    agent: Agent, wire: Authorizing, yubikey: YubiKey, measured: Measured
) -> None:
    made = take_in(wire, yubikey, "shop", 0x82, touch=TouchPolicy.ALWAYS)
    quick = take_in(wire, yubikey, "quick", 0x83)
    card = yubikey.card
    card.touch_s, signatures = 2.2, card.signatures
    told: list[tuple[int, Touch]] = []
    announced = ExitStack()

    def on_touch(touch: Touch) -> None:
        announced.close()
        told.append((card.signatures, touch))

    with Wire(agent.socket, timeout=60) as other:
        other.result("observe", seen=[])
        with (
            AgentClient(agent.socket, timeout=1.5, on_touch=on_touch) as client,
            measured("a proof with a touch that comes after 2.2 s"),
        ):
            announced.enter_context(measured("a touch that is due is announced"))
            assert client.proof(HTM, HTU, key="shop").jkt == made["jkt"]
        # Once, though it is older than proofs usually get: nobody touches twice for one.
        assert card.signatures == signatures + 1
        assert told == [(signatures, Touch(key="shop", jkt=made["jkt"], store="yubikey"))]
        # Who didn't subscribe is told of answers alone.
        assert other.result("proof", **TARGET, key="quick")["jkt"] == quick["jkt"]
    assert agent.log.read_text().count("waits for a touch") == 1


def test_the_command_line_asks_for_a_touch_on_standard_error(
    agent: Agent, yubikey: YubiKey
) -> None:
    yubikey.card.make_key(0x82, touch=TouchPolicy.ALWAYS)
    yubikey.card.touch_s = 1.5
    asks = "touch the card of the store yubikey to sign with shop\n"
    assert (
        agent.run("key", "adopt", "shop", "--ref", "05", "--any-origin", check=True).stderr == asks
    )
    agent.run("key", "activate", "shop@1", check=True)
    done = agent.run("proof", HTM, HTU, "--key", "shop", check=True)
    assert done.stderr == asks
    verify(done.stdout.strip(), htm=HTM, htu=HTU)
    yubikey.card.touch_s = 0.0
    assert agent.run("proof", HTM, HTU, "--key", "shop", check=True).stderr == ""


def test_a_touch_that_the_card_remembers_is_announced_once_from_the_adoption_on(
    agent: Agent, yubikey: YubiKey
) -> None:
    yubikey.card.make_key(0x82, touch=TouchPolicy.CACHED)
    yubikey.card.touch_s = 1.5
    with Wire(agent.admin_socket, timeout=60) as wire:
        wire.result("subscribe", events=["touch"])
        wire.send(
            request("key.adopt", {"key": "shop", "ref": "05", "origins": []}, number="adopts")
        )
        event = wire.event()["params"]
        (key,) = wire.next()["result"]["keys"]
        (made,) = key["generations"]
        assert event == {"id": "adopts", "key": "shop", "jkt": made["jkt"], "store": "yubikey"}
        assert made["touch"] == "cached"
        wire.result("key.activate", key="shop", generation=1)
        assert [prove(wire, key="shop") for _ in range(2)] == [made["jkt"]] * 2
    assert agent.log.read_text().count("waits for a touch") == 1


@pytest.mark.parametrize(("pin", "said"), [(PinPolicy.ONCE, True), (PinPolicy.ALWAYS, False)])
def test_a_touch_that_never_comes_is_told_and_costs_no_pin_try_and_the_card_signs_on(
    agent: Agent,
    wire: Authorizing,
    yubikey: YubiKey,
    measured: Measured,
    pin: int,
    said: bool,
) -> None:
    """However the agent came to know of the policies, by the attestation or by the refusal."""
    card = yubikey.card
    policies = {"pin": pin, "touch": TouchPolicy.ALWAYS}
    made = take_in(wire, yubikey, "shop", 0x82, **(policies if said else {}))
    card.keys[0x82].pin, card.keys[0x82].touch = policies.values()
    quick = take_in(wire, yubikey, "quick", 0x83)
    card.touch_s, card.waits_s = NEVER, 1.1
    signer, pins, signatures = store(agent)["signer_pid"], card.pins, card.signatures
    with Wire(agent.socket, timeout=60) as own:
        with measured("a touch that the card waits 1.1 s for in vain is told"):
            error = own.error("proof", **TARGET, key="shop")
        assert (error["type"], error["retry"]) == ("timeout", "no")
        assert error["message"] == "nobody touched the card in time"
        assert card.signatures == signatures
        assert prove(own, key="quick") == quick["jkt"]
        card.touch_s = 0.0
        assert prove(own, key="shop") == made["jkt"]
    assert card.signatures == signatures + 2
    assert card.tries == PIN_TRIES
    assert card.pins == pins + (2 if pin == PinPolicy.ALWAYS else 0)
    assert store(agent)["signer_pid"] == signer


def test_whoever_waits_behind_a_touch_is_told_and_whoever_left_gets_no_signature(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    take_in(wire, yubikey, "shop", 0x82, touch=TouchPolicy.ALWAYS)
    quick = take_in(wire, yubikey, "quick", 0x83)
    card = yubikey.card
    card.touch_s, signatures = 2.0, card.signatures
    with Wire(agent.socket, timeout=60) as other:
        with Wire(agent.socket, timeout=60) as one:
            one.result("subscribe", events=["touch"])
            asked = [request("proof", {**TARGET, "key": "shop"}, number=n) for n in range(3)]
            one.send(b"".join(asked))
            one.event()
            error = other.error("proof", **TARGET, key="quick", timeout_ms=200)
            assert (error["type"], error["retry"]) == ("timeout", "later")
            assert "waits until somebody touches its card" in error["message"]
        assert prove(other, key="quick") == quick["jkt"]
        assert other.result("status")["proofs"] == 1
    assert card.signatures == signatures + 2  # the one that was touched for, and quick's
    assert listed(wire, "shop")[0]["last_used"] is None


def test_a_touch_policy_is_read_from_the_attestation_and_can_be_said_by_the_user(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    wire.make("shop")
    assert listed(wire, "shop")[0]["touch"] == "never"
    agent.run("key", "set", "shop", "--touch", "yes", check=True)
    assert wire.result("key.list", key="shop")["keys"][0]["touch"] is True
    yubikey.card.sign_s = 1.5
    wire.result("proof", **TARGET, key="shop")
    assert "shop@1 waits for a touch" in agent.log.read_text()


def test_the_attestation_is_printed_as_pem_and_says_where_the_key_was_made(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    made = wire.make("shop")
    shown = agent.run("key", "show", "shop", "--attestation", check=True).stdout
    own, above = x509.load_pem_x509_certificates(shown.encode())
    own.verify_directly_issued_by(above)
    assert own.public_key() == yubikey.card.keys[0x82].private.public_key()
    (generation,) = listed(wire, "shop")
    assert generation["jkt"] == made["jkt"]


# Comings and goings


def test_a_pulled_card_is_told_at_once_and_signs_again_when_it_is_back(
    agent: Agent, wire: Authorizing, yubikey: YubiKey, measured: Measured
) -> None:
    pull_and_replug(agent, wire, yubikey, measured, cycles=3)


def test_status_shows_whether_a_card_is_there_now(agent: Agent, yubikey: YubiKey) -> None:
    """Though nobody asked for a signature meanwhile."""
    until_open(agent)

    def state() -> object:
        (store,) = json.loads(agent.run("status", "--json", check=True).stdout)["stores"]
        return store["state"]

    yubikey.pull()
    until(lambda: state() == "absent")
    yubikey.plug()
    until(lambda: state() == "ready")
    assert yubikey.card.tries == PIN_TRIES


@pytest.mark.long
def test_a_card_that_is_pulled_a_hundred_times_signs_again_each_time(
    agent: Agent, wire: Authorizing, yubikey: YubiKey, measured: Measured
) -> None:
    pull_and_replug(agent, wire, yubikey, measured, cycles=100)


def pull_and_replug(
    agent: Agent, wire: Authorizing, yubikey: YubiKey, measured: Measured, *, cycles: int
) -> None:
    """Pull and put back under load; each proof is right, each refusal has its type."""
    jkt = wire.make("shop")["jkt"]
    ended = threading.Event()
    proofs, refusals, odd = [0], set(), []

    def load() -> None:
        with Wire(agent.socket, timeout=60) as own:
            while not ended.is_set():
                with measured(BACK):
                    answer = own.ask("proof", **TARGET, nonce="n-1", key="shop")
                if "error" in answer:
                    refusals.add(answer["error"]["data"]["type"])
                    time.sleep(0.01)
                elif verify(answer["result"]["proof"], htm=HTM, htu=HTU, nonce="n-1").jkt != jkt:
                    odd.append(answer)
                else:
                    proofs[0] += 1

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(cycles):
            before = proofs[0]
            until(lambda before=before: proofs[0] > before)  # type: ignore[misc]
            yubikey.pull()
            time.sleep(0.3)
            yubikey.plug()
            before = proofs[0]
            until_back(lambda before=before: proofs[0] > before, measured)  # type: ignore[misc]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert odd == []
    assert refusals <= {"store_absent", "signer_failed"}
    assert yubikey.card.tries == PIN_TRIES
    assert agent.process.poll() is None


def back(wire: Wire, jkt: str, measured: Measured) -> None:
    """The first proof after something is over is by the right key."""
    until_back(lambda: signs(wire), measured)
    assert prove(wire, key="shop") == jkt


def test_a_restarted_pcscd_is_used_again(
    wire: Authorizing, yubikey: YubiKey, measured: Measured
) -> None:
    jkt = wire.make("shop")["jkt"]
    yubikey.stop_pcscd()
    error = wire.error("proof", **TARGET, key="shop")
    assert error["type"] in ("store_absent", "signer_failed")
    assert error["retry"] in ("later", "now")
    yubikey.start_pcscd()
    back(wire, jkt, measured)
    assert yubikey.card.tries == PIN_TRIES


def test_a_card_that_another_program_holds_is_named_as_such_and_used_when_it_lets_go(
    agent: Agent, wire: Authorizing, yubikey: YubiKey, measured: Measured
) -> None:
    jkt = wire.make("shop")["jkt"]
    agent.stop()
    with yubikey.held():
        agent.start()
        with Wire(agent.socket, timeout=60) as own:
            error = own.error("proof", **TARGET, key="shop")
        assert (error["type"], error["retry"]) == ("store_in_use", "later")
        assert "another program holds the card" in error["message"]
        assert store(agent)["state"] == "absent"
    with Wire(agent.socket, timeout=60) as own:
        back(own, jkt, measured)


def test_a_wrong_pin_with_a_thousand_requests_waiting_costs_one_try(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    wire.make("shop")
    agent.stop()
    with other_pin(yubikey):
        agent.start(wait=False)
        agent.wait_until_it_answers()
        wires = [Wire(agent.socket, timeout=60) for _ in range(20)]
        for own in wires:
            own.send(
                b"".join(request("proof", {**TARGET, "key": "shop"}, number=n) for n in range(50))
            )
        kinds = [line["error"]["data"]["type"] for own in wires for line in own.lines(50)]
        for own in wires:
            own.close()
    assert kinds == ["pin_refused"] * 1000
    assert yubikey.card.tries == PIN_TRIES - 1


def test_who_types_a_wrong_pin_hears_how_many_tries_are_left(
    yubikey: YubiKey, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(changed_config(yubikey.token, pin_source="prompt")).start()
    wrong = f"{(int(yubikey.card.pin) + 1) % 10**6:06}"
    heard = []
    for _ in range(PIN_TRIES):
        status, shown = at_a_terminal(agent, "unlock", prompt="PIN of the store", typed=wrong)
        assert status == 1
        heard.append(shown.strip().splitlines()[-1])
    assert "refused its PIN, two tries are left; dpop-agent unlock" in heard[0]
    assert "refused its PIN, one try is left; dpop-agent unlock" in heard[1]
    assert "is locked: too many wrong ones came; unblock it" in heard[2]


@pytest.mark.parametrize(("tries", "says"), [(1, "one PIN try left"), (0, "PIN is locked")])
def test_a_card_with_no_try_to_spare_is_left_alone_until_somebody_mended_it_and_unlocks(
    yubikey: YubiKey, make_agent: Callable[..., Agent], tries: int, says: str
) -> None:
    yubikey.card.tries = tries
    agent = make_agent(yubikey.token.config).start()
    until(lambda: store(agent)["state"] == "locked")
    assert says in store(agent)["reason"]
    assert store(agent)["hint"].endswith(f"then: dpop-agent unlock {store(agent)['store']}")
    assert yubikey.card.tries == tries
    yubikey.card.tries = PIN_TRIES
    agent.run("unlock", check=True)
    assert store(agent)["state"] == "ready"


def test_a_wrong_pin_over_which_the_signer_was_killed_costs_one_try(
    yubikey: YubiKey, make_agent: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(yubikey.token.config)
    verify_pin = yubikey.card._verify

    def kill(p1: int, pin: bytes) -> bytes:
        try:
            return verify_pin(p1, pin)
        except Refused:
            if pin:
                for pid in signers_of(agent):
                    os.kill(pid, signal.SIGKILL)
            raise

    monkeypatch.setattr(yubikey.card, "_verify", kill)
    with other_pin(yubikey):
        agent.start()
        with Wire(agent.admin_socket) as wire:
            until(
                lambda: (
                    wire.ask("key.create", key="shop", origins=[])["error"]["data"]["type"]
                    == "pin_refused"
                )
            )
        agent.stop()
        agent.start()
        until(lambda: store(agent)["state"] == "locked")
    assert yubikey.card.tries == PIN_TRIES - 1


def test_a_pulled_card_whose_key_wants_the_pin_each_time_signs_again_when_it_is_back(
    agent: Agent, wire: Authorizing, yubikey: YubiKey, measured: Measured
) -> None:
    jkt = wire.make("shop", slot="9c")["jkt"]
    for _ in range(5):
        assert prove(wire, key="shop") == jkt
        yubikey.pull()
        yubikey.plug()
        back(wire, jkt, measured)
    assert yubikey.card.tries == PIN_TRIES
    assert store(agent)["state"] == "ready"


def test_another_card_in_the_reader_gets_no_pin_and_signs_nothing(
    agent: Agent, wire: Authorizing, yubikey: YubiKey
) -> None:
    jkt = wire.make("shop", slot="9c")["jkt"]
    assert prove(wire, key="shop") == jkt
    own = yubikey.card
    with new_yubikey() as spare:
        assert serials(spare) == [str(spare.card.serial)]
        spare.card.pull()
        other = spare.card
        other.keys[0x9C] = spare.card.keys[0xF9]
        other.keys[0x9C].pin = PinPolicy.ALWAYS
        yubikey.pull()
        yubikey.card = other
        yubikey.plug()
        for _ in range(5):
            assert wire.error("proof", **TARGET, key="shop")["type"] in (
                "store_absent",
                "signer_failed",
            )
        yubikey.pull()
        assert (other.pins, other.tries) == (0, PIN_TRIES)
        yubikey.card = own
        yubikey.plug()
    until(lambda: "result" in wire.ask("proof", **TARGET, key="shop"))
    assert prove(wire, key="shop") == jkt
    assert own.tries == PIN_TRIES


@pytest.mark.parametrize("what", ["reset", "log-out", "select"])
def test_a_card_that_another_program_used_meanwhile_signs_on(
    wire: Authorizing,
    yubikey: YubiKey,
    measured: Measured,
    what: str,
) -> None:
    jkt = wire.make("shop")["jkt"]
    assert prove(wire, key="shop") == jkt
    yubikey.disturb(what)
    back(wire, jkt, measured)
    assert yubikey.card.tries == PIN_TRIES


def test_a_released_card_is_another_programs_and_then_the_agents_again(
    yubikey: YubiKey,
    make_agent: Callable[..., Agent],
    measured: Measured,
) -> None:
    release = serve_with("--release-after", "1s")
    agent = make_agent(yubikey.token.config, preexec=release).start()
    until_open(agent)
    with Authorizing(agent.admin_socket, yubikey) as wire:
        jkt = wire.make("shop")["jkt"]
        signer = store(agent)["signer_pid"]
        with yubikey.held():
            for _ in range(3):
                with measured("a proof from a card that another program holds is refused"):
                    error = wire.error("proof", **TARGET, key="shop")
                assert (error["type"], error["retry"]) == ("store_in_use", "later")
        back(wire, jkt, measured)
        assert store(agent)["signer_pid"] == signer
    assert yubikey.card.tries == PIN_TRIES


# PINs that are typed


@pytest.fixture
def prompting(yubikey: YubiKey, make_agent: Callable[..., Agent]) -> Agent:
    """An agent for which somebody has typed the card's PIN."""
    agent = make_agent(changed_config(yubikey.token, pin_source="prompt")).start()
    status, shown = unlock(agent, yubikey.card.pin)
    assert status == 0, shown
    return agent


def test_a_pulled_card_whose_pin_was_typed_is_locked_and_unlock_opens_it_when_it_is_back(
    prompting: Agent, yubikey: YubiKey, measured: Measured
) -> None:
    with Authorizing(prompting.admin_socket, yubikey) as wire:
        jkt = wire.make("shop")["jkt"]
        yubikey.pull()
        until(lambda: wire.error("proof", **TARGET, key="shop")["type"] == "locked")
        assert "there" in prompting.run("unlock").stderr  # before anybody types
        yubikey.plug()
        assert wire.error("proof", **TARGET, key="shop")["type"] == "locked"
        with measured("a card that is back is unlocked and signs"):
            status, shown = unlock(prompting, yubikey.card.pin)
            assert status == 0, shown
            assert prove(wire, key="shop") == jkt
    assert yubikey.card.tries == PIN_TRIES


@pytest.mark.parametrize("what", ["reset", "log-out", "select"])
def test_a_typed_pin_outlives_another_programs_use_of_the_card_but_no_reset(
    prompting: Agent, yubikey: YubiKey, what: str
) -> None:
    with Authorizing(prompting.admin_socket, yubikey) as wire:
        jkt = wire.make("shop")["jkt"]
        yubikey.disturb(what)
        if what == "reset":
            assert wire.error("proof", **TARGET, key="shop")["type"] == "locked"
            assert unlock(prompting, yubikey.card.pin)[0] == 0
        assert prove(wire, key="shop") == jkt
    assert yubikey.card.tries == PIN_TRIES


def test_a_typed_pin_outlives_doctor_and_each_check_of_the_configuration(
    prompting: Agent, yubikey: YubiKey
) -> None:
    with Authorizing(prompting.admin_socket, yubikey) as wire:
        jkt = wire.make("shop")["jkt"]
        done = prompting.run("doctor", check=True)
        assert "open, and shop@1 signs (self-test)" in done.stdout
        assert prove(wire, key="shop") == jkt
        for words in (["config", "check"], ["config", "set", "agent.lock_after", "9h"], ["doctor"]):
            prompting.run(*words, check=True)
            assert prove(wire, key="shop") == jkt
    assert yubikey.card.tries == PIN_TRIES


def test_a_released_card_that_others_hold_for_long_keeps_the_pin_that_was_typed(
    yubikey: YubiKey, make_agent: Callable[..., Agent]
) -> None:
    prompts = changed_config(yubikey.token, pin_source="prompt")
    agent = make_agent(prompts, preexec=serve_with("--release-after", "1s")).start()
    assert unlock(agent, yubikey.card.pin)[0] == 0
    with Authorizing(agent.admin_socket, yubikey) as wire:
        jkt = wire.make("shop")["jkt"]
        with yubikey.held():
            assert wire.error("proof", **TARGET, key="shop")["type"] == "store_in_use"
            released = agent.log.read_text().count("is released")
            until(lambda: agent.log.read_text().count("is released") > released)
            assert wire.error("proof", **TARGET, key="shop")["type"] == "store_in_use"
        until(lambda: "result" in wire.ask("proof", **TARGET, key="shop"))
        assert prove(wire, key="shop") == jkt


def test_another_card_that_came_while_somebody_typed_gets_no_management_key(
    yubikey: YubiKey, make_agent: Callable[..., Agent]
) -> None:
    config = changed_config(yubikey.token, uri="pkcs11:model=YubiKey%20YK5")
    agent = make_agent(config).start()
    until_open(agent)
    own = yubikey.card
    with Wire(agent.admin_socket, timeout=60) as wire, new_yubikey() as spare:
        authorize(wire, yubikey)
        other = spare.card
        other.pull()
        other.pin, other.management_key = own.pin, own.management_key
        yubikey.pull()
        yubikey.card = other
        yubikey.plug()
        assert wire.error("key.create", key="shop", origins=[])["type"] == "authorization_required"
        assert set(other.keys) == {0xF9}
        yubikey.pull()
        yubikey.card = own
        yubikey.plug()


def test_the_last_try_isnt_spent_on_a_pin_that_was_typed_before(
    prompting: Agent, yubikey: YubiKey
) -> None:
    yubikey.card.pin, yubikey.card.tries = "94949494", 1
    with Wire(prompting.admin_socket) as wire:
        assert wire.error("key.adopt", key="shop", ref="05", origins=[])["type"] in (
            "pin_refused",
            "locked",
        )
    assert yubikey.card.tries == 1
    assert unlock(prompting, "94949494")[0] == 0


def test_another_card_that_came_while_somebody_typed_gets_no_pin(
    yubikey: YubiKey, make_agent: Callable[..., Agent]
) -> None:
    any_card = "pkcs11:model=YubiKey%20YK5"
    config = changed_config(yubikey.token, pin_source="prompt", uri=any_card)
    agent = make_agent(config).start()
    own = yubikey.card
    with Terminal(agent, "unlock") as terminal, new_yubikey() as spare:
        terminal.until("PIN of the store")
        other = spare.card
        other.pull()
        yubikey.pull()
        yubikey.card = other
        yubikey.plug()
        terminal.type(f"{own.pin}\n")
        status, shown = terminal.end()
        assert status == 1
        assert "another PKCS#11 token came" in shown
        assert (other.pins, other.tries) == (0, PIN_TRIES)
        yubikey.pull()
        yubikey.card = own
        yubikey.plug()


@pytest.mark.skipif(os.getuid() != 0, reason="reads the memory of processes that forbid it")
def test_neither_pin_nor_management_key_is_ever_in_the_agents_memory(
    prompting: Agent, yubikey: YubiKey
) -> None:
    management_key = yubikey.card.management_key.hex()
    with Wire(prompting.admin_socket, timeout=60) as wire:
        path = wire.result("store.authorize", store="yubikey")["socket"]
        assert send_key(path, management_key) == {"ok": True}
        signer = memory_of(store(prompting)["signer_pid"])
        assert management_key.encode() in signer  # so that its absence elsewhere means something
        wire.result("key.create", key="shop", origins=[])
        wire.result("proof", **TARGET, key="shop")
    agent = memory_of(prompting.pid)
    for secret in (management_key, yubikey.card.pin):
        assert secret.encode() not in agent
        assert secret not in prompting.log.read_text()
    assert bytes.fromhex(management_key) not in agent
