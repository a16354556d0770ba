"""One process that hosts a store: what it is sent, what it answers, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from time import monotonic
from typing import Any, Protocol

from dpop_agent.agent import process
from dpop_agent.agent.frames import Outcome, outcome, result_form
from dpop_agent.agent.process import SignerProcess, Spawn
from dpop_agent.agent.queue import AGENTS_OWN, SIGN_TIMEOUT_S, CallbackJob, Hands, Job, Work
from dpop_agent.channel import Malformed, Signed
from dpop_agent.errors import SignerFailed


class Owner(Protocol):
    """Who is told what becomes of the frames."""

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
        """A job has its outcome; `broken` says that the process ends now. `heard` follows."""

    def heard(self) -> None:
        """The outcomes that came together are all told: there may be room for more frames."""

    def died(self, host: Host) -> None:
        """Its process is gone."""


class Host(Hands):
    """One process that hosts a store, or will.

    Attributes:
        pid: the process, once its store is open.
        opened_at: when that was, in the event loop's time.
        is_failing: it said that it can't be trusted any more, and is about to end.
    """

    def __init__(self, store: str, work: Work[Host], owner: Owner) -> None:
        """Nothing is started yet.

        Args:
            store: its store's name, for people.
            work: where it takes its frames from.
            owner: is told what becomes of them.
        """
        super().__init__()
        self.pid: int | None = None
        self.opened_at = 0.0
        self.is_failing = False
        self._store = store
        self._work = work
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._process: SignerProcess | None = None

    async def start(
        self, spawn: Spawn, env: Mapping[str, str], *, heir_of: int | None = None
    ) -> None:
        """Have the process, whose store isn't open yet.

        Args:
            spawn: how it comes into being.
            env: what it has in its environment beside the agent's.
            heir_of: the pid of the one that will hand it the store's PIN.

        Raises:
            OSError: none can be started.
        """
        self._work.begin(self)
        try:
            self._process = await process.start(
                spawn,
                self._store,
                env,
                on_frame=self._heard,
                on_heard=self._owner.heard,
                on_end=lambda: self._owner.died(self),
                heir_of=heir_of,
            )
        except BaseException:
            self._work.end(self)
            raise

    @property
    def is_there(self) -> bool:
        """Whether its process runs, and nobody gave it up."""
        return self in self._work.hands

    def asked(self, limit_s: float, members: Mapping[str, Any]) -> asyncio.Future[Outcome]:
        """One of the operations that make a signer ready; nothing else is under way.

        Raises:
            SignerFailed: the process has ended.
        """
        self.require_there()
        answered: asyncio.Future[Outcome] = self._loop.create_future()
        job = CallbackJob(
            AGENTS_OWN,
            dict,
            lambda what: None if answered.done() else answered.set_result(what),
            deadline=self._loop.time() + limit_s,
            limit_s=limit_s,
            again=False,
        )
        self.send(job, members)
        return answered

    def require_there(self) -> None:
        """Let pass whose process didn't end meanwhile.

        Raises:
            SignerFailed
        """
        if not self.is_there:
            raise SignerFailed(f"the signer of the store {self._store} ended at its start")

    def pass_on(self, op: str) -> None:
        """Send an operation whose outcome nobody waits for, if there is a process for it."""
        if self._process is None or self.is_failing:
            return
        deadline = self._loop.time() + SIGN_TIMEOUT_S
        job = CallbackJob(AGENTS_OWN, dict, lambda _: None, deadline=deadline, again=False)
        self.send(job, {"op": op})

    def send(self, job: Job, what: Mapping[str, Any] | bytes) -> None:
        """Give it a frame; `Owner.answered` follows."""
        assert self._process is not None
        if job.form is None:
            job.form = result_form(what)
        self._process.send(self._work.sent(job, self, monotonic()), what)

    def close(self) -> None:
        """Let it end after what it is doing."""
        if self._process is not None:
            self._process.close()

    def kill(self) -> None:
        """End it, hanging or not; `Owner.died` follows."""
        if self._process is not None:
            self._process.kill()

    def reap(self, within_s: float = process.END_TIMEOUT_S) -> Future[None] | None:
        """Wait in a thread until it has ended; it is killed if it takes longer. None where there is
        no process.
        """
        return None if self._process is None else self._process.reap(within_s)

    def _heard(self, answer: dict[str, Any] | Signed) -> None:
        """A frame from the process.

        Raises:
            Malformed: it answers nothing that was asked.
        """
        if self not in self._work.hands:
            return
        now = monotonic()
        number: Any
        if isinstance(answer, tuple):
            (number, _), broken = answer, False
        else:
            number, broken = answer.get("id"), bool(answer.get("broken"))
        found = self._work.answered(number, self, now) if type(number) is int else None
        if found is None:
            raise Malformed("a frame answers nothing")
        job, took_s = found
        assert job.form is not None
        try:
            what = outcome(answer, job.form)
        except Malformed:
            job.finish(
                SignerFailed(
                    f"the signer of the store {self._store} gave an answer that makes no sense"
                )
            )
            raise
        self._owner.answered(self, job, what, took_s=took_s, now=now, broken=broken)
