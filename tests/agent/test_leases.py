"""Leases of an agent that runs, over its restarts and its clients' deaths."""

from __future__ import annotations

import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_agent.client import AgentClient
from dpop_agent.errors import LeaseUnavailable
from tests.agent.places import hurried
from tests.agent.wire import Wire, request
from tests.processes import Agent

SECOND = hurried("leases.LEASE_S=1")


def test_a_lease_is_everybodys_on_the_agents_own_sockets(agent: Agent) -> None:
    mounted = str(agent.runtime / "mount" / "agent.sock")
    with Wire(agent.socket) as holder:
        holder.result("lease", name="a")
        for path in (agent.socket, agent.admin_socket, mounted):
            with Wire(path) as other:
                assert other.error("lease", name="a", wait_ms=0)["type"] == "lease_unavailable"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_an_agent_that_is_started_anew_gives_none_out_before_earlier_ones_are_over(
    by: signal.Signals, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(preexec=SECOND).start()
    with Wire(agent.socket) as holder, Wire(agent.socket) as other:
        assert holder.result("lease", name="a", wait_ms=0)["previous"] == "none"
        other.send(request("lease", {"name": "a"}))
        other.result("hello") if by == signal.SIGKILL else None
        agent.process.send_signal(by)
        agent.process.wait(10)
    agent.stop()

    agent.start()
    with AgentClient(agent.socket) as client:
        with pytest.raises(LeaseUnavailable, match="a moment ago"), client.lease("b", wait=0):
            pass
        with client.lease("b", wait=30) as lease:
            assert (lease.previous, lease.waited) == ("abandoned", True)
        with client.lease("b", wait=0) as lease:
            assert (lease.previous, lease.waited) == ("released", False)


def test_who_waits_for_a_lease_when_the_agent_ends_is_told_so(agent: Agent) -> None:
    with Wire(agent.socket) as holder, Wire(agent.socket) as other:
        holder.result("lease", name="a")
        other.send(request("lease", {"name": "a", "wait_ms": 60_000}, number=7))
        other.send(request("hello", number=8))
        assert other.next()["id"] == 8
        agent.process.terminate()
        answer = other.next()
        assert (answer["id"], answer["error"]["data"]["type"]) == (7, "agent_unavailable")
        assert agent.process.wait(10) == 0


def test_an_agent_that_gave_none_out_keeps_nobody_waiting_after_its_restart(agent: Agent) -> None:
    agent.stop()
    agent.start()
    with AgentClient(agent.socket) as client, client.lease("a", wait=0) as lease:
        assert lease.previous == "none"


HOLDER = """
import sys, time
from dpop_agent.client import AgentClient

with AgentClient() as client, client.lease("a", wait=30) as lease:
    print(lease.previous, flush=True)
    sys.stdin.read()
"""


def test_a_holder_that_is_killed_is_told_of_to_the_next_one(agent: Agent) -> None:
    command = [sys.executable, "-c", HOLDER]
    pipe = subprocess.PIPE
    holders = [
        subprocess.Popen(command, env=agent.env, stdin=pipe, stdout=pipe, text=True)
        for _ in range(3)
    ]
    found = []
    while holders:
        reads = {holder.stdout: holder for holder in holders if holder.stdout}
        holder = reads[select.select(list(reads), [], [], 30)[0][0]]
        assert holder.stdout
        found.append(holder.stdout.readline().strip())
        if len(found) == 1:
            holder.kill()
        holder.communicate()
        holders.remove(holder)
    assert found == ["none", "abandoned", "released"]


REFRESH = "read n < count; sleep 0.02; echo $((n + 1)) > count"


def test_commands_under_a_lease_run_one_after_the_other(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0\n")
    command = [sys.executable, "-m", "dpop_agent", "lease", "shop", "--wait", "1m", "--"]
    running = [
        subprocess.Popen([*command, "sh", "-c", REFRESH], env=agent.env, cwd=tmp_path)
        for _ in range(8)
    ]
    assert [one.wait(60) for one in running] == [0] * 8
    assert (tmp_path / "count").read_text() == "8\n"


def test_a_command_that_fails_under_a_lease_is_told_of_to_the_next_one(agent: Agent) -> None:
    failed = agent.run("lease", "shop", "--", "sh", "-c", "echo out; exit 7")
    assert (failed.returncode, failed.stdout, failed.stderr) == (7, "out\n", "")
    later = agent.run("lease", "shop", "--", "echo", "done", check=True)
    assert (later.stdout, later.stderr.count("\n")) == ("done\n", 1)
    assert "didn't end in order" in later.stderr
    assert agent.run("lease", "shop", "--", "true", check=True).stderr == ""
    assert agent.run("lease", "shop", "--", "no-such-command").returncode == 127


def test_an_ignored_sigchld_keeps_nobody_waiting_for_a_command_that_ended(agent: Agent) -> None:
    agent.create_key()
    ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    ignoring += "os.execv(sys.executable, [sys.executable, '-m', 'dpop_agent', *sys.argv[1:]])"
    for words in (["lease", "shop"], ["exec", "--key", "default"]):
        command = [sys.executable, "-c", ignoring, *words, "--", "sh", "-c", "exit 7"]
        assert subprocess.run(command, env=agent.env, timeout=30, check=False).returncode == 7


def test_a_command_ignores_no_signal_that_it_would_not_ignore_by_itself(agent: Agent) -> None:
    agent.create_key()
    agent.run("socket", "add", "coder", "--key", "default", check=True)
    for words in (["lease", "shop"], ["exec", "--key", "default"], ["exec", "--socket", "coder"]):
        shown = agent.run(*words, "--", "grep", "SigIgn", "/proc/self/status", check=True).stdout
        ignored = int(shown.split()[1], 16)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            assert not ignored >> (number - 1) & 1, (words, number)


def test_a_command_that_outlasts_its_lease_is_ended(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent(preexec=hurried("leases.LEASE_S=6")).start()
    stubborn = "trap '' TERM; while :; do sleep 0.1; done"
    for command in (["sleep", "60"], ["sh", "-c", stubborn]):
        ended = agent.run("lease", "shop", "--", *command)
        assert ended.returncode == 1
        assert "wasn't done when the time of the lease 'shop' was over" in ended.stderr


def test_who_waits_in_vain_for_a_lease_runs_nothing(agent: Agent, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with AgentClient(agent.socket) as client, client.lease("shop"):
        refused = agent.run("lease", "shop", "--wait", "0s", "--", "touch", str(made))
    assert refused.returncode == 1
    assert "lease" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not made.exists()


@pytest.mark.parametrize("words", [[], ["shop"], ["shop", "--"], ["", "--", "true"]])
def test_a_lease_without_a_name_or_a_command_is_refused(agent: Agent, words: list[str]) -> None:
    assert agent.run("lease", *words).returncode in (1, 2)


def test_status_names_who_holds_what_and_how_many_wait(agent: Agent) -> None:
    with agent.client().lease("shop"):
        told = agent.client().status()
        (lease,) = told["leases"]
        assert (lease["name"], lease["waiting"], told["leases_count"]) == ("shop", 0, 1)
        assert 0 < lease["left_s"] <= 60
        shown = agent.run("status").stdout
        assert re.search(r"^  leases   shop \([0-9]+ s left\)$", shown, flags=re.M)
    told = agent.client().status()
    assert (told["leases"], told["leases_count"]) == ([], 0)
