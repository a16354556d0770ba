"""What a terminal is told of long work, and that nothing of it stays or is piped."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_agent.cli import output, waiting
from dpop_agent.cli.waiting import Waiting
from dpop_agent.client import Touch
from tests.agent.places import until_state
from tests.faulty import Faulty
from tests.processes import Agent
from tests.terminal import Terminal, left
from tests.unit.fake_agent import JKT, TOUCH, FakeAgent

MakeAgent = Callable[..., Agent]
XTERM = {"TERM": "xterm"}
SLOW = 2500
"""Milliseconds: more than one second is counted."""


def at_a_terminal(agent: Agent, *words: str, **env: str) -> Terminal:
    return Terminal(agent, *words, size=(24, 80), env=agent.env | XTERM | env)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("key", "create", "new", "--any-origin"), "making a key, 1 s"),
        (
            ("key", "create", "new", "--any-origin", "--alg", "RS256"),
            "making an RSA key, which takes a card or a TPM up to half a minute, 1 s",
        ),
        (
            ("key", "rotate", "default"),
            "making a key; an RSA one takes a card or a TPM up to half a minute, 1 s",
        ),
    ],
)
def test_a_key_that_takes_long_is_waited_for_in_seconds_of_which_nothing_stays(
    faulty_token: Faulty, make_agent: MakeAgent, words: tuple[str, ...], told: str
) -> None:
    agent = make_agent(faulty_token.config()).start()
    agent.create_key()
    faulty_token.rules(f"C_GenerateKeyPair delay {SLOW}")
    with at_a_terminal(agent, *words, NO_COLOR="1") as terminal:
        terminal.until(told)
        status, shown = terminal.end()
    assert status == 0
    assert "making" not in left(shown)
    assert left(shown).startswith(("KEY", "new: default@2"))
    assert all(len(line) < 80 for line in re.split(r"[\r\n]|\x1b\[K", shown))


def test_in_a_pipe_and_on_a_terminal_that_cant_erase_nothing_is_said(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    agent = make_agent(faulty_token.config()).start()
    faulty_token.rules(f"C_GenerateKeyPair delay {SLOW}")
    done = agent.run("key", "create", "piped", "--any-origin")
    assert (done.returncode, done.stderr) == (0, "")
    with at_a_terminal(agent, "key", "create", "dumb", "--any-origin", TERM="dumb") as terminal:
        status, shown = terminal.end()
    assert status == 0
    assert "making" not in shown
    assert len(faulty_token.calls("C_GenerateKeyPair")) == 2


def test_of_what_is_over_before_it_takes_long_nothing_is_said(
    agent: Agent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "takes_escapes", lambda _: True)
    monkeypatch.setattr(waiting, "AFTER_S", 3600)
    with Waiting("making a key"):
        assert Waiting._line is not None
    assert capsys.readouterr().err == ""
    agent.create_key()
    with at_a_terminal(agent, "proof", "GET", "https://api.example.com/") as terminal:
        _, shown = terminal.end()
    assert re.fullmatch(r"[A-Za-z0-9_.-]+\r\n", shown)


def test_a_slow_store_is_waited_for_while_its_pin_is_tried(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    agent = make_agent(faulty_token.config(pin_source="prompt")).start()
    until_state(agent, "locked")
    faulty_token.rules(f"C_Login delay {SLOW}")
    with at_a_terminal(agent, "unlock") as terminal:
        terminal.until("PIN of the store softhsm: ")
        terminal.type(f"{faulty_token.token.pin}\n")
        terminal.until("trying the PIN, 1 s")
        status, shown = terminal.end()
    assert status == 0
    assert left(shown).splitlines()[-1] == "the store softhsm is open"
    assert "trying" not in left(shown)


def test_a_touch_is_asked_for_and_counted_and_only_the_asking_stays(tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "fake") as fake:
        fake.touch_s = SLOW / 1000
        env = os.environ | XTERM | {"DPOP_AGENT_SOCK": fake.path}
        words = ("proof", "GET", "https://api.example.com/", "--key", TOUCH["key"])
        with Terminal(None, *words, size=(24, 80), env=env) as terminal:
            terminal.until("touch the card of the store yubikey to sign with shop")
            terminal.until("waiting for the touch, 1 s")
            status, shown = terminal.end()
    assert status == 0
    asked, proof, end = left(shown).split("\n")
    assert asked == "touch the card of the store yubikey to sign with shop"
    assert proof.count(".") == 2
    assert end == ""


def test_an_interrupted_wait_leaves_nothing(faulty_token: Faulty, make_agent: MakeAgent) -> None:
    agent = make_agent(faulty_token.config()).start()
    faulty_token.rules(f"C_GenerateKeyPair delay {SLOW}")
    with at_a_terminal(agent, "key", "create", "new", "--any-origin") as terminal:
        terminal.until("making a key, 1 s")
        terminal.type("\x03")
        status, shown = terminal.end()
    assert status == 130
    assert left(shown).strip() == ""


def test_a_wait_in_another_is_said_in_its_place_and_a_consent_has_the_terminal_for_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "takes_escapes", lambda _: True)
    with Waiting("all") as whole:
        line = Waiting._line
        assert line is not None
        assert line.says[0] == "all"
        with Waiting("a part"):
            assert Waiting._line is line
            assert line.says[0] == "a part"
        assert line.says[0] == "all"
        whole.touch(Touch(key="shop", jkt=JKT, store="work", consent=True))
        assert line.says[0] == ""
    assert Waiting._line is None
    assert capsys.readouterr().err == "you are being asked whether shop may sign\n"
