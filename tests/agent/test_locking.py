"""PINs go past the agent, are tried once, and are forgotten when a store is locked."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_agent.cli.locking import send_secret
from dpop_agent.errors import Locked, PinRefused, SignerFailed
from tests.agent.places import (
    descendants,
    memory_of,
    serve_with,
    store,
    until,
    until_logged,
    until_open,
    until_state,
    write_config,
)
from tests.agent.test_audit import asked, entries
from tests.agent.test_processes import TRACE
from tests.agent.wire import Wire, request
from tests.bench.bars import WHILE_ANOTHER
from tests.processes import Agent, Token, running
from tests.terminal import Terminal, unlock
from tests.timing import Measured

HTU = "https://api.example.com/v1/me"


@pytest.fixture
def prompting(token: Token, make_agent: Callable[..., Agent]) -> Agent:
    """An agent whose only store asks for its PIN, and has a key."""
    agent = make_agent(token.config).start()
    agent.create_key("default")
    agent.stop()
    write_config(token, pin_source="prompt")
    return agent.start()


def test_a_store_whose_pin_is_typed_is_locked_until_unlock(prompting: Agent, token: Token) -> None:
    with pytest.raises(Locked, match="wants its PIN"):
        prompting.client().proof("GET", HTU)
    status, shown = unlock(prompting, token.pin)
    assert (status, token.pin in shown) == (0, False), shown
    assert "is open" in shown
    prompting.client().proof("GET", HTU)


@pytest.mark.skipif(os.getuid() != 0, reason="reads the memory of processes that forbid it")
def test_a_typed_pin_reaches_the_signer_and_not_the_agent(prompting: Agent, token: Token) -> None:
    unlock(prompting, token.pin)
    signer = until_open(prompting)["signer_pid"]
    assert token.pin.encode() in memory_of(signer)
    assert token.pin.encode() not in memory_of(prompting.pid)
    assert token.pin not in prompting.log.read_text()


def test_a_wrong_pin_that_is_typed_is_refused_with_what_to_do_next(
    prompting: Agent, token: Token
) -> None:
    status, shown = unlock(prompting, "99999999")
    assert status == 1
    assert "refused its PIN" in shown
    assert "dpop-agent unlock" in shown
    assert "Traceback" not in shown
    until(lambda: "refused its PIN" in store(prompting)["reason"])  # whoever typed hears it first
    with pytest.raises(PinRefused):
        prompting.client().proof("GET", HTU)
    assert unlock(prompting, token.pin)[0] == 0
    prompting.client().proof("GET", HTU)


def test_a_signer_that_died_with_a_typed_pin_is_locked_again(
    prompting: Agent, token: Token
) -> None:
    unlock(prompting, token.pin)
    signer = until_open(prompting)["signer_pid"]
    os.kill(signer, 9)
    until_state(prompting, "locked")
    with pytest.raises(Locked):
        prompting.client().proof("GET", HTU)


@pytest.mark.parametrize(
    ("typed", "status", "said"), [("\x04", 1, "no PIN was given"), ("\x03", 130, "")]
)
def test_who_types_end_or_interrupt_in_place_of_a_pin_gives_none(
    prompting: Agent, typed: str, status: int, said: str
) -> None:
    with Terminal(prompting, "unlock") as terminal:
        terminal.until("PIN of the store")
        terminal.type(typed)
        assert terminal.end()[0] == status
    _, _, after = terminal.shown.partition("\r\n")  # the prompt's line is ended
    assert after == (f"dpop-agent: {said}\r\n" if said else ""), terminal.shown
    assert "\r\n" in terminal.shown


def test_no_socket_for_a_pin_is_left_behind(prompting: Agent, token: Token) -> None:
    unlock(prompting, "99999999")
    unlock(prompting, token.pin)
    assert sorted(p.name for p in prompting.runtime.iterdir() if p.is_socket()) == [
        "admin.sock",
        "agent.sock",
    ]


def test_a_lock_leaves_no_socket_whenever_it_comes(prompting: Agent) -> None:
    with Wire(prompting.admin_socket) as wire:
        for number in range(8):  # an unlock makes its socket 0.1 s after it was asked
            wire.send(request("unlock", {"store": "softhsm"}))
            time.sleep(number * 0.02)
            wire.send(request("lock", number=2))
            wire.lines(2)
    until(lambda: not list(prompting.runtime.glob("pin-*")))


def test_the_socket_that_a_killed_agent_left_is_removed_by_the_next(prompting: Agent) -> None:
    with Wire(prompting.admin_socket) as wire:
        path = wire.result("unlock", store="softhsm")["pin_socket"]
    children = descendants(prompting.pid)
    prompting.kill()
    until(lambda: not any(running(pid) for pid in children))
    assert os.path.exists(path)
    prompting.start()
    assert not os.path.exists(path)


def test_lock_and_unlock_say_what_they_did(agent: Agent) -> None:
    assert agent.run("lock").stdout == "the store softhsm is locked\n"
    assert agent.run("unlock").stdout == "the store softhsm is open\n"
    assert agent.run("unlock").stdout == "all stores are open\n"
    assert agent.run("unlock", "softhsm").stdout == "the store softhsm is open\n"


def test_who_unlocks_while_somebody_types_is_told_so_and_disturbs_nobody(
    prompting: Agent, token: Token
) -> None:
    with Terminal(prompting, "unlock") as first:
        first.until("PIN of the store")
        second = prompting.run("unlock")
        assert second.returncode == 1
        assert second.stdout == ""
        assert second.stderr == (
            "dpop-agent: the PIN of the store softhsm is being typed already; "
            "finish that, or end it: dpop-agent lock softhsm\n"
        )
        first.type(f"{token.pin}\n")
        status, shown = first.end()
    assert status == 0, shown
    prompting.client().proof("GET", HTU)


def test_two_unlocks_at_the_same_instant_are_one_prompt(prompting: Agent) -> None:
    with Terminal(prompting, "unlock") as one, Terminal(prompting, "unlock") as other:
        until(lambda: bool(one.ended or other.ended))
        loser, winner = (one, other) if one.ended else (other, one)
        assert "being typed already" in loser.end()[1]
        winner.until("PIN of the store")
        assert store(prompting)["state"] == "locked"
        winner.type("\x03")
        assert winner.end()[0] != 0


def test_what_is_being_typed_can_be_ended_by_lock_and_asked_for_anew(
    prompting: Agent, token: Token
) -> None:
    with Terminal(prompting, "unlock") as left:
        left.until("PIN of the store")
        prompting.run("lock", check=True)
        assert unlock(prompting, token.pin)[0] == 0
        left.type(f"{token.pin}\n")
        assert left.end()[0] == 1
        assert "Traceback" not in left.shown
    prompting.client().proof("GET", HTU)


def test_a_lock_right_behind_an_unlock_ends_it_and_the_next_unlock_asks(
    prompting: Agent, token: Token
) -> None:
    with Wire(prompting.admin_socket) as wire:
        both = request("unlock", {"store": "softhsm"}, number=1), request("lock", number=2)
        wire.send(b"".join(both))
        answers = {answer["id"]: answer for answer in wire.lines(2)}
    assert answers[1]["error"]["data"]["type"] == "cancelled"
    assert unlock(prompting, token.pin)[0] == 0
    prompting.client().proof("GET", HTU)


def test_neither_a_reload_nor_the_agents_end_waits_for_who_types(
    prompting: Agent, measured: Measured
) -> None:
    with Terminal(prompting, "unlock") as terminal:
        terminal.until("PIN of the store")
        with measured("a reload, and the agent's end, while somebody types"):
            prompting.run("reload", check=True)
            assert prompting.stop() == 0


def test_requests_are_refused_at_once_while_somebody_types(
    prompting: Agent, token: Token, measured: Measured
) -> None:
    with Terminal(prompting, "unlock") as terminal:
        terminal.until("PIN of the store")
        with measured(WHILE_ANOTHER), pytest.raises(Locked, match="wants its PIN"):
            prompting.client().proof("GET", HTU)
        terminal.type(f"{token.pin}\n")
        assert terminal.end()[0] == 0
    prompting.client().proof("GET", HTU)


def test_a_pin_isnt_asked_for_before_its_token_was_found(prompting: Agent, token: Token) -> None:
    kept = (token.folder / "tokens").rename(token.folder / "kept")
    (token.folder / "tokens").mkdir()
    ran = prompting.run("unlock")
    assert ran.returncode == 1
    assert "there is no PKCS#11 token pkcs11:token=dpop-agent" in ran.stderr
    # Nothing but a PIN opens it, so that is what it says, and `unlock` finds it without its name.
    assert store(prompting)["state"] == "locked"
    with pytest.raises(Locked, match="wants its PIN"):
        prompting.client().proof("GET", HTU)
    (token.folder / "tokens").rmdir()
    kept.rename(token.folder / "tokens")
    assert unlock(prompting, token.pin)[0] == 0


def test_a_pin_is_typed_at_the_terminal_whatever_standard_input_is(
    prompting: Agent, token: Token
) -> None:
    with (
        open(os.devnull) as nothing,
        Terminal(prompting, "unlock", stdin=nothing.fileno()) as terminal,
    ):
        terminal.until("PIN of the store")
        terminal.type(f"{token.pin}\n")
        status, shown = terminal.end()
    assert (status, token.pin in shown) == (0, False), shown


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_what_isnt_utf_8_is_refused_where_it_is_typed(prompting: Agent, locale: str) -> None:
    env = {**prompting.env, "LC_ALL": locale}
    with Terminal(prompting, "unlock", env=env) as terminal:
        terminal.until("PIN of the store")
        terminal.type("\udcff1234\n")
        status, shown = terminal.end()
    assert status == 1
    assert "the PIN isn't UTF-8; type it again" in shown


def test_whoever_comes_too_late_to_type_is_told_so(prompting: Agent) -> None:
    with Wire(prompting.admin_socket) as wire, socket.socket(socket.AF_UNIX) as first:
        path = wire.result("unlock", store="softhsm")["pin_socket"]
        first.connect(path)
        until(lambda: not os.path.exists(path))
        with pytest.raises(SignerFailed, match="isn't waiting for a PIN now"):
            send_secret(path, "PIN: ", what="PIN")


def test_without_terminal_and_display_unlock_says_what_to_do(prompting: Agent) -> None:
    ran = prompting.run("unlock")
    assert ran.returncode == 1
    assert ran.stderr == (
        "dpop-agent: there is neither a terminal nor a display to ask for the PIN on; run this in "
        "a terminal, or choose a file or a credential as pin_source\n"
    )
    assert store(prompting)["state"] == "locked"


def test_a_refused_pin_isnt_tried_again_by_an_agent_that_was_started_anew(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    right = token.pin_file.read_text()
    token.pin_file.write_text("00000000\n")
    agent = make_agent(token.config).start()
    assert "refused its PIN" in until_state(agent, "locked")["reason"]
    agent.stop()
    agent.start()
    assert "refused before" in until_state(agent, "locked")["reason"]
    token.pin_file.write_text(right)
    agent.admin().call("reload")
    assert store(agent)["state"] == "locked"
    agent.run("unlock", check=True)
    assert store(agent)["state"] == "ready"


@pytest.mark.parametrize("typed", [True, False])
def test_a_pin_that_doesnt_open_its_store_leaves_a_line_whoever_typed_it(
    prompting: Agent, token: Token, typed: bool
) -> None:
    verb = "unlock" if typed else "store.open"
    if typed:
        unlock(prompting, "99999999")
    else:
        prompting.stop()
        token.pin_file.write_text("99999999\n")
        write_config(token)
        prompting.start()
    until(lambda: len(asked(prompting, verb, "admin")) == 2)
    before, refused = asked(prompting, verb, "admin")
    assert before["outcome"] == ("begun" if typed else "done")
    assert (refused["socket"], refused["peer"]) == (None, None), "nobody waits for that"
    assert (refused["outcome"], refused["store"]) == ("pin_refused", "softhsm")
    assert "99999999" not in json.dumps(entries(prompting, "admin"))
    shown = prompting.run("log", "admin", check=True).stdout
    assert f"refused (pin_refused) {verb} softhsm" in shown


def test_a_systemd_credential_opens_a_store(
    token: Token, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    (credentials / "hsm-pin").write_text(token.pin)
    (credentials / "hsm-pin").chmod(0o400)
    write_config(token, pin_source="credential:hsm-pin")
    agent = make_agent(token.config, env={"CREDENTIALS_DIRECTORY": str(credentials)}).start()
    agent.create_key("default")
    agent.stop()
    without = make_agent(token.config).start()
    assert "hsm-pin" in until_state(without, "locked")["reason"]


def test_a_store_that_nobody_uses_is_locked_after_a_while(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(token.config, preexec=serve_with("--lock-after", "1s")).start()
    agent.create_key("default")
    agent.client().proof("GET", HTU)
    until_state(agent, "locked")
    with pytest.raises(Locked):
        agent.client().proof("GET", HTU)
    agent.run("unlock", check=True)
    agent.client().proof("GET", HTU)


def test_the_configuration_says_after_how_long_and_the_options_of_serve_win(
    make_agent: Callable[..., Agent],
) -> None:
    says, waits, wins = (
        make_agent(preexec=serve_with(*options))
        for options in ((), (), ("--lock-after", "never", "--release-after", "1s"))
    )
    for agent in (says, wins):
        set_in_agent(agent, 'lock_after = "1s"')
    for agent in (says, waits, wins):
        agent.start()
        until_open(agent)
    until_state(says, "locked")
    assert store(waits)["state"] == "ready"
    set_in_agent(waits, 'lock_after = "1s"')
    waits.run("reload", check=True)
    until_state(waits, "locked")
    until_logged(wins, "is released")
    wins.run("reload", check=True)  # which changes nothing of what wins
    says.run("unlock", check=True)
    until_state(says, "locked")
    assert store(wins)["state"] == "ready"


def set_in_agent(agent: Agent, line: str) -> None:
    """Add a setting to the `[agent]` of its configuration."""
    text = agent.config.read_text()
    agent.config.write_text(text.replace("[agent]\n", f"[agent]\n{line}\n"))


def test_a_store_whose_pin_was_typed_is_locked_after_a_while_and_asks_again(
    prompting: Agent, token: Token, make_agent: Callable[..., Agent]
) -> None:
    prompting.stop()
    agent = make_agent(
        token.config, state=prompting.state, preexec=serve_with("--lock-after", "1s")
    ).start()
    assert unlock(agent, token.pin)[0] == 0
    signer = store(agent)["signer_pid"]
    agent.client().proof("GET", HTU)
    until_state(agent, "locked")
    until(lambda: not running(signer))
    with pytest.raises(Locked):
        agent.client().proof("GET", HTU)
    assert unlock(agent, token.pin)[0] == 0
    agent.client().proof("GET", HTU)


def test_a_store_that_was_released_is_locked_no_later_for_that(
    make_agent: Callable[..., Agent],
) -> None:
    agent = make_agent(preexec=serve_with("--release-after", "5s", "--lock-after", "6s")).start()
    until_open(agent)
    later = make_agent(preexec=serve_with("--lock-after", "8s")).start()
    until_open(later)
    until_logged(agent, "is released")
    until_state(agent, "locked")
    assert store(later)["state"] == "ready"


def test_a_token_that_nobody_uses_is_released_and_taken_again_by_the_next_request(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(token.config, preexec=serve_with("--release-after", "1s")).start()
    agent.create_key("default")
    signer = store(agent)["signer_pid"]
    for times in (1, 2):
        until_logged(agent, "is released", times=times)
        agent.client().proof("GET", HTU)
    assert store(agent)["signer_pid"] == signer


def test_a_program_that_asks_for_a_pin_has_closed_itself_before(
    prompting: Agent, token: Token
) -> None:
    def core_limit(pid: int) -> str:
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        return next(line for line in limits if line.startswith("Max core file size")).split()[5]

    with Terminal(prompting, "unlock") as asking:
        asking.until("PIN of the store")
        assert core_limit(asking.process.pid) == "0"
        asking.type(token.pin + "\n")
        assert asking.end()[0] == 0


def test_a_program_that_is_being_debugged_asks_for_no_pin(
    prompting: Agent,
) -> None:
    with Terminal(prompting, "unlock", preexec=[sys.executable, "-c", TRACE]) as asking:
        status, shown = asking.end()
    assert status == 1
    assert "is tracing this one" in shown
    assert "PIN of the store" not in shown
