"""Signers as the agent sees them: what a store's state lets happen (`states` has the table).

Whoever waits is told in any case: a job is answered by the signer, repeated once by another, or
finished with an error, at the latest at its deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from dpop_agent.agent.frames import Outcome
from dpop_agent.agent.hosts import Host
from dpop_agent.agent.opening import (
    MAX_BACK_OFF_S,
    BackOff,
    PinEntry,
    Unlocking,
    why_not_open,
)
from dpop_agent.agent.process import END_TIMEOUT_S, Spawn
from dpop_agent.agent.queue import (
    AGENTS_OWN,
    LOOKING,
    SIGN_TIMEOUT_S,
    CallbackJob,
    Flow,
    Job,
    Work,
)
from dpop_agent.agent.siblings import Siblings
from dpop_agent.agent.starting import START_TIMEOUT_S, Starting
from dpop_agent.agent.states import OPEN, REFUSING, Event, State, after
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

GENERATE_TIMEOUT_S = 60.0
"""Seconds for one key pair: RSA on a card or TPM takes up to half a minute."""

LOGIN_END_S = 8.0
"""Seconds that a signer has to end whose store is being opened: slow cards log in for 4."""

TICK_S = 0.1
"""Seconds between looks at deadlines."""

_CHANGING = frozenset({"generate", "destroy"})
"""Operations after which a store's other processes look anew for what they have found there."""


class Signer:
    """A store as the agent has it: the processes that host it, and the work for it."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        lock_file: str,
        starting: asyncio.Lock,
        max_waiting: int,
        on_ready: Callable[[Signer], None],
        on_refused: Callable[[str, Signer, DPoPAgentError], None],
        on_end: Callable[[], None],
        spawn: Spawn,
    ) -> None:
        """Nothing is started yet.

        Args:
            config: the store.
            lock_file: keeps two signers of one store apart, those of a killed agent included.
            starting: shared by the stores of one module: initialised by two processes at once,
                it can miss tokens.
            max_waiting: how many requests may wait for it.
            on_ready: called whenever the store was opened.
            on_refused: called where no answer tells of a PIN that didn't open it: `unlock` and why
                if it was to be typed, `store.open` if it came from where the configuration says.
            on_end: called whenever a process of it ended.
            spawn: how its processes come into being.
        """
        self.config = config
        self.place: dict[str, Any] = {}
        self.error: DPoPAgentError | None = None
        self.max_waiting = max_waiting
        self._on_ready = on_ready
        self._on_refused = on_refused
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._state = State.DOWN
        self._opening: asyncio.Task[None] | None = None
        self._work: Work[Host] = Work(config.name)
        self._siblings = Siblings(
            config.name, self._work, wanted=config.signers, join=self._open_beside
        )
        self._starting = Starting(
            config,
            lock_file=lock_file,
            starting=starting,
            spawn=spawn,
            on_sent=self._watch_deadlines,
        )
        self._back_off = BackOff()
        self._idle_since = self._loop.time()
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
        """The process that hosts the open store, if one does; of several the first."""
        return next(iter(self.pids), None)

    @property
    def pids(self) -> list[int]:
        """The processes that host the open store, the first before those beside it."""
        if self._state not in OPEN:
            return []
        return [host.pid for host in self._work.taking if host.pid is not None]

    @property
    def fewer(self) -> DPoPAgentError | None:
        """Why the open store has fewer processes than its configuration wants, if that is known."""
        if self._state not in OPEN or len(self._work.taking) >= self.config.signers:
            return None
        return self._siblings.error

    @property
    def locks(self) -> int:
        """How often it was locked."""
        return self._locks

    @property
    def has_process(self) -> bool:
        """Whether a process of it runs, its store open or not."""
        return bool(self._work.hands)

    @property
    def may_be_looked_at(self) -> bool:
        """Whether it can list what it has, and nobody locked it, or was left a card by it."""
        return self.config.module is not None and (
            self._state is State.READY or self.state in ("absent", "failed")
        )

    @property
    def is_held_open(self) -> bool:
        """Whether it signs without being opened first: it is neither locked nor left to others."""
        return self._state is State.READY

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for it now, or has it sign."""
        return self._work.is_wanted

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
        if self._state in OPEN and job.owner != LOOKING:
            host = self._work.taken_by(job)
            if host is not None:
                self._give(job, host)
                return
        if job.owner not in (LOOKING, AGENTS_OWN):
            busy = self._work.full(self.max_waiting, job.owner)
            if busy is not None:
                job.finish(busy)
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

        changes = op in _CHANGING or members.get("anew", False)

        def done(what: Outcome) -> None:
            if changes:
                self._tell_of_a_change()
            if future.done():
                return
            if isinstance(what, DPoPAgentError):
                future.set_exception(what)
            else:
                future.set_result({"signature": what} if isinstance(what, bytes) else what)

        self.submit(
            CallbackJob(
                LOOKING if looking else AGENTS_OWN,
                lambda: op if isinstance(op, bytes) else {"op": op, **members},
                done,
                deadline=inf if looking else self._loop.time() + START_TIMEOUT_S + limit_s,
                again=again,
                limit_s=limit_s,
                on_touch=on_touch,
                only_first=not isinstance(op, bytes),
            )
        )
        return await future

    def _tell_of_a_change(self) -> None:
        """Have each process look anew for its keys where another may have changed them."""
        if self.config.signers > 1 and self._state in OPEN:
            for host in self._work.hands:
                host.pass_on("look_anew")
            self._watch_deadlines()

    def drop(self, owner: Flow) -> None:
        """Forget what a vanished connection waits for; what the store signs for it is nobody's."""
        self._work.drop(owner)

    def start(self) -> None:
        """Start the process, unless one runs or starts; not if locked, nor after a refused PIN."""
        if not isinstance(self.error, PinRefused):
            self._start(attended=False)

    def _start(self, *, attended: bool) -> None:
        if self._state is State.DOWN and not self.has_process:
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
            if self._starting.types_pin:
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

    def look_idle(self, *, lock_after_s: float | None, release_after_s: float | None) -> bool:
        """Lock or release a store that nobody used for so long; whether it is locked now."""
        idle_s = self._loop.time() - self._idle_since
        if self._state not in OPEN or self._work.is_wanted:
            return False
        if lock_after_s is not None and idle_s >= lock_after_s:
            log.info("store %s was idle for %d s", self.config.name, idle_s)
            self._locking = self._loop.create_task(self.lock())
            return True
        if (
            release_after_s is not None
            and idle_s >= release_after_s
            and self._state is not State.RELEASED
        ):
            for host in self._work.taking:
                host.pass_on("release")
            self._become(Event.RELEASE)
            self._watch_deadlines()
            log.info("store %s was idle for %d s and is released", self.config.name, idle_s)
        return False

    async def started(self) -> None:
        """Wait until a start has come to its end, good or bad."""
        if self._opening is not None:
            await asyncio.wait([self._opening])

    async def close(
        self, why: DPoPAgentError | None = None, *, successor: Signer | None = None
    ) -> None:
        """End the processes after what they are doing; the rest is the successor's, or fails.

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

    # Start and end of the processes

    async def _open(self, unlocking: Unlocking | None, *, attended: bool) -> None:
        host = self._new_host()
        try:
            place = await self._starting.first(host, unlocking, attended=attended)
            host.require_there()
        except Exception as e:
            error = why_not_open(e, self.config.name)
        else:
            self._is_open(host, place)
            if unlocking is not None:
                # Now, so that whoever typed finds the store open.
                host.pass_on("tell")
            self._on_ready(self)
            self._pump()
            self._siblings.begin()
            return
        if unlocking is not None and unlocking.is_typed:
            self._on_refused("unlock", self, error)
        elif not attended and isinstance(error, PinRefused):
            self._on_refused("store.open", self, error)
        if unlocking is not None and not unlocking.entry.done():
            unlocking.entry.set_exception(error)
        still_locked = unlocking is not None and self._prompts
        self._become(Event.WANT_PIN if still_locked else Event.FAILED)
        self._failed(error)

    def _is_open(self, host: Host, place: dict[str, Any]) -> None:
        self._become(Event.OPENED)
        self._opening, self.error, self.place = None, None, place
        self._idle_since = self._loop.time()
        self._take_from(host, place)
        named = [repr(place[name]) for name in ("label", "serial") if place.get(name)]
        log.info("store %s is open: %s", self.config.name, ", serial ".join(named))

    def _new_host(self) -> Host:
        return Host(self.config.name, self._work, self)

    def _take_from(self, host: Host, place: dict[str, Any]) -> None:
        """Give it frames from now on: its store is open."""
        host.pid, host.opened_at = place["pid"], self._loop.time()
        self._work.take(host)

    async def _open_beside(self) -> None:
        """Have one more process host the open store, which another hands its PIN.

        Raises:
            DPoPAgentError, OSError: there is none.
        """
        giver = min(self._work.taking, key=lambda host: len(host.jobs))
        host = self._new_host()
        try:
            place = await self._starting.beside(host, giver)
            host.require_there()
        except Exception:
            self._fell_over(self._give_up(host))
            raise
        self._take_from(host, place)
        if self._state is State.RELEASED:
            host.pass_on("release")
        self._pump()

    def _give_up(self, host: Host) -> list[Job]:
        """Let it end, whenever that is; what it had in its hands."""
        host.close()
        host.reap()
        return self._work.end(host)

    def _failed(self, error: DPoPAgentError) -> None:
        """No store for now: whoever waits is told, and the next try waits."""
        self._opening = None
        for host in self._work.hands:
            host.close()
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
        logs_in = self._opening is not None or self._siblings.is_joining
        within_s = LOGIN_END_S if logs_in else END_TIMEOUT_S
        await self._siblings.end()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
            self._opening = None
        ending = list(self._work.hands)
        error = self.error or SignerFailed(f"the store {self.config.name} was closed")
        for host in ending:
            for job in self._work.end(host):
                job.finish(error)
        self._starting.unlink_pin_socket()
        for host in ending:
            host.close()
        reaping = [host.reap(within_s) for host in ending]
        await asyncio.gather(*(asyncio.wrap_future(one) for one in reaping if one is not None))

    def died(self, host: Host) -> None:
        """A process is gone: repeat what can be repeated, with another."""
        host.reap()
        if not host.is_there:
            self._on_end()
            return
        lost = self._work.end(host)
        is_open = self._state in OPEN or self._state is State.FAILING
        if host.pid is None or not is_open:
            self._fell_over(lost)
        elif self._work.taking:
            self._lost_one(host, lost)
        else:
            self._lost(lost)
        self._on_end()

    def _fell_over(self, jobs: list[Job]) -> None:
        """What a process had in its hands that ended before its store was open."""
        for job in jobs:
            job.finish(
                self._ended_at_work(
                    "its module may have crashed: see the store's module, module_args and env"
                )
            )

    def _ended_at_work(
        self, hint: str = "see the agent's log, and: dpop-agent status"
    ) -> SignerFailed:
        return SignerFailed(
            f"the signer of the store {self.config.name} ended in the middle of its work",
            hint=hint,
            retry="now",
        )

    def _lost_one(self, host: Host, jobs: list[Job]) -> None:
        """What one of several processes had in its hands when it ended: others have it now."""
        log.warning("one signer of store %s ended, others go on", self.config.name)
        self._repeat(jobs)
        self._siblings.lost(host)
        self._pump()

    def _repeat(self, jobs: list[Job]) -> None:
        """Have done again what can be, before all else."""
        for job in reversed(jobs):
            if not self._work.again(job):
                job.finish(self._ended_at_work())

    def _lost(self, jobs: list[Job]) -> None:
        """What the last of an open store's processes had in its hands when it ended."""
        log.warning("signer of store %s ended", self.config.name)
        for host in list(self._work.hands):  # they end too, or wait for the PIN in vain
            jobs += self._give_up(host)
        if self._prompts:  # the PIN went with the process
            locked = self._wants_pin()
            self._lock(Event.WANT_PIN, locked)
            for job in jobs:
                job.finish(locked)
            return
        self._become(Event.DIED)
        self._repeat(jobs)
        if self._back_off and self._back_off.left_s(self._loop.time()) > 0:
            self._failed(self._ended_at_work())
        else:
            self._back_off.failed(self._loop.time())
            self.start()

    # Frames

    def _pump(self) -> None:
        while self._state in OPEN:
            found = self._work.next_job(monotonic())
            if found is None:
                break
            self._give(*found)
        if self._tick is None:
            self._watch_deadlines()

    def _give(self, job: Job, host: Host) -> None:
        try:
            what = job.make()
        except DPoPAgentError as e:
            job.finish(e)
        except Exception:
            log.exception("unexpected error while making a frame for %s", self.config.name)
            job.finish(SignerFailed("the agent met an unexpected error", hint="see its log"))
        else:
            if self._state is State.RELEASED:
                self._become(Event.USE)
            host.send(job, what)
            if self._tick is None:
                self._watch_deadlines()

    def answered(
        self,
        host: Host,
        job: Job,
        what: Outcome,
        *,
        took_s: float,
        now: float,
        broken: bool,
    ) -> None:
        """A job has its outcome; `broken` says that its process ends now."""
        if self._state is not State.RELEASED and job.owner != LOOKING:
            self._idle_since = now
        if broken and host in self._work.taking:
            host.is_failing = True
            self._work.take_no_more(host)
            if not self._work.taking:
                self._become(Event.BREAK)
        if not isinstance(what, DPoPAgentError):
            if job.owner != LOOKING:
                host.succeeded(took_s)
            if self._back_off and now - host.opened_at > MAX_BACK_OFF_S:
                self._back_off.over()  # it lives; opening alone proves nothing
        elif host.is_failing and self._work.again(job):
            return  # its process ends now; another looks whether it is as bad
        job.finish(what)

    def heard(self) -> None:
        """The outcomes that came together are all told: there may be room for more frames."""
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
        for host, hangs in self._work.look(now):
            log.warning(
                "signer of store %s didn't answer for %g s and is replaced",
                self.config.name,
                hangs.limit_s,
            )
            host.kill()
        self._pump()


class Signers(dict[str, Signer]):
    """Every store's signer, by the name of its store.

    Raises:
        StoreUnknown: the configuration doesn't have the one that is asked for.
    """

    def __missing__(self, store: str) -> Signer:
        raise StoreUnknown(f"there is no store {store} in the configuration")
