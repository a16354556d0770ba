"""However much some clients send, the others, the owner and the signer are heard."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dpop_agent.protocol import MAX_REQUESTS
from tests.agent.flood import TARGET, flooding
from tests.agent.places import store, until, until_open
from tests.agent.wire import Wire
from tests.bench.bars import HONEST
from tests.processes import Agent, new_token
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


def test_an_honest_clients_proof_beside_80_greedy_ones_is_answered(
    agent: Agent, measured: Measured
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
        with flooding(agent.socket, connections=80, depth=MAX_REQUESTS):
            measured.ratio(HONEST, median_s(300) / alone)


def test_400_greedy_clients_get_about_as_much_as_16(agent: Agent) -> None:
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
