"""A store with many keys is opened and looked at while clients wait for signatures."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable

import pytest

from tests.agent.places import hurried, store, until
from tests.agent.wire import Wire
from tests.processes import Agent

TARGET = {"htm": "GET", "htu": "https://api.example.com/"}
KEYS = 600


@pytest.fixture
def agent(make_agent: Callable[..., Agent]) -> Agent:
    agent = make_agent(preexec=hurried("opening.MIN_BACK_OFF_S=0.01")).start()
    with Wire(agent.admin_socket, timeout=60) as admin:
        for n in range(KEYS):
            admin.result("key.create", key=f"key-{n}", origins=[])
    return agent


def median_wait(agent: Agent, ended: Callable[[], bool]) -> float:
    """What a proof usually takes, for as long as that."""
    found = []
    with Wire(agent.socket) as wire:
        while not ended():
            for _ in range(20):
                began = time.perf_counter()
                wire.result("proof", **TARGET, key="key-1")
                found.append(time.perf_counter() - began)
    return statistics.median(found)


@pytest.mark.long
def test_proofs_wait_at_most_twice_as_long_while_a_store_of_600_keys_is_looked_at(
    agent: Agent,
) -> None:
    def reload() -> None:
        with Wire(agent.admin_socket, timeout=60) as admin:
            admin.result("reload")

    ratios = []
    for _ in range(5):
        rounds = iter(range(30))
        alone = median_wait(agent, lambda left=rounds: next(left, None) is None)  # type: ignore[misc]
        looking = threading.Thread(target=reload)
        looking.start()
        ratios.append(median_wait(agent, lambda t=looking: not t.is_alive()) / alone)  # type: ignore[misc]
        looking.join()
    assert statistics.median(ratios) <= 2, ratios


@pytest.mark.long
def test_a_signer_that_comes_back_with_600_keys_signs_before_they_are_looked_at(
    agent: Agent,
) -> None:
    signer = store(agent)["signer_pid"]
    os.kill(signer, signal.SIGKILL)
    with Wire(agent.socket) as wire:
        until(lambda: "result" in wire.ask("proof", **TARGET, key="key-1"))
        assert store(agent)["signer_pid"] != signer
