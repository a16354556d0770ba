"""Whoever waits for a store is answered, whatever becomes of it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from threading import Semaphore
from typing import Any, cast
from unittest.mock import Mock

import pytest

from dpop_agent import forking
from dpop_agent.agent import queue, signers
from dpop_agent.agent.forker import Forker
from dpop_agent.agent.frames import Outcome
from dpop_agent.agent.hosts import Host
from dpop_agent.agent.ledger import Ledger
from dpop_agent.agent.process import SignerProcess, spawn_program
from dpop_agent.agent.queue import MIN_RETRY_MS, MIN_WINDOW, CallbackJob
from dpop_agent.agent.records import Records
from dpop_agent.agent.signers import Signer
from dpop_agent.agent.states import TRANSITIONS, Event, IllegalEvent, State, after
from dpop_agent.agent.trails import Trails
from dpop_agent.channel import Frames, frame
from dpop_agent.config import PinSource, StoreConfig, TokenUri
from dpop_agent.errors import Busy, Cancelled, Locked, SignerFailed, Timeout


def signer(folder: Path, pin_source: str, *, signers: int = 1) -> Signer:
    config = StoreConfig(
        name="work",
        type="pkcs11",
        env={},
        module=str(folder / "none.so"),
        uri=TokenUri(token="work"),
        pin_source=PinSource(pin_source),
        signers=signers,
    )
    return Signer(
        config,
        lock_file=str(folder / "lock"),
        max_waiting=100,
        starting=asyncio.Lock(),
        on_ready=lambda _signer: None,
        on_refused=lambda _method, _signer, _error: None,
        on_end=lambda: None,
        spawn=spawn_program,
    )


def test_a_store_that_was_closed_answers_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        closed = signer(tmp_path, "keychain")
        await closed.close()
        with pytest.raises(SignerFailed, match="was closed"):
            await asyncio.wait_for(closed.ask("reserve", alg="ES256"), 1)

    asyncio.run(story())


def test_a_store_whose_pin_is_typed_starts_no_process_before_unlock(tmp_path: Path) -> None:
    async def story() -> None:
        locked = signer(tmp_path, "prompt")
        locked.start()
        assert (locked.state, locked.pid) == ("locked", None)
        with pytest.raises(Locked, match="wants its PIN"):
            await asyncio.wait_for(locked.ask("reserve", alg="ES256"), 1)

    asyncio.run(story())


def hosted(store: Signer, process: object) -> Host:
    """A store that is open in a process."""
    host = Host("work", store._work, store)
    host.pid, host._process = 1, cast("SignerProcess", process)
    store._work.begin(host)
    store._work.take(host)
    store._state = State.READY
    return host


class Card:
    """A signer's process that takes every frame, and answers when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.signer = signer(folder, "keychain")
        self.frames: list[dict[str, Any]] = []
        self.killed = False
        self._host = hosted(self.signer, self)

    def send(self, frame_id: int, members: Mapping[str, Any]) -> None:
        self.frames.append({"id": frame_id, **members})

    def kill(self) -> None:
        self.killed = True

    def touch(self) -> None:
        """Sign what was sent first."""
        frame = self.frames.pop(0)
        answer = {"id": frame["id"], "ok": {"signed": frame["n"]}}
        self._host._heard(answer)
        self.signer.heard()

    def submit(
        self, n: int, *, within_s: float, touch: bool = True, owner: str = "one"
    ) -> list[Outcome | str]:
        """What becomes of a job."""
        told: list[Outcome | str] = []
        job = CallbackJob(
            (owner,),
            lambda: {"op": "sign", "n": n},
            told.append,
            deadline=asyncio.get_running_loop().time() + within_s,
            again=True,
            form=lambda _: True,
            on_touch=(lambda: told.append("touch")) if touch else None,
        )
        self.signer.submit(job)
        return told

    async def until(self, reached: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not reached():
                await asyncio.sleep(0.02)


def with_card(folder: Path, story: Callable[[Card], Coroutine[Any, Any, None]]) -> None:
    async def told() -> None:
        card = Card(folder)
        await story(card)
        if card.signer._tick is not None:
            card.signer._tick.cancel()

    asyncio.run(told())


def test_a_touch_has_a_deadline_of_its_own_and_whoever_waits_behind_it_has_his(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "TOUCH_AFTER_S", 0.1)

    async def story(card: Card) -> None:
        waits = card.submit(1, within_s=1)
        behind = card.submit(2, within_s=1.1, touch=False, owner="other")
        patient = card.submit(3, within_s=5, owner="other")
        await card.until(lambda: behind)
        assert waits == ["touch"]
        (late,) = behind
        assert isinstance(late, Timeout)
        assert late.retry == "later"
        assert "waits until somebody touches its card" in late.message
        card.touch()
        assert waits == ["touch", {"signed": 1}]
        assert [frame["n"] for frame in card.frames] == [3]
        card.touch()
        assert patient == [{"signed": 3}]

    with_card(tmp_path, story)


def test_a_deadline_before_the_touch_is_noticed_holds(tmp_path: Path) -> None:
    async def story(card: Card) -> None:
        hasty = card.submit(1, within_s=0.05)
        await card.until(lambda: hasty)
        await asyncio.sleep(queue.TOUCH_AFTER_S + 2 * signers.TICK_S)
        (late,) = hasty  # and no event after its answer
        assert isinstance(late, Timeout)

    with_card(tmp_path, story)


def test_a_card_that_waits_for_ever_is_given_up_at_the_touchs_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "TOUCH_AFTER_S", 0.1)
    monkeypatch.setattr(queue, "TOUCH_TIMEOUT_S", 2.0)

    async def story(card: Card) -> None:
        waits = card.submit(1, within_s=1)
        await card.until(lambda: card.killed)
        touch, late = waits
        assert touch == "touch"
        assert isinstance(late, Timeout)
        assert "nobody touched the card of the store work within 2 s" in late.message
        assert late.retry == "no"

    with_card(tmp_path, story)


def test_a_connection_that_is_gone_is_told_of_no_touch_and_gets_no_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "TOUCH_AFTER_S", 0.1)

    async def story(card: Card) -> None:
        sent, queued = card.submit(1, within_s=5), card.submit(2, within_s=5)
        card.signer.drop(("one",))
        other = card.submit(3, within_s=1, touch=False, owner="other")
        await card.until(lambda: other)
        assert isinstance(other[0], Timeout)
        assert "waits until somebody touches its card" in other[0].message
        card.touch()
        assert (sent, queued, card.frames) == ([], [], [])

    with_card(tmp_path, story)


def test_what_a_signer_said_while_the_agent_was_busy_is_heard_before_it_is_judged(
    tmp_path: Path,
) -> None:
    class Child:
        killed = False

        def kill(self) -> None:
            self.killed = True

        def wait(self, within_s: float) -> None:
            pass

    async def story() -> None:
        loop, store, child = asyncio.get_running_loop(), signer(tmp_path, "keychain"), Child()
        ours, theirs = socket.socketpair()
        host = hosted(store, None)
        process = SignerProcess(
            "work",
            child,
            on_frame=host._heard,
            on_heard=store.heard,
            on_end=lambda: store.died(host),
        )
        await loop.create_unix_connection(lambda: process, sock=ours)
        host._process = process
        told: list[Outcome] = []
        deadline = loop.time() + 10 * signers.TICK_S
        limit_s = 5 * signers.TICK_S
        store.submit(
            CallbackJob(
                ("one",),
                lambda: {"op": "tell"},
                told.append,
                deadline=deadline,
                again=True,
                limit_s=limit_s,
                form=lambda _: True,
            )
        )

        def be_busy_until_the_signer_is_looked_at() -> None:
            time.sleep(2 * signers.TICK_S)
            loop.call_soon(be_busy_while_the_signer_answers)

        def be_busy_while_the_signer_answers() -> None:
            (asked,) = Frames().feed(theirs.recv(65536))
            assert isinstance(asked, dict)
            theirs.sendall(frame(id=asked["id"], ok={"signed": 1}))
            time.sleep(20 * signers.TICK_S)

        loop.call_soon(be_busy_until_the_signer_is_looked_at)
        async with asyncio.timeout(30):
            while not told:
                await asyncio.sleep(0)
        assert told == [{"signed": 1}]
        assert not child.killed
        await store.close()
        theirs.close()
        await asyncio.sleep(0)

    asyncio.run(story())


def test_a_store_is_idle_from_its_last_answer_on(tmp_path: Path) -> None:
    async def story(card: Card) -> None:
        card.submit(1, within_s=5)
        await asyncio.sleep(0.6)
        card.touch()
        card.signer.look_idle(lock_after_s=None, release_after_s=0.5)
        assert card.frames == []
        await asyncio.sleep(0.6)
        card.signer.look_idle(lock_after_s=None, release_after_s=0.5)
        assert [frame["op"] for frame in card.frames] == ["release"]

    with_card(tmp_path, story)


def test_a_look_under_way_keeps_no_idle_store_open(tmp_path: Path) -> None:
    async def story(card: Card) -> None:
        look = asyncio.ensure_future(card.signer.ask("objects", looking=True, begin=True))
        await asyncio.sleep(0)
        assert [frame["op"] for frame in card.frames] == ["objects"]
        card.signer.look_idle(lock_after_s=None, release_after_s=0.0)
        assert [frame["op"] for frame in card.frames] == ["objects", "release"]
        look.cancel()

    with_card(tmp_path, story)


def test_where_as_many_requests_wait_as_may_the_next_is_told_when_to_come_again(
    tmp_path: Path,
) -> None:
    async def story(card: Card) -> None:
        card.signer.max_waiting = 3
        waiting = [card.submit(n, within_s=60, touch=False) for n in range(MIN_WINDOW + 3)]
        [busy] = card.submit(99, within_s=60, touch=False)
        assert isinstance(busy, Busy)
        assert busy.retry == "later"
        assert busy.retry_after_ms is not None
        assert busy.retry_after_ms >= MIN_RETRY_MS
        card.touch()  # there is room again
        assert card.submit(100, within_s=60, touch=False) == []
        assert waiting[1:] == [[]] * (MIN_WINDOW + 2)

    with_card(tmp_path, story)


def test_a_request_that_meets_an_unexpected_error_takes_no_signer_down(tmp_path: Path) -> None:
    async def story(card: Card) -> None:
        told: list[Outcome] = []

        def unforeseen() -> bytes:
            raise KeyError("unforeseen")

        deadline = asyncio.get_running_loop().time() + 5
        job = CallbackJob(("one",), unforeseen, told.append, deadline=deadline, again=True)
        first = card.submit(1, within_s=5, touch=False)
        for _ in range(queue.MAX_WINDOW):
            card.submit(2, within_s=5, touch=False)
        card.signer.submit(job)  # it waits, and is made where the signer's answers are heard
        for _ in range(queue.MAX_WINDOW + 1):
            card.touch()
        assert first == [{"signed": 1}]
        (error,) = told
        assert isinstance(error, SignerFailed)
        assert not card.killed

    with_card(tmp_path, story)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_that_a_state_doesnt_have_raises_and_nothing_happens(
    state: State, event: Event, tmp_path: Path
) -> None:
    async def story() -> None:
        store = signer(tmp_path, "keychain")
        store._state = state
        if event in TRANSITIONS[state]:
            store._become(event)
            assert store._state is TRANSITIONS[state][event]
        else:
            with pytest.raises(IllegalEvent, match=f"{event.name} in {state.name}"):
                store._become(event)
            assert store._state is state

    asyncio.run(story())


def test_every_state_can_be_locked_and_closed_and_nothing_leaves_closed() -> None:
    for state in State:
        assert after(state, Event.CLOSE) is State.CLOSED
        assert after(state, Event.LOCK) in (State.LOCKED, State.CLOSED)
    assert set(TRANSITIONS[State.CLOSED].values()) == {State.CLOSED}


def test_only_a_start_or_an_unlock_opens_a_store() -> None:
    steps = {(s, e, t) for s, row in TRANSITIONS.items() for e, t in row.items()}
    assert {(s, e) for s, e, t in steps if t is State.READY} == {
        (State.STARTING, Event.OPENED),
        (State.UNLOCKING, Event.OPENED),
        (State.RELEASED, Event.USE),
    }
    assert {(s, e) for s, e, t in steps if t is State.UNLOCKING} == {(State.LOCKED, Event.UNLOCK)}


def test_a_store_whose_process_ends_as_it_says_that_it_is_open_isnt_open(tmp_path: Path) -> None:
    """What it says behind its answer makes no sense: both come in one piece."""

    class Child:
        def kill(self) -> None:
            pass

        def wait(self, within_s: float) -> None:
            pass

    async def spawn(
        channel: socket.socket, env: Mapping[str, str], heir_of: int | None = None
    ) -> Child:
        theirs = channel.dup()
        theirs.setblocking(True)

        def answer() -> None:
            (request,) = Frames().feed(theirs.recv(65536))
            assert isinstance(request, dict)
            place = {"label": "", "serial": None, "model": None, "pid": 1}
            theirs.sendall(frame(id=request["id"], ok=place) + frame(id=77, ok={}))
            theirs.close()

        threading.Thread(target=answer).start()
        return Child()

    async def story() -> None:
        store = signer(tmp_path, "keychain")
        store._starting._spawn = spawn
        store.start()
        await store.started()
        assert (store.state, store.has_process) == ("failed", False)
        assert store.error is not None
        await store.close()

    asyncio.run(story())


def test_a_lock_that_comes_while_an_unlock_waits_for_an_earlier_process_is_kept(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        store = signer(tmp_path, "prompt")
        ended = asyncio.Event()

        async def slowly() -> None:
            await ended.wait()

        store._end_process = slowly  # type: ignore[method-assign]
        unlocking = asyncio.ensure_future(store.unlock(str(tmp_path)))
        await asyncio.sleep(0)
        locking = asyncio.ensure_future(store.lock())
        await asyncio.sleep(0)
        ended.set()
        with pytest.raises(Cancelled):
            await unlocking
        await locking
        assert (store.state, store.has_process) == ("locked", False)

    asyncio.run(story())


@pytest.mark.parametrize("answer", [{"pid": 5}, {"errno": errno.EMFILE}])
def test_a_signer_that_cant_be_forked_for_want_of_descriptors_is_an_error_at_once(
    answer: dict[str, int],
) -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            forker = Forker(os.getpid(), ours, on_end=lambda: None)
            spawning = asyncio.ensure_future(forker.spawn(theirs, {}))
            await asyncio.sleep(0)
            theirs.setblocking(True)
            _, given = forking.receive(theirs) or ({}, [])
            for descriptor in given:
                os.close(descriptor)
            forking.send(theirs, answer)
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                await spawning
            forker._forget()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("op", "members", "changes"),
    [
        ("generate", {"ref": "00", "alg": "ES256", "label": ""}, True),
        ("destroy", {"ref": "00", "jkt": ""}, True),
        ("find", {"ref": "00", "alg": "ES256", "self_test": False, "anew": True}, True),
        ("find", {"ref": "00", "alg": "ES256", "self_test": False, "anew": False}, False),
        ("reserve", {"alg": "ES256"}, False),
    ],
)
def test_what_changes_keys_is_the_firsts_and_has_each_process_look_anew_whatever_came_of_it(
    tmp_path: Path, op: str, members: dict[str, Any], changes: bool
) -> None:
    class Process:
        def __init__(self) -> None:
            self.ops: list[str] = []

        def send(self, _: int, members: Mapping[str, Any]) -> None:
            self.ops.append(members["op"])

    async def story() -> None:
        store = signer(tmp_path, "keychain", signers=2)
        processes = Process(), Process()
        first, _ = (hosted(store, process) for process in processes)
        asked = asyncio.ensure_future(store.ask(op, **members))
        await asyncio.sleep(0)
        assert [process.ops for process in processes] == [[op], []]
        error = SignerFailed("it went wrong").to_wire()
        first._heard({"id": first.last_id, "error": error})
        with pytest.raises(SignerFailed, match="went wrong"):
            await asked
        anew = ["look_anew"] * changes
        assert [process.ops for process in processes] == [[op, *anew], anew]
        assert store._tick is not None
        store._tick.cancel()

    asyncio.run(story())


def test_signers_that_hang_keep_no_thread_from_the_ledger_the_audit_and_another_store(
    tmp_path: Path,
) -> None:
    ended, reaping = threading.Event(), Semaphore(0)
    many = 3 * (32 + 4)  # threads that asyncio's own pool has at the most, and more

    class Child:
        def kill(self) -> None:
            pass

        def wait(self, within_s: float) -> None:
            reaping.release()
            ended.wait(30)

    class Ended(Child):
        def wait(self, within_s: float) -> None:
            pass

    def hanging(child: Child) -> Signer:
        store = signer(tmp_path, "keychain")
        process = SignerProcess(
            "work",
            child,
            on_frame=lambda _: None,
            on_heard=store.heard,
            on_end=lambda: store.died(host),
        )
        process._transport = Mock()
        host = hosted(store, process)
        return store

    async def story() -> None:
        loop = asyncio.get_running_loop()
        ledger = Ledger(str(tmp_path / "state"))
        records = Records(ledger)
        audit = Trails(records, mode="required", max_bytes=2**20)
        line = loop.create_future()
        closing = [asyncio.ensure_future(hanging(Child()).close()) for _ in range(many)]
        waiting = [loop.run_in_executor(None, ended.wait, 30) for _ in range(many)]
        try:
            async with asyncio.timeout(20):
                while sum(reaping.acquire(blocking=False) for _ in range(many)) == 0:
                    await asyncio.sleep(0.01)
                await records.save(clean=False)
                audit.of("agent").proof(
                    *("{", "{"), htm="GET", jti='"1"', took_s=0.0, written=line.set_result
                )
                await hanging(Ended()).close()
                assert await line is None
        finally:
            ended.set()
            await asyncio.gather(*closing, *waiting)
            ledger.close()

    asyncio.run(story())
