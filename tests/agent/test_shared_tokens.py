"""Twenty processes share one refresh token, at a server that takes each once."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from tests.processes import Agent
from tests.unit.fake_server import FakeServer, Reply, Seen

PROCESSES = 20
ROUNDS, KILLS = 20, 4


class Rotating:
    """An authorization server that ends the session when a refresh token comes twice (RFC 9700
    section 4.14.2), and a resource server that takes its access tokens.

    Attributes:
        logins, refreshes, reuses: how many there were.
        kill: when to kill whoever refreshes next: before the refresh token is used up, or after.
        killed: whom it killed.
    """

    def __init__(self) -> None:
        self.logins = self.refreshes = self.reuses = 0
        self.kill: str | None = None
        self.killed: list[int] = []
        self._access_token = ""
        self._refresh_token: str | None = None
        self._lock = threading.Lock()

    def expire(self) -> None:
        """The access token is no longer any use."""
        with self._lock:
            self._access_token = ""

    def __call__(self, seen: Seen) -> Reply:
        with self._lock:
            if seen.path == "/token":
                return self._token(seen)
            if seen.headers["Authorization"] == f"DPoP {self._access_token}":
                return Reply(200, b"{}")
            return Reply(401, WWW_Authenticate='DPoP error="invalid_token"')

    def _token(self, seen: Seen) -> Reply:
        form = parse_qs(seen.body.decode())
        is_json = {"Content_Type": "application/json"}
        (came,) = form.get("refresh_token", [None])
        if came is None:
            self.logins += 1
        elif came != self._refresh_token:
            self.reuses += 1
            self._refresh_token, self._access_token = None, ""
            return Reply(400, b'{"error":"invalid_grant"}', **is_json)
        else:
            self._kill("before", seen)
            self.refreshes += 1
        self._access_token, self._refresh_token = secrets.token_hex(), secrets.token_hex()
        if came is not None:
            self._kill("after", seen)
        tokens = {
            "token_type": "DPoP",
            "access_token": self._access_token,
            "refresh_token": self._refresh_token,
            "expires_in": 3600,
        }
        return Reply(200, json.dumps(tokens).encode(), **is_json)

    def _kill(self, when: str, seen: Seen) -> None:
        if self.kill == when:
            self.kill = None
            self.killed.append(int(seen.headers["Pid"]))
            os.kill(self.killed[-1], signal.SIGKILL)
            if when == "before":
                raise ConnectionAbortedError  # what it had sent was never looked at


class Processes:
    """The application's, every other one on asyncio."""

    def __init__(self, agent: Agent, origin: str, store: Path) -> None:
        self._agent = agent
        self._words = [origin, str(store)]
        self._running = [self._start(number) for number in range(PROCESSES)]
        self.said = ""

    def _start(self, number: int) -> subprocess.Popen[str]:
        how = "async" if number % 2 else "sync"
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-m", "tests.agent.renewing", how, *self._words],
            env=self._agent.env,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )

    def ask_all(self) -> list[str]:
        """Each asks once, all at the same time; a killed one is started anew."""
        for process in self._running:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        statuses = []
        for number, process in enumerate(self._running):
            assert process.stdout
            line = process.stdout.readline().strip()
            if line:
                statuses.append(line)
            else:
                self.said += process.communicate()[1]
                assert process.returncode == -signal.SIGKILL, self.said
                self._running[number] = self._start(number)
        return statuses

    def end(self) -> None:
        for process in self._running:
            self.said += process.communicate(timeout=60)[1]


@pytest.fixture
def server_of() -> Rotating:
    return Rotating()


@pytest.fixture
def processes(agent: Agent, server_of: Rotating, tmp_path: Path) -> Iterator[Processes]:
    agent.create_key("default")
    with FakeServer(server_of) as server:
        running = Processes(agent, server.origin, tmp_path / "shared" / "token")
        try:
            yield running
        finally:
            running.end()


def rounds(processes: Processes, server_of: Rotating, count: int) -> None:
    for number in range(count):
        assert processes.ask_all() == ["200"] * PROCESSES
        assert (server_of.logins, server_of.refreshes, server_of.reuses) == (1, number, 0)
        server_of.expire()
    processes.end()
    assert processes.said == ""


def test_twenty_processes_share_one_refresh_token_with_one_refresh_a_round(
    processes: Processes, server_of: Rotating
) -> None:
    rounds(processes, server_of, ROUNDS)


@pytest.mark.long
def test_a_thousand_rounds_of_twenty_processes_lose_no_session(
    processes: Processes, server_of: Rotating
) -> None:
    rounds(processes, server_of, 1000)


def with_kills(processes: Processes, server_of: Rotating, kills: int) -> None:
    """A killed holder costs a new grant if the server had answered it, and nothing if not."""
    assert processes.ask_all() == ["200"] * PROCESSES
    lost = 0
    for number in range(kills):
        server_of.expire()
        server_of.kill = "after" if number % 2 else "before"
        lost += number % 2
        assert processes.ask_all() == ["200"] * (PROCESSES - 1)
        assert len(server_of.killed) == number + 1
        assert (server_of.logins, server_of.reuses) == (1 + lost, lost)
        server_of.expire()
        assert processes.ask_all() == ["200"] * PROCESSES
        assert (server_of.logins, server_of.reuses) == (1 + lost, lost)
    processes.end()
    assert processes.said.count("didn't finish") == kills, processes.said


def test_a_process_that_is_killed_in_the_middle_is_told_and_costs_a_new_grant_at_most(
    processes: Processes, server_of: Rotating
) -> None:
    with_kills(processes, server_of, KILLS)


@pytest.mark.long
def test_two_hundred_kills_in_the_middle_cost_a_new_grant_each_at_most(
    processes: Processes, server_of: Rotating
) -> None:
    with_kills(processes, server_of, 200)
