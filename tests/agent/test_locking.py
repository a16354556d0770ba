"""PINs go past the agent, are tried once, and are forgotten when a store is locked."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_agent.errors import Locked, PinRefused
from tests.agent.places import serve_with
from tests.processes import Agent, Token

HTU = "https://api.example.com/v1/me"


def configure(token: Token, pin_source: str) -> None:
    """The PKCS#11 token's configuration, with another source for its PIN."""
    text = re.sub(
        "^pin_source = .*$", f'pin_source = "{pin_source}"', token.config.read_text(), flags=re.M
    )
    token.config.write_text(text)


def store(agent: Agent) -> dict[str, object]:
    (found,) = agent.client().status()["stores"]
    return dict(found)


def wait_for(agent: Agent, state: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while store(agent)["state"] != state and time.monotonic() < deadline:
        time.sleep(0.05)
    assert store(agent)["state"] == state


def unlock(agent: Agent, typed: str) -> tuple[int, str]:
    """`dpop-agent unlock` where somebody types; its status, and all that it showed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "dpop_agent", "unlock"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=agent.env,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(theirs), os.O_RDWR)),
    ) as process:
        os.close(theirs)
        shown = b""
        while b"PIN of the store" not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, typed.encode() + b"\n")
        while True:
            try:
                data = os.read(ours, 1024)
            except OSError:
                break
            shown += data
        status = process.wait()
    os.close(ours)
    return status, shown.decode()


@pytest.fixture
def prompting(token: Token, make_agent: Callable[..., Agent]) -> Agent:
    """An agent whose only store asks for its PIN, and has a key."""
    agent = make_agent(token.config).start()
    agent.create_key("default")
    agent.stop()
    configure(token, "prompt")
    return agent.start()


def memory_of(pid: int) -> bytes:
    """All of a process's private memory, as root alone may read it."""
    found = b""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, modes, *_ = line.split()
            start, end = (int(x, 16) for x in span.split("-"))
            if "rw" in modes and "[v" not in line:
                memory.seek(start)
                try:
                    found += memory.read(end - start)
                except OSError:
                    continue
    return found


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
    wait_for(prompting, "ready")
    signer = store(prompting)["signer_pid"]
    assert isinstance(signer, int)
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
    with pytest.raises(PinRefused):
        prompting.client().proof("GET", HTU)
    assert unlock(prompting, token.pin)[0] == 0
    prompting.client().proof("GET", HTU)


def test_a_signer_that_died_with_a_typed_pin_is_locked_again(
    prompting: Agent, token: Token
) -> None:
    unlock(prompting, token.pin)
    wait_for(prompting, "ready")
    signer = store(prompting)["signer_pid"]
    assert isinstance(signer, int)
    os.kill(signer, 9)
    wait_for(prompting, "locked")
    with pytest.raises(Locked):
        prompting.client().proof("GET", HTU)


def test_no_socket_for_a_pin_is_left_behind(prompting: Agent, token: Token) -> None:
    unlock(prompting, "99999999")
    unlock(prompting, token.pin)
    assert sorted(p.name for p in prompting.runtime.iterdir() if p.is_socket()) == [
        "admin.sock",
        "agent.sock",
    ]


def test_a_locked_store_signs_nothing_before_unlock(agent: Agent) -> None:
    agent.create_key("default")
    assert agent.run("lock").stdout == "the store softhsm is locked\n"
    assert store(agent)["signer_pid"] is None
    for _ in range(3):
        with pytest.raises(Locked, match="is locked"):
            agent.client().proof("GET", HTU)
    agent.admin().call("reload")
    assert store(agent)["state"] == "locked"
    assert agent.run("unlock").stdout == "the store softhsm is open\n"
    agent.client().proof("GET", HTU)


def test_a_refused_pin_isnt_tried_again_by_an_agent_that_was_started_anew(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    right = token.pin_file.read_text()
    token.pin_file.write_text("00000000\n")
    agent = make_agent(token.config).start()
    wait_for(agent, "locked")
    assert "refused its PIN" in str(store(agent)["reason"])
    agent.stop()
    agent.start()
    wait_for(agent, "locked")
    assert "refused before" in str(store(agent)["reason"])
    token.pin_file.write_text(right)
    agent.admin().call("reload")
    assert store(agent)["state"] == "ready"


def test_a_systemd_credential_opens_a_store(
    token: Token, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    (credentials / "hsm-pin").write_text(token.pin)
    (credentials / "hsm-pin").chmod(0o400)
    configure(token, "credential:hsm-pin")
    agent = make_agent(token.config, env={"CREDENTIALS_DIRECTORY": str(credentials)}).start()
    agent.create_key("default")
    agent.stop()
    without = make_agent(token.config).start()
    wait_for(without, "locked")
    assert "hsm-pin" in str(store(without)["reason"])


def test_a_store_that_nobody_uses_is_locked_after_a_while(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(token.config, preexec=serve_with("--lock-after", "2s")).start()
    agent.create_key("default")
    agent.client().proof("GET", HTU)
    wait_for(agent, "locked")
    with pytest.raises(Locked):
        agent.client().proof("GET", HTU)
    agent.run("unlock", check=True)
    agent.client().proof("GET", HTU)


def test_a_token_that_nobody_uses_is_released_and_taken_again_by_the_next_request(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(token.config, preexec=serve_with("--release-after", "1s")).start()
    agent.create_key("default")
    signer = store(agent)["signer_pid"]
    for _ in range(2):
        deadline = time.monotonic() + 10
        seen = agent.log.read_text().count("is released")
        while agent.log.read_text().count("is released") == seen and time.monotonic() < deadline:
            time.sleep(0.05)
        assert agent.log.read_text().count("is released") > seen
        agent.client().proof("GET", HTU)
    assert store(agent)["signer_pid"] == signer
