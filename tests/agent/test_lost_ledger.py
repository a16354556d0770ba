"""A ledger that is kept as a copy, and one that is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.places import refused_to_serve
from tests.processes import Agent

MakeAgent = Callable[..., Agent]


def said(agent: Agent, *words: str) -> str:
    """What a verb says where it is refused: one line, and status 1."""
    run = agent.run(*words)
    assert (run.returncode, run.stdout) == (1, "")
    (line,) = run.stderr.splitlines()
    return line.removeprefix("dpop-agent: ")


def known(agent: Agent) -> list[tuple[str, list[str], list[tuple[int, str, str]]]]:
    """Names, origins, and generations with state and jkt."""
    return [
        (
            key["key"],
            key["origins"],
            [(g["generation"], g["state"], g["jkt"]) for g in key["generations"]],
        )
        for key in agent.client().keys(include_destroyed=True)
    ]


# A copy


def test_a_copy_of_the_ledger_is_written_while_the_agent_runs_and_serves_another_one(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    agent = make_agent().start()
    agent.create_key("default", origins=["https://a.example"])
    agent.create_key("shop")
    agent.admin().call("key.rotate", {"key": "shop"})
    copy = tmp_path / "copy"
    run = agent.run("ledger", "export", str(copy), check=True)
    assert run.stdout == f"{copy} is sound: 2 keys, 3 generations\n"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert agent.run("ledger", "export", check=True).stdout == copy.read_text()
    assert copy.read_bytes() == (agent.state / "ledger.json").read_bytes()
    keys = known(agent)
    agent.stop()
    shutil.rmtree(agent.state)
    agent.state.mkdir(mode=0o700)
    shutil.copy(copy, agent.state / "ledger.json")
    agent.start()
    assert known(agent) == keys


def test_a_copy_never_overwrites_a_file(agent: Agent, tmp_path: Path) -> None:
    agent.create_key("default")
    (tmp_path / "diary").write_text("dear diary")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("diary", "link"):
        line = said(agent, "ledger", "export", str(tmp_path / name))
        assert line == (
            f"{tmp_path / name} is there already, and isn't overwritten; name another file"
        )
    assert (tmp_path / "diary").read_text() == "dear diary"
    assert not (tmp_path / "nowhere").exists()


def test_a_ledger_is_checked_while_an_agent_uses_it_and_without_one(agent: Agent) -> None:
    agent.create_key("default")
    ledger = agent.state / "ledger.json"
    for stops in (True, False):
        assert agent.run("ledger", "check", check=True).stdout == (
            f"{ledger} is sound: 1 key, 1 generation\n"
        )
        told = json.loads(agent.run("ledger", "check", "--json", check=True).stdout)
        assert told == {"ledger": str(ledger), "keys": 1, "generations": 1}
        if stops:
            agent.stop()


def test_the_running_agents_ledger_is_the_one_that_is_meant_unless_another_is_set(
    agent: Agent, tmp_path: Path
) -> None:
    agent.create_key("default")
    agent.env.pop("DPOP_AGENT_STATE_DIR")
    assert agent.run("ledger", "check", check=True).stdout.startswith(str(agent.state))
    agent.env["DPOP_AGENT_STATE_DIR"] = str(tmp_path / "none")
    assert f"there is no ledger {tmp_path / 'none' / 'ledger.json'}" in said(
        agent, "ledger", "check"
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        ("ledger.json", '"shop"', '"shap"', "line 4: its checksum doesn't fit"),
        ("uses.json", '"unclean_s"', '"unclear_s"', "line 1: its checksum doesn't fit"),
        ("ledger.json", '"version": 2', '"version": 3', "it has version 3, this agent reads 1 to"),
        ("ledger.json", "\n]}\n", "\n]", "line 7 isn't ]}"),
        ("blocks", "    \n", "   x\n", "line 1: "),
    ],
)
def test_a_ledger_that_no_agent_would_start_on_is_told_with_the_line_as_it_would(
    agent: Agent, name: str, old: str, new: str, why: str
) -> None:
    agent.create_key("default")
    agent.create_key("shop")
    agent.stop()
    file = agent.state / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    line = said(agent, "ledger", "check")
    assert f"{file} can't be read ({why}" in line
    assert refused_to_serve(agent) == f"dpop-agent: {line}"
    assert said(agent, "ledger", "export") == line
    if name == "ledger.json":
        assert f"the ledger {file} can't be read ({why}" in said(
            agent, "ledger", "check", str(file)
        )


def test_a_copy_that_isnt_there_is_told(agent: Agent, tmp_path: Path) -> None:
    line = said(agent, "ledger", "check", str(tmp_path / "copy"))
    assert line == (
        f"the ledger {tmp_path / 'copy'} can't be read (No such file or directory); "
        "use another copy"
    )
