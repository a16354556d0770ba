"""One key's error is the key's, a foreign object's is nobody's: the store goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest

from tests.agent.places import hurried, store, until, until_logged, until_open
from tests.agent.wire import Wire
from tests.faulty import Faulty
from tests.processes import Agent
from tests.stores import on_token

TARGET = {"htm": "GET", "htu": "https://api.example.com/v1/me"}
STRANGE = "strange"

# What is read of an object that may be anybody's, and what isn't.
ATTRIBUTES = {
    "CLASS": 0x0,
    "TOKEN": 0x1,
    "PRIVATE": 0x2,
    "LABEL": 0x3,
    "KEY_TYPE": 0x100,
    "ID": 0x102,
    "SENSITIVE": 0x103,
    "ENCRYPT": 0x104,
    "DECRYPT": 0x105,
    "WRAP": 0x106,
    "UNWRAP": 0x107,
    "SIGN": 0x108,
    "VERIFY": 0x10A,
    "DERIVE": 0x10C,
    "EXTRACTABLE": 0x162,
    "LOCAL": 0x163,
    "EC_PARAMS": 0x180,
    "EC_POINT": 0x181,
    "ALWAYS_AUTHENTICATE": 0x202,
}
ERRORS = {
    "HOST_MEMORY": 0x2,
    "GENERAL_ERROR": 0x5,
    "FUNCTION_FAILED": 0x6,
    "ATTRIBUTE_SENSITIVE": 0x11,
    "ATTRIBUTE_TYPE_INVALID": 0x12,
    "ACTION_PROHIBITED": 0x1B,
    "DEVICE_ERROR": 0x30,
    "OBJECT_HANDLE_INVALID": 0x82,
    "USER_NOT_LOGGED_IN": 0x101,
    "a vendor's own": 0x80000001,
}
GARBAGE = ("-", "00", "ff", "fffefdfc", "c4d6dc*40", "00*8", "ff*8", "61*9000")


class Beside:
    """An agent with a key of its own, beside objects that aren't."""

    def __init__(self, agent: Agent, wire: Wire) -> None:
        self.agent = agent
        self.wire = wire
        self.signer = until_open(agent)["signer_pid"]

    def goes_on(self) -> None:
        """It looks at everything, signs, and the signer is the one that it was."""
        (told,) = self.wire.result("reload")["stores"]
        assert (told["state"], told["reason"]) == ("ready", None)
        self.wire.result("proof", **TARGET, key="own")
        assert store(self.agent)["signer_pid"] == self.signer


@pytest.fixture
def beside(faulty_token: Faulty, make_agent: Callable[..., Agent]) -> Iterator[Beside]:
    on_token.make_stranger(faulty_token.token, key_id="aa", label=STRANGE)
    on_token.make_others(faulty_token.token, label=STRANGE)
    agent = make_agent(faulty_token.config()).start()
    until_open(agent)
    agent.create_key("own")
    with Wire(agent.admin_socket, timeout=60) as wire:
        yield Beside(agent, wire)


def test_a_foreign_object_whose_attributes_cant_be_read_by_any_error_disturbs_nobody(
    faulty_token: Faulty, beside: Beside
) -> None:
    for number, code in product(ATTRIBUTES.values(), ERRORS.values()):
        faulty_token.rules(f"attribute {STRANGE} {number:#x} return {code:#x}")
        beside.goes_on()


def test_a_foreign_object_whose_attributes_are_garbage_disturbs_nobody(
    faulty_token: Faulty, beside: Beside
) -> None:
    for number, value in product(ATTRIBUTES.values(), GARBAGE):
        faulty_token.rules(f"attribute {STRANGE} {number:#x} value {value}")
        beside.goes_on()


def test_a_foreign_certificate_that_cant_be_read_disturbs_nobody(
    faulty_token: Faulty, beside: Beside
) -> None:
    on_token.certify(faulty_token.token, key_id="aa")
    beside.goes_on()
    (unknown,) = store(beside.agent)["unknown"]
    assert unknown["jkt"] is not None
    spoilt = [f"return {code:#x}" for code in ERRORS.values()] + [f"value {v}" for v in GARBAGE]
    for number, how in product((0x11, 0x102, 0x180), spoilt):
        faulty_token.rules(f"attribute {STRANGE} {number:#x} {how}")
        beside.goes_on()
        error = beside.wire.error("key.adopt", key="foreign", ref="aa", origins=[], alg="RS256")
        assert error["type"] != "timeout"


def test_a_label_in_latin_1_is_left_out_and_its_key_is_listed(
    faulty_token: Faulty, beside: Beside
) -> None:
    faulty_token.rules(f"attribute {STRANGE} 0x3 value 5363686cfc7373656c")
    beside.goes_on()
    (unknown,) = store(beside.agent)["unknown"]
    assert (unknown["ref"], unknown["label"]) == ("aa", "")


@pytest.mark.parametrize(
    ("value", "ref"), [("-", "label:" + STRANGE.encode().hex()), ("ab*65", ""), ("cd*9000", "")]
)
def test_a_key_without_a_usable_id_is_listed_by_its_label_or_without_a_ref(
    faulty_token: Faulty, beside: Beside, value: str, ref: str
) -> None:
    faulty_token.rules(f"attribute {STRANGE} 0x102 value {value}")
    beside.goes_on()
    (unknown,) = store(beside.agent)["unknown"]
    assert (unknown["ref"], unknown["label"]) == (ref, STRANGE)


def test_a_key_that_cant_be_adopted_disturbs_nobody(faulty_token: Faulty, beside: Beside) -> None:
    faulty_token.rules(f"attribute {STRANGE} 0x181 value ff")
    error = beside.wire.error("key.adopt", key="foreign", ref="aa", origins=[])
    assert error["type"] == "signer_failed"
    beside.goes_on()


NEVER = {
    "action-prohibited": 0x1B,
    "user-type-invalid": 0x103,
    "token-write-protected": 0xE2,
    "session-read-only": 0xB5,
    "function-not-supported": 0x54,
}
LATER = {
    "general-error": 0x5,
    "function-failed": 0x6,
    "device-error": 0x30,
    "device-memory": 0x31,
    "object-handle-invalid": 0x82,
    "session-handle-invalid": 0xB3,
    "user-not-logged-in": 0x101,
    "a vendor's own": 0x80000001,
}


def _destroyed(beside: Beside) -> str:
    """The type of the error that destroying a key comes to."""
    beside.agent.create_key("old")
    kind: str = beside.wire.error("key.destroy", key="old", generation=1)["type"]
    (key,) = beside.wire.result("key.list", key="old", include_destroyed=True)["keys"]
    (generation,) = key["generations"]
    assert (generation["state"], generation["object_left"]) == ("destroyed", True)
    return kind


def _signs_on_after_a_restart(beside: Beside) -> None:
    agent = beside.agent
    beside.goes_on()
    agent.stop()
    agent.start()
    signer = until_open(agent)["signer_pid"]
    with Wire(agent.admin_socket, timeout=60) as wire:
        for _ in range(5):
            (told,) = wire.result("reload")["stores"]
            assert (told["state"], told["signer_pid"]) == ("ready", signer)
            wire.result("proof", **TARGET, key="own")
    assert "signer of store" not in agent.log.read_text()


@pytest.mark.parametrize("code", NEVER.values(), ids=NEVER)
def test_a_key_that_the_token_doesnt_let_be_deleted_is_left_and_the_store_goes_on(
    faulty_token: Faulty, beside: Beside, code: int
) -> None:
    faulty_token.rules(f"C_DestroyObject return {code:#x}")
    assert _destroyed(beside) == "object_left"
    _signs_on_after_a_restart(beside)


@pytest.mark.parametrize("code", LATER.values(), ids=LATER)
def test_a_key_whose_deleting_fails_is_tried_again_after_a_pause_and_the_store_goes_on(
    faulty_token: Faulty, beside: Beside, code: int
) -> None:
    faulty_token.rules(f"C_DestroyObject return {code:#x}")
    assert _destroyed(beside) == "signer_failed"
    asked = len(faulty_token.calls("C_DestroyObject"))
    for _ in range(5):
        beside.goes_on()
    assert len(faulty_token.calls("C_DestroyObject")) == asked
    _signs_on_after_a_restart(beside)
    assert len(faulty_token.calls("C_DestroyObject")) == asked + 1


def test_a_key_whose_deleting_failed_is_deleted_in_the_end(
    faulty_token: Faulty, make_agent: Callable[..., Agent]
) -> None:
    preexec = hurried("making.FIRST_DELETE_PAUSE_S=0.2", "upkeep.SAVE_S=0.1")
    agent = make_agent(faulty_token.config(), preexec=preexec).start()
    agent.create_key("own")
    faulty_token.rules("C_DestroyObject return 0x5")
    with Wire(agent.admin_socket) as wire:
        wire.error("key.destroy", key="own", generation=1)
        until(lambda: len(faulty_token.calls("C_DestroyObject")) >= 3)
        faulty_token.rules()
        until_logged(agent, "own@1 is destroyed")
    assert on_token.private_ids(faulty_token.token) == []


def test_a_module_that_crashes_when_it_deletes_a_key_doesnt_take_the_store_along_again(
    faulty_token: Faulty, beside: Beside
) -> None:
    faulty_token.rules("C_DestroyObject crash")
    assert _destroyed(beside) == "signer_failed"
    until_open(beside.agent)
    beside.signer = store(beside.agent)["signer_pid"]
    for _ in range(5):
        beside.goes_on()
