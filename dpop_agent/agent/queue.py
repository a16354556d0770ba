"""What waits for a store, fair between clients. Pure: knows no clock and no process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from math import inf
from typing import Any, Generic, TypeVar

from dpop_agent.agent.frames import Form, Outcome
from dpop_agent.errors import Busy, DPoPAgentError, Timeout
from dpop_agent.protocol import TOUCH_TIMEOUT_S

SIGN_TIMEOUT_S = 10.0
"""Seconds for one signature: over ten times the slowest token heard of (0.7 s)."""

TOUCH_AFTER_S = 0.3
"""Seconds after which a signature that may wait for a touch is taken for one that does."""

AHEAD_S = 0.002
"""Seconds of work that a signer has in its hands: what is given to it together costs it
and the agent one turn, and whoever comes next waits so long. A fast one does MAX_WINDOW in a
millisecond; on a busy machine it seems slower, and there a turn costs most."""

MAX_WINDOW = 16
"""Frames in a signer's hands at once, however fast it is."""

MIN_WINDOW = 2
"""Those that it has at least, for the next is to be there while it signs one; and at the most while
some have more waiting than they are given, so that whoever hasn't waits for no more than these."""

FAST_S = 0.1
"""Seconds a signature: a slower store gets one frame at a time, for the age of their `iat` and for
whoever comes next. A card that is quicker has the next one there when it is done: else a hundredth
of its rate goes by."""

Flow = tuple[Hashable, ...]
"""Whose work something is, from the widest to the narrowest: uid, socket, connection."""

AGENTS_OWN: Flow = ("agent",)
"""The agent's own work, such as making keys."""

LOOKING: Flow = ("looking",)
"""The agent's own looks at what a store has: they yield to whoever waits for a signature."""

LOOKING_S = 0.02
"""Seconds between two looks while anybody has something signed: few signatures are behind one, and
it comes to an end under any load."""

LOOKS_APART = 10
"""Times that a look took, for which others have a slow store's signatures before the next."""

MIN_RETRY_MS = 100
"""Milliseconds after which who was refused may try again, at the least; else what half of those
take that wait."""

MAX_ID = 2**32 - 1
"""The largest number of a frame; then they begin anew."""

MAX_ROUNDS = 2
"""Rounds of everybody's that one may wait for its turn while those go before it where nothing
waited: they get about as much as all others together, and starve nobody."""


def socket_part(flow: Flow) -> Flow:
    """Whose uid's and which socket's a connection is."""
    return flow[:-1]


Item = TypeVar("Item")


class Job(ABC):
    """One frame to be sent and answered.

    Attributes:
        owner: who waits for it; when that connection goes, what isn't sent yet is dropped.
        deadline: when nobody waits any more, in the event loop's time.
        limit_s: seconds that the signer may take; where it may wait for a touch, as many as that
            has.
        form: what a result has to look like; None for what its operation's has.
        again: whether it may be repeated after a signer died with it.
        only_first: whether it is for the first of a store's processes; a signature is for any.
        on_touch: called when it waits for a touch; None if it can't.
        untouched: whether it waits for one now.
        is_wanted: whether somebody waits for it.
    """

    __slots__ = (
        "again",
        "deadline",
        "form",
        "is_wanted",
        "limit_s",
        "on_touch",
        "only_first",
        "owner",
        "sent",
        "untouched",
    )

    def __init__(
        self,
        owner: Flow,
        deadline: float,
        *,
        again: bool,
        limit_s: float = SIGN_TIMEOUT_S,
        form: Form | None = None,
        on_touch: Callable[[], None] | None = None,
        only_first: bool = False,
    ) -> None:
        self.owner = owner
        self.deadline = deadline
        self.limit_s = TOUCH_TIMEOUT_S if on_touch else limit_s
        self.form = form
        self.again = again
        self.only_first = only_first or on_touch is not None  # a person touches once at a time
        self.on_touch = on_touch
        self.untouched = False
        self.is_wanted = True
        self.sent = 0.0

    @abstractmethod
    def make(self) -> dict[str, Any] | bytes:
        """What is sent, right before it is: an operation with its members, or, for a signature, the
        key and the signing input.

        Raises:
            DPoPAgentError: it can't be made any more.
        """

    @abstractmethod
    def done(self, what: Outcome) -> None:
        """The signer's result or the error; called once."""

    def finish(self, what: Outcome) -> None:
        """Tell whoever waits, once."""
        if self.is_wanted:
            self.is_wanted = False
            self.done(what)


class CallbackJob(Job):
    """One that says what is sent, and tells what came of it, by calling somebody.

    Args:
        make, done: see `Job`, as the rest.
    """

    __slots__ = ("_done", "_make")

    def __init__(
        self,
        owner: Flow,
        make: Callable[[], dict[str, Any] | bytes],
        done: Callable[[Outcome], None],
        **rest: Any,
    ) -> None:
        super().__init__(owner, **rest)
        self._make = make
        self._done = done

    def make(self) -> dict[str, Any] | bytes:
        return self._make()

    def done(self, what: Outcome) -> None:
        self._done(what)


class _Line(deque[Item]):
    """What waits in one flow."""

    __slots__ = ("flow",)

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow


class _Turns(Generic[Item]):
    """Whose turn it is among flows that begin alike."""

    __slots__ = ("_below", "_count", "_fresh", "_served")

    def __init__(self) -> None:
        # Where nothing waits turns are kept: new ones for each request cost more.
        self._below: dict[Hashable, _Turns[Item] | _Line[Item]] = {}
        self._fresh: deque[Hashable] = deque()
        self._served: deque[tuple[Hashable, int]] = deque()  # and the number of their last turn
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._fresh or self._served)

    def enter(self, line: _Line[Item], *, fresh: bool) -> None:
        """Something waits in a flow where nothing did."""
        turns = self
        *wider, last = line.flow
        for part in wider:
            below = turns._below.get(part)
            if below is None:
                below = turns._below[part] = _Turns()
            assert isinstance(below, _Turns)  # flows of one beginning have one length
            if not (below._fresh or below._served):
                turns._add(part, fresh=fresh)
            turns = below
        turns._below[last] = line
        turns._add(last, fresh=fresh)

    def _add(self, part: Hashable, *, fresh: bool) -> None:
        if fresh:
            self._fresh.append(part)
        else:
            self._served.append((part, self._count))

    def take(self) -> _Line[Item]:
        """Whose turn it is; he goes behind the others, if more than one item waits there."""
        fresh, served = self._fresh, self._served
        if fresh and (
            not served or self._count - served[0][1] < MAX_ROUNDS * (len(fresh) + len(served))
        ):
            part = fresh.popleft()
        else:
            part, _ = served.popleft()
        self._count += 1
        below = self._below[part]
        if isinstance(below, _Line):
            if len(below) > 1:
                served.append((part, self._count))
            else:
                del self._below[part]
            return below
        line = below.take()
        if below._fresh or below._served:
            served.append((part, self._count))
        return line

    def leave(self, flow: Flow, depth: int = 0) -> None:
        """Nothing waits in it any more, though it had no turn."""
        part = flow[depth]
        below = self._below[part]
        if isinstance(below, _Turns):
            below.leave(flow, depth + 1)
            if below:
                return
        else:
            del self._below[part]
        if part in self._fresh:
            self._fresh.remove(part)
        else:
            self._served = deque(served for served in self._served if served[0] != part)

    def forget(self, flow: Flow, depth: int = 0) -> None:
        """It comes no more: keep nothing for its socket and its uid in which nothing waits."""
        below = self._below.get(flow[depth])
        if isinstance(below, _Turns):
            below.forget(flow, depth + 1)
            if not below:
                del self._below[flow[depth]]


class FairQueue(Generic[Item]):
    """What waits, by flow; flows take turns.

    uids do among themselves, then the sockets of each, then the connections of each of those. One
    where nothing waited goes first, as fq_codel's new flows do (RFC 8290 section 4.2), unless
    others have waited MAX_ROUNDS for it.

    Attributes:
        size: how many wait.
    """

    def __init__(self) -> None:
        self.size = 0
        self._by_flow: dict[Flow, _Line[Item]] = {}
        self._turns: _Turns[Item] = _Turns()

    def __contains__(self, flow: Flow) -> bool:
        return flow in self._by_flow

    @property
    def is_backed_up(self) -> bool:
        """Whether in any flow more than one waits."""
        return self.size > len(self._by_flow)

    def is_below_part(self, flow: Flow, most: int) -> bool:
        """Whether nothing of a flow waits, or of its socket less than its part of so much: sockets
        share that equally.
        """
        if flow not in self._by_flow:
            return True
        waiting = Counter[Flow]()
        for other, line in self._by_flow.items():
            waiting[socket_part(other)] += len(line)
        return waiting[socket_part(flow)] < most // len(waiting)

    def push(self, flow: Flow, item: Item, *, fresh: bool = True) -> None:
        """It waits; where nothing else of its flow does, before the others if it is `fresh`."""
        line = self._by_flow.get(flow)
        if line is None:
            line = self._by_flow[flow] = _Line(flow)
            self._turns.enter(line, fresh=fresh)
        line.append(item)
        self.size += 1

    def pop(self) -> Item:
        """What is next."""
        line = self._turns.take()
        item = line.popleft()
        self.size -= 1
        if not line:
            del self._by_flow[line.flow]
        return item

    def drop(self, flow: Flow) -> None:
        """Forget what waits in it: it comes no more."""
        self._keep(flow, lambda _: False)
        self._turns.forget(flow)

    def take(self, chosen: Callable[[Item], bool]) -> list[Item]:
        """Take out what is chosen, in whichever flow it waits."""
        taken = []
        for flow, line in list(self._by_flow.items()):
            of_it = [item for item in line if chosen(item)]
            if of_it:
                taken += of_it
                self._keep(flow, lambda item: not chosen(item))
        return taken

    def _keep(self, flow: Flow, wanted: Callable[[Item], bool]) -> None:
        line = self._by_flow.get(flow)
        if line is None:
            return
        kept = [item for item in line if wanted(item)]
        self.size -= len(line) - len(kept)
        line.clear()
        line.extend(kept)
        if not kept:
            del self._by_flow[flow]
            self._turns.leave(flow)


class Hands:
    """What one process has in its hands: frames that it was sent and hasn't answered.

    It answers in order, so the deadline of the first tells whether it hangs.
    """

    def __init__(self) -> None:
        self.jobs: OrderedDict[int, Job] = OrderedDict()
        self.last: Job | None = None
        self.last_id = 1
        self.sign_s = 0.0

    @property
    def first(self) -> Job | None:
        """What it does now."""
        return next(iter(self.jobs.values()), None)

    def has_room(self, *, backed_up: bool) -> bool:
        """Whether it may have another frame.

        Args:
            backed_up: some have more waiting than they are given.
        """
        count = len(self.jobs)
        if not count:
            return True
        # Behind a touch a frame may wait until nobody wants it any more, and ask for another touch.
        # So nothing is sent after one that may want it.
        if self.sign_s >= FAST_S or (self.last is not None and self.last.on_touch):
            return False
        if count < MIN_WINDOW:
            return True
        if backed_up or count >= MAX_WINDOW:
            return False
        return 0 < (count + 1) * self.sign_s <= AHEAD_S

    def succeeded(self, took_s: float) -> None:
        """It works, at that speed."""
        self.sign_s += (took_s - self.sign_s) / 8


AnyHands = TypeVar("AnyHands", bound=Hands)


class Work(Generic[AnyHands]):
    """What waits for one store, and what is in the hands of the processes that host it.

    Behind a signature that waits for a touch everything waits.

    Args:
        store: its name, for people.

    Attributes:
        hands: of its processes, whether or not they take frames.
        taking: those that do, in the order in which they began; the first has what isn't a
            signature.
    """

    def __init__(self, store: str) -> None:
        self.hands: list[AnyHands] = []
        self.taking: list[AnyHands] = []
        self._store = store
        self._again: deque[Job] = deque()
        self._waiting: FairQueue[Job] = FairQueue()
        self._looking: deque[Job] = deque()
        self._looked_at = self._signed_at = -inf
        self._look_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._waits or self._looking) or any(hands.jobs for hands in self.hands)

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything but looks."""
        return self._waits or any(job.owner != LOOKING for job in self._in_hand())

    def full(self, most: int, owner: Flow) -> Busy | None:
        """Why nothing more of somebody's may wait, where so much does; it says when there will be
        room. Who has less waiting than his part is let in, whoever else filled it.
        """
        if self._waiting.size < most or self._waiting.is_below_part(owner, most):
            return None
        return Busy(
            f"{most} requests wait for the store {self._store}, as many as may",
            hint="try again later, with fewer at once",
            retry_after_ms=max(MIN_RETRY_MS, int(1000 * self._each_s() * most / 2)),
        )

    def _each_s(self) -> float:
        """Seconds from one signature to the next, by all that take frames."""
        rate = sum(1 / hands.sign_s for hands in self.taking if hands.sign_s)
        return 1 / rate if rate else 0.0

    @property
    def _waits(self) -> bool:
        return bool(self._again or self._waiting.size)

    def _in_hand(self) -> list[Job]:
        return [job for hands in self.hands for job in hands.jobs.values()]

    def taken_by(self, job: Job) -> AnyHands | None:
        """Whose hands take it now, if whoever comes needn't wait for a turn."""
        if self._again or self._waiting.size:
            return None
        taking = self.taking
        if len(taking) > 1 and not job.only_first:
            return self._free()
        return taking[0] if taking and taking[0].has_room(backed_up=False) else None

    def _free(self) -> AnyHands | None:
        """The emptiest hands that may have another frame; with an operation in them, which may
        take long, only where there are no others.
        """
        if len(self.taking) < 2:
            return self._first_if_free()
        found, least, backed_up = None, MAX_WINDOW, self._waiting.is_backed_up
        for hands in self.taking:
            count = len(hands.jobs)
            if count < least and hands.has_room(backed_up=backed_up) and not _has_operation(hands):
                found, least = hands, count
        return found

    def _first_if_free(self) -> AnyHands | None:
        first = self.taking[0] if self.taking else None
        if first is None or not first.has_room(backed_up=self._waiting.is_backed_up):
            return None
        return first

    def push(self, job: Job) -> None:
        """It waits for its turn."""
        if job.owner == LOOKING:
            self._looking.append(job)
        else:
            self._waiting.push(job.owner, job)

    def again(self, job: Job) -> bool:
        """Whether it is repeated: once, before the others, and only if somebody waits for it."""
        if not (job.again and job.is_wanted):
            return False
        job.again = False
        self._again.appendleft(job)
        return True

    def drop(self, owner: Flow) -> None:
        """Forget what a vanished connection waits for; what is signed for it is nobody's."""
        self._waiting.drop(owner)
        self._again = deque(job for job in self._again if job.owner != owner)
        for hands in self.hands:
            for job in hands.jobs.values():
                if job.owner == owner:
                    job.is_wanted = False

    def next_job(self, now: float) -> tuple[Job, AnyHands] | None:
        """Whose turn it is, and who has it in his hands then; the late ones are told."""
        if self._looking and self._may_look(now):
            self._looked_at = now
            return self._looking.popleft(), self.taking[0]
        while self._again or self._waiting.size:
            found = self._next()
            if found is None:
                return None
            job, _ = found
            if job.deadline > now:
                return found
            job.finish(self._late(job))
        return None

    def _next(self) -> tuple[Job, AnyHands] | None:
        free = self._free()
        first = free if len(self.taking) < 2 else self._first_if_free()
        if free is None and first is None:
            return None
        for at, job in enumerate(self._again):
            hands = first if job.only_first else free
            if hands is not None:
                del self._again[at]
                return job, hands
        while self._waiting.size and free is not None:
            job = self._waiting.pop()
            hands = first if job.only_first else free
            if hands is not None:
                return job, hands
            self._again.append(job)  # its turn is over, and comes first once the first is free
        return None

    def _may_look(self, now: float) -> bool:
        first = self._first_if_free()
        if first is None:
            return False
        idle = not (self._again or self._waiting.size or first.jobs)
        if idle and now - self._signed_at >= LOOKING_S:
            return True
        return now - self._looked_at >= max(LOOKING_S, LOOKS_APART * self._look_s)

    def sent(self, job: Job, hands: AnyHands, now: float) -> int:
        """It is in somebody's hands, under the id that is returned."""
        hands.last_id = hands.last_id % MAX_ID + 1
        hands.jobs[hands.last_id] = hands.last = job
        if job.owner != LOOKING:
            self._signed_at = now
        job.sent, job.untouched = now, False
        return hands.last_id

    def answered(self, frame_id: int, hands: AnyHands, now: float) -> tuple[Job, float] | None:
        """The job that a frame answers, and the seconds that it took; None if there is none."""
        job = hands.jobs.pop(frame_id, None)
        if job is None:
            return None
        took_s = now - job.sent
        if job.owner == LOOKING:
            self._looked_at, self._look_s = now, took_s
        if hands.jobs:
            next(iter(hands.jobs.values())).sent = now  # its turn begins now
        return job, took_s

    def begin(self, hands: AnyHands) -> None:
        """Another process is there, which takes no frames before it is open."""
        self.hands.append(hands)

    def take(self, hands: AnyHands) -> None:
        """It takes frames from now on."""
        self.taking.append(hands)

    def take_no_more(self, hands: AnyHands) -> None:
        """It has what it has."""
        if hands in self.taking:
            self.taking.remove(hands)

    def end(self, hands: AnyHands) -> list[Job]:
        """It has ended; what it had."""
        self.take_no_more(hands)
        if hands in self.hands:
            self.hands.remove(hands)
        jobs = list(hands.jobs.values())
        hands.jobs.clear()
        return jobs

    def hand_over(self) -> list[Job]:
        """What another signer can do as well, first what was sent already."""
        handed = []
        for hands in self.hands:
            for number, job in list(hands.jobs.items()):
                if job.again and job.is_wanted:
                    handed.append(job)
                    del hands.jobs[number]
        return handed + self._take_waiting(lambda _: True)

    def fail_all(self, error: DPoPAgentError) -> None:
        """Nobody waits any more, neither for what is in anybody's hands."""
        for job in self._in_hand():
            job.again = False
            job.finish(error)
        self.fail_waiting(error)

    def fail_waiting(self, error: DPoPAgentError) -> None:
        """Nothing waits any more."""
        for job in self._take_waiting(lambda _: True):
            job.finish(error)

    def look(self, now: float) -> list[tuple[AnyHands, Job]]:
        """Announce what waits for a touch, tell the late ones; who hangs, and in which job."""
        for hands in self.hands:
            if hands.first is not None:
                _look_for_a_touch(hands.first, now)
        for job in self._take_waiting(lambda job: job.deadline <= now):
            job.finish(self._late(job))
        hanging = []
        for hands in self.hands:
            first = hands.first
            for job in list(hands.jobs.values()):
                if job.deadline <= now:
                    job.finish(self._late(job))  # its answer, when it comes, is nobody's
            if first is not None and now - first.sent > first.limit_s:
                first.again = False
                first.finish(self._late(first))
                hanging.append((hands, first))
        return hanging

    def blocked(self, seconds: float, now: float) -> None:
        """So long the agent heard nobody: that isn't counted against what is in anybody's hands."""
        for job in self._in_hand():
            job.sent = min(now, job.sent + seconds)
            job.deadline += seconds

    def _take_waiting(self, chosen: Callable[[Job], bool]) -> list[Job]:
        taken = [job for job in self._again if chosen(job)]
        if taken:
            self._again = deque(job for job in self._again if not chosen(job))
        looking = [job for job in self._looking if chosen(job)]
        if looking:
            self._looking = deque(job for job in self._looking if not chosen(job))
        return taken + self._waiting.take(chosen) + looking

    def _late(self, job: Job) -> Timeout:
        doing = [hands.first for hands in self.hands]
        first = next((one for one in doing if one is not None and one.untouched), None)
        if first is None:
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


def _has_operation(hands: Hands) -> bool:
    return any(job.only_first for job in hands.jobs.values())


def _look_for_a_touch(job: Job, now: float) -> None:
    """A signature that takes long waits for one, and has a deadline of its own."""
    if job.on_touch is None or job.untouched or now - job.sent < TOUCH_AFTER_S:
        return
    job.untouched = True
    job.deadline = max(job.deadline, job.sent + job.limit_s)
    if job.is_wanted:
        job.on_touch()
