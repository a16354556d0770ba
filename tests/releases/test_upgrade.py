"""Whatever version somebody had: its configuration, ledger and keys go on with this one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.verify import verify
from tests.agent.places import until_open
from tests.agent.wire import Wire
from tests.processes import Agent, Token
from tests.releases.make import FOLDER, HERE, LABEL, ORIGIN
from tests.stores import on_token

HTM, HTU = "GET", f"{ORIGIN}/me"

RELEASES = sorted(path.parent for path in HERE.glob("*/keys.json"))

SIGNS = ("active", "draining")
REFUSED = {
    "staged": "key_staged",
    "suspended": "key_suspended",
    "compromised": "key_compromised",
    "retired": "key_retired",
    "destroyed": "key_destroyed",
}


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Token:
    """What a version left behind, as it left it, but for where."""
    folder = tmp_path / "left"
    shutil.copytree(request.param, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if path.is_file():
            path.write_bytes(path.read_bytes().replace(FOLDER.encode(), os.fsencode(folder)))
    return Token(folder, LABEL)


@pytest.fixture
def agent(left: Token, make_agent: Callable[..., Agent]) -> Agent:
    """This version's agent in the place of that one, not started."""
    return make_agent(left.config, state=left.folder / "state")


@pytest.fixture
def started(agent: Agent) -> Iterator[Wire]:
    until_open(agent.start())
    with Wire(agent.admin_socket, timeout=60) as wire:
        yield wire


def told(left: Token) -> dict[tuple[str, int], dict[str, Any]]:
    """What that version said of each generation."""
    return generations(json.loads((left.folder / "keys.json").read_text()))


def listed(wire: Wire) -> dict[tuple[str, int], dict[str, Any]]:
    """What this one says."""
    return generations(wire.result("key.list", include_destroyed=True)["keys"])


def generations(keys: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(key["key"], g["generation"]): g for key in keys for g in key["generations"]}


def prove(wire: Wire, **params: Any) -> str:
    result = wire.result("proof", htm=HTM, htu=HTU, nonce=None, **params)
    return verify(result["proof"], htm=HTM, htu=HTU).jkt


def test_there_is_one_of_each_released_version_with_keys_in_all_states(left: Token) -> None:
    states = {generation["state"] for generation in told(left).values()}
    assert states == {*SIGNS, *REFUSED}


def test_the_first_version_has_the_ledger_of_version_1() -> None:
    ledger = (HERE / "0.1.0" / "state" / "ledger.json").read_bytes()
    assert ledger.startswith(b'{"version": 1,')


def test_each_key_is_what_it_was_and_none_is_made_or_lost(left: Token, started: Wire) -> None:
    before = told(left)
    now = listed(started)
    assert now.keys() == before.keys()
    for which, generation in now.items():
        for member in (before[which].keys() & generation.keys()) - {"drain_left_s"}:
            assert generation[member] == before[which][member], (which, member)
        if generation["state"] == "draining":
            assert 0 < generation["drain_left_s"] <= before[which]["drain_left_s"]
        assert not generation["missing"]
    there = [g for g in before.values() if g["state"] != "destroyed"]
    assert len(on_token.private_ids(left)) == len(there)


def test_each_generation_that_signed_signs_with_the_same_key_and_no_other_does(
    left: Token, started: Wire
) -> None:
    for (key, _), generation in told(left).items():
        if generation["state"] in SIGNS:
            assert prove(started, jkt=generation["jkt"]) == generation["jkt"]
            if generation["state"] == "active":
                assert prove(started, key=key) == generation["jkt"]
        else:
            error = started.error("proof", htm=HTM, htu=HTU, jkt=generation["jkt"])
            assert error["type"] == REFUSED[generation["state"]]


def test_a_key_is_still_for_the_servers_and_the_schedule_that_it_was_for(
    left: Token, started: Wire
) -> None:
    before = json.loads((left.folder / "keys.json").read_text())
    now = {key["key"]: key for key in started.result("key.list", include_destroyed=True)["keys"]}
    for key in before:
        for member in set(key) & set(now[key["key"]]) - {"generations"}:
            assert now[key["key"]][member] == key[member], (key["key"], member)
        error = started.error("proof", htm="GET", htu="https://other.example/", key=key["key"])
        assert error["type"] in ("policy_refused", "key_suspended", "no_active")


def test_a_rotation_goes_on_from_there_and_outlives_a_restart(
    left: Token, agent: Agent, started: Wire
) -> None:
    before = told(left)
    staged = before["default", 3]
    assert staged["state"] == "staged"
    started.result("key.rotate", key="default")
    assert prove(started, key="default") == staged["jkt"]
    assert agent.stop() == 0
    assert not (left.folder / "state" / "ledger.json").read_bytes().startswith(b'{"version": 1,')
    until_open(agent.start())
    with Wire(agent.admin_socket, timeout=60) as again:
        states = [listed(again)["default", number]["state"] for number in (1, 2, 3)]
        assert states == ["draining", "draining", "active"]
        for number in (1, 2, 3):
            jkt = before["default", number]["jkt"]
            assert prove(again, jkt=jkt) == jkt


def test_its_configuration_and_ledger_pass_the_checks(left: Token, agent: Agent) -> None:
    assert f"{left.config} is fine" in agent.start().run("config", "check", check=True).stdout
    agent.stop()
    agent.run("config", "set", "agent.lock_after", "15m", check=True)
    until_open(agent.start())
    agent.stop()


def test_its_ledger_can_be_checked_and_kept_before_the_upgrade(left: Token, agent: Agent) -> None:
    ledger = left.folder / "state" / "ledger.json"
    before = ledger.read_bytes()
    agent.run("ledger", "check", str(ledger), check=True)
    assert ledger.read_bytes() == before
