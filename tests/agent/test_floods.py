"""However much some clients send, the others, the owner and the signer are heard."""

from __future__ import annotations

import itertools
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import pytest

from dpop_agent.protocol import MAX_REQUESTS
from tests.agent.flood import TARGET, flooding
from tests.agent.places import store, until, until_open
from tests.agent.wire import Wire, refusal, request
from tests.bench.bars import HONEST, HONEST_400, OWNER
from tests.processes import Agent, Token, new_token
from tests.rows import Reached
from tests.timing import Measured


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("floods")
    agent = Agent(new_token(folder / "token").config, folder / "state")
    with agent.serving("default"):
        yield agent


@pytest.fixture
def agent(served: Agent) -> Agent:
    """The agent, once the clients of the test before have gone."""
    with Wire(served.socket) as wire:
        until(lambda: wire.result("status")["connections"] == 1)
    return served


@pytest.mark.parametrize("connections", [80, 400])
def test_greedy_clients_are_all_answered_and_refuse_nobody_anything(
    agent: Agent, connections: int
) -> None:
    """4 096 requests under way were once the end of proofs for everybody."""
    with (
        flooding(agent.socket, connections=connections, depth=MAX_REQUESTS) as flood,
        Wire(agent.socket) as honest,
    ):
        for _ in range(50):
            assert "proof" in honest.result("proof", **TARGET)
        answers = flood.answers()
        assert answers["errors"] == 0
        assert answers["results"] > 50


def test_an_honest_clients_proof_waits_for_a_few_others_not_for_everybodys(agent: Agent) -> None:
    connections = 80
    with (
        flooding(agent.socket, connections=connections, depth=MAX_REQUESTS) as flood,
        Wire(agent.socket) as honest,
    ):
        honest.result("proof", **TARGET)
        flood.answers()
        waits = 100
        for _ in range(waits):
            honest.result("proof", **TARGET)
        others = flood.answers()["results"] / waits
        assert others < connections / 2  # by plain turns it would be all of them


@pytest.mark.row(25)
@pytest.mark.parametrize(
    ("connections", "bar"), [(80, HONEST), (400, HONEST_400)], ids=["80", "400"]
)
def test_an_honest_clients_proof_beside_greedy_ones_is_answered(
    agent: Agent, measured: Measured, connections: int, bar: str
) -> None:
    def median_s(waits: int) -> float:
        took = []
        with Wire(agent.socket) as honest:
            for _ in range(waits):
                began = time.perf_counter()
                assert "proof" in honest.result("proof", **TARGET)
                took.append(time.perf_counter() - began)
        return statistics.median(took)

    for _ in range(5):
        alone = median_s(300)
        with flooding(agent.socket, connections=connections, depth=MAX_REQUESTS):
            measured.ratio(bar, median_s(300) / alone)


@pytest.mark.row(25)
@pytest.mark.parametrize("connections", [80, 400])
def test_the_owner_is_answered_beside_greedy_clients(
    agent: Agent, measured: Measured, connections: int
) -> None:
    until_open(agent)
    with (
        flooding(agent.socket, connections=connections, depth=MAX_REQUESTS) as flood,
        Wire(agent.admin_socket) as owner,
    ):
        for _ in range(50):
            with measured(OWNER):
                assert "stores" in owner.result("status")
        assert flood.answers()["errors"] == 0


@pytest.mark.row(25)
def test_400_greedy_clients_get_about_as_much_as_16(agent: Agent, reached: Reached) -> None:
    def rate(connections: int) -> float:
        with Wire(agent.socket) as wire:
            until(lambda: wire.result("status")["connections"] == 1)
        with flooding(agent.socket, connections=connections, depth=MAX_REQUESTS) as flood:
            flood.answers()
            began = time.monotonic()
            time.sleep(1.0)
            return flood.answers()["results"] / (time.monotonic() - began)

    few, many = [], []
    for _ in range(3):
        few.append(rate(16))
        many.append(rate(400))
    assert max(many) > 0.7 * statistics.median(few)  # 0 before clients had to wait
    share = statistics.median(many) / statistics.median(few)
    reached("proofs of 400 greedy connections ÷ of 16", share)


def test_the_owner_is_answered_ahead_of_400_clients_with_bursts_of_cheap_lines(
    agent: Agent,
) -> None:
    until_open(agent)
    with (
        flooding(agent.socket, connections=400, depth=1000, method="status") as flood,
        Wire(agent.admin_socket) as owner,
    ):
        asks: list[Callable[[], Any]] = [
            lambda: owner.result("status"),
            lambda: owner.error("key.compromise", key="unknown"),
            lambda: owner.result("key.list"),
        ]
        before = []
        for ask in asks * 5:
            flood.answers()
            ask()
            before.append(flood.answers()["results"])
        assert statistics.median(before) < 400  # by plain turns a line of each would be
        assert owner.result("lock")["stores"][0]["state"] == "locked"
        owner.result("unlock", store="softhsm")
        assert flood.answers()["errors"] == 0


def test_no_signer_is_lost_to_bursts_of_cheap_lines(agent: Agent) -> None:
    pid = until_open(agent)["signer_pid"]
    with (
        flooding(agent.socket, connections=400, depth=1000, method="status"),
        Wire(agent.socket) as wire,
    ):
        for _ in range(20):
            assert "proof" in wire.result("proof", **TARGET)
    assert store(agent)["signer_pid"] == pid


def p99_s(agent: Agent) -> float:
    """Seconds that 99 of 100 proofs of a client take at the most."""
    took = []
    with Wire(agent.socket) as honest:
        for _ in range(500):
            began = time.perf_counter()
            assert "proof" in honest.result("proof", **TARGET)
            took.append(time.perf_counter() - began)
    return statistics.quantiles(took, n=100)[-1]


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.skip(f"this process may open {hard} files, and 8192 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def beside_and_alone_s(
    agent: Agent, crowd: Callable[[], AbstractContextManager[None]]
) -> tuple[float, float]:
    """An honest client's p99 beside a crowd, and without it, by turns; the best of each."""
    beside, alone = [], []
    for _ in range(3):
        alone += [p99_s(agent) for _ in range(3)]
        with crowd():
            beside += [p99_s(agent) for _ in range(3)]
        with Wire(agent.socket) as wire:
            until(lambda: wire.result("status")["connections"] == 1)
    return min(beside), min(alone)


@pytest.mark.long
@pytest.mark.row(4)
def test_an_honest_client_beside_5000_idle_connections_waits_at_most_twice_as_long(
    make_agent: Callable[..., Agent], token: Token, many_files: None, reached: Reached
) -> None:
    text = token.config.read_text()
    token.config.write_text(text.replace("[agent]\n", "[agent]\nmax_connections = 6000\n"))
    agent = make_agent(token.config, preexec=["prlimit", "--nofile=8192:8192"]).start()
    agent.create_key("default")

    @contextmanager
    def idle() -> Iterator[None]:
        with ExitStack() as stack:
            for _ in range(5000):
                stack.enter_context(Wire(agent.socket))
            with Wire(agent.socket) as wire:
                until(lambda: wire.result("status")["connections"] > 5000)
            yield

    beside, alone = beside_and_alone_s(agent, idle)
    reached("idle connections, where 6000 may be", 5000)
    reached("an honest client's p99 beside idle ones ÷ alone", beside / alone)
    assert beside < 2 * alone


@pytest.mark.long
@pytest.mark.row(3)
def test_an_honest_client_beside_500_at_a_byte_a_second_waits_at_most_twice_as_long(
    make_agent: Callable[..., Agent], token: Token, many_files: None, reached: Reached
) -> None:
    agent = make_agent(token.config).start()
    agent.create_key("default")
    line = request("proof", TARGET)

    def drip(wires: list[Wire], all_began: threading.Event, ended: threading.Event) -> None:
        for byte in itertools.cycle(line[:-1]):
            for wire in wires:
                with suppress(OSError):  # its 5 seconds are over
                    wire.send(bytes([byte]))
                if ended.wait(1 / len(wires)):
                    return
            all_began.set()

    @contextmanager
    def slow() -> Iterator[None]:
        all_began, ended = threading.Event(), threading.Event()
        with ExitStack() as stack:
            wires = [stack.enter_context(Wire(agent.socket)) for _ in range(500)]
            dripping = threading.Thread(target=drip, args=[wires, all_began, ended])
            dripping.start()
            try:
                assert all_began.wait(30)
                yield
                assert {refusal(wire.next())["type"] for wire in wires} == {"timeout"}
            finally:
                ended.set()
                dripping.join()

    beside, alone = beside_and_alone_s(agent, slow)
    reached("connections at a byte a second, each refused after 5 s", 500)
    reached("an honest client's p99 beside slow ones ÷ alone", beside / alone)
    assert beside < 2 * alone
