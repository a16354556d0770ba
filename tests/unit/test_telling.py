"""What leaves on a filtered socket: nothing by being forgotten."""

from __future__ import annotations

import json

import pytest

from dpop_agent.agent import telling
from dpop_agent.errors import (
    DPoPAgentError,
    InvalidProof,
    KeyMissing,
    KeyUnknown,
    Locked,
    SignerFailed,
    _tree,
)

PLACE = "/home/me/.config/pin"


class New(KeyUnknown):
    """An error that somebody adds later, below one that is told in its own words."""

    wire_type = "new"


class NewWithItsOwnSignature(DPoPAgentError):
    """Another."""

    wire_type = "newer"

    def __init__(self, place: str) -> None:
        super().__init__(f"it isn't at {place}", details={"place": place})


def kinds() -> list[type[DPoPAgentError]]:
    return [kind for kind in _tree(DPoPAgentError) if kind not in telling.IN_THEIR_OWN_WORDS]


def made(kind: type[DPoPAgentError]) -> DPoPAgentError:
    """One that says a place everywhere."""
    error = kind.__new__(kind)
    DPoPAgentError.__init__(
        error,
        f"{PLACE} can't be opened",
        hint=f"chmod {PLACE}",
        retry="later",
        retry_after_ms=7,
        details={"path": PLACE, "unknown_type": PLACE, "rule": "rate"},
    )
    return error


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_error_that_isnt_listed_goes_out_with_its_type_and_a_fixed_sentence(
    kind: type[DPoPAgentError],
) -> None:
    error = made(kind)
    told = telling.error(error).to_wire()
    assert PLACE not in json.dumps(told)
    assert told["message"]
    assert told["data"]["hint"]
    whole = error.to_wire()
    assert told["code"] == whole["code"]
    for name in ("type", "retry", "retry_after_ms", "rule"):
        assert told["data"][name] == whole["data"][name]
    assert PLACE in str(error), "the audit and the log have it in full"


def test_an_error_that_somebody_adds_later_isnt_told_before_it_is_listed() -> None:
    assert PLACE not in json.dumps(telling.error(New(PLACE, hint=PLACE)).to_wire())
    for error in (NewWithItsOwnSignature(PLACE), InvalidProof(3, PLACE)):
        told = telling.error(error).to_wire()
        assert PLACE not in json.dumps(told)
        assert told["data"]["type"] == error.type


def test_what_is_told_in_its_own_words_has_no_details_that_arent_listed() -> None:
    plain = KeyUnknown("there is no key shop")
    assert telling.error(plain) is plain
    told = telling.error(KeyUnknown("there is no key shop", details={"path": PLACE, "rule": "x"}))
    assert (told.message, told.details) == ("there is no key shop", {"rule": "x"})


def test_errors_of_a_store_are_told_from_each_other() -> None:
    kinds = (KeyMissing, Locked, SignerFailed)
    assert len({telling.error(made(kind)).message for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("method", ["hello", "proof.sign", "key.list", "status", "later"])
def test_a_member_that_isnt_listed_doesnt_go_out(method: str) -> None:
    assert telling.result(method, {"place": PLACE}) == {}


def test_a_member_deep_in_a_result_that_isnt_listed_doesnt_go_out() -> None:
    generation = {"jkt": "j", "path": PLACE}
    keys = {"keys": [{"key": "shop", "path": PLACE, "generations": [generation]}], "cursor": "1"}
    assert telling.result("key.list", keys) == {
        "keys": [{"key": "shop", "generations": [{"jkt": "j"}]}],
        "cursor": "1",
    }
    stores = {"proofs": 1, "stores": [{"store": "s", "module": PLACE}], "folder": PLACE}
    assert telling.result("status", stores) == {"proofs": 1, "stores": [{"store": "s"}]}


def test_an_event_that_isnt_listed_says_nothing() -> None:
    assert telling.event("touch", {"id": 1, "module": PLACE}) == {"id": 1}
    assert telling.event("later", {"id": 1}) == {}
