"""Signers as the agent sees them: what a store's state lets happen (`states` has the table).

Whoever waits is told in any case: a job is answered by the signer, repeated once by another, or
finished with an error, at the latest at its deadline.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from dpop_agent.agent import process
from dpop_agent.agent.frames import Outcome, outcome, result_form
from dpop_agent.agent.opening import (
    MAX_BACK_OFF_S,
    BackOff,
    PinEntry,
    Unlocking,
    at_most,
    open_frame,
)
from dpop_agent.agent.process import END_TIMEOUT_S, SignerProcess, Spawn
from dpop_agent.agent.queue import LOOKING, SIGN_TIMEOUT_S, Flow, Job, Work
from dpop_agent.agent.states import OPEN, REFUSING, Event, State, after
from dpop_agent.channel import Malformed, Signed, require_secret_socket
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
)

log = logging.getLogger("dpop_agent.signers")

START_TIMEOUT_S = 15.0
"""Seconds for loading a module, finding its token and logging in; slow cards take 4."""

APART_S = 5.0
"""Seconds in which no other store of the same module is started, and that a store waits for others
at the most: half of what a signature may take, so that what waits behind stuck ones is served."""

GENERATE_TIMEOUT_S = 60.0
"""Seconds for one key pair: RSA on a card or TPM takes up to half a minute."""

UNLOCK_TIMEOUT_S = 150.0
"""Seconds for opening while a person types the PIN: the signer waits 60, twice at the most."""

LOGIN_END_S = 8.0
"""Seconds that a signer has to end whose store is being opened: slow cards log in for 4."""

TICK_S = 0.1
"""Seconds between looks at deadlines."""


_AGENTS_OWN: Flow = ("agent",)


class Signer:
    """A store as the agent has it: the process that hosts it, and the work for it."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        lock_file: str,
        starting: asyncio.Lock,
        on_ready: Callable[[Signer], None],
        on_end: Callable[[], None],
        spawn: Spawn,
    ) -> None:
        """Nothing is started yet.

        Args:
            config: the store.
            lock_file: keeps two signers of one store apart, those of a killed agent included.
            starting: shared by the stores of one module: initialised by two processes at once,
                it can miss tokens.
            on_ready: called whenever the store was opened.
            on_end: called whenever its process ended.
            spawn: how its processes come into being.
        """
        self.config = config
        self.place: dict[str, Any] = {}
        self.error: DPoPAgentError | None = None
        self._lock_file = lock_file
        self._starting = starting
        self._on_ready = on_ready
        self._on_end = on_end
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._state = State.DOWN
        self._process: SignerProcess | None = None
        self._opening: asyncio.Task[None] | None = None
        self._work = Work(config.name)
        self._back_off = BackOff()
        self._opened_at = 0.0
        self._idle_since = self._loop.time()
        self._pin_path: str | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._locking: asyncio.Task[None] | None = None
        self._locks = 0
        self._unlocking = asyncio.Lock()
        self._prompts = config.pin_source is not None and config.pin_source.kind == "prompt"
        if self._prompts:
            self._become(Event.WANT_PIN)
            self.error = self._wants_pin()
            log.info("%s", self.error)

    # What the rest of the agent asks

    @property
    def state(self) -> str:
        """`ready`, `starting`, `locked`, `absent` or `failed`."""
        if self._state in OPEN:
            return "ready"
        if self._state in (State.LOCKED, State.UNLOCKING):
            return "locked"
        if self._state is State.STARTING:
            return "starting"
        if isinstance(self.error, Locked):
            return "locked"
        return "absent" if isinstance(self.error, StoreAbsent) else "failed"

    @property
    def pid(self) -> int | None:
        """The process that hosts the open store, if one does."""
        return self.place["pid"] if self._state in OPEN else None

    @property
    def has_process(self) -> bool:
        """Whether a process of it runs, its store open or not."""
        return self._process is not None

    @property
    def may_be_looked_at(self) -> bool:
        """Whether it can list what it has, and nobody locked it, or was left a card by it."""
        return self.config.module is not None and (
            self._state is State.READY or self.state in ("absent", "failed")
        )

    @property
    def keeps_pin(self) -> bool:
        """Whether a PIN that is typed stays in the keychain."""
        return self.config.pin_source is not None and self.config.pin_source.kind == "keychain"

    def submit(self, job: Job) -> None:
        """Queue a job; its `done` is called in any case, an error at once where nothing helps."""
        if self._state is State.CLOSED:
            job.finish(self._was_closed())
            return
        if self._state in REFUSING:
            refusal = self._refusal()
            if refusal is not None:
                job.finish(refusal)
                return
            self.start()
        if self._state in OPEN and self._work.is_next and job.owner != LOOKING:
            self._give(job)
            return
        self._work.push(job)
        self._pump()

    async def ask(
        self,
        op: str | bytes,
        *,
        limit_s: float = SIGN_TIMEOUT_S,
        again: bool = True,
        looking: bool = False,
        on_touch: Callable[[], None] | None = None,
        **members: Any,
    ) -> dict[str, Any]:
        """One operation of the store's, for the agent's own work; or, in bytes, a signature.

        `looking`: it yields to whoever waits for a signature, and has no deadline before it is
        sent.

        Raises:
            DPoPAgentError: as the signer says it.
        """
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()

        def done(what: Outcome) -> None:
            if future.done():
                return
            if isinstance(what, DPoPAgentError):
                future.set_exception(what)
            else:
                future.set_result({"signature": what} if isinstance(what, bytes) else what)

        self.submit(
            Job(
                LOOKING if looking else _AGENTS_OWN,
                lambda: op if isinstance(op, bytes) else {"op": op, **members},
                done,
                deadline=inf if looking else self._loop.time() + START_TIMEOUT_S + limit_s,
                again=again,
                limit_s=limit_s,
                on_touch=on_touch,
            )
        )
        return await future

    def drop(self, owner: Flow) -> None:
        """Forget what a vanished connection waits for; what the store signs for it is nobody's."""
        self._work.drop(owner)

    def start(self) -> None:
        """Start the process, unless one runs or starts; not if locked, nor after a refused PIN."""
        if not isinstance(self.error, PinRefused):
            self._start(attended=False)

    def _start(self, *, attended: bool) -> None:
        if self._state is State.DOWN and self._process is None:
            self._become(Event.START)
            self._opening = self._loop.create_task(self._open(None, attended=attended))

    async def unlock(self, folder: str) -> PinEntry:
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
            if self._state in OPEN:
                return PinEntry()
            self._require_not_closed()
            source = self.config.pin_source
            may_be_typed = source is not None and source.kind in ("prompt", "keychain")
            self._become(Event.WANT_PIN if may_be_typed else Event.ALLOW)
            locks = self._locks
            await self._end_process()
            self._require_not_closed()
            if self._locks != locks:
                raise Cancelled("the unlocking was interrupted")
            if may_be_typed:
                entry = await self._unlock(folder)
                if entry.socket is not None:
                    return entry
            else:
                self._start(attended=True)
            await self.started()
            if self.error is not None:
                raise self.error
            return PinEntry()

    async def _unlock(self, folder: str) -> PinEntry:
        self.error = self.error or self._wants_pin()
        unlocking = Unlocking(folder, self._loop.create_future())
        self._become(Event.UNLOCK)
        self._opening = self._loop.create_task(self._open(unlocking, attended=True))
        # Of a task that is cancelled before its first step nothing runs.
        self._opening.add_done_callback(lambda _: unlocking.interrupt())
        return await unlocking.entry

    async def lock(self) -> None:
        """Forget the PIN and close everything; nothing opens it again before `unlock`."""
        self._locks += 1
        self._lock(
            Event.LOCK,
            Locked(
                f"the store {self.config.name} is locked",
                hint=f"dpop-agent unlock {self.config.name}",
            ),
        )
        log.info("store %s is locked", self.config.name)
        await self._end_process()

    def look_idle(self, *, lock_after_s: float | None, release_after_s: float | None) -> None:
        """Lock or release a store that nobody used for so long."""
        idle_s = self._loop.time() - self._idle_since
        if self._state not in OPEN or self._work.is_wanted:
            return
        if lock_after_s is not None and idle_s >= lock_after_s:
            log.info("store %s was idle for %d s", self.config.name, idle_s)
            self._locking = self._loop.create_task(self.lock())
        elif (
            release_after_s is not None
            and idle_s >= release_after_s
            and self._state is not State.RELEASED
        ):
            self._in_passing("release")
            self._become(Event.RELEASE)
            log.info("store %s was idle for %d s and is released", self.config.name, idle_s)

    async def started(self) -> None:
        """Wait until a start has come to its end, good or bad."""
        if self._opening is not None:
            await asyncio.wait([self._opening])

    async def close(
        self, why: DPoPAgentError | None = None, *, successor: Signer | None = None
    ) -> None:
        """End the process after what it is doing; the rest is the successor's, or fails.

        `why` is the error of what fails, if the store isn't closed by itself.
        """
        self._become(Event.CLOSE)
        if self._tick is not None:
            self._tick.cancel()
        if successor is not None:
            for job in self._work.hand_over():
                successor.submit(job)
        self._work.fail_all(why or self._was_closed())
        await self._end_process()

    # Its state

    def _become(self, event: Event) -> None:
        self._state = after(self._state, event)

    def _lock(self, event: Event, error: Locked) -> None:
        self._become(event)
        self.error = error
        self._work.fail_all(error)

    def _wants_pin(self) -> Locked:
        return Locked(
            f"the store {self.config.name} wants its PIN",
            hint=f"dpop-agent unlock {self.config.name}",
        )

    def _require_not_closed(self) -> None:
        if self._state is State.CLOSED:
            raise self._was_closed()

    def _was_closed(self) -> SignerFailed:
        return SignerFailed(f"the store {self.config.name} was closed", hint="try again")

    def _refusal(self) -> DPoPAgentError | None:
        """The error that holds until the next try, if it isn't time for one yet."""
        if self.error is None:
            return None
        if self._state is not State.DOWN or isinstance(self.error, PinRefused):
            return self.error
        wait_s = self._back_off.left_s(self._loop.time())
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

    # Start and end of the process

    async def _open(self, unlocking: Unlocking | None, *, attended: bool) -> None:
        try:
            place = await self._opened(unlocking, attended=attended)
            self._require_process()
        except OSError as e:
            error: DPoPAgentError = SignerFailed(
                f"no signer process could be started ({e.strerror})"
            )
        except DPoPAgentError as e:
            error = e
        except Exception:
            log.exception("unexpected error while opening the store %s", self.config.name)
            error = SignerFailed("the agent met an unexpected error", hint="see its log")
        else:
            self._is_open(place)
            if unlocking is not None:
                # Now, so that whoever typed finds the store open.
                self._in_passing("tell")
            self._on_ready(self)
            self._pump()
            return
        if unlocking is not None and not unlocking.entry.done():
            unlocking.entry.set_exception(error)
        still_locked = unlocking is not None and self._prompts
        self._become(Event.WANT_PIN if still_locked else Event.FAILED)
        self._failed(error)

    def _is_open(self, place: dict[str, Any]) -> None:
        self._become(Event.OPENED)
        self._opening, self.error, self.place = None, None, place
        self._opened_at = self._idle_since = self._loop.time()
        named = [repr(place[name]) for name in ("label", "serial") if place.get(name)]
        log.info("store %s is open: %s", self.config.name, ", serial ".join(named))

    async def _opened(self, unlocking: Unlocking | None, *, attended: bool) -> dict[str, Any]:
        opens = open_frame(self.config, lock_file=self._lock_file, attended=attended)
        listen = {} if unlocking is None else {"op": "listen", "folder": unlocking.folder}
        async with at_most(APART_S, self._starting):
            self._process = await process.start(
                self._spawn,
                self.config.name,
                self.config.env,
                on_frame=self._answered,
                on_end=self._died,
            )
            first = self._begin(START_TIMEOUT_S, opens | listen)
            await asyncio.wait([first], timeout=APART_S)
        found = _result(await first)
        if unlocking is None:
            return found
        if found["path"] is not None:
            require_secret_socket(found["path"], folder=unlocking.folder)
        self._pin_path = found["path"]
        unlocking.entry.set_result(PinEntry(found["path"], found["pad"]))
        if self._pin_path is None:
            return _result(await self._begin(START_TIMEOUT_S, opens))
        try:
            return _result(await self._begin(UNLOCK_TIMEOUT_S, opens))
        finally:
            self._unlink_pin_socket()

    def _unlink_pin_socket(self) -> None:
        """The signer does so itself, if it lives to."""
        path, self._pin_path = self._pin_path, None
        if path is not None:
            with suppress(OSError):
                os.unlink(path)

    def _require_process(self) -> None:
        """Let pass whose process didn't end meanwhile."""
        if self._process is None:
            raise SignerFailed(f"the signer of the store {self.config.name} ended at its start")

    def _begin(self, limit_s: float, members: dict[str, Any]) -> asyncio.Future[Outcome]:
        """One of the operations that make a signer ready; nothing else is under way."""
        self._require_process()
        answered: asyncio.Future[Outcome] = self._loop.create_future()
        job = Job(
            _AGENTS_OWN,
            dict,
            lambda what: None if answered.done() else answered.set_result(what),
            deadline=self._loop.time() + limit_s,
            limit_s=limit_s,
            again=False,
        )
        self._send(job, members)
        return answered

    def _failed(self, error: DPoPAgentError) -> None:
        """No store for now: whoever waits is told, and the next try waits."""
        self._opening = None
        if self._process is not None:
            self._process.close()
        if self.error is None or self.error.message != error.message:
            log.warning("store %s can't be used: %s", self.config.name, error)
        self.error = error
        if self._state is State.LOCKED and not isinstance(error, Locked):
            self.error = Locked(  # it opens by nothing but a PIN
                f"the store {self.config.name} wants its PIN, and {error.message}",
                hint=f"{error.hint}; then: dpop-agent unlock {self.config.name}",
            )
        self._back_off.failed(self._loop.time(), at_least_s=(error.retry_after_ms or 0) / 1000)
        self._work.fail_waiting(error)

    async def _end_process(self) -> None:
        # A login that is cut short costs a PIN its next try.
        within_s = END_TIMEOUT_S if self._opening is None else LOGIN_END_S
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
            self._opening = None
        ending, self._process = self._process, None
        for job in self._work.take_in_hand():
            job.finish(self.error or SignerFailed(f"the store {self.config.name} was closed"))
        self._unlink_pin_socket()
        if ending is not None:
            ending.close()
            await asyncio.to_thread(ending.reap, within_s)

    def _died(self, ended: SignerProcess) -> None:
        """A process is gone: repeat what can be repeated, with a new one."""
        self._loop.run_in_executor(None, ended.reap)
        if ended is not self._process:
            self._on_end()
            return
        self._process = None
        lost = self._work.take_in_hand()
        if self._state in OPEN or self._state is State.FAILING:
            self._lost(lost)
        else:
            self._fell_over(lost)
        self._on_end()

    def _fell_over(self, jobs: list[Job]) -> None:
        """What a process had in its hands that ended before its store was open."""
        for job in jobs:
            job.finish(
                SignerFailed(
                    f"the signer of the store {self.config.name} ended in the middle of its work",
                    hint="its module may have crashed: see the store's module, module_args and env",
                    retry="now",
                )
            )

    def _lost(self, jobs: list[Job]) -> None:
        """What an open store's process had in its hands when it ended."""
        error = SignerFailed(
            f"the signer of the store {self.config.name} ended in the middle of its work",
            hint="see the agent's log, and: dpop-agent status",
            retry="now",
        )
        log.warning("signer of store %s ended", self.config.name)
        if self._prompts:  # the PIN went with the process
            locked = self._wants_pin()
            self._lock(Event.WANT_PIN, locked)
            for job in jobs:
                job.finish(locked)
            return
        self._become(Event.DIED)
        for job in reversed(jobs):
            if not self._work.again(job):
                job.finish(error)
        if self._back_off and self._back_off.left_s(self._loop.time()) > 0:
            self._failed(error)
        else:
            self._back_off.failed(self._loop.time())
            self.start()

    # Frames

    def _pump(self) -> None:
        while self._state in OPEN:
            job = self._work.next_job(monotonic())
            if job is None:
                break
            self._give(job)
        self._watch_deadlines()

    def _give(self, job: Job) -> None:
        try:
            what = job.make()
        except DPoPAgentError as e:
            job.finish(e)
        except Exception:
            log.exception("unexpected error while making a frame for %s", self.config.name)
            job.finish(SignerFailed("the agent met an unexpected error", hint="see its log"))
        else:
            self._send(job, what)

    def _in_passing(self, op: str) -> None:
        """An operation whose outcome nobody waits for."""
        deadline = self._loop.time() + SIGN_TIMEOUT_S
        job = Job(_AGENTS_OWN, dict, lambda _: None, deadline=deadline, again=False)
        self._send(job, {"op": op})

    def _send(self, job: Job, what: dict[str, Any] | bytes) -> None:
        assert self._process is not None
        if self._state is State.RELEASED:
            self._become(Event.USE)
        if job.form is None:
            job.form = result_form(what)
        self._process.send(self._work.sent(job, monotonic()), what)
        self._watch_deadlines()

    def _answered(self, sender: SignerProcess, answer: dict[str, Any] | Signed) -> None:
        """A frame from the signer.

        Raises:
            Malformed: it answers nothing that was asked.
        """
        if sender is not self._process:
            return
        now = monotonic()
        number = answer.id if isinstance(answer, Signed) else answer.get("id")
        found = self._work.answered(number, now) if type(number) is int else None
        if found is None:
            raise Malformed("a frame answers nothing")
        job, took_s = found
        assert job.form is not None
        try:
            what = outcome(answer, job.form)
        except Malformed:
            job.finish(
                SignerFailed(
                    f"the signer of the store {self.config.name} gave an answer that makes no sense"
                )
            )
            raise
        if self._state is not State.RELEASED and job.owner != LOOKING:
            self._idle_since = now
        if not isinstance(answer, Signed) and answer.get("broken") and self._state in OPEN:
            self._become(Event.BREAK)
        if not isinstance(what, DPoPAgentError):
            if job.owner != LOOKING:
                self._work.succeeded(took_s)
            if now - self._opened_at > MAX_BACK_OFF_S:
                self._back_off.over()  # it lives; opening alone proves nothing
        elif self._state is State.FAILING and self._work.again(job):
            return  # the process ends now; a new one looks whether it is as bad
        job.finish(what)
        self._pump()

    # Deadlines

    def _watch_deadlines(self) -> None:
        if self._tick is None and self._work and self._state is not State.CLOSED:
            self._tick = self._loop.call_later(TICK_S, self._look)

    def _look(self) -> None:
        assert self._tick is not None
        now = self._loop.time()
        self._work.blocked(now - self._tick.when(), now)
        # In each turn of the loop reads come before timers: what it has said by now is heard first.
        self._tick = self._loop.call_later(0, self._judge, now)

    def _judge(self, now: float) -> None:
        self._tick = None
        hangs = self._work.look(now)
        if hangs is not None and self._process is not None:
            log.warning(
                "signer of store %s didn't answer for %g s and is replaced",
                self.config.name,
                hangs.limit_s,
            )
            self._process.kill()
        self._pump()


class Signers(dict[str, Signer]):
    """Every store's signer, by the name of its store."""

    def named(self, store: str) -> Signer:
        """A store's signer.

        Raises:
            StoreUnknown: the configuration doesn't have it.
        """
        signer = self.get(store)
        if signer is None:
            raise StoreUnknown(f"there is no store {store} in the configuration")
        return signer


def _result(what: Outcome) -> dict[str, Any]:
    if isinstance(what, DPoPAgentError):
        raise what
    assert isinstance(what, dict)
    return what
