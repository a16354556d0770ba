"""A lease has one holder, and the next one hears how it ended."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio

from dpop_agent.agent import leases
from dpop_agent.agent.background import Background
from dpop_agent.agent.leases import MAX_LEASES, MAX_OF_ONE, Earlier
from dpop_agent.agent.records import boottime
from dpop_agent.client import AgentClient, AsyncAgentClient
from dpop_agent.client.answers import SEND_BEFORE_S, Lease
from dpop_agent.errors import (
    AgentUnavailable,
    ConfigurationError,
    LeaseLost,
    LeaseUnavailable,
    ProtocolError,
)
from tests.agent.places import until
from tests.agent.wire import Wire, request
from tests.unit.agent_in_process import AgentInProcess
from tests.unit.fake_agent import HANG_UP, FakeAgent

WAITS = 30_000


@pytest.fixture
def agent() -> Iterator[AgentInProcess]:
    with AgentInProcess() as running:
        yield running


@pytest.fixture
def connect(agent: AgentInProcess) -> Iterator[Callable[[], Wire]]:
    """Makes another connection."""
    wires: list[Wire] = []

    def make() -> Wire:
        wires.append(Wire(agent.socket, timeout=30))
        return wires[-1]

    yield make
    for wire in wires:
        wire.close()


Connect = Callable[[], Wire]


def ask(wire: Wire, name: str = "a", wait_ms: int = WAITS) -> None:
    """Ask for a lease, whose answer comes some time."""
    wire.send(request("lease", {"name": name, "wait_ms": wait_ms}))


def granted(wire: Wire) -> dict[str, Any]:
    answer = wire.next()
    assert "result" in answer, answer
    found: dict[str, Any] = answer["result"]
    return found


# On the wire


def test_a_lease_is_given_to_one_at_a_time_in_the_order_of_coming(connect: Connect) -> None:
    holder = connect()
    lease = holder.result("lease", name="a")
    assert (lease["previous"], lease["waited"], lease["lasts_ms"]) == ("none", False, 60_000)
    fence = lease["fence"]
    others = [connect() for _ in range(8)]
    for other in others:
        ask(other)
        other.result("hello")  # so that it was heard
    for other in others:
        assert all(each.silent for each in others)
        assert holder.result("release", lease=lease["lease"]) == {}
        lease = granted(other)
        assert (lease["previous"], lease["waited"]) == ("released", True)
        assert lease["fence"] > fence
        holder, fence = other, lease["fence"]
        others = others[1:]


def test_names_are_independent_of_each_other(connect: Connect) -> None:
    one = connect()
    for name in ("a", "b", "~!"):
        assert one.result("lease", name=name)["previous"] == "none"


def test_a_lease_ends_with_its_connection_and_the_next_one_hears_of_it(connect: Connect) -> None:
    holder, other = connect(), connect()
    holder.result("lease", name="a")
    ask(other)
    other.result("hello")
    holder.close()
    assert granted(other)["previous"] == "abandoned"


def test_a_lease_ends_after_its_time_and_its_release_says_so(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.2)
    holder, other = connect(), connect()
    lease = holder.result("lease", name="a")
    ask(other)
    assert granted(other)["previous"] == "abandoned"
    assert holder.error("release", lease=lease["lease"])["type"] == "lease_lost"


def test_who_uses_many_names_has_nobody_forget_that_one_was_abandoned(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "MAX_ENDED", 4)
    holder, many = connect(), connect()
    holder.result("lease", name="a")
    holder.close()
    for number in range(8):
        many.result("release", lease=many.result("lease", name=f"n{number}")["lease"])
    assert many.result("lease", name="a")["previous"] == "abandoned"


def test_a_lease_is_released_by_its_own_connection_alone(connect: Connect) -> None:
    holder, other = connect(), connect()
    lease = holder.result("lease", name="a")["lease"]
    assert other.error("release", lease=lease)["type"] == "lease_lost"
    assert other.error("lease", name="a", wait_ms=0)["type"] == "lease_unavailable"
    holder.result("release", lease=lease)
    assert holder.error("release", lease=lease)["type"] == "lease_lost"
    assert other.result("lease", name="a", wait_ms=0)["previous"] == "released"


def test_who_waits_too_long_or_goes_gets_nothing_and_keeps_nobody_waiting(
    agent: AgentInProcess, connect: Connect
) -> None:
    holder, gone, last = connect(), connect(), connect()
    lease = holder.result("lease", name="a")["lease"]
    assert last.error("lease", name="a", wait_ms=50)["type"] == "lease_unavailable"
    ask(gone)
    gone.result("hello")
    ask(last)
    last.result("hello")
    gone.close()
    until(lambda: len(agent.connections) == 2)
    holder.result("release", lease=lease)
    assert granted(last)["previous"] == "released"


def test_a_connection_may_wait_for_itself_and_go(connect: Connect) -> None:
    holder, other = connect(), connect()
    holder.result("lease", name="a")
    ask(holder)
    holder.result("hello")
    ask(other)
    other.result("hello")
    holder.close()
    assert granted(other)["previous"] == "abandoned"


def test_nobody_takes_all_names(connect: Connect) -> None:
    wire = greedy = connect()
    for number in range(MAX_OF_ONE):
        greedy.result("lease", name=f"{number}")
    refused = greedy.error("lease", name="more")
    assert (refused["type"], refused["retry"]) == ("lease_unavailable", "later")
    for number in range(MAX_OF_ONE, MAX_LEASES):
        wire = connect() if number % MAX_OF_ONE == 0 else wire
        wire.ask("lease", name=f"{number}")
    assert connect().error("lease", name="another")["type"] == "lease_unavailable"
    greedy.close()
    until(lambda: "result" in connect().ask("lease", name="another"))


def test_what_has_ended_leaves_nothing_behind(agent: AgentInProcess, connect: Connect) -> None:
    for number in range(3):
        wire = connect()
        wire.result("lease", name=f"{number}")
        ask(connect(), f"{number}")
        wire.close()
    for wire in [connect() for _ in range(3)]:
        lease = wire.result("lease", name="a")["lease"]
        wire.result("release", lease=lease)
    agent.leases.take_no_more()
    found = agent.leases
    until(lambda: len(found._held) == 3 == len(found._names) == sum(found._of.values()))
    for flow in list(found._of):
        agent.run(_drop(found, flow))
    assert [len(found._held), len(found._names), len(found._of), found._waiting] == [0] * 4


async def _drop(found: leases.Leases, flow: Any) -> None:
    found.drop(flow)


def test_who_waits_when_the_agent_ends_is_told_so(agent: AgentInProcess, connect: Connect) -> None:
    holder, other = connect(), connect()
    holder.result("lease", name="a")
    ask(other)
    other.result("hello")

    async def end() -> None:
        agent.leases.take_no_more()

    agent.run(end())
    assert other.next()["error"]["data"]["type"] == "agent_unavailable"


# After a start


def earlier(folder: Path) -> Earlier:
    return Earlier(str(folder), Background())


def test_an_agent_that_never_gave_one_out_keeps_nobody_waiting_after_its_start(
    tmp_path: Path,
) -> None:
    assert earlier(tmp_path).left_s == 0
    assert list(tmp_path.iterdir()) == []


def test_the_next_agent_knows_of_leases_before_they_are_given_out(
    agent: AgentInProcess, connect: Connect
) -> None:
    assert earlier(agent.state).left_s == 0
    connect().result("lease", name="a")
    assert earlier(agent.state).left_s == leases.LEASE_S
    assert stat.S_IMODE(os.stat(agent.state / "leases.json").st_mode) == 0o600


def test_after_a_start_none_is_given_out_until_earlier_ones_are_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.5)
    with AgentInProcess(noted={"boot": leases._boot(), "until_s": boottime() + 100}) as agent:
        with Wire(agent.socket) as other, Wire(agent.socket) as wire:
            refused = other.error("lease", name="a", wait_ms=0)
            ask(wire)
            lease = granted(wire)
        assert refused["type"] == "lease_unavailable"
        assert 0 < refused["retry_after_ms"] <= 501
        assert (lease["previous"], lease["waited"]) == ("abandoned", True)


@pytest.mark.parametrize(
    ("text", "waits"),
    [
        ('{"boot": "BOOT", "until_s": 1e12}', True),
        ('{"boot": "BOOT", "until_s": 0}', False),
        ('{"boot": "another", "until_s": 1e12}', False),
        ('{"boot": "BOOT"}', True),
        ("", True),
        ("[]", True),
        ('{"boot": "BOOT", "until_s": "x"}', True),
    ],
)
def test_what_an_earlier_agent_wrote_is_taken_at_its_worst(
    text: str, waits: bool, tmp_path: Path
) -> None:
    (tmp_path / "leases.json").write_text(text.replace("BOOT", str(leases._boot())))
    assert (earlier(tmp_path).left_s > 0) is waits


def test_where_it_cant_be_written_down_no_lease_is_given_out(
    agent: AgentInProcess, connect: Connect
) -> None:
    (agent.state / "leases.json").mkdir()
    for _ in range(2):
        assert "can't be written" in connect().error("lease", name="a")["message"]
    (agent.state / "leases.json").rmdir()
    assert connect().result("lease", name="a")


def test_it_is_written_down_anew_only_now_and_then(agent: AgentInProcess, connect: Connect) -> None:
    connect().result("lease", name="a")
    (agent.state / "leases.json").unlink()
    connect().result("lease", name="b")
    assert not (agent.state / "leases.json").exists()


# Clients


def test_one_of_many_threads_is_in_the_block_at_a_time(agent: AgentInProcess) -> None:
    inside = most = 0
    seen: list[int] = []

    def work() -> None:
        nonlocal inside, most
        with AgentClient(agent.socket) as client:
            for _ in range(5):
                with client.lease("a", wait=30) as lease:
                    lease.check()
                    inside += 1
                    most = max(most, inside)
                    seen.append(lease.fence)
                    time.sleep(0.001)
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == (1, 0)
    assert seen == sorted(set(seen))
    assert len(seen) == 40


def test_a_block_that_raises_leaves_it_abandoned(agent: AgentInProcess) -> None:
    with AgentClient(agent.socket) as client:
        with pytest.raises(ZeroDivisionError), client.lease("a"):
            raise ZeroDivisionError
        with client.lease("a") as lease:
            assert lease.previous == "abandoned"
        with client.lease("a") as lease:
            assert lease.previous == "released"
        with pytest.raises(LeaseUnavailable), client.lease("a"), client.lease("a", wait=0):
            pass


def test_the_same_over_asyncio_and_a_cancelled_wait_takes_nothing(agent: AgentInProcess) -> None:
    async def work() -> None:
        async with AsyncAgentClient(agent.socket) as client:

            async def hold() -> str:
                async with client.lease("a", wait=30) as lease:
                    lease.check()
                    return lease.previous

            async with client.lease("a") as lease:
                assert lease.previous == "none"
                waiting = [asyncio.create_task(hold()) for _ in range(4)]
                await asyncio.sleep(0.05)
                assert not any(task.done() for task in waiting)
                waiting[0].cancel()
                while len(agent.connections) > 4:
                    await asyncio.sleep(0.005)
            found = await asyncio.gather(*waiting, return_exceptions=True)
            assert isinstance(found[0], asyncio.CancelledError)
            assert found[1:] == ["released"] * 3
            with pytest.raises(ZeroDivisionError):
                async with client.lease("a"):
                    raise ZeroDivisionError
            assert await hold() == "abandoned"
            async with client.lease("a"):
                with pytest.raises(LeaseUnavailable):
                    async with client.lease("a", wait=0):
                        pass

    asyncio.run(work())


def test_on_trio_a_lease_is_a_typed_error_that_says_what_works(agent: AgentInProcess) -> None:
    async def work() -> None:
        async with AsyncAgentClient(agent.socket) as client:
            with pytest.raises(ConfigurationError) as caught:
                async with client.lease("a"):
                    pass
        assert "in a thread" in caught.value.hint

    trio.run(work)


def test_a_holder_sends_nothing_once_its_time_is_nearly_over() -> None:
    answer = {"lease": "l", "fence": 1, "previous": "none", "waited": False, "lasts_ms": 60_000}
    now = time.monotonic()
    Lease("a", answer, now - 60 + SEND_BEFORE_S + 1).check()
    late = Lease("a", answer, now - 60 + SEND_BEFORE_S)
    assert late.left_s == 0
    with pytest.raises(LeaseLost):
        late.check()


def test_what_an_agent_leaves_out_is_taken_at_its_worst() -> None:
    lease = Lease("a", {"lease": "l", "fence": 1, "lasts_ms": 1}, 0.0)
    assert (lease.previous, lease.waited) == ("abandoned", True)
    with pytest.raises(ProtocolError):
        Lease("a", {"lease": "l"}, 0.0)


@pytest.mark.parametrize("lasts_ms", [0, -1, 60_001, 10**15, 10**400])
def test_a_lease_that_lasts_as_none_does_is_none(lasts_ms: int) -> None:
    with pytest.raises(ProtocolError):
        Lease("a", {"lease": "l", "fence": 1, "lasts_ms": lasts_ms}, 0.0)


def test_an_agent_that_goes_is_told_of(agent: AgentInProcess, tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "run") as fake:
        fake.script = [HANG_UP]
        with pytest.raises(AgentUnavailable), AgentClient(fake.path).lease("a"):
            pass
    with AgentClient(agent.socket) as client, client.lease("a"):

        async def hang_up() -> None:
            for connection in agent.connections:
                connection.abort()

        agent.run(hang_up())


def test_a_lease_takes_a_connection_of_its_own_and_leaves_none_behind(
    agent: AgentInProcess,
) -> None:
    with AgentClient(agent.socket) as client:
        client.hello()
        with ThreadPoolExecutor(1) as pool, client.lease("a"):
            assert pool.submit(client.hello).result()
            assert len(agent.connections) == 2
        until(lambda: len(agent.connections) == 1)


def test_the_file_is_json_that_a_person_can_read(agent: AgentInProcess, connect: Connect) -> None:
    connect().result("lease", name="secret-name")
    noted = json.loads((agent.state / "leases.json").read_text())
    assert noted.keys() == {"boot", "until_s"}
