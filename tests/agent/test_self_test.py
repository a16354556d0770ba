"""A store's self-test: one signature that is no proof, by a key that asks nobody for anything."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dpop_agent import paths
from dpop_agent.proof import parse_signing_input
from dpop_agent.signer.store import self_test_input
from tests.agent.places import serve_with, store, until, until_open, until_state
from tests.agent.wire import Wire, request
from tests.faulty import Faulty
from tests.processes import Agent
from tests.stores import on_token

MakeAgent = Callable[..., Agent]


@pytest.fixture
def agent(faulty_token: Faulty, make_agent: MakeAgent) -> Agent:
    """One whose module tells of each signature and each login."""
    faulty_token.rules("C_SignInit count")
    agent = make_agent(faulty_token.config()).start()
    until_open(agent)
    return agent


@pytest.fixture
def wire(agent: Agent) -> Iterator[Wire]:
    with Wire(agent.admin_socket, timeout=60) as wire:
        yield wire


def outcome_of(wire: Wire) -> dict[str, Any]:
    return wire.result("store.self_test", store="softhsm")


def lines(agent: Agent) -> list[dict[str, Any]]:
    """Those of the audit that are about self-tests."""
    file = paths.audit_file(paths.audit_folder(str(agent.state)), "admin")
    if not os.path.exists(file):
        return []
    with open(file, encoding="ascii") as text:
        return [line for line in map(json.loads, text) if line["method"] == "store.self_test"]


def test_it_signs_once_and_is_no_use_of_the_key_no_login_and_a_line_in_the_audit(
    agent: Agent, wire: Wire, faulty_token: Faulty
) -> None:
    made = agent.create_key("default", rate={"per_minute": 1})
    before = wire.result("key.list"), faulty_token.logins, len(faulty_token.calls("C_SignInit"))
    assert outcome_of(wire) == {
        "store": "softhsm",
        "key": "default",
        "generation": 1,
        "jkt": made["jkt"],
        "reason": None,
    }
    now = wire.result("key.list"), faulty_token.logins, len(faulty_token.calls("C_SignInit"))
    assert now == (*before[:2], before[2] + 1)
    assert wire.result("status")["proofs"] == 0
    until(lambda: lines(agent))
    (line,) = lines(agent)
    assert (line["outcome"], line["key"], line["generation"], line["store"], line["jti"]) == (
        "done",
        "default",
        1,
        "softhsm",
        None,
    )
    assert "store.self_test" in agent.run("log", "admin", check=True).stdout
    wire.result("proof", htm="GET", htu="https://api.example.com/", key="default")  # of its one


def test_what_it_signs_is_no_signing_input_and_another_each_time() -> None:
    first, second = self_test_input(), self_test_input()
    assert first != second
    with pytest.raises(ValueError, match=r"."):
        parse_signing_input(first.decode("latin-1"))
    assert b"\0" in first


@pytest.mark.parametrize(
    ("rules", "reason"),
    [(None, "no_key"), ({"confirm_s": 60}, "attended"), ({"touch": True}, "attended")],
)
def test_where_no_key_signs_without_a_person_nothing_is_signed(
    agent: Agent, wire: Wire, faulty_token: Faulty, rules: dict[str, Any] | None, reason: str
) -> None:
    if rules is not None:
        agent.create_key("shop", **rules)
    before = faulty_token.calls("C_SignInit")
    answer = outcome_of(wire)
    assert (answer["key"], answer["jkt"], answer["reason"]) == (None, None, reason)
    assert faulty_token.calls("C_SignInit") == before
    assert lines(agent) == []


def test_a_key_that_wants_its_pin_for_each_signature_isnt_tried_and_the_next_is(
    agent: Agent, wire: Wire, faulty_token: Faulty
) -> None:
    agent.create_key("careful")
    faulty_token.rules("attribute dpop-agent%20careful@1 0x202 value 01")  # ALWAYS_AUTHENTICATE
    wire.result("reload")
    logins = faulty_token.logins
    assert outcome_of(wire)["reason"] == "attended"
    agent.create_key("default")
    assert outcome_of(wire)["key"] == "default"
    assert faulty_token.logins == logins


def test_a_locked_store_stays_locked(agent: Agent, wire: Wire, faulty_token: Faulty) -> None:
    agent.create_key("default")
    wire.result("lock")
    logins = faulty_token.logins
    assert outcome_of(wire)["reason"] == "not_open"
    assert store(agent)["state"] == "locked"
    assert faulty_token.logins == logins


def test_a_store_that_was_left_to_other_programs_stays_so(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    agent = make_agent(faulty_token.config(), preexec=serve_with("--release-after", "1s")).start()
    until_open(agent)
    agent.create_key("default")
    until(lambda: "is released" in agent.log.read_text())
    logins = faulty_token.logins
    with Wire(agent.admin_socket) as wire:
        assert outcome_of(wire)["reason"] == "not_open"
    assert faulty_token.logins == logins


def test_a_signature_that_fails_is_told_with_its_error(
    agent: Agent, wire: Wire, faulty_token: Faulty
) -> None:
    agent.create_key("default")
    faulty_token.rules("C_Sign return 0x5")
    error = wire.error("store.self_test", store="softhsm")
    assert error["type"] == "signer_failed"
    assert "self-test" in error["message"]
    until(lambda: lines(agent))
    assert [line["outcome"] for line in lines(agent)] == ["signer_failed"]
    faulty_token.rules()
    until_state(agent, "ready")
    assert outcome_of(wire)["key"] == "default"


def test_a_key_that_was_deleted_is_missing_from_then_on(
    agent: Agent, wire: Wire, faulty_token: Faulty
) -> None:
    agent.create_key("default")
    (ref,) = on_token.private_ids(faulty_token.token)
    on_token.delete(faulty_token.token, ref)
    assert wire.error("store.self_test", store="softhsm")["type"] in (
        "key_missing",
        "signer_failed",
    )
    until(lambda: wire.result("key.list")["keys"][0]["generations"][0]["missing"])
    assert outcome_of(wire)["reason"] == "no_key"


def test_whoever_wants_a_proof_goes_before_it(
    agent: Agent, wire: Wire, faulty_token: Faulty
) -> None:
    agent.create_key("default")
    target = {"htm": "GET", "htu": "https://api.example.com/", "key": "default"}
    with Wire(agent.socket) as first, Wire(agent.socket) as second:
        faulty_token.rules("C_Sign delay 300")
        for _ in range(2):
            first.result("proof", **target)  # the agent learns how slow it is
        signing = len(faulty_token.calls("C_Sign"))
        first.send(request("proof", target))
        until(lambda: len(faulty_token.calls("C_Sign")) > signing)
        wire.send(request("store.self_test", {"store": "softhsm"}, number="t"))
        wire.send(request("hello", number="h"))
        answer = wire.line()
        assert answer is not None
        assert answer["id"] == "h"
        second.result("proof", **target)
        assert select.select([wire.sock], [], [], 0)[0] == [], "it isn't answered yet"
    answer = wire.line()
    assert answer is not None
    assert answer["result"]["key"] == "default"


def test_clients_of_agent_sock_cant_ask_for_it(agent: Agent) -> None:
    with Wire(agent.socket) as wire:
        assert wire.error("store.self_test", store="softhsm")["type"] == "method_not_found"
