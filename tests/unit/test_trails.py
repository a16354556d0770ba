"""A socket's trail: whole lines, within bounds, whatever becomes of the disk."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpop_agent import paths
from dpop_agent.agent import audit, trails
from dpop_agent.agent.keys import Keys
from dpop_agent.agent.programs import program_of
from dpop_agent.agent.records import Records
from dpop_agent.agent.trails import Trace, Trail, Trails
from dpop_agent.client import AgentClient
from dpop_agent.errors import (
    DPoPAgentError,
    KeyCompromised,
    KeyUnknown,
    Locked,
    NotRecorded,
    PolicyRefused,
)
from dpop_agent.peer import Peer
from tests.rows import Reached
from tests.unit.agent_in_process import AgentInProcess

WHO = audit.who("agent")
SIGNED = '"method":"proof","outcome":"done"'


class Disk:
    """A state folder's audit, and what is told of it."""

    def __init__(self, state: Path, mode: str, max_bytes: int) -> None:
        self.folder = state / "audit"
        records = Mock(path=str(state / "ledger.json"), keys=Keys())
        self.trails = Trails(cast("Records", records), mode=mode, max_bytes=max_bytes)
        self.trail = self.trails.of("agent")
        self.told: list[DPoPAgentError | None] = []

    def proof(self, number: int = 0, trail: Trail | None = None) -> None:
        (trail or self.trail).proof(
            WHO, SIGNED, htm="GET", jti=f'"{number}"', took_s=0.001, written=self.told.append
        )

    def numbers(self, *files: str) -> list[int]:
        """The proofs whose lines are there, in the order of the files."""
        return [int(entry["jti"]) for entry in self.entries(*files) if entry["jti"] is not None]

    def entries(self, *files: str) -> list[dict[str, Any]]:
        found = []
        for file in files or ("agent.jsonl.1", "agent.jsonl"):
            if (self.folder / file).exists():
                text = (self.folder / file).read_text()
                assert text.endswith("\n")
                found += [json.loads(line) for line in text.splitlines()]
        return found

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(2000):
            if holds():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it never came")


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`story(tell, mode="on", max_bytes=…)`: run what `tell(disk)` does."""
    monkeypatch.setattr(trails, "FLUSH_S", 0.05)

    def run(
        tell: Callable[[Disk], Awaitable[None]], mode: str = "on", max_bytes: int = 2**20
    ) -> None:
        async def told() -> None:
            await tell(Disk(tmp_path, mode, max_bytes))

        asyncio.run(told())

    return run


Story = Callable[..., None]


@contextmanager
def no_room() -> Any:
    """No file can grow: the kernel's own refusal."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_line_is_written_without_another_one_coming(story: Story) -> None:
    async def tell(disk: Disk) -> None:
        disk.proof(7)
        assert not disk.folder.exists(), "the proof waited for the disk"
        await disk.until(lambda: disk.numbers() == [7])

    story(tell)


def test_many_lines_share_a_write_and_stay_in_order(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    append = trails._append

    def counted(path: str, data: bytes, max_bytes: int) -> None:
        writes.append(data.count(b"\n"))
        append(path, data, max_bytes)

    monkeypatch.setattr(trails, "_append", counted)

    async def tell(disk: Disk) -> None:
        for number in range(3000):
            disk.proof(number)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await disk.trail.close()
        assert disk.numbers() == list(range(3000))
        assert len(writes) < 10

    story(tell)


def test_files_are_the_users_alone(story: Story) -> None:
    async def tell(disk: Disk) -> None:
        disk.proof()
        await disk.trail.close()
        assert disk.folder.stat().st_mode & 0o777 == 0o700
        assert (disk.folder / "agent.jsonl").stat().st_mode & 0o777 == 0o600

    story(tell)


@pytest.mark.parametrize("what", ["link", "folder", "fifo", "others can write"])
def test_what_is_in_its_place_is_left_alone_and_told(story: Story, what: str) -> None:
    async def tell(disk: Disk) -> None:
        disk.folder.mkdir(mode=0o700)
        place, other = disk.folder / "agent.jsonl", disk.folder / "other"
        other.write_text("other\n")
        if what == "link":
            place.symlink_to(other)
        elif what == "folder":
            place.mkdir()
        elif what == "fifo":
            os.mkfifo(place)
        else:
            place.write_text("")
            place.chmod(0o666)
        disk.proof()
        await disk.until(lambda: disk.trails.failing is not None)
        assert other.read_text() == "other\n"

    story(tell)


def test_a_full_file_becomes_the_older_one_and_no_line_is_cut(story: Story) -> None:
    async def tell(disk: Disk) -> None:
        for number in range(60):
            disk.proof(number)
            await disk.trail.close()
        older, newer = disk.numbers("agent.jsonl.1"), disk.numbers("agent.jsonl")
        assert older + newer == list(range(60 - len(older + newer), 60))
        assert older
        assert all((disk.folder / f).stat().st_size <= 2000 for f in os.listdir(disk.folder))

    story(tell, max_bytes=2000)


def test_a_flood_on_one_socket_pushes_nothing_out_of_anothers_files(story: Story) -> None:
    async def tell(disk: Disk) -> None:
        other = disk.trails.of("admin")
        disk.proof(1, other)
        await other.close()
        for number in range(100):
            disk.proof(number)
            await disk.trail.close()
        assert disk.numbers("admin.jsonl") == [1]
        assert len(disk.numbers()) < 100

    story(tell, max_bytes=2000)


@pytest.mark.parametrize("torn", [b'{"time":"2026', b"\0\0\0", b"{}\n{"])
def test_what_a_killed_agent_left_half_written_is_ended_before_the_next_line(
    story: Story, torn: bytes
) -> None:
    async def tell(disk: Disk) -> None:
        disk.folder.mkdir(mode=0o700)
        (disk.folder / "agent.jsonl").write_bytes(torn)
        disk.proof(3)
        await disk.trail.close()
        before, _, line = (disk.folder / "agent.jsonl").read_bytes()[:-1].rpartition(b"\n")
        assert before == torn
        assert json.loads(line)["jti"] == "3"

    story(tell)


def test_a_kill_between_the_two_steps_of_a_full_file_loses_no_line(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tell(disk: Disk) -> None:
        for number in range(5):
            disk.proof(number)
        await disk.trail.close()
        (disk.folder / "agent.jsonl").rename(disk.folder / "agent.jsonl.1")
        disk.proof(5)
        await disk.trail.close()
        assert disk.numbers() == [0, 1, 2, 3, 4, 5]

    story(tell, max_bytes=2000)


def test_a_line_that_comes_after_a_pause_is_written_at_once(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tell(disk: Disk) -> None:
        monkeypatch.setattr(trails, "FLUSH_S", 3600)
        disk.proof(0)
        await disk.until(lambda: disk.numbers() == [0])
        disk.proof(1)
        await asyncio.sleep(0.05)
        assert disk.numbers() == [0]
        await disk.trail.close()
        assert disk.numbers() == [0, 1]

    story(tell)


def test_on_a_full_disk_lines_wait_whole_and_are_written_once_there_is_room(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    async def tell(disk: Disk) -> None:
        disk.proof(0)
        await disk.trail.close()
        with no_room():
            disk.proof(1)
            await disk.until(lambda: disk.trails.failing is not None)
            disk.proof(2)
            await asyncio.sleep(2 * trails.FLUSH_S)
            assert disk.trails.describe()["failing"] == "File too large"
            assert disk.numbers() == [0]
        await disk.until(lambda: disk.trails.failing is None)
        assert disk.numbers() == [0, 1, 2]
        assert disk.trails.lost == 0
        assert caplog.text.count("can't be written") == 1

    story(tell)


def test_a_trail_that_cant_be_written_is_told_once_though_others_can(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    async def tell(disk: Disk) -> None:
        disk.folder.mkdir(mode=0o700)
        (disk.folder / "agent.jsonl").mkdir()
        other = disk.trails.of("admin")
        for number in range(5):
            disk.proof(number)
            disk.proof(number, other)
            await asyncio.sleep(2 * trails.FLUSH_S)
        await other.close()
        assert disk.numbers("admin.jsonl") == [0, 1, 2, 3, 4]
        assert disk.trails.failing == disk.trail.failing == "Is a directory"
        assert caplog.text.count("the audit of agent can't be written") == 1

    story(tell)


def test_half_of_a_batch_that_was_written_is_taken_back(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = os.write, [20]

    def full_soon(descriptor: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0], count = 0, left[0]
        return write(descriptor, data[:count])

    async def tell(disk: Disk) -> None:
        disk.proof(0)
        await disk.trail.close()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full_soon)
            disk.proof(1)
            await disk.until(lambda: disk.trails.failing is not None)
            assert disk.numbers() == [0]
        await disk.trail.close()
        assert disk.numbers() == [0, 1]

    story(tell)


def test_memory_is_bounded_and_what_is_lost_is_counted_in_a_line(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trails, "MAX_WAITING", 20)

    async def tell(disk: Disk) -> None:
        with no_room():
            for number in range(50):
                disk.proof(number)
            await disk.until(lambda: disk.trails.failing is not None)
            for number in range(50, 100):
                disk.proof(number)
            await asyncio.sleep(2 * trails.FLUSH_S)
            assert len(disk.trail._lines) <= 20
        await disk.until(lambda: disk.trails.failing is None)
        await disk.trail.close()
        assert disk.numbers() == list(range(20))
        [lost] = [e["count"] for e in disk.entries() if e["outcome"] == "lost"]
        assert lost == disk.trails.lost == 80

    story(tell)


def test_a_disk_that_doesnt_answer_holds_up_no_proof(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    append = trails._append

    def stuck(path: str, data: bytes, max_bytes: int) -> None:
        answers.wait(30)
        append(path, data, max_bytes)

    monkeypatch.setattr(trails, "_append", stuck)

    async def tell(disk: Disk) -> None:
        for number in range(2 * trails.BATCH):
            disk.proof(number)
            await asyncio.sleep(0)
        assert not disk.folder.exists()
        answers.set()
        await disk.trail.close()
        assert len(disk.numbers()) == 2 * trails.BATCH

    story(tell)


# audit = "required"


def test_a_held_proof_is_let_go_once_its_line_is_in_the_file(story: Story) -> None:
    async def tell(disk: Disk) -> None:
        there: list[list[int]] = []
        for number in range(3):
            disk.trail.proof(
                WHO,
                SIGNED,
                htm="GET",
                jti=f'"{number}"',
                took_s=0.0,
                written=lambda error: there.append(disk.numbers()),
            )
        assert there == []
        await disk.until(lambda: len(there) == 3)
        assert there == [[0, 1, 2]] * 3

    story(tell, mode="required")


def test_a_held_proof_whose_line_cant_be_written_is_refused_and_leaves_no_line(
    story: Story,
) -> None:
    async def tell(disk: Disk) -> None:
        with no_room():
            disk.proof(1)
            await disk.until(lambda: len(disk.told) == 1)
        [error] = disk.told
        assert isinstance(error, NotRecorded)
        assert (error.retry, error.retry_after_ms) == ("later", 1000)
        assert "File too large" in error.message
        disk.proof(2)
        await disk.until(lambda: len(disk.told) == 2)
        assert disk.told[1] is None
        assert disk.numbers() == [2]

    story(tell, mode="required")


def test_a_held_proof_doesnt_wait_for_ever(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    append = trails._append

    def stuck(path: str, data: bytes, max_bytes: int) -> None:
        answers.wait(30)
        append(path, data, max_bytes)

    monkeypatch.setattr(trails, "_append", stuck)
    monkeypatch.setattr(trails, "WRITE_S", 0.05)

    async def tell(disk: Disk) -> None:
        disk.proof(1)
        await asyncio.sleep(0)
        disk.proof(2)
        await disk.until(lambda: len(disk.told) == 2)
        disk.proof(3)  # at once from now on
        assert [type(error) for error in disk.told] == [NotRecorded] * 3
        answers.set()
        await disk.until(lambda: disk.trail._writing is None)
        disk.proof(4)
        await disk.until(lambda: len(disk.told) == 4)
        assert disk.told[3] is None

    story(tell, mode="required")


def test_a_held_proof_doesnt_wait_for_ever_behind_what_isnt_held(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(trails, "_append", lambda *_: answers.wait(30))
    monkeypatch.setattr(trails, "WRITE_S", 0.2)

    async def tell(disk: Disk) -> None:
        disk.trails.itself("lock", store="work")
        admin = disk.trails.of("admin")
        await disk.until(lambda: admin._writing is not None)
        disk.proof(1, admin)
        await disk.until(lambda: len(disk.told) == 1)
        assert isinstance(disk.told[0], NotRecorded)
        answers.set()

    story(tell, mode="required")


def test_where_it_is_off_nothing_is_written(story: Story) -> None:
    async def tell(disk: Disk) -> None:
        disk.proof()
        disk.trails.itself("lock", store="work")
        Trace(disk.trail, Peer(0, 0, 0)).refused(KeyUnknown("no"))
        await disk.trails.close(within_s=1)
        assert not disk.folder.exists()
        disk.trails.configure(mode="on", max_bytes=2**20)
        disk.proof(1)
        await disk.trails.close(within_s=1)
        assert disk.numbers() == [1]

    story(tell, mode="off")


# Refusals


def test_the_11th_refusal_of_a_minute_is_counted_and_those_of_other_sockets_are_not(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trails, "MINUTE_S", 0.2)

    async def tell(disk: Disk) -> None:
        trace = Trace(disk.trail, Peer(0, 1000, 1000))
        other = Trace(disk.trails.of("admin"), Peer(0, 1000, 1000))
        for _ in range(25):
            trace.refused(KeyUnknown("no"), "proof")
        for _ in range(5):
            trace.refused(PolicyRefused("no"), "proof")
        other.refused(KeyUnknown("no"), "proof")
        await disk.until(lambda: disk.trail._minute is None)
        trace.refused(KeyUnknown("no"), "proof")  # another minute
        await disk.trails.close(within_s=1)
        entries = disk.entries()
        assert [e["outcome"] for e in entries] == [*["key_unknown"] * 10, "counted", "key_unknown"]
        assert entries[10]["count"] == 20
        assert entries[10]["refusals"] == {"key_unknown": 15, "policy_refused": 5}
        assert len(disk.entries("admin.jsonl")) == 1

    story(tell)


def test_a_refusal_says_which_rule_it_was(story: Story) -> None:
    async def tell(disk: Disk) -> None:
        error = PolicyRefused("no", details={"rule": "methods"})
        Trace(disk.trail, Peer(0, 1000, 1000)).refused(error, "proof", {"htm": "PUT"}, 0.001)
        await disk.trail.close()
        [entry] = disk.entries()
        assert (entry["outcome"], entry["rule"], entry["htm"]) == (
            "policy_refused",
            "methods",
            "PUT",
        )
        assert entry["us"] == 1000

    story(tell)


@given(
    params=st.dictionaries(
        st.sampled_from(["key", "jkt", "htm", "htu", "ath", "nonce", "signing_input", "origins"]),
        st.text(max_size=20),
    )
)
def test_whatever_is_refused_its_line_is_ascii_json(params: dict[str, Any]) -> None:
    members = audit.refused("proof", params, KeyUnknown("no"), Keys())
    line = audit.event(WHO, "proof", "key_unknown", **members)
    assert line.count("\n") == 1
    assert json.loads(line.encode("ascii"))["outcome"] == "key_unknown"


def test_the_trails_of_sockets_that_have_gone_are_bounded(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trails, "MAX_TRAILS", 4)

    async def tell(disk: Disk) -> None:
        lasting = [paths.AGENT, paths.ADMIN, paths.MOUNTED, paths.EXEC]
        names = [*lasting, *(f"s{number}" for number in range(8))]
        for number, name in enumerate(names):
            trail = disk.trails.of(name)
            disk.proof(number, trail)
            await trail.close()
            path = paths.audit_file(str(disk.folder), name)
            os.utime(path, (number, number))
        kept = {f"{name}.jsonl" for name in (*lasting, *names[-4:])}
        assert set(os.listdir(disk.folder)) == kept

    story(tell)


@pytest.mark.parametrize(
    ("method", "params", "refusal"),
    [
        ("key.compromise", {"key": "default"}, KeyCompromised),
        ("lock", {"store": "dict"}, Locked),
        ("lock", {}, Locked),
    ],
)
def test_a_proof_that_waits_for_its_line_doesnt_leave_once_somebody_said_compromise_or_lock(
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    params: dict[str, Any],
    refusal: type[DPoPAgentError],
) -> None:
    answers, asked = threading.Event(), threading.Event()
    append = trails._append

    def stuck(path: str, data: bytes, max_bytes: int) -> None:
        if b'"htm":"GET"' in data:
            asked.set()
            answers.wait(30)
        append(path, data, max_bytes)

    monkeypatch.setattr(trails, "_append", stuck)
    with AgentInProcess(audit="required") as agent, AgentClient(agent.admin_socket) as admin:
        admin.call("key.create", {"key": "default", "origins": []})
        refused: list[BaseException] = []

        def ask() -> None:
            with AgentClient(agent.socket) as client:
                try:
                    client.proof("GET", "https://api.example.com/")
                except DPoPAgentError as e:
                    refused.append(e)

        asking = threading.Thread(target=ask)
        asking.start()
        assert asked.wait(30)
        admin.call(method, params)
        answers.set()
        asking.join(30)
        assert [type(e) for e in refused] == [refusal]


@pytest.mark.row(22)
def test_a_process_that_got_the_pid_of_one_that_ended_isnt_taken_for_it(
    story: Story, monkeypatch: pytest.MonkeyPatch, reached: Reached
) -> None:
    us = program_of(os.getpid())
    assert us is not None

    async def tell(disk: Disk) -> None:
        trace = Trace(disk.trail, Peer(os.getpid(), 1000, 1000))
        assert trace.process() == os.getpid()
        monkeypatch.setattr(trails, "program_of", lambda _pid: us._replace(started=b"later"))
        assert trace.process() == 0
        monkeypatch.setattr(trails, "program_of", lambda _pid: us)
        assert trace.process() == 0, "once it isn't known who has the connection, it stays so"
        assert '"program":null' in trace.who(time.monotonic() + 60)

    story(tell)
    reached("names of a program that had ended, in audit, log and prompts", 0)
