"""Leases: whoever holds a name is the only one, so that clients which share a refresh token and no
file use it one after the other.

Theory of operation

A name is held by one connection, until it releases it, goes, or LEASE_S are over; who waits for it
gets it in the order of coming. Whoever held it may be in the middle of something that he can't
undo, so how it ended is told to the next: `released`, or `abandoned`.

An agent that is started doesn't know what an earlier one gave out, and the holders of that don't
know at once that it has ended. So nothing is given out until those leases are over, if there can be
any: each agent writes down until when there can, before it gives out one. That need not outlast the
machine, whose end is the holders' end too, so it is written and not made durable.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any

from dpop_agent.agent.background import Background
from dpop_agent.agent.call import Call
from dpop_agent.agent.queue import Flow
from dpop_agent.agent.records import boottime
from dpop_agent.errors import AgentUnavailable, DPoPAgentError, LeaseLost, LeaseUnavailable
from dpop_agent.proof import new_jti

LEASE_S = 60.0
"""Seconds that a lease lasts: a token request takes one, and whoever hangs keeps others waiting."""

MAX_NAMED = 16
"""Leases that `status` names."""

WAIT_MS = 10_000
"""Milliseconds that somebody waits who doesn't say how long."""

MAX_LEASES = 256
"""Names of a socket that are held or waited for."""

MAX_WAITING = 1024
"""Requests of a socket that wait for a name: more than it has connections."""

MAX_OF_ONE = 16
"""Names that one connection holds or waits for, so that none takes them all."""

MAX_ENDED = 1024
"""Names of a socket of which it is remembered how they were held last."""

NOTED_S = 2 * LEASE_S
"""Seconds ahead for which it is written down that there can be leases."""

NOTING_S = 1.0
"""Seconds that somebody waits beyond his time while that is written."""

_FILE = "leases.json"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Earlier:
    """What is known of leases that an agent gave out before this one was started.

    Attributes:
        left_s: seconds after the start for which there can be some.
    """

    def __init__(self, state_folder: str, background: Background) -> None:
        self._path = os.path.join(state_folder, _FILE)
        self._background = background
        self._boot = _boot()
        self._noted_until = 0.0
        self._noting = False
        self._waiting: list[Callable[[DPoPAgentError | None], None]] = []
        self.left_s = self._read()
        self.over_at = monotonic() + self.left_s

    def _read(self) -> float:
        try:
            with open(self._path, "rb") as file:
                noted = json.loads(file.read(256))
            if noted["boot"] != self._boot:
                return 0.0
            return min(max(0.0, float(noted["until_s"]) - boottime()), LEASE_S)
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError, TypeError, KeyError):
            return LEASE_S  # there may be some

    @property
    def is_noted(self) -> bool:
        """Whether the next agent will know of a lease that begins now."""
        return boottime() + LEASE_S <= self._noted_until

    def note(self, then: Callable[[DPoPAgentError | None], None]) -> None:
        """Write it down, then go on; the error says why that can't be done."""
        self._waiting.append(then)
        if not self._noting:
            self._noting = True
            self._background.start(self._note())

    async def _note(self) -> None:
        error = None
        until_s = boottime() + NOTED_S
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._write, until_s)
            self._noted_until = until_s
        except OSError as e:
            error = self.unwritten(e.strerror or type(e).__name__)
        self._noting = False
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(error)

    def unwritten(self, why: str) -> LeaseUnavailable:
        """The refusal where it can't be written down."""
        return LeaseUnavailable(
            f"no lease is given out, since the agent's state folder can't be written: {why}",
            hint="free space there: an agent that is started anew has to know of leases",
        )

    def _write(self, until_s: float) -> None:
        text = json.dumps({"boot": self._boot, "until_s": until_s})
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(self._path, flags, 0o600), "w", encoding="ascii") as file:
            file.write(text)


def _boot() -> str | None:
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # another system than Linux
        return None


class _Lease:
    """A name in somebody's hands."""

    __slots__ = ("end", "id", "name", "owner")

    def __init__(self, name: str, owner: Flow, end: asyncio.TimerHandle) -> None:
        self.id = new_jti()
        self.name = name
        self.owner = owner
        self.end = end


class _Waiting:
    """Somebody who waits for a name."""

    __slots__ = ("call", "end", "waited")

    def __init__(self, call: Call, end: asyncio.TimerHandle, *, waited: bool) -> None:
        self.call = call
        self.end = end
        self.waited = waited


class _Name:
    """Who holds a name, and who waits for it."""

    __slots__ = ("held", "is_noting", "waiting")

    def __init__(self) -> None:
        self.held: _Lease | None = None
        self.is_noting = False
        self.waiting: deque[_Waiting] = deque()


class Leases:
    """Answers `lease` and `release`, on all sockets that give all keys, or on a filtered one."""

    def __init__(self, earlier: Earlier) -> None:
        self._earlier = earlier
        self._names: dict[str, _Name] = {}
        self._held: dict[str, _Lease] = {}
        self._of: Counter[Flow] = Counter()
        self._waiting = 0
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._of_others = "abandoned" if earlier.left_s else "none"
        self._fence = 0
        self._starting: asyncio.TimerHandle | None = None

    def describe(self) -> dict[str, Any]:
        """What `status` says of them: the first ones, and how many there are."""
        now = asyncio.get_running_loop().time()
        return {
            "leases": [
                {
                    "name": lease.name,
                    "left_s": max(0, round(lease.end.when() - now)),
                    "waiting": len(self._names[lease.name].waiting),
                }
                for lease in islice(self._held.values(), MAX_NAMED)
            ],
            "leases_count": len(self._held),
        }

    def lease(self, call: Call) -> None:
        """`lease`: a name for this connection alone, once nobody else has it.

        Raises:
            LeaseUnavailable: too many have, or want, leases.
        """
        name, flow = call.params["name"], call.owner.flow
        self._require_room(name, flow)
        wanted = self._names.setdefault(name, _Name())
        wait_s = call.params.get("wait_ms", WAIT_MS) / 1000
        now = monotonic()
        if now + wait_s >= self._earlier.over_at and not self._earlier.is_noted:
            wait_s += NOTING_S
        end = asyncio.get_running_loop().call_later(wait_s, self._waited_enough, name, call)
        waits = bool(wanted.held or wanted.waiting or now < self._earlier.over_at)
        wanted.waiting.append(_Waiting(call, end, waited=waits))
        self._waiting += 1
        self._of[flow] += 1
        self._next(name)

    def _require_room(self, name: str, flow: Flow) -> None:
        why = None
        if self._of[flow] >= MAX_OF_ONE:
            why = f"this connection has, or waits for, {MAX_OF_ONE} leases"
        elif self._waiting >= MAX_WAITING:
            why = f"{MAX_WAITING} requests wait for leases"
        elif name not in self._names and len(self._names) >= MAX_LEASES:
            why = f"{MAX_LEASES} leases are held"
        if why is not None:
            raise LeaseUnavailable(
                f"{why}, as many as may", hint="release some, or try again later"
            )

    def release(self, call: Call) -> dict[str, Any]:
        """`release`: what it was held for is done.

        Raises:
            LeaseLost: this connection doesn't hold it, or not any more.
        """
        lease = self._held.get(call.params["lease"])
        if lease is None or lease.owner != call.owner.flow:
            raise LeaseLost(
                f"this connection holds no such lease: one ends after {LEASE_S:g} s, and with the "
                "connection that asked for it"
            )
        self._end(lease, "released")
        return {}

    def drop(self, flow: Flow) -> None:
        """A connection has gone, with what it held and waited for."""
        if flow not in self._of:
            return
        for name, found in list(self._names.items()):
            for waiting in [one for one in found.waiting if one.call.owner.flow == flow]:
                self._take_out(name, waiting)
            self._forget_if_free(name)
        for lease in [lease for lease in self._held.values() if lease.owner == flow]:
            self._end(lease, "abandoned")

    def take_no_more(self) -> None:
        """The agent is ending: nobody waits any more."""
        for name, found in list(self._names.items()):
            for waiting in list(found.waiting):
                self._take_out(name, waiting)
                waiting.call.respond(AgentUnavailable("the agent is ending"))

    def _next(self, name: str) -> None:
        """Give a name to who waits for it first, if he can have it."""
        found = self._names.get(name)
        if found is None or found.held is not None or not found.waiting or found.is_noting:
            self._forget_if_free(name)
            return
        now = monotonic()
        if now < self._earlier.over_at:
            if self._starting is None:
                self._starting = asyncio.get_running_loop().call_later(
                    self._earlier.over_at - now + 0.001, self._started
                )
        elif not self._earlier.is_noted:
            found.is_noting = True
            self._earlier.note(partial(self._noted, name))
        else:
            self._give(name, found)

    def _started(self) -> None:
        self._starting = None
        for name in list(self._names):
            self._next(name)

    def _noted(self, name: str, error: DPoPAgentError | None) -> None:
        found = self._names.get(name)
        if found is None:
            return
        found.is_noting = False
        while error is not None and found.waiting:
            waiting = found.waiting[0]
            self._take_out(name, waiting)
            waiting.call.respond(error)
        self._next(name)

    def _give(self, name: str, found: _Name) -> None:
        waiting = found.waiting[0]
        self._take_out(name, waiting)
        flow = waiting.call.owner.flow
        end = asyncio.get_running_loop().call_later(LEASE_S, self._is_over, name)
        lease = found.held = _Lease(name, flow, end)
        self._held[lease.id] = lease
        self._of[flow] += 1
        self._fence = max(self._fence + 1, int(time.time() * 1000))
        waiting.call.respond(
            {
                "lease": lease.id,
                "fence": self._fence,
                "previous": self._ended.get(name, self._of_others),
                "waited": waiting.waited,
                "lasts_ms": int(LEASE_S * 1000),
            }
        )

    def _is_over(self, name: str) -> None:
        found = self._names.get(name)
        if found is not None and found.held is not None:
            self._end(found.held, "abandoned")

    def _end(self, lease: _Lease, how: str) -> None:
        lease.end.cancel()
        del self._held[lease.id]
        self._less_of(lease.owner)
        self._ended[lease.name] = how
        self._ended.move_to_end(lease.name)
        if len(self._ended) > MAX_ENDED:
            _, forgotten = self._ended.popitem(last=False)
            if forgotten == "abandoned":
                self._of_others = forgotten  # it may be any
        self._names[lease.name].held = None
        self._next(lease.name)

    def _waited_enough(self, name: str, call: Call) -> None:
        found = self._names[name]
        waiting = next(one for one in found.waiting if one.call is call)
        self._take_out(name, waiting)
        left_s = self._earlier.over_at - monotonic()
        if found.is_noting:
            error = self._earlier.unwritten("the disk doesn't answer")
        elif left_s > 0:
            error = LeaseUnavailable(
                "the agent was started a moment ago, and leases of the one before may last on",
                hint="try again then, or wait longer",
                retry_after_ms=int(left_s * 1000) + 1,
            )
        else:
            error = LeaseUnavailable(
                f"somebody else has the lease {name!a}", hint="try again, or wait longer"
            )
        call.respond(error)
        self._forget_if_free(name)

    def _take_out(self, name: str, waiting: _Waiting) -> None:
        waiting.end.cancel()
        self._names[name].waiting.remove(waiting)
        self._waiting -= 1
        self._less_of(waiting.call.owner.flow)

    def _less_of(self, flow: Flow) -> None:
        self._of[flow] -= 1
        if not self._of[flow]:
            del self._of[flow]

    def _forget_if_free(self, name: str) -> None:
        found = self._names.get(name)
        if found is not None and found.held is None and not (found.waiting or found.is_noting):
            del self._names[name]
