"""Leases of an agent that runs, over its restarts and its clients' deaths."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from collections.abc import Callable

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
