"""Rotations at once, on a full disk and on a read-only one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpop_agent.client import AgentClient
from dpop_agent.errors import KeyCompromised, NotDurable
from tests.faults.invariants import HTU
from tests.processes import Agent, Token

BLOCKED = '"state": "compromised"'

ROTATIONS = """
import sys
from dpop_agent.client import AgentClient
with AgentClient(sys.argv[1], timeout=300) as admin:
    for _ in range(int(sys.argv[2])):
        admin.call("key.rotate", {"key": "default"})
"""


def rotate_at_once(agent: Agent, processes: int, each: int) -> None:
    agent.create_key("default")
    watching = threading.Event()
    worst: list[int] = []

    def watch() -> None:
        with AgentClient(agent.socket) as client:
            while not watching.is_set():
                (key,) = client.keys("default")
                worst.append(sum(g["state"] == "active" for g in key["generations"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    running = [
        subprocess.Popen([sys.executable, "-c", ROTATIONS, agent.admin_socket, str(each)])
        for _ in range(processes)
    ]
    assert [process.wait(600) for process in running] == [0] * processes
    watching.set()
    watcher.join()
    (key,) = agent.client().keys("default")
    numbers = [g["generation"] for g in key["generations"]]
    assert numbers == list(range(1, processes * each + 2))
    assert [g["state"] for g in key["generations"]] == ["draining"] * (processes * each) + [
        "active"
    ]
    assert len(worst) > 3
    assert set(worst) == {1}


def test_rotations_at_once_leave_one_active_generation_at_any_time(agent: Agent) -> None:
    rotate_at_once(agent, processes=8, each=5)


@pytest.mark.long
def test_fifty_processes_rotate_twenty_times_each_at_once(agent: Agent) -> None:
    rotate_at_once(agent, processes=50, each=20)


MOUNT = 'mount -t tmpfs -o size=256k,mode=0700 tmpfs "$0" && echo mounted && exec sleep infinity'


class SmallDisk:
    """An agent whose state folder is a file system of its own, which nobody else sees.

    Args:
        agent: the agent.
        holder: a process that holds that file system while agents come and go.
    """

    def __init__(self, agent: Agent, holder: int) -> None:
        self.agent = agent
        self._holder = holder

    @property
    def _seen(self) -> Path:
        return Path(f"/proc/{self._holder}/root{self.agent.state}")

    @property
    def ledger(self) -> str:
        return (self._seen / "ledger.json").read_text()

    def fill(self) -> None:
        with (self._seen / "filler").open("ab", buffering=0) as filler:
            try:
                while filler.write(b"x" * 4096):
                    pass
            except OSError:
                pass

    def free(self) -> None:
        (self._seen / "filler").unlink()

    def lose_the_reserve(self) -> None:
        (self._seen / "blocks").unlink()
        self.fill()

    def remount(self, how: str) -> None:
        enter = ["nsenter", "--target", str(self._holder), "--mount", "--"]
        mount = ["mount", "-o", f"remount,{how}", str(self.agent.state)]
        subprocess.run([*enter, *mount], check=True)


@contextmanager
def on_small_disk(token: Token, state: Path) -> Iterator[SmallDisk]:
    state.mkdir()
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNT, str(state)],
        stdout=subprocess.PIPE,
    )
    enter = ["nsenter", "--target", str(holder.pid), "--mount", "--"]
    agent = Agent(token.config, state, preexec=enter)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        agent.start().create_key("default")
        yield SmallDisk(agent, holder.pid)
    finally:
        agent.close()
        holder.kill()
        holder.communicate()


@pytest.fixture
def disk(own_mounts: None, token: Token, tmp_path: Path) -> Iterator[SmallDisk]:
    with on_small_disk(token, tmp_path / "disk") as disk:
        yield disk


def states(agent: Agent) -> list[str]:
    (key,) = agent.client().keys("default")
    return [g["state"] for g in key["generations"]]


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_signing_goes_on_and_a_rotation_fails_cleanly_where_the_ledger_cant_be_written(
    disk: SmallDisk, trouble: str
) -> None:
    before = states(disk.agent)
    if trouble == "full":
        disk.fill()
    else:
        disk.remount("ro")
    with pytest.raises(NotDurable, match="can't be written"):
        disk.agent.admin().call("key.rotate", {"key": "default"})
    assert states(disk.agent) == before == ["active"]
    assert disk.agent.client().proof("GET", HTU).state == "active"
    if trouble == "full":
        disk.free()
    else:
        disk.remount("rw")
    disk.agent.admin().call("key.rotate", {"key": "default"})
    assert states(disk.agent) == ["draining", "active"]
    assert disk.agent.client().status()["stores"][0]["unknown"] == []


def compromise(disk: SmallDisk) -> tuple[str, NotDurable]:
    """The jkt that is blocked, and what was said of the ledger."""
    jkt = disk.agent.client().generation("default").jkt
    with pytest.raises(NotDurable, match="default is blocked") as said:
        disk.agent.admin().call("key.compromise", {"key": "default"})
    require_blocked(disk, jkt)
    return jkt, said.value


def require_blocked(disk: SmallDisk, jkt: str) -> None:
    assert states(disk.agent) == ["compromised"]
    with pytest.raises(KeyCompromised):
        disk.agent.client().proof("GET", HTU, jkt=jkt)


def wait_until_written(disk: SmallDisk) -> None:
    for _ in range(100):
        if BLOCKED in disk.ledger:
            return
        threading.Event().wait(0.1)
    raise AssertionError(disk.agent.log.read_text())


def test_compromise_blocks_at_once_though_the_ledger_cant_be_written(disk: SmallDisk) -> None:
    disk.fill()
    compromise(disk)
    assert BLOCKED not in disk.ledger
    disk.free()
    wait_until_written(disk)


def test_what_was_compromised_on_a_full_disk_stays_so_through_restarts_while_it_is_full(
    disk: SmallDisk,
) -> None:
    disk.fill()
    jkt, said = compromise(disk)
    assert said.details["survives_restart"] is True
    for end in (disk.agent.stop, disk.agent.kill, disk.agent.stop, disk.agent.kill):
        end()
        disk.agent.start()
        require_blocked(disk, jkt)
        assert BLOCKED not in disk.ledger
    disk.free()
    wait_until_written(disk)
    disk.agent.stop()
    disk.agent.start()
    require_blocked(disk, jkt)


def test_each_of_many_generations_that_are_compromised_on_a_full_disk_stays_so(
    disk: SmallDisk,
) -> None:
    for _ in range(8):
        disk.agent.admin().call("key.rotate", {"key": "default"})
    before = states(disk.agent)
    disk.fill()
    for number in (2, 5, 9):
        with pytest.raises(NotDurable):
            disk.agent.admin().call("key.compromise", {"key": "default", "generation": number})
    disk.agent.kill()
    disk.agent.start()
    expected = [
        "compromised" if number in (2, 5, 9) else state for number, state in enumerate(before, 1)
    ]
    assert states(disk.agent) == expected


@pytest.mark.parametrize("trouble", ["no reserve", "read-only"])
def test_a_block_that_a_restart_forgets_is_told_as_one(disk: SmallDisk, trouble: str) -> None:
    if trouble == "no reserve":
        disk.lose_the_reserve()
    else:
        disk.remount("ro")
    _, said = compromise(disk)
    assert said.details["survives_restart"] is False
    assert "a restart of the agent forgets it" in said.hint
    if trouble == "no reserve":
        disk.free()
    else:
        disk.remount("rw")
    wait_until_written(disk)
