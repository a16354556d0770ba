"""What waits for a signer, fair between connections. Pure: knows no clock and no process."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any

from dpop_agent.agent.frames import Form
from dpop_agent.errors import DPoPAgentError, Timeout
from dpop_agent.protocol import TOUCH_TIMEOUT_S

SIGN_TIMEOUT_S = 10.0
"""Seconds for one signature: over ten times the slowest token heard of (0.7 s)."""

TOUCH_AFTER_S = 0.3
"""Seconds after which a signature that may wait for a touch is taken for one that does."""

WINDOW = 4
"""Frames in a signer's hands at once, so that it never waits for the agent."""

FAST_S = 0.02
"""Seconds a signature: a slower store gets one frame at a time, for the age of their `iat`."""

MAX_QUEUE = 4096
"""Requests waiting for one signer: seconds of work for a fast store."""

Done = Callable[[dict[str, Any] | DPoPAgentError], None]


class Job:
    """One frame to be sent and answered.

    Attributes:
        owner: the connection that waits for it; when it goes, what isn't sent yet is dropped.
        make: builds the frame's members, right before it is sent.
        done: called once, with the signer's result or the error.
        deadline: when nobody waits any more, in the event loop's time.
        limit_s: seconds that the signer may take; where it may wait for a touch, as many as that
            has.
        form: what a result has to look like; None for what its operation's has.
        again: whether it may be repeated after a signer died with it.
        on_touch: called when it waits for a touch; None if it can't.
        untouched: whether it waits for one now.
    """

    __slots__ = (
        "again",
        "deadline",
        "done",
        "form",
        "limit_s",
        "make",
        "on_touch",
        "owner",
        "sent",
        "untouched",
    )

    def __init__(
        self,
        owner: Hashable,
        make: Callable[[], dict[str, Any]],
        done: Done,
        *,
        deadline: float,
        again: bool,
        limit_s: float = SIGN_TIMEOUT_S,
        form: Form | None = None,
        on_touch: Callable[[], None] | None = None,
    ) -> None:
        self.owner = owner
        self.make = make
        self.done: Done | None = done
        self.deadline = deadline
        self.limit_s = TOUCH_TIMEOUT_S if on_touch else limit_s
        self.form = form
        self.again = again
        self.on_touch = on_touch
        self.untouched = False
        self.sent = 0.0

    def finish(self, what: dict[str, Any] | DPoPAgentError) -> None:
        """Tell whoever waits, once."""
        done, self.done = self.done, None
        if done is not None:
            done(what)


class FairQueue:
    """Jobs by owner; owners take turns."""

    def __init__(self) -> None:
        self._by_owner: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, job: Job) -> None:
        self._by_owner.setdefault(job.owner, deque()).append(job)
        self._size += 1

    def push_front(self, job: Job) -> None:
        self._by_owner.setdefault(job.owner, deque()).appendleft(job)
        self._by_owner.move_to_end(job.owner, last=False)
        self._size += 1

    def pop(self) -> Job:
        owner, jobs = next(iter(self._by_owner.items()))
        job = jobs.popleft()
        self._size -= 1
        if jobs:
            self._by_owner.move_to_end(owner)
        else:
            del self._by_owner[owner]
        return job

    def drop(self, owner: Hashable) -> None:
        self._size -= len(self._by_owner.pop(owner, ()))

    def take_all(self) -> list[Job]:
        jobs = [job for waiting in self._by_owner.values() for job in waiting]
        self._by_owner.clear()
        self._size = 0
        return jobs

    def take_late(self, now: float) -> list[Job]:
        late = []
        for owner, jobs in list(self._by_owner.items()):
            if not any(job.deadline <= now for job in jobs):
                continue
            late += [job for job in jobs if job.deadline <= now]
            kept = deque(job for job in jobs if job.deadline > now)
            self._size -= len(jobs) - len(kept)
            if kept:
                self._by_owner[owner] = kept
            else:
                del self._by_owner[owner]
        return late


class Work:
    """What waits for one signer, and what is in its hands.

    A signer answers in order, so the deadline of the first frame in its hands tells whether it
    hangs. Behind a signature that waits for a touch everything waits.

    Args:
        store: its name, for people.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._waiting = FairQueue()
        self._in_hand: OrderedDict[int, Job] = OrderedDict()
        self._next_id = 1
        self._sign_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting or self._in_hand)

    @property
    def is_full(self) -> bool:
        """Whether no more may wait."""
        return len(self._waiting) >= MAX_QUEUE

    def push(self, job: Job) -> None:
        """It waits for its turn."""
        self._waiting.push(job)

    def again(self, job: Job) -> bool:
        """Whether it is repeated: once, before the others, and only if somebody waits for it."""
        if not job.again or job.done is None:
            return False
        job.again = False
        self._waiting.push_front(job)
        return True

    def drop(self, owner: Hashable) -> None:
        """Forget what a vanished connection waits for; what is signed for it is nobody's."""
        self._waiting.drop(owner)
        for job in self._in_hand.values():
            if job.owner is owner:
                job.done = None

    def next_job(self, now: float) -> Job | None:
        """Whose turn it is, if the signer may have another frame; the late ones are told."""
        while self._waiting and len(self._in_hand) < self._window():
            job = self._waiting.pop()
            if job.deadline > now:
                return job
            job.finish(self._late(job))
        return None

    def sent(self, job: Job, now: float) -> int:
        """It is in the signer's hands, under the id that is returned."""
        self._next_id += 1
        self._in_hand[self._next_id] = job
        job.sent, job.untouched = now, False
        return self._next_id

    def answered(self, frame_id: int, now: float) -> tuple[Job, float] | None:
        """The job that a frame answers, and the seconds that it took; None if there is none."""
        job = self._in_hand.pop(frame_id, None)
        if job is None:
            return None
        took_s = now - job.sent
        if self._in_hand:
            next(iter(self._in_hand.values())).sent = now  # its turn begins now
        return job, took_s

    def succeeded(self, took_s: float) -> None:
        """The signer works, at that speed."""
        self._sign_s += (took_s - self._sign_s) / 8

    def take_in_hand(self) -> list[Job]:
        """What the signer had when it ended."""
        jobs = list(self._in_hand.values())
        self._in_hand.clear()
        return jobs

    def hand_over(self) -> list[Job]:
        """What another signer can do as well, first what was sent already."""
        jobs = [job for job in self._in_hand.values() if job.again and job.done is not None]
        self._in_hand = OrderedDict(
            (number, job) for number, job in self._in_hand.items() if job not in jobs
        )
        return jobs + self._waiting.take_all()

    def fail_all(self, error: DPoPAgentError) -> None:
        """Nobody waits any more, neither for what is in the signer's hands."""
        for job in self._in_hand.values():
            job.again = False
            job.finish(error)
        self.fail_waiting(error)

    def fail_waiting(self, error: DPoPAgentError) -> None:
        """Nothing waits any more."""
        for job in self._waiting.take_all():
            job.finish(error)

    def look(self, now: float) -> Job | None:
        """Announce what waits for a touch, tell the late ones; the job that the signer hangs in."""
        first = next(iter(self._in_hand.values()), None)
        if first is not None:
            _look_for_a_touch(first, now)
        for job in self._waiting.take_late(now):
            job.finish(self._late(job))
        for job in self._in_hand.values():
            if job.deadline <= now:
                job.finish(self._late(job))  # its answer, when it comes, is nobody's
        if first is None or now - first.sent <= first.limit_s:
            return None
        first.again = False
        first.finish(self._late(first))
        return first

    def _window(self) -> int:
        # Behind a touch a frame may wait until nobody wants it any more, and ask for another touch.
        if self._sign_s >= FAST_S or any(job.on_touch for job in self._in_hand.values()):
            return 1
        return WINDOW

    def _late(self, job: Job) -> Timeout:
        first = next(iter(self._in_hand.values()), None)
        if first is None or not first.untouched:
            return Timeout(
                f"the store {self._store} didn't answer in time",
                hint="see: dpop-agent status; timeout_ms is how long you wait",
            )
        if job is first:
            return Timeout(
                f"nobody touched the card of the store {self._store} within {job.limit_s:g} s",
                hint="try again, and touch it",
                retry="no",
            )
        return Timeout(
            f"the store {self._store} waits until somebody touches its card, for another signature",
            hint="touch the card, and try again",
            retry="later",
        )


def _look_for_a_touch(job: Job, now: float) -> None:
    """A signature that takes long waits for one, and has a deadline of its own."""
    if job.on_touch is None or job.untouched or now - job.sent < TOUCH_AFTER_S:
        return
    job.untouched = True
    job.deadline = max(job.deadline, job.sent + job.limit_s)
    if job.done is not None:
        job.on_touch()
