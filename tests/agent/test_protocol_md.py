"""PROTOCOL.md is what the agent does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import dpop_agent
from dpop_agent import errors, protocol
from tests.agent.wire import Wire
from tests.documents import Block
from tests.processes import Agent

DOCUMENT = (Path(dpop_agent.__file__).parent / "PROTOCOL.md").read_text()

NEVER_SENT = {
    # what the classes of the tree's inner nodes have, which are never raised
    errors.DPoPAgentError,
    errors.KeyUnusable,
    errors.StoreUnusable,
    # raised where a client or a command finds out by itself
    errors.Cancelled,
    errors.InvalidProof,
    errors.NonceRequired,
    errors.ProofRefused,
    errors.ServiceFailed,
    errors.TokenNotBound,
    errors.UnsafeSocket,
    # an agent that has this doesn't serve
    errors.LedgerUnreadable,
}


def examples(blocks: list[Block]) -> list[tuple[str, str, str]]:
    """Which socket, request, answer."""
    lines = [line.split(" ", 1) for block in blocks for line in block.text.splitlines()]
    asked, answered = lines[::2], lines[1::2]
    assert len(asked) == len(answered)
    found = []
    for (arrow, request), (back, answer) in zip(asked, answered, strict=True):
        assert arrow + back in ("→←", "⇒⇐")
        found.append(("agent" if arrow == "→" else "admin", request, answer))
    return found


def fits(told: Any, got: Any) -> bool:
    """`…` fits any text, `abc…` one that begins so; all else is itself."""
    if isinstance(told, dict):
        return (
            isinstance(got, dict)
            and told.keys() == got.keys()
            and all(fits(told[name], got[name]) for name in told)
        )
    if isinstance(told, list):
        return (
            isinstance(got, list)
            and len(told) == len(got)
            and all(fits(a, b) for a, b in zip(told, got, strict=True))
        )
    if isinstance(told, str) and told.endswith("…"):
        return isinstance(got, str) and got != "" and got.startswith(told[:-1])
    return type(told) is type(got) and told == got


def section(heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S)
    assert found, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in a part of the document, heads and rules left out."""
    found = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    rules = {n for n, row in enumerate(found) if set("".join(row)) <= set("-:")}
    return [row for n, row in enumerate(found) if n not in rules and n + 1 not in rules]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def agent_methods() -> dict[str, str]:
    """The methods on both sockets, and what is said of each."""
    parts = re.split(r"^### (\S+)\n", section("Methods on both sockets"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.runs("dpop_agent/PROTOCOL.md")
def test_every_example_is_what_the_agent_answers(agent: Agent, blocks: list[Block]) -> None:
    agent.create_key("default")
    told = examples(blocks)
    assert len(told) > 8
    with Wire(agent.socket) as normal, Wire(agent.admin_socket) as admin:
        for socket, asked, answer in told:
            wire = normal if socket == "agent" else admin
            wire.send(asked.encode() + b"\n")
            got = wire.next()
            assert fits(json.loads(answer), got), f"{asked}\ntold {answer}\ngot {json.dumps(got)}"


def test_a_text_that_stands_for_others_fits_only_texts() -> None:
    assert fits({"a": "…", "b": [1, "x…"]}, {"a": "z", "b": [1, "xy"]})
    assert not fits({"a": "…"}, {"a": None})
    assert not fits({"a": "x…"}, {"a": "yx"})
    assert not fits({"a": 1}, {"a": 1, "b": 2})
    assert not fits({"a": 1}, {"a": True})
    assert not fits([1], [1, 1])


def test_the_document_names_exactly_the_methods_of_both_sockets() -> None:
    assert list(agent_methods()) == list(protocol.AGENT_METHODS)
    listed = [
        name for row in rows(section("Methods on `admin.sock` only")) for name in code(row[0])
    ]
    only_admin = protocol.ADMIN_METHODS.keys() - protocol.AGENT_METHODS.keys()
    assert sorted(listed) == sorted(only_admin)


def test_the_document_names_every_parameter_and_which_are_required() -> None:
    told = {code(row[0])[0]: row[1] for row in rows(agent_methods()["proof"])}
    forms = protocol.AGENT_METHODS["proof"]
    assert told.keys() == forms.keys()
    assert {name for name, says in told.items() if "required" in says} == {
        name for name, form in forms.items() if form.required
    }
    for name, text in agent_methods().items():
        assert protocol.AGENT_METHODS[name].keys() <= set(code(text)), name
    common = {"request_id"}
    for row in rows(section("Methods on `admin.sock` only")):
        for name in code(row[0]):
            named = set(code(row[1]))
            assert protocol.ADMIN_METHODS[name].keys() - common <= named, name


def test_the_document_names_exactly_the_error_types_that_can_be_sent() -> None:
    table = section("Errors").partition("| `type` |")[2]
    listed = [name for row in rows("| `type` |" + table) for name in code(row[0])]
    classes = {
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, errors.DPoPAgentError)
    }
    sent = {found.wire_type for found in classes - NEVER_SENT}
    assert sorted(listed) == sorted(sent)


def test_the_document_has_the_limits_that_hold() -> None:
    from dpop_agent.agent.connection import LINE_TIMEOUT_S
    from dpop_agent.protocol import MAX_REQUESTS

    assert "A line has at most\n61 440 bytes" in DOCUMENT
    assert protocol.MAX_LINE == 61_440
    assert f"up to {MAX_REQUESTS} on a connection" in DOCUMENT
    assert f"isn't complete {LINE_TIMEOUT_S:g} s after it began" in DOCUMENT
    assert f"up to {protocol.MAX_SEEN} objects" in DOCUMENT
    assert f"1 to {protocol.MAX_TIMEOUT_MS}" in DOCUMENT
