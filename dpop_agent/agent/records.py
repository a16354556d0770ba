"""The keys as the agent knows them now, and how that becomes durable.

What is in memory can be ahead of the state folder in two ways only: uses and observed time, which
are saved about every minute, and a block, which holds from the moment that somebody says
`compromise`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from dpop_agent.agent.blocks import with_blocks
from dpop_agent.agent.changes import changes
from dpop_agent.agent.filters import Filter
from dpop_agent.agent.forms import Block, Remembered, digest_of
from dpop_agent.agent.keys import Generation, Keys, State
from dpop_agent.agent.ledger import Contents, Ledger, Times
from dpop_agent.agent.uses import Seen, Use
from dpop_agent.errors import LimitReached, NotDurable, RequestIdReused

log = logging.getLogger("dpop_agent.records")

REQUEST_LIFETIME_S = 24 * 3600
"""Seconds, of those that the agent was there to see, for which a request id is remembered."""

MAX_REQUESTS = 32_768
"""Request ids remembered. None is forgotten before its time, as what it asked for would be done
twice; rather is a request with another one refused."""

BLOCK_AGAIN_S = 1.0
"""Seconds between tries to write a block that couldn't be written."""

Change = Callable[[Keys], Keys]
Command = tuple[str, Mapping[str, Any]]
"""A method and its parameters, as somebody asked for them."""


def now_text() -> str:
    """RFC 3339 UTC, whole seconds."""
    return text_of(int(time.time()))


@lru_cache(maxsize=2)
def text_of(second: int) -> str:
    """The same of a moment in seconds since 1970."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds that no wall clock moves and that go on in suspend (CLOCK_BOOTTIME)."""
    return time.clock_gettime(_BOOTTIME)


class Records:
    """The ledger's keys, in memory and durable.

    Attributes:
        keys: as they are now.
        changed: what the next change sets; the one after that sets another.
        rotations_due: the keys whose rotation was due when somebody looked last.
        destroyed: those that were destroyed then, their names taken.
        sockets: the filtered sockets by name, those too that aren't kept over a restart.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._writing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")  # nobody else's
        self._blocked: set[Block] = set(ledger.blocks.kept)
        self._commands: list[Command] = []  # what blocked them, where that isn't written
        self._trying = False
        times = ledger.times
        self._uses: dict[str, Use] = dict(times.uses)
        self._started = boottime()
        self._before_s = max(times.observed_s, ledger.contents.observed_s)
        # Its last minute wasn't saved: for all that is known, every generation was used in it.
        self._unclean_s = times.unclean_s if ledger.clean else self._before_s
        self.changed = asyncio.Event()
        self.rotations_due: Sequence[str] = ()
        self.destroyed: Sequence[str] = ()
        self.keys = self._with_blocks(ledger.contents.keys)
        self.sockets: Mapping[str, Filter] = {
            name: f.without({key for key in f.keys if key not in self.keys})
            for name, f in ledger.contents.sockets.items()
        }

    @property
    def path(self) -> str:
        """Where the ledger is."""
        return self._ledger.path

    @property
    def durable(self) -> bool:
        """Whether every block is in the ledger."""
        return not self._blocked

    @property
    def seen(self) -> Seen:
        """What the agent was there to see, until now."""
        return Seen(self.now_s, self._unclean_s, self._uses)

    @property
    def uses(self) -> Mapping[str, Use]:
        """By jkt, when generations signed and for whom."""
        return self._uses

    @property
    def now_s(self) -> int:
        """The agent's own clock: seconds that it was there to see."""
        return self._before_s + int(boottime() - self._started)

    def block(self, name: str, generations: Iterable[Generation]) -> None:
        """Compromised from now on, a pending one once it is made, whether or not that can be
        written.
        """
        self._blocked |= {Block(name, g.ref, g.created) for g in generations}
        self._become(self._with_blocks(self.keys), level=logging.WARNING)

    def used(self, jkt: str, origin: str) -> None:
        """Note that a generation signed for an origin."""
        self.note(self._uses, jkt, origin)

    def note(self, uses: dict[str, Use], jkt: str, origin: str) -> None:
        """Note among those uses that a generation signed for an origin."""
        now_s, use = self.now_s, uses.get(jkt)
        if use is not None and use.is_noted(origin, now_s):
            return
        now = now_text()
        uses[jkt] = (use or Use(now, now_s)).signed(origin, now, now_s)

    def repeated(self, method: str, params: Mapping[str, Any]) -> bool:
        """Whether this very request was carried out before.

        Raises:
            RequestIdReused: its id was, with other parameters.
            LimitReached: its id couldn't be remembered; it may be no such request that compromises.
        """
        requests = self._requests()
        known = requests.get(params.get("request_id", ""))
        if known is None:
            if (
                "request_id" in params
                and len(requests) >= MAX_REQUESTS
                and not _compromises(method)
            ):
                raise LimitReached(
                    f"{MAX_REQUESTS} requests with a request_id were carried out within 24 hours, "
                    "and no more are remembered",
                    hint="send it without request_id, or later",
                    retry="later",
                )
            return False
        if known.method != method or known.params != digest_of(_without_id(params)):
            raise RequestIdReused(f"the request_id was used for another {known.method}")
        return True

    async def write(
        self,
        change: Change = lambda keys: keys,
        *,
        command: Command | None = None,
        sockets: Callable[[Mapping[str, Filter]], Mapping[str, Filter]] = lambda sockets: sockets,
    ) -> None:
        """Change keys and sockets durably, in one atomic replace, the request's id with its effect.

        Raises:
            NotDurable: nothing was changed, but for what is blocked.
        """
        async with self._writing:
            now_s, blocked = self.now_s, frozenset(self._blocked)
            commands = [*self._commands, *([command] if command else [])]
            keys = _stamped(self.keys, self._with_blocks(change(self.keys)), now_s)
            forgotten = {key.name for key in keys.gone_from(self.keys)}

            def changed(before: Mapping[str, Filter]) -> Mapping[str, Filter]:
                after = sockets(before)
                if not forgotten:
                    return after
                return {name: f.without(forgotten) for name, f in after.items()}

            kept = {n: f for n, f in changed(self.sockets).items() if not f.with_connection}
            contents = Contents(keys, self._requests(commands), now_s, kept)
            try:
                await self._in_thread(self._ledger.write, contents)
            finally:
                if self._ledger.contents is contents:  # replaced, if perhaps not durably
                    self._become(self._with_blocks(keys))
                    self.sockets = changed(self.sockets)  # others may have come and gone meanwhile
                    self.changed.set()
                    self.changed = asyncio.Event()
            self._blocked -= blocked
            self._commands = [c for c in self._commands if c not in commands]
            if self._ledger.blocks.kept:
                await self._clear_reserve()

    def hold_socket(self, added: Filter) -> None:
        """There is a socket that isn't kept over a restart."""
        self.sockets = {**self.sockets, added.name: added}

    def drop_socket(self, name: str) -> None:
        """A socket isn't there any more; one that was kept goes from the ledger with its next
        change.
        """
        self.sockets = {n: f for n, f in self.sockets.items() if n != name}

    async def _clear_reserve(self) -> None:
        try:
            await self._in_thread(self._ledger.blocks.clear)
        except OSError as e:
            log.debug("blocks that are in the ledger stay in the reserve too: %s", e)

    async def write_blocks(
        self, quietly: Callable[[str, Awaitable[object]], Awaitable[None]], command: Command | None
    ) -> None:
        """Try again until every block is in the ledger, and the commands with them."""
        if command is not None:
            self._commands.append(command)
        if self._trying:
            return
        self._trying = True
        try:
            while not self.durable:
                await asyncio.sleep(BLOCK_AGAIN_S)
                await quietly("ledger", self.write(lambda keys: keys))
        finally:
            self._trying = False

    async def reserve_blocks(self) -> None:
        """Have blocks that the ledger can't take survive a restart.

        Raises:
            NotDurable: they won't.
        """
        async with self._writing:
            try:
                await self._in_thread(self._ledger.blocks.keep, frozenset(self._blocked))
            except OSError as e:
                raise NotDurable(e.strerror or str(e)) from e

    async def save(self, *, clean: bool) -> None:
        """Write what was observed; `clean` says that nothing will be missed after it.

        Raises:
            NotDurable
        """
        async with self._writing:
            times = Times(dict(self._uses), self.now_s, self._unclean_s)
            await self._in_thread(lambda: self._ledger.save(times, clean=clean))

    def _requests(self, commands: Iterable[Command] = ()) -> Mapping[str, Remembered]:
        """The requests that are remembered now, these among them."""
        known = self._ledger.contents.requests
        now_s = self.now_s
        oldest_s = now_s - REQUEST_LIFETIME_S
        if next((r.at_s <= oldest_s for r in known.values()), False):  # the oldest come first
            known = {name: r for name, r in known.items() if r.at_s > oldest_s}
        for method, params in commands:
            if "request_id" in params and not (len(known) >= MAX_REQUESTS and _compromises(method)):
                digest = digest_of(_without_id(params))
                known = {
                    **known,
                    params["request_id"]: Remembered(method, digest, now_text(), now_s),
                }
        return known

    async def _in_thread(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do it in a thread, and be there until that has ended, cancelled or not."""
        working = asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait([working])
            raise

    def _become(self, keys: Keys, *, level: int = logging.INFO) -> None:
        for line in changes(self.keys, keys):
            log.log(level, "%s", line)
        self._bury(keys)
        self.keys = keys

    def _bury(self, keys: Keys) -> None:
        """Of what is destroyed only the dates stay, and nothing of what is forgotten."""
        for key in keys.gone_from(self.keys):
            for g in key.generations:
                self._uses.pop(g.jkt, None)
        for key in keys.changed_from(self.keys):
            for g in key.generations:
                use = self._uses.get(g.jkt)
                if g.state is State.DESTROYED and use is not None and use.first:
                    self._uses[g.jkt] = use.buried()

    def _with_blocks(self, keys: Keys) -> Keys:
        return with_blocks(keys, self._blocked, now_text())


def _stamped(before: Keys, keys: Keys, now_s: int) -> Keys:
    """These keys, each generation in another state than before having come into it now."""
    changed = []
    for key in keys.changed_from(before):
        old = before.get(key.name)
        states = {g.generation: g.state for g in old.generations} if old else {}
        new = [
            replace(g, since_s=now_s)
            for g in key.generations
            if states.get(g.generation) is not g.state
        ]
        changed.append(key.with_(*new))
    return keys.with_(*changed)


def _compromises(method: str) -> bool:
    """Whether a request is never refused for the sake of its id: it can be repeated at will."""
    return method == "key.compromise"


def _without_id(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "request_id"}
