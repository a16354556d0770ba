"""systemd hands over the sockets, and is told how the agent is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.places import until
from tests.emulators import file_of, need
from tests.processes import Agent, Token, new_token

NAMES = ("DPOP_AGENT_CONFIG", "DPOP_AGENT_STATE_DIR", "DPOP_AGENT_SOCK", "HOME")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    return new_token(tmp_path_factory.mktemp("activation") / "token")


class Activated(Agent):
    """One whose sockets systemd made, and that the first connection starts."""

    def __init__(self, config: Path, state: Path) -> None:
        super().__init__(config, state)
        (self.runtime / "mount").mkdir(mode=0o700)
        self.sockets = {
            "agent": Path(self.socket),
            "admin": Path(self.admin_socket),
            "mount": self.runtime / "mount" / "agent.sock",
        }
        listen = [f"--listen={path}" for path in self.sockets.values()]
        env = [f"--setenv={name}" for name in NAMES]
        names = f"--fdname={':'.join(self.sockets)}"
        self._command = [file_of("systemd"), *listen, names, *env, *self._command]

    def inodes(self) -> list[int]:
        return [path.lstat().st_ino for path in self.sockets.values()]


@pytest.fixture
def activated(token: Token, tmp_path: Path) -> Iterator[Activated]:
    need("systemd")
    agent = Activated(token.config, tmp_path / "state")
    try:
        yield agent
    finally:
        agent.close()


def test_a_proof_comes_through_each_socket_that_systemd_handed_over(activated: Activated) -> None:
    activated.start(wait=False)
    until(lambda: all(path.exists() for path in activated.sockets.values()))
    made = activated.inodes()
    activated.wait_until_it_answers()
    activated.create_key()
    for name in ("agent", "mount"):
        with activated._client(str(activated.sockets[name])) as client:
            assert str(client.proof("GET", "https://api.example.com/")).count(".") == 2
    assert activated.inodes() == made, "they are those that systemd made"
    activated.stop()
    assert activated.inodes() == made, "whoever made them removes them"


def test_a_handed_over_socket_that_was_removed_comes_back(activated: Activated) -> None:
    activated.start()
    activated.create_key()
    for path in activated.sockets.values():
        path.unlink()
    until(lambda: all(path.exists() for path in activated.sockets.values()))
    until(lambda: activated.run("proof", "GET", "https://api.example.com/").returncode == 0)
    assert activated.log.read_text().count("has gone from there") == 3


def test_a_second_agent_is_refused_while_an_activated_one_serves(
    activated: Activated, tmp_path: Path
) -> None:
    activated.start()
    activated.env["DPOP_AGENT_STATE_DIR"] = str(tmp_path / "another")
    second = activated.run("serve")
    assert second.returncode == 1
    assert f"another agent serves {activated.socket}" in second.stderr


def test_sockets_that_arent_the_agents_keep_it_from_starting_and_it_says_why(
    token: Token, tmp_path: Path
) -> None:
    need("systemd")
    agent = Agent(token.config, tmp_path / "state")
    elsewhere = str(agent.runtime / "elsewhere.sock")
    try:
        env = [f"--setenv={name}" for name in NAMES]
        process = subprocess.Popen(
            [file_of("systemd"), f"--listen={elsewhere}", *env, *agent._command],
            env=agent.env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: os.path.exists(elsewhere))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(elsewhere)
            _, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert f"listens at '{elsewhere}', where this agent serves nothing" in err
        assert "Traceback" not in err
    finally:
        agent.close()


@pytest.fixture
def notified() -> Iterator[socket.socket]:
    with (
        tempfile.TemporaryDirectory(prefix="dpop-", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        sock.bind(f"{folder}/notify")
        sock.settimeout(20)
        yield sock


def test_systemd_is_told_when_the_agent_serves_reads_its_configuration_and_ends(
    token: Token, tmp_path: Path, notified: socket.socket
) -> None:
    env = {"NOTIFY_SOCKET": notified.getsockname()}
    with Agent(token.config, tmp_path / "state", env=env).serving() as agent:
        assert notified.recv(1000) == b"READY=1"
        agent.process.send_signal(signal.SIGHUP)
        reloading = notified.recv(1000)
        assert reloading.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert notified.recv(1000) == b"READY=1"
        agent.process.terminate()
        assert notified.recv(1000) == b"STOPPING=1"
        agent.process.wait(10)
        agent.stop()


def test_a_reload_that_is_refused_leaves_a_service_that_is_ready(
    token: Token, tmp_path: Path, notified: socket.socket
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(token.config.read_text())
    config.chmod(0o600)
    env = {"NOTIFY_SOCKET": notified.getsockname()}
    with Agent(config, tmp_path / "state", env=env).serving() as agent:
        assert notified.recv(1000) == b"READY=1"
        config.write_text("nonsense")
        assert agent.run("reload").returncode == 1
        assert notified.recv(1000).startswith(b"RELOADING=1\n")
        assert notified.recv(1000) == b"READY=1"


def test_systemd_is_told_why_the_agent_doesnt_start(
    token: Token, tmp_path: Path, notified: socket.socket
) -> None:
    agent = Agent(tmp_path / "none.toml", tmp_path / "state")
    agent.env["NOTIFY_SOCKET"] = notified.getsockname()
    try:
        assert agent.run("serve").returncode == 1
        told = notified.recv(1000).decode()
        assert told.startswith(f"STATUS=there is no configuration at {tmp_path / 'none.toml'}")
        assert "\n" not in told
    finally:
        agent.close()


def test_stop_ends_the_agent_in_order_and_another_can_start_at_once(
    token: Token, tmp_path: Path
) -> None:
    with Agent(token.config, tmp_path / "state").serving("default") as agent:
        for _ in range(3):
            pid = agent.pid
            done = agent.run("stop", check=True)
            assert done.stdout == f"the agent has ended, process {pid}\n"
            assert agent.stop() == 0
            assert not os.path.exists(agent.socket)
            agent.start()
        assert agent.run("proof", "GET", "https://api.example.com/").returncode == 0
        agent.run("stop", check=True)
        again = agent.run("stop")
        assert (again.returncode, "; there is nothing to end\n" in again.stderr) == (3, True)
