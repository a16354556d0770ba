"""Signer processes as the agent sees them: start, queue, deadline, restart.

One queue per signer, fair between connections. A frame is built only when it is sent, so that what
it says of the time is true. The signer that hangs is killed, the one that dies is started again
with back-off; work that can be repeated is, once, and nobody waits past his deadline.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from dpop_agent import __version__
from dpop_agent.agent.process import SignerProcess
from dpop_agent.agent.queue import SIGN_TIMEOUT_S, FairQueue, Job
from dpop_agent.channel import Malformed, frame, outcome
from dpop_agent.config import StoreConfig
from dpop_agent.errors import (
    Busy,
    Cancelled,
    DPoPAgentError,
    Locked,
    PinRefused,
    SignerFailed,
    StoreAbsent,
    StoreUnknown,
    Timeout,
)

log = logging.getLogger("dpop_agent.signers")

START_TIMEOUT_S = 15.0
"""Seconds for loading a module, finding its token and logging in; slow cards take 4."""

APART_S = 5.0
"""Seconds in which no other store of the same module is started: half of what a signature may take,
so that what waits behind a stuck one is still served."""

TOUCH_AFTER_S = 0.3
"""Seconds after which a signature that may wait for a touch is taken for one that does."""

GENERATE_TIMEOUT_S = 60.0
"""Seconds for one key pair: RSA on a card or TPM takes up to half a minute."""

WINDOW = 4
"""Frames in a signer's hands at once, so that it never waits for the agent."""

FAST_S = 0.02
"""Seconds a signature: a slower store gets one frame at a time, for the age of their `iat`."""

MAX_QUEUE = 4096
"""Requests waiting for one signer: seconds of work for a fast store."""

UNLOCK_TIMEOUT_S = 150.0
"""Seconds for opening while a person types the PIN: the signer waits 60, twice at the most."""

MIN_BACK_OFF_S, MAX_BACK_OFF_S = 0.25, 1.0
"""Seconds between restarts, doubled each time; the first restart is at once, and all of them come
with a request. A token that is back is used again within two seconds."""

TICK_S = 0.1
"""Seconds between looks at deadlines."""


class Asked(NamedTuple):
    """What somebody has to do for a store to open; nothing without a socket.

    `socket` is the path where the PIN is to be sent, or, with a `pad`, where the outcome is told of
    what is typed there.
    """

    socket: str | None = None
    pad: bool = False


class _Asking(NamedTuple):
    """A start for which somebody may have to type.

    Attributes:
        folder: where the signer may make a socket.
        answer: who types, and where; known as soon as the place was found.
    """

    folder: str
    answer: asyncio.Future[Asked]

    def interrupt(self) -> None:
        """Tell whoever waits that the start is over, if it didn't come so far."""
        if not self.answer.done():
            self.answer.set_exception(Cancelled("the unlocking was interrupted"))


class Signer:
    """A store as the agent has it: the process that hosts it, and the work for it."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        lock_file: str,
        starting: asyncio.Lock,
        on_ready: Callable[[Signer], None],
    ) -> None:
        """Nothing is started yet.

        Args:
            config: the store.
            lock_file: keeps two signers of one store apart, those of a killed agent included.
            starting: shared by the stores of one module: initialised by two processes at once,
                it can miss tokens.
            on_ready: called whenever the store was opened.
        """
        self.config = config
        self.place: dict[str, Any] = {}
        self.error: DPoPAgentError | None = None
        self._lock_file = lock_file
        self._starting = starting
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self._process: SignerProcess | None = None
        self._ready = False  # takes frames
        self._lost = False  # was ready, and its process is about to end
        self._start: asyncio.Task[None] | None = None
        self._queue = FairQueue()
        self._sent: OrderedDict[int, Job] = OrderedDict()
        self._next_id = 1
        self._sign_s = 0.0
        self._failures = 0
        self._retry_at = 0.0
        self._opened_at = 0.0
        self._pin_path: str | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._closed = False
        self._idle_since = self._loop.time()
        self._released = False
        self._locking: asyncio.Task[None] | None = None
        self._unlocking = asyncio.Lock()
        self._prompts = config.pin_source is not None and config.pin_source.kind == "prompt"
        self.locked = self._prompts
        if self.locked:
            self.error = self._wants_pin()
            log.info("%s", self.error)

    # What the rest of the agent asks

    @property
    def state(self) -> str:
        """`ready`, `starting`, `locked`, `absent` or `failed`."""
        if self._ready:
            return "ready"
        if self.locked:
            return "locked"
        if self._start is not None:
            return "starting"
        if isinstance(self.error, Locked):
            return "locked"
        return "absent" if isinstance(self.error, StoreAbsent) else "failed"

    @property
    def pid(self) -> int | None:
        """The process that hosts the open store, if one does."""
        return self.place["pid"] if self._ready else None

    def submit(self, job: Job) -> None:
        """Queue a job; its `done` is called in any case, an error at once where nothing helps."""
        if self._closed:
            job.finish(SignerFailed(f"the store {self.config.name} was closed", hint="try again"))
            return
        if len(self._queue) >= MAX_QUEUE and job.owner is not self:
            job.finish(Busy(f"{MAX_QUEUE} requests wait for the store {self.config.name}"))
            return
        if not self._ready and (self._start is None or self.locked):
            refusal = self._refusal()
            if refusal is not None:
                job.finish(refusal)
                return
            self.start()
        self._queue.push(job)
        self._pump()

    async def ask(
        self,
        op: str,
        *,
        limit_s: float = SIGN_TIMEOUT_S,
        again: bool = True,
        on_touch: Callable[[], None] | None = None,
        **members: Any,
    ) -> dict[str, Any]:
        """One operation of the store's, for the agent's own work.

        Raises:
            DPoPAgentError: as the signer says it.
        """
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()

        def done(what: dict[str, Any] | DPoPAgentError) -> None:
            if future.done():
                return
            if isinstance(what, DPoPAgentError):
                future.set_exception(what)
            else:
                future.set_result(what)

        self.submit(
            Job(
                self,
                lambda: {"op": op, **members},
                done,
                deadline=self._loop.time() + START_TIMEOUT_S + limit_s,
                again=again,
                limit_s=limit_s,
                on_touch=on_touch,
            )
        )
        return await future

    def drop(self, owner: Hashable) -> None:
        """Forget what a vanished connection waits for; what the store signs for it is nobody's."""
        self._queue.drop(owner)
        for job in self._sent.values():
            if job.owner is owner:
                job.done = None

    def start(self) -> None:
        """Start the process, unless one runs or starts; also after a refused PIN, not if locked."""
        if not self.locked:
            self._start_with(None)

    def _start_with(self, asking: _Asking | None) -> None:
        if self._process is None and self._start is None and not self._closed:
            self._start = self._loop.create_task(self._open(asking))
            if asking is not None:  # of a task that is cancelled before its first step nothing runs
                self._start.add_done_callback(lambda _: asking.interrupt())

    async def unlock(self, folder: str) -> Asked:
        """Open a store that is locked, or say what somebody has to do for that.

        Args:
            folder: where the signer may make a socket for the PIN.

        Raises:
            StoreUnusable: it doesn't open.
            Busy: somebody types its PIN already.
        """
        async with self._unlocking:
            if self._pin_path is not None:
                raise Busy(
                    f"the PIN of the store {self.config.name} is being typed already",
                    hint=f"finish that, or end it: dpop-agent lock {self.config.name}",
                )
            await self.started()
            if self._ready:
                return Asked()
            source = self.config.pin_source
            self.locked = source is not None and source.kind in ("prompt", "keychain")
            await self._end_process()
            if self._closed:
                raise SignerFailed(f"the store {self.config.name} was closed", hint="try again")
            if self.locked:
                self.error = self.error or self._wants_pin()
                asking = _Asking(folder, self._loop.create_future())
                self._start_with(asking)
                asked = await asking.answer
                if asked.socket is not None:
                    return asked
            else:
                self.start()
            await self.started()
            if self.error is not None:
                raise self.error
            return Asked()

    async def lock(self) -> None:
        """Forget the PIN and close everything; nothing opens it again before `unlock`."""
        self._lock(
            Locked(
                f"the store {self.config.name} is locked",
                hint=f"dpop-agent unlock {self.config.name}",
            )
        )
        log.info("store %s is locked", self.config.name)
        await self._end_process()

    def _lock(self, error: Locked) -> None:
        self.locked, self.error, self._ready = True, error, False
        for job in [*self._sent.values(), *self._queue.take_all()]:
            job.again = False
            job.finish(error)

    def _wants_pin(self) -> Locked:
        return Locked(
            f"the store {self.config.name} wants its PIN",
            hint=f"dpop-agent unlock {self.config.name}",
        )

    async def _end_process(self) -> None:
        if self._start is not None:
            self._start.cancel()
            await asyncio.wait([self._start])
            self._start = None
        process, self._process, self._ready = self._process, None, False
        self._lost = False
        lost = list(self._sent.values())
        self._sent.clear()
        for job in lost:
            job.finish(self.error or SignerFailed(f"the store {self.config.name} was closed"))
        self._unlink_pin_socket()
        if process is not None:
            process.transport.close()
            await asyncio.to_thread(self._reap, process)

    def look_idle(self, *, lock_after_s: float | None, release_after_s: float | None) -> None:
        """Lock or release a store that nobody used for so long."""
        idle_s = self._loop.time() - self._idle_since
        if not self._ready or self._sent or self._queue:
            return
        if lock_after_s is not None and idle_s >= lock_after_s:
            log.info("store %s was idle for %d s", self.config.name, idle_s)
            task = self._loop.create_task(self.lock())
            self._locking = task
        elif release_after_s is not None and idle_s >= release_after_s and not self._released:
            self._in_passing("release")
            log.info("store %s was idle for %d s and is released", self.config.name, idle_s)

    def _in_passing(self, op: str) -> None:
        """An operation whose outcome nobody waits for."""
        deadline = self._loop.time() + SIGN_TIMEOUT_S
        self._send(Job(self, dict, lambda _: None, deadline=deadline, again=False), {"op": op})

    async def started(self) -> None:
        """Wait until a start has come to its end, good or bad."""
        if self._start is not None:
            await asyncio.wait([self._start])

    async def close(self) -> None:
        """End the process after what it is doing, and fail the rest."""
        self._closed = True
        if self._tick is not None:
            self._tick.cancel()
        for job in [*self._sent.values(), *self._queue.take_all()]:
            job.finish(SignerFailed("the agent is ending", hint="start it again"))
        await self._end_process()

    # Start and end of the process

    def _refusal(self) -> DPoPAgentError | None:
        """The error that holds until the next try, if it isn't time for one yet."""
        if self.error is None:
            return None
        if self.locked or isinstance(self.error, PinRefused):
            return self.error
        wait_s = self._retry_at - self._loop.time()
        if wait_s <= 0:
            return None
        error = self.error
        return type(error)(
            error.message,
            hint=error.hint,
            retry="later",
            retry_after_ms=int(wait_s * 1000) + 1,
            details=error.details,
        )

    async def _open(self, asking: _Asking | None) -> None:
        try:
            place = await self._opened(asking)
        except OSError as e:
            self._failed(SignerFailed(f"no signer process could be started ({e.strerror})"), asking)
        except DPoPAgentError as e:
            self._failed(e, asking)
        except Exception:
            log.exception(
                "opening the store %s failed in a way nobody thought of", self.config.name
            )
            self._failed(SignerFailed("the agent failed inside", hint="see its log"), asking)
        else:
            self._start = None
            self._ready, self.locked, self.error, self.place = True, False, None, place
            self._opened_at = self._loop.time()
            self._idle_since = self._loop.time()
            named = [repr(place[name]) for name in ("label", "serial") if place.get(name)]
            log.info("store %s is open: %s", self.config.name, ", serial ".join(named))
            if asking is not None:
                # Now, so that whoever typed finds the store open.
                self._in_passing("tell")
            self._on_ready(self)
            self._pump()

    async def _opened(self, asking: _Asking | None) -> dict[str, Any]:
        listen = {} if asking is None else {"op": "listen", "folder": asking.folder}
        async with self._starting:
            await self._spawn()
            first = self._begin(START_TIMEOUT_S, **self._open_frame() | listen)
            await asyncio.wait([first], timeout=APART_S)
        found = _good(await first)
        if asking is None:
            return found
        self._pin_path = found["path"]
        asking.answer.set_result(Asked(found["path"], found["pad"]))
        if self._pin_path is None:
            return await self._first(START_TIMEOUT_S, **self._open_frame())
        try:
            return await self._first(UNLOCK_TIMEOUT_S, **self._open_frame())
        finally:
            self._unlink_pin_socket()

    def _unlink_pin_socket(self) -> None:
        """The signer does so itself, if it lives to."""
        path, self._pin_path = self._pin_path, None
        if path is not None:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            popen = subprocess.Popen(
                [sys.executable, "-I", "-m", "dpop_agent.signer", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | dict(self.config.env),
                cwd="/",
                process_group=0,
            )
        process = self._process = SignerProcess(self, popen)
        await self._loop.create_unix_connection(lambda: process, sock=ours)

    def _open_frame(self) -> dict[str, Any]:
        pin = self.config.pin_source
        settings = {
            "name": self.config.name,
            "type": self.config.type,
            "backend": self.config.backend,
            "module": self.config.module,
            "module_args": self.config.module_args,
            "uri": str(self.config.uri),
            "pin_kind": pin and pin.kind,
            "pin_argument": pin and pin.argument,
            "refused_file": self._lock_file + ".refused",
        }
        return {"op": "open", "version": __version__, "lock": self._lock_file, "store": settings}

    async def _first(self, limit_s: float, **members: Any) -> dict[str, Any]:
        return _good(await self._begin(limit_s, **members))

    def _begin(
        self, limit_s: float, **members: Any
    ) -> asyncio.Future[dict[str, Any] | DPoPAgentError]:
        """One of the operations that make a signer ready; nothing else is under way."""
        if self._process is None:
            raise SignerFailed(f"the signer of the store {self.config.name} ended at its start")
        answered: asyncio.Future[dict[str, Any] | DPoPAgentError] = self._loop.create_future()
        job = Job(
            self,
            dict,
            lambda what: None if answered.done() else answered.set_result(what),
            deadline=self._loop.time() + limit_s,
            limit_s=limit_s,
            again=False,
        )
        self._send(job, members)
        return answered

    def _failed(self, error: DPoPAgentError, asking: _Asking | None = None) -> None:
        """No store for now: whoever waits is told, and the next try waits."""
        self._start = None
        if asking is not None:
            self.locked = self._prompts
            if not asking.answer.done():
                asking.answer.set_exception(error)
        if self.error is None or self.error.message != error.message:
            log.warning("store %s can't be used: %s", self.config.name, error)
        self.error = error
        if self.locked and not isinstance(error, Locked):  # it opens by nothing but a PIN
            self.error = Locked(
                f"the store {self.config.name} wants its PIN, and {error.message}",
                hint=f"{error.hint}; then: dpop-agent unlock {self.config.name}",
            )
        self._back_off()
        for job in self._queue.take_all():
            job.finish(error)
        if self._process is not None:
            self._process.transport.close()

    def _back_off(self) -> None:
        wait_s = min(MAX_BACK_OFF_S, MIN_BACK_OFF_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        self._retry_at = self._loop.time() + wait_s

    def died(self, process: SignerProcess) -> None:
        """A process is gone: repeat what can be repeated, with a new one."""
        self._loop.run_in_executor(None, self._reap, process)
        if process is not self._process:
            return
        was_ready = self._ready or self._lost
        self._process, self._ready, self._lost = None, False, False
        lost = list(self._sent.values())
        self._sent.clear()
        error: DPoPAgentError = SignerFailed(
            f"the signer of the store {self.config.name} ended in the middle of its work",
            hint="see the agent's log, and: dpop-agent status"
            if was_ready
            else "its module may have crashed: see the store's module, module_args and env",
            retry="now",
        )
        if was_ready and not self._closed:
            log.warning("signer of store %s ended", self.config.name)
        if was_ready and self._prompts:
            error = self._wants_pin()  # the PIN went with the process
            self._lock(error)
        for job in reversed(lost):
            if job.again and job.done is not None and not self.locked:
                job.again = False
                self._queue.push_front(job)
            else:
                job.finish(error)
        if was_ready and not self._closed and not self.locked:
            if self._failures and self._loop.time() < self._retry_at:
                self._failed(error)
            else:
                self._back_off()
                self.start()

    @staticmethod
    def _reap(process: SignerProcess) -> None:
        try:
            process.popen.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()

    # Frames

    def _pump(self) -> None:
        while self._ready and self._queue and len(self._sent) < self._window():
            job = self._queue.pop()
            if job.deadline <= self._loop.time():
                job.finish(self._late(job))
                continue
            try:
                members = job.make()
            except DPoPAgentError as e:
                job.finish(e)
                continue
            self._send(job, members)
        self._watch_deadlines()

    def _window(self) -> int:
        # Behind a touch a frame may wait until nobody wants it any more, and ask for another touch.
        if self._sign_s >= FAST_S or any(job.on_touch for job in self._sent.values()):
            return 1
        return WINDOW

    def _send(self, job: Job, members: dict[str, Any]) -> None:
        process = self._process
        assert process is not None
        self._released = members["op"] == "release"
        self._next_id += 1
        self._sent[self._next_id] = job
        job.sent, job.untouched = self._loop.time(), False
        process.transport.write(frame(id=self._next_id, **members))
        self._watch_deadlines()

    def answered(self, process: SignerProcess, answer: dict[str, Any]) -> None:
        """A frame from the signer.

        Raises:
            Malformed: it answers nothing that was asked.
        """
        if process is not self._process:
            return
        job = self._sent.pop(answer.get("id", 0), None)
        if job is None:
            raise Malformed("a frame answers nothing")
        try:
            what = outcome(answer)
        except Malformed:
            job.finish(SignerFailed(f"the signer of the store {self.config.name} isn't understood"))
            raise
        now = self._loop.time()
        took_s = now - job.sent
        if not self._released:
            self._idle_since = now
        if self._sent:
            next(iter(self._sent.values())).sent = now  # its turn begins now
        if answer.get("broken"):
            self._ready, self._lost = False, self._ready
        if not isinstance(what, DPoPAgentError):
            self._sign_s += (took_s - self._sign_s) / 8
            if now - self._opened_at > MAX_BACK_OFF_S:
                self._failures = 0  # it lives; opening alone proves nothing
        elif self._lost and job.again and job.done is not None:
            job.again = False  # the process ends now; a new one looks whether it is as bad
            self._queue.push_front(job)
            return
        job.finish(what)
        self._pump()

    # Deadlines

    def _watch_deadlines(self) -> None:
        if self._tick is None and (self._sent or self._queue) and not self._closed:
            self._tick = self._loop.call_later(TICK_S, self._look)

    def _look(self) -> None:
        self._tick = None
        now = self._loop.time()
        first = next(iter(self._sent.values()), None)
        if first is not None:
            self._look_for_a_touch(first, now)
        for job in self._queue.take_late(now):
            job.finish(self._late(job))
        for job in self._sent.values():
            if job.deadline <= now:
                job.finish(self._late(job))  # its answer, when it comes, is nobody's
        if first is not None and now - first.sent > first.limit_s and self._process is not None:
            log.warning(
                "signer of store %s didn't answer for %g s and is replaced",
                self.config.name,
                first.limit_s,
            )
            first.again = False
            first.finish(self._late(first))
            self._process.kill()
        self._watch_deadlines()

    @staticmethod
    def _look_for_a_touch(job: Job, now: float) -> None:
        """A signature that takes long waits for one, and has a deadline of its own."""
        if job.on_touch is None or job.untouched or now - job.sent < TOUCH_AFTER_S:
            return
        job.untouched = True
        job.deadline = max(job.deadline, job.sent + job.limit_s)
        if job.done is not None:
            job.on_touch()

    def _late(self, job: Job) -> Timeout:
        first = next(iter(self._sent.values()), None)
        if first is None or not first.untouched:
            return Timeout(
                f"the store {self.config.name} didn't answer in time",
                hint="see: dpop-agent status; timeout_ms is how long you wait",
            )
        if job is first:
            return Timeout(
                f"nobody touched the card of the store {self.config.name} within {job.limit_s:g} s",
                hint="try again, and touch it",
                retry="no",
            )
        return Timeout(
            f"the store {self.config.name} waits until somebody touches its card, "
            "for another signature",
            hint="touch the card, and try again",
            retry="later",
        )


class Signers(dict[str, Signer]):
    """Every store's signer, by the name of its store."""

    def named(self, store: str) -> Signer:
        """A store's signer.

        Raises:
            StoreUnknown: the configuration doesn't have it.
        """
        if store not in self:
            raise StoreUnknown(f"there is no store {store} in the configuration")
        return self[store]


def _good(answer: dict[str, Any] | DPoPAgentError) -> dict[str, Any]:
    if isinstance(answer, DPoPAgentError):
        raise answer
    return answer
