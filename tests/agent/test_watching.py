"""`status --watch` at a terminal, from its first look to the shell's next prompt."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from dpop_agent.cli import output
from dpop_agent.cli.watching import _ENTER, _HOME, _LEAVE, changes
from tests.agent.places import serve_with, until_open
from tests.processes import Agent
from tests.terminal import Terminal

MakeAgent = Callable[..., Agent]
XTERM = {"TERM": "xterm"}


def watching(agent: Agent, *words: str, size: tuple[int, int] = (40, 80)) -> Terminal:
    return Terminal(agent, "status", "--watch", *words, size=size, env=agent.env | XTERM)


def frames(shown: str) -> list[list[str]]:
    """What stood on the screen after each look, in lines."""
    return [
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame).split("\r\n")
        for frame in shown.split(_HOME)[1:]
    ]


def test_it_tells_what_changes_and_goes_on_over_the_agent_s_restart(agent: Agent) -> None:
    agent.create_key()
    with watching(agent, "1") as terminal:
        terminal.until("softhsm")
        agent.run("lock", check=True)
        terminal.until("store softhsm: locked, was ready")
        agent.run("socket", "add", "coder", "--key", "default", check=True)
        terminal.until("socket coder: there")
        agent.kill()
        terminal.until("the agent is away")
        agent.start()
        terminal.until("the agent was started anew")
        terminal.until("store softhsm: ready, was ")  # locked, or starting in between
        terminal.type("\x03")
        status, shown = terminal.end()
    assert status == 130
    assert "\x1b[2J" not in shown  # which would flicker
    assert shown.index(_ENTER) < shown.index(_HOME)
    assert shown.count(_LEAVE) == 1
    assert shown.partition(_LEAVE)[2].strip() == ""


def test_it_counts_the_proofs_since_it_began(agent: Agent) -> None:
    agent.create_key()
    client = agent.client()
    client.proof("GET", "https://api.example.com/")
    with watching(agent, "1") as terminal:
        terminal.until(" 0 proofs since ")
        client.proof("GET", "https://api.example.com/")
        terminal.until(" 1 proof since ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_finds_the_terminal_as_it_was(agent: Agent, number: signal.Signals) -> None:
    with watching(agent) as terminal:
        terminal.until("softhsm")
        terminal.process.send_signal(number)
        status, shown = terminal.end()
    assert status == -number
    assert shown.endswith(_LEAVE)


def test_a_window_of_another_size_is_drawn_anew_at_once_and_nothing_leaves_it(
    agent: Agent,
) -> None:
    until_open(agent)
    client = agent.client()
    for number in range(20):
        uri = f"https://api{number}.{'long-' * 9}name.example.com/"
        client.observe([{"htu": uri, "nonce": "n"}])
    with watching(agent, "3600", size=(40, 120)) as terminal:
        terminal.until("api0.")
        (first,) = frames(terminal.shown)
        for lines, columns in ((10, 80), (24, 50)):
            seen = len(frames(terminal.shown))
            terminal.resize((lines, columns))
            terminal.until_count(_HOME, seen + 1)
            terminal.until("more lines")
            frame = frames(terminal.shown)[-1]
            assert len(frame) <= lines
            servers = [line for line in frame if "https" in line]
            assert [line for line in [frame[0], *servers] if output.columns(line) > columns] == []
            assert re.search(r"… [0-9]+ more lines", frame[-1])
            terminal.shown = terminal.shown.replace("more lines", "")
    assert len(first) > 24


def test_a_store_that_is_watched_counts_as_idle(make_agent: MakeAgent) -> None:
    agent = make_agent(preexec=serve_with("--lock-after", "5s")).start()
    with watching(agent, "1") as terminal:
        terminal.until("locked")
        agent.run("unlock", check=True)
        terminal.until("store softhsm: ready, was ")  # locked, or starting in between
        terminal.until("store softhsm: locked, was ready")


def test_for_programs_it_is_a_line_for_each_change(agent: Agent) -> None:
    until_open(agent)
    with subprocess.Popen(
        [sys.executable, "-m", "dpop_agent", "status", "--watch", "1", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=agent.env,
    ) as process:
        assert process.stdout is not None

        def line() -> Any:
            assert process.stdout is not None
            return json.loads(process.stdout.readline())

        try:
            assert line()["stores"][0]["state"] == "ready"
            agent.run("lock", check=True)
            assert line()["stores"][0]["state"] == "locked"
            agent.kill()
            assert line()["error"]["data"]["type"] == "agent_unavailable"
            agent.start()
            assert line()["pid"] == agent.pid
        finally:
            process.terminate()


def test_where_nothing_can_be_drawn_it_says_what_to_add(agent: Agent) -> None:
    piped = agent.run("status", "--watch")
    assert (piped.returncode, piped.stdout) == (2, "")
    assert "--watch wants a terminal that it can write over; elsewhere add --json" in piped.stderr
    dumb = agent.env | {"TERM": "dumb"}
    with Terminal(agent, "status", "--watch", env=dumb, size=(24, 80)) as terminal:
        status, shown = terminal.end()
    assert status == 2
    assert "add --json" in shown
    for wrong in ("0", "3601", "-1", "2.5", "x"):
        assert agent.run("status", f"--watch={wrong}").returncode == 2


def test_without_an_agent_it_ends_as_status_does(make_agent: MakeAgent) -> None:
    agent = make_agent()
    with watching(agent) as terminal:
        status, shown = terminal.end()
    assert status == 3
    assert _ENTER not in shown


def test_changes_are_told_and_what_changes_all_the_time_isnt() -> None:
    store = {"store": "work", "state": "ready"}
    origin = {"origin": "https://a.example", "nonce_age_s": 1}
    before = {"pid": 1, "proofs": 1, "stores": [store], "sockets": ["a"], "origins": [origin]}
    same = before | {"proofs": 9, "connections": 3, "origins": [origin | {"nonce_age_s": 2}]}
    assert [*changes(before, same)] == []
    after = {
        "pid": 2,
        "stores": [store | {"state": "locked"}, {"store": "new", "state": "absent"}],
        "sockets": ["b"],
        "rotations_due": ["shop"],
        "destroyed": ["old"],
        "origins": [origin, {"origin": "https://b.example"}],
        "audit": {"failing": "No space left on device"},
    }
    assert [*changes(before, after)] == [
        "the agent was started anew, pid 2",
        "store work: locked, was ready",
        "store new: absent",
        "socket b: there",
        "socket a: gone",
        "rotation due: shop",
        "destroyed: old",
        "new server: https://b.example",
        "the audit can't be written: No space left on device",
    ]
    assert [*changes(after, before)][1:3] == [
        "store work: ready, was locked",
        "store new: gone, was absent",
    ]
