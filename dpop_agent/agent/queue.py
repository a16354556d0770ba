"""What waits for a signer, fair between connections. Pure: knows no clock and no process."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any

from dpop_agent.errors import DPoPAgentError
from dpop_agent.protocol import TOUCH_TIMEOUT_S

SIGN_TIMEOUT_S = 10.0
"""Seconds for one signature: over ten times the slowest token heard of (0.7 s)."""

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
        again: whether it may be repeated after a signer died with it.
        on_touch: called when it waits for a touch; None if it can't.
        untouched: whether it waits for one now.
    """

    __slots__ = (
        "again",
        "deadline",
        "done",
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
        on_touch: Callable[[], None] | None = None,
    ) -> None:
        self.owner = owner
        self.make = make
        self.done: Done | None = done
        self.deadline = deadline
        self.limit_s = TOUCH_TIMEOUT_S if on_touch else limit_s
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
