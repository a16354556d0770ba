"""A PKCS#11 token with a PIN pad of its own: SoftHSM2 behind a pad that is a FIFO."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_agent.cli import locking
from dpop_agent.cli.main import main
from dpop_agent.client import AgentClient
from dpop_agent.errors import Locked
from tests.agent.places import (
    add_store,
    changed_config,
    hurried,
    serve_with,
    store,
    until,
    until_logged,
    until_open,
    until_state,
)
from tests.agent.wire import Wire
from tests.bench.bars import BACK, WHILE_ANOTHER
from tests.emulators import built, need
from tests.processes import Agent, Token, running
from tests.stores import on_token
from tests.stores.conformance import TARGET
from tests.terminal import Terminal
from tests.timing import Measured

HTU = "https://api.example.com/v1/me"
RED_BUTTON = ""


class Pad:
    """Where somebody types who isn't at the terminal."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path, 0o600)

    def type(self, pin: str) -> None:
        """Wait until it asks, and type."""
        with self._path.open("w") as pad:
            pad.write(f"{pin}\n")

    @property
    def asked(self) -> list[str]:
        """What it noted: that it asked, or that a program gave a PIN."""
        log = self._path.with_name(f"{self._path.name}.asked")
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("gcc", "libc6-dev")
    return built("pin_pad.c", tmp_path_factory.mktemp("pad"))


@pytest.fixture
def pad(token: Token) -> Pad:
    return Pad(token.folder / "pad")


def configured(token: Token, module: Path, *, pin_source: str = "prompt") -> Path:
    """A configuration of the PKCS#11 token as it is behind the pad."""
    env = {"PIN_PAD": str(token.folder / "pad")}
    return changed_config(token, env=env, module=str(module), pin_source=pin_source)


@pytest.fixture
def agent(make_agent: Callable[..., Agent], token: Token, pad: Pad, module: Path) -> Agent:
    """An agent with a key on a PKCS#11 token that takes its PIN at a pad alone."""
    agent = make_agent(token.config).start()
    agent.create_key("shop")
    agent.stop()
    return make_agent(configured(token, module), state=agent.state).start()


def unlock(agent: Agent, pad: Pad, typed: str) -> tuple[int, str]:
    """`dpop-agent unlock`, and somebody at the pad."""
    with Terminal(agent, "unlock") as terminal:
        terminal.until("on its own pad")
        pad.type(typed)
        return terminal.end()


def test_a_pin_is_typed_at_the_pad_and_crosses_nothing(
    agent: Agent, pad: Pad, token: Token
) -> None:
    with pytest.raises(Locked):
        agent.client().proof("GET", HTU, key="shop")
    assert pad.asked == []
    status, shown = unlock(agent, pad, token.pin)
    assert status == 0, shown
    assert shown.splitlines() == [
        "type the PIN of the store softhsm on its own pad",
        "the store softhsm is open",
    ]
    agent.client().proof("GET", HTU, key="shop")
    assert pad.asked == ["the pad asks"]


def test_a_wrong_pin_at_the_pad_costs_one_try_and_the_next_unlock_asks_anew(
    agent: Agent, pad: Pad, token: Token
) -> None:
    status, shown = unlock(agent, pad, "99999999")
    assert status == 1
    assert "refused its PIN" in shown
    with Wire(agent.admin_socket) as wire:

        def refused() -> bool:
            return bool(wire.error("proof", **TARGET, key="shop")["type"] == "pin_refused")

        until(refused)  # the person is told by the signer, perhaps before the agent is
        assert refused()
        assert refused()
        wire.result("reload")
    assert pad.asked == ["the pad asks"]
    assert unlock(agent, pad, token.pin)[0] == 0
    agent.client().proof("GET", HTU, key="shop")


def test_the_red_button_is_no_wrong_pin(agent: Agent, pad: Pad, token: Token) -> None:
    status, shown = unlock(agent, pad, RED_BUTTON)
    assert status == 1
    assert "no PIN was typed at the PKCS#11 token's pad; dpop-agent unlock" in shown
    assert store(agent)["state"] == "locked"
    assert unlock(agent, pad, token.pin)[0] == 0


def test_a_person_at_the_pad_has_longer_than_a_signer_and_requests_meanwhile_are_told_at_once(
    agent: Agent,
    make_agent: Callable[..., Agent],
    pad: Pad,
    token: Token,
    measured: Measured,
) -> None:
    agent.stop()
    preexec = hurried("starting.START_TIMEOUT_S=5")
    slow = make_agent(agent.config, state=agent.state, preexec=preexec).start()
    with Terminal(slow, "unlock") as terminal, Wire(slow.socket) as wire:
        terminal.until("on its own pad")
        until(lambda: pad.asked)
        for _ in range(30):
            with measured(WHILE_ANOTHER):
                assert wire.error("proof", **TARGET, key="shop")["type"] == "locked"
            time.sleep(0.2)
        assert not terminal.ended
        pad.type(token.pin)
        assert terminal.end()[0] == 0
        wire.result("proof", **TARGET, key="shop")


def test_a_pad_at_which_nobody_types_is_given_up_by_whoever_asked(
    agent: Agent,
    pad: Pad,
    token: Token,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DPOP_AGENT_SOCK", agent.socket)
    monkeypatch.setattr(locking, "PAD_TIMEOUT_S", 0.5)
    assert main(["unlock"]) == 1
    assert "the store didn't open within 0.5 s; try again" in capsys.readouterr().err
    assert store(agent)["state"] == "locked"
    assert unlock(agent, pad, token.pin)[0] == 0


def test_a_pad_at_which_nobody_types_is_given_up_by_the_agent(
    make_agent: Callable[..., Agent], token: Token, pad: Pad, module: Path, measured: Measured
) -> None:
    config = configured(token, module)
    agent = make_agent(config, preexec=hurried("starting.UNLOCK_TIMEOUT_S=4")).start()
    with (
        measured("a pad at which nobody types is given up after its 4 s"),
        Terminal(agent, "unlock") as terminal,
    ):
        status, shown = terminal.end()
    assert status == 1
    assert "the signer ended before it answered" in shown
    assert "Traceback" not in shown
    assert store(agent)["state"] == "locked"
    assert pad.asked == ["the pad asks"]


def test_a_person_who_gives_up_ends_what_the_pad_waits_for(
    agent: Agent, pad: Pad, token: Token
) -> None:
    with Terminal(agent, "unlock") as terminal:
        terminal.until("on its own pad")
        until(lambda: pad.asked)
        terminal.type("\x03")
        assert terminal.end()[0] != 0
        assert "Traceback" not in terminal.shown
    assert store(agent)["state"] == "locked"
    assert unlock(agent, pad, token.pin)[0] == 0


def test_the_pad_doesnt_ask_by_itself_after_a_signers_death(
    agent: Agent, pad: Pad, token: Token
) -> None:
    assert unlock(agent, pad, token.pin)[0] == 0
    signer = until_open(agent)["signer_pid"]
    os.kill(signer, signal.SIGKILL)
    until(lambda: not running(signer))
    with Wire(agent.admin_socket) as wire:
        assert wire.error("proof", **TARGET, key="shop")["type"] == "locked"
        wire.result("reload")
    assert pad.asked == ["the pad asks"]


def test_a_key_that_is_missing_makes_no_pad_ask(agent: Agent, pad: Pad, token: Token) -> None:
    assert unlock(agent, pad, token.pin)[0] == 0
    until_open(agent)
    (ref,) = on_token.private_ids(token)
    on_token.delete(token, ref)
    with Wire(agent.admin_socket) as wire:
        assert wire.error("proof", **TARGET, key="shop")["type"] in ("key_missing", "locked")
        wire.ask("proof", **TARGET, key="shop")
    assert pad.asked == ["the pad asks"]


def test_a_released_pad_is_locked_and_doesnt_ask_by_itself(
    make_agent: Callable[..., Agent], token: Token, pad: Pad, module: Path
) -> None:
    config = configured(token, module)
    agent = make_agent(config, preexec=serve_with("--release-after", "1s")).start()
    assert unlock(agent, pad, token.pin)[0] == 0
    until_logged(agent, "is released")
    with Wire(agent.admin_socket) as wire:
        error = wire.error("key.create", key="shop", origins=[])
        assert (error["type"], error["hint"]) == ("locked", "dpop-agent unlock softhsm")
    assert pad.asked == ["the pad asks"]
    assert unlock(agent, pad, token.pin)[0] == 0
    agent.create_key("shop")


@pytest.mark.parametrize("pin_source", ["file", "keychain"])
def test_a_stored_pin_is_given_to_no_pad_and_the_pad_doesnt_ask(
    make_agent: Callable[..., Agent], token: Token, pad: Pad, module: Path, pin_source: str
) -> None:
    source = f"file:{token.pin_file}" if pin_source == "file" else pin_source
    agent = make_agent(configured(token, module, pin_source=source)).start()
    until_state(agent, "locked")
    ran = agent.run("unlock")
    assert ran.returncode == 1
    assert 'set pin_source = "prompt"' in ran.stderr
    assert pad.asked == []


def test_another_store_is_served_while_somebody_is_at_the_pad(
    make_agent: Callable[..., Agent],
    make_token: Callable[..., Token],
    token: Token,
    pad: Pad,
    module: Path,
    measured: Measured,
) -> None:
    config = configured(token, module)
    add_store(config, "other", make_token("other"))
    agent = make_agent(config).start()
    agent.create_key("quick", store="other")
    with Terminal(agent, "unlock", "softhsm") as terminal:
        terminal.until("on its own pad")
        until(lambda: pad.asked)
        with AgentClient(agent.socket) as client:
            for _ in range(5):
                with measured(WHILE_ANOTHER):
                    client.proof("GET", HTU, key="quick")
        signer = next(s for s in client.status()["stores"] if s["store"] == "other")["signer_pid"]
        os.kill(signer, signal.SIGKILL)
        with AgentClient(agent.socket) as client, measured(BACK):
            client.proof("GET", HTU, key="quick")
        assert not terminal.ended
        threading.Thread(target=pad.type, args=(token.pin,)).start()
        assert terminal.end()[0] == 0
