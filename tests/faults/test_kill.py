"""`kill -9` at any step and at any instant loses nothing."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_agent.client import AgentClient
from dpop_agent.errors import DPoPAgentError
from tests.bench.bars import RECOVERED
from tests.faults.invariants import (
    HTU,
    attempt,
    check,
    ledger_of,
    objects_on,
    wait_until_recovered,
)
from tests.processes import STOP_S, Agent, new_token
from tests.timing import Measured

MAX_STEPS = 30
REPEATS = 50
INSTANTS, INSTANTS_LONG = 8, 500


def active_keys(agent: Agent) -> set[str]:
    return {
        key["name"]
        for key in ledger_of(agent)["keys"]
        for g in key["generations"]
        if g["state"] == "active"
    }


class Place:
    """A PKCS#11 token and a state folder, where agents come and go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.token = new_token(folder / "token")
        self.strangers: list[str] = []

    def agent(self, *, dies_at: int | None = None, signers_too: bool = False) -> Agent:
        """An agent; one that dies at a step of the next operation kills its signers or doesn't."""
        preexec: list[str] = []
        if dies_at is not None:
            who = "all" if signers_too else "agent"
            preexec = [sys.executable, "-m", "tests.faults.dying_agent", str(dies_at), who]
        return Agent(self.token.config, self._folder / "state", preexec=preexec)

    def let_another_agent_make(self, count: int) -> None:
        other = Agent(self.token.config, self._folder / "another")
        try:
            other.start()
            for number in range(count):
                other.create_key(f"theirs{number}")
            self.strangers = objects_on(self.token)["private"]
        finally:
            other.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def create(agent: Agent, name: str, place: Place) -> bool:
    return attempt(agent, "key.create", key=f"{name}-new", origins=[])


def rotate(agent: Agent, name: str, place: Place) -> bool:
    return attempt(agent, "key.rotate", key=name)


def destroy(agent: Agent, name: str, place: Place) -> bool:
    return attempt(agent, "key.destroy", key=name, generation=1)


def adopt(agent: Agent, name: str, place: Place) -> bool:
    listed = {g["ref"] for key in ledger_of(agent)["keys"] for g in key["generations"]}
    ref = next(ref for ref in place.strangers if ref not in listed)
    return attempt(agent, "key.adopt", key=name, ref=ref)


OPERATIONS = {"create": create, "rotate": rotate, "destroy": destroy, "adopt": adopt}


def prepare(agent: Agent, name: str) -> None:
    """A key of its own for each kill, with a draining generation 1 and an active one."""
    agent.create_key(name)
    assert attempt(agent, "key.rotate", key=name)


def kill_at_each_step(
    place: Place,
    operate: Callable[[Agent, str, Place], bool],
    signers_too: Callable[[int], bool],
    measured: Measured,
) -> int:
    """Dies one step later each time, until the operation ends; how many steps it has."""
    had_active: set[str] = set()
    done = False
    for step in range(1, MAX_STEPS):
        name = f"k{step}"
        agent = place.agent()
        try:
            with measured(RECOVERED):
                agent.start()
                wait_until_recovered(agent)
            check(agent, place.token, had_active=had_active, strangers=place.strangers)
            if done:
                return step - 2
            prepare(agent, name)
            had_active = active_keys(agent)
        finally:
            agent.close()
        agent = place.agent(dies_at=step, signers_too=signers_too(step))
        try:
            agent.start()
            done = operate(agent, name, place)
            if not done:
                agent.process.wait(STOP_S)
                assert agent.process.returncode == -signal.SIGKILL, agent.log.read_text()
        finally:
            agent.close()
    raise AssertionError(f"more than {MAX_STEPS} steps")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_step_is_recovered_from(
    place: Place, operation: str, measured: Measured
) -> None:
    if operation == "adopt":
        place.let_another_agent_make(MAX_STEPS)
    steps = kill_at_each_step(place, OPERATIONS[operation], lambda step: step % 2 == 0, measured)
    assert steps >= 5


@pytest.mark.long
@pytest.mark.parametrize("signers_too", [False, True], ids=["agent", "agent and signers"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_fifty_kills_at_each_step_are_recovered_from(
    tmp_path: Path, operation: str, signers_too: bool, measured: Measured
) -> None:
    for repeat in range(REPEATS // 2):
        place = Place(tmp_path / str(repeat))
        if operation == "adopt":
            place.let_another_agent_make(MAX_STEPS)
        kill_at_each_step(place, OPERATIONS[operation], lambda _step: signers_too, measured)


def work(agent: Agent, stop: threading.Event, seed: int) -> None:
    """Operations and proofs, until told to stop; a dead agent is no error here."""
    choose = random.Random(seed)
    number = 0
    while not stop.is_set():
        number += 1
        name = choose.choice(["a", "b"])
        what = choose.choice(["create", "rotate", "rotate", "destroy", "activate"])
        if what == "create":
            attempt(agent, "key.create", key=f"k{seed}-{number}", origins=[])
        elif what == "rotate":
            attempt(agent, "key.rotate", key=name)
        else:
            try:
                with AgentClient(agent.socket) as client:
                    draining = [
                        g["generation"]
                        for key in client.keys(name)
                        for g in key["generations"]
                        if g["state"] == "draining"
                    ]
            except (DPoPAgentError, OSError):
                return
            if draining:
                chosen = choose.choice(draining)
                attempt(agent, f"key.{what}", key=name, generation=chosen)


def ask_for_proofs(agent: Agent, stop: threading.Event) -> None:
    with AgentClient(agent.socket) as client:
        while not stop.is_set():
            try:
                client.proof("GET", HTU, key="a")
            except (DPoPAgentError, OSError):
                return


def kill_at_random_instants(place: Place, count: int, seed: int, measured: Measured) -> None:
    """Kills an agent under load again and again."""
    choose = random.Random(seed)
    agent = place.agent()
    agent.start()
    agent.create_key("a")
    agent.create_key("b")
    agent.close()
    for instant in range(count):
        agent = place.agent()
        stop = threading.Event()
        threads = [
            threading.Thread(target=work, args=(agent, stop, seed * 1000 + instant)),
            threading.Thread(target=ask_for_proofs, args=(agent, stop)),
        ]
        try:
            with measured(RECOVERED):
                agent.start()
                wait_until_recovered(agent)
            check(agent, place.token, had_active={"a", "b"}, strangers=[])
            for thread in threads:
                thread.start()
            time.sleep(choose.uniform(0.0, 0.3))
            # Not its signers as well: SoftHSM writes an object attribute by attribute, and what it
            # is killed in the middle of can't be read by anybody. They end by themselves.
            agent.kill()
        finally:
            stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join(30)
            agent.close()


def test_a_kill_at_a_random_instant_under_load_is_recovered_from(
    place: Place, measured: Measured
) -> None:
    kill_at_random_instants(place, INSTANTS, seed=1, measured=measured)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_five_hundred_kills_at_random_instants_under_load_are_recovered_from(
    place: Place, seed: int, measured: Measured
) -> None:
    kill_at_random_instants(place, INSTANTS_LONG // 10, seed=100 + seed, measured=measured)
