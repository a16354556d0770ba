"""The files of the audit: one trail for each socket, so that no client floods out another's trace.

Theory of operation

A line is made at once, and waits in memory until the next write: FLUSH_S after the last at the
most, which is what a `kill -9` may lose. A thread writes, one batch at a time; meanwhile other
lines wait. What couldn't be written is tried again with what came since. Where more than
MAX_WAITING lines wait, new ones are counted as lost, and a line says so later.

With `audit = "required"` a proof is held until its line is written. Those that wait together share
a write; where that fails none of them leaves.

A file that would get too long is renamed in place of the older one before the next write. Each step
leaves files that are whole but for a last line, which the next write ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any

from dpop_agent import paths
from dpop_agent.agent import audit
from dpop_agent.agent.programs import program_of
from dpop_agent.agent.records import Records
from dpop_agent.errors import ConfigurationError, DPoPAgentError, NotRecorded
from dpop_agent.peer import Peer
from dpop_agent.protocol import Request

log = logging.getLogger("dpop_agent.trails")

FLUSH_S = 0.5
"""Seconds that a line waits in memory, where the disk is as fast as disks are."""

BATCH = 512
"""Lines that are written without waiting for more: putting them together takes the event loop some
tenths of a millisecond."""

MAX_WAITING = 16_384
"""Lines of a socket that wait in memory: five megabytes, a second of a fast store's work."""

WRITE_S = 5.0
"""Seconds that a held proof waits for its line: half of what a signature may take."""

RETRY_MS = 1000
"""Milliseconds after which a proof that was refused for want of a line may be asked for again:
whoever frees space takes longer, and a disk that hung is back."""

REFUSALS, MINUTE_S = 10, 60.0
"""Refusals of a socket with a line of their own, in so many seconds; more are counted."""

PROGRAM_S = 1.0
"""Seconds for which a program is taken to run on as it was seen to."""

MAX_TRAILS = 128
"""Trails that are kept; then the one goes that nothing was added to for longest. Sockets come and
go, and what they left is to be found for a while."""

MAX_WRITING = 4
"""Trails that are written at once; the others wait for their turn."""

Written = Callable[[DPoPAgentError | None], None]
"""Called once a line is written, or with the reason why it isn't."""


class Trails:
    """The audit.

    Attributes:
        mode: `on`, `required` or `off`.
        max_bytes: the size of a file; a socket has two.
        folder: where they are.
        lost: how many lines couldn't be written since the start.
        threads: that write them, and do nothing else.
    """

    def __init__(self, records: Records, *, mode: str, max_bytes: int) -> None:
        self.folder = paths.audit_folder(os.path.dirname(records.path))
        self.lost = 0
        self.threads = ThreadPoolExecutor(MAX_WRITING, thread_name_prefix="audit")
        self._records = records
        self._trails: dict[str, Trail] = {}
        self.configure(mode=mode, max_bytes=max_bytes)

    def configure(self, *, mode: str, max_bytes: int) -> None:
        """What the configuration says now."""
        self.mode, self.max_bytes = mode, max_bytes
        for trail in self._trails.values():
            trail.heed(mode)

    def of(self, socket: str) -> Trail:
        """The trail of the socket of that name."""
        trail = self._trails.get(socket)
        if trail is None:
            trail = self._trails[socket] = Trail(self, socket, self._records)
        return trail

    def itself(self, method: str, *, outcome: str = audit.DONE, **members: Any) -> None:
        """The agent did something that nobody waits for: the owner's trail has it, where no client
        of other sockets can push it out.
        """
        self.of(paths.ADMIN).add(audit.event(audit.who(None), method, outcome, **members))

    @property
    def failing(self) -> str | None:
        """Why a trail can't be written now; None if all can, as far as is known."""
        return next((trail.failing for trail in self._trails.values() if trail.failing), None)

    def describe(self) -> dict[str, Any]:
        """What `status` says of it."""
        return {
            "mode": self.mode,
            "folder": self.folder,
            "failing": self.failing,
            "lost": self.lost,
        }

    async def close(self, *, within_s: float) -> None:
        """Write what waits; so long at the most."""
        closing = [asyncio.ensure_future(trail.close()) for trail in self._trails.values()]
        if closing:
            _, late = await asyncio.wait(closing, timeout=within_s)
            for one in late:
                one.cancel()


class Trail:
    """What is recorded of one socket.

    Attributes:
        socket: the socket's name.
        records: the keys.
        holds: whether a proof waits for its line.
        failing: why nothing can be written now; None if it can, as far as is known.
    """

    def __init__(self, trails: Trails, socket: str, records: Records) -> None:
        self._trails = trails
        self.socket = socket
        self.records = records
        self.failing: str | None = None
        self._loop = asyncio.get_running_loop()
        self._lines: list[str] = []
        self._held: list[tuple[str, Written]] = []
        self._lost = 0  # that no line tells of yet
        self._next: asyncio.Handle | None = None
        self._flushed_at = -inf
        self._is_soon = False
        self._writing: asyncio.Future[None] | None = None
        self._late: asyncio.TimerHandle | None = None
        self._is_late = False
        self._refusals = 0  # of this minute
        self._more: Counter[str] = Counter()
        self._minute_began = 0.0
        self._minute: asyncio.TimerHandle | None = None
        self.heed(trails.mode)

    def heed(self, mode: str) -> None:
        """What the configuration says now."""
        self.holds, self._is_off = mode == "required", mode == "off"

    def add(self, line: str) -> None:
        """Record a line, within a second."""
        if self._is_off:
            return
        if len(self._lines) >= MAX_WAITING:
            self._lose(1)
            return
        self._lines.append(line)
        if self._next is None:
            self._flush_in_time()
        elif len(self._lines) == BATCH:
            self._flush_soon()

    def proof(
        self, who: str, signed: str, *, htm: str, jti: str, took_s: float, written: Written
    ) -> None:
        """Record a proof; where it is held, `written` is called later, else it never is."""
        if self._is_off:
            return
        line = audit.proof(who, signed, htm=htm, jti=jti, took_s=took_s)
        if not self.holds:
            self.add(line)
        elif self._is_late:
            written(self._not_recorded())
        else:
            self._held.append((line, written))
            self._flush_soon()

    def takes_refusal(self, error: DPoPAgentError) -> bool:
        """Whether a refusal gets a line of its own; else it is counted."""
        if self._minute is None:
            self._minute_began = time.time()
            self._minute = self._loop.call_later(MINUTE_S, self._end_minute)
        self._refusals += 1
        if self._refusals <= REFUSALS:
            return True
        self._more[error.type] += 1
        return False

    def _end_minute(self) -> None:
        if self._minute is not None:
            self._minute.cancel()
        self._minute, self._refusals = None, 0
        if self._more:
            members = audit.counted(self._minute_began, self._more)
            self._more = Counter()
            self.add(audit.event(audit.who(self.socket), None, audit.COUNTED, **members))

    def _lose(self, count: int) -> None:
        self._lost += count
        self._trails.lost += count

    def _flush_in_time(self) -> None:
        """At once after a pause, so that `log` has it; else FLUSH_S after the last write."""
        wait_s = self._flushed_at + FLUSH_S - self._loop.time()
        self._next = self._loop.call_later(max(0.0, wait_s), self._flush)

    def _flush_soon(self) -> None:
        if self._is_soon:
            return
        if self._next is not None:
            self._next.cancel()
        self._next, self._is_soon = self._loop.call_soon(self._flush), True

    def _flush(self) -> None:
        self._next, self._is_soon = None, False
        if self._writing is not None or not (self._lines or self._held):
            return  # it goes on once that is written
        self._flushed_at = self._loop.time()
        lines, self._lines = self._lines, []
        held, self._held = self._held, []
        lost, self._lost = self._lost, 0
        last = [line for line, _ in held]
        if lost:
            where = audit.who(self.socket)
            last.append(audit.event(where, None, audit.LOST, count=lost))
        data = audit.text([*lines, *last])
        if self.holds or held:
            self._late = self._loop.call_later(WRITE_S, self._give_up, held)
        path = paths.audit_file(self._trails.folder, self.socket)
        self._writing = self._loop.run_in_executor(
            self._trails.threads, _append, path, data, self._trails.max_bytes
        )
        self._writing.add_done_callback(lambda done: self._written(done, lines, held, lost))

    def _written(
        self,
        done: asyncio.Future[None],
        lines: list[str],
        held: list[tuple[str, Written]],
        lost: int,
    ) -> None:
        self._writing, self._is_late = None, False
        if self._late is not None:
            self._late.cancel()
            self._late = None
        error = self._outcome(done)
        if error is not None:
            room = max(0, MAX_WAITING - len(self._lines))
            self._lines[:0] = lines[:room]
            self._lost += lost
            self._lose(len(lines[room:]))
        _tell(held, error)
        if self._held or (error is None and len(self._lines) >= BATCH):
            self._flush_soon()
        elif self._lines and self._next is None:
            self._flush_in_time()

    def _outcome(self, done: asyncio.Future[None]) -> DPoPAgentError | None:
        if done.cancelled():
            return self._not_recorded()
        error = done.exception()
        if error is None:
            if self.failing is not None:
                log.warning("the audit of %s is written again", self.socket)
            self.failing = None
            return None
        if isinstance(error, ConfigurationError):
            why = error.message
        elif isinstance(error, OSError):
            why = error.strerror or type(error).__name__
        else:
            log.error("unexpected error while writing the audit", exc_info=error)
            why = "the agent met an unexpected error"
        if why != self.failing:  # told once as long as it stays
            log.warning("the audit of %s can't be written: %s", self.socket, why)
            self.failing = why
        return self._not_recorded()

    def _not_recorded(self) -> NotRecorded:
        """The refusal of a proof whose line isn't written."""
        why = self.failing or "the disk doesn't answer"
        return NotRecorded(
            f'the audit can\'t be written ({why}), and with audit = "required" no proof leaves '
            "without its line",
            hint="free space, or see: dpop-agent status",
            retry_after_ms=RETRY_MS,
        )

    def _give_up(self, held: list[tuple[str, Written]]) -> None:
        """The disk takes too long: nobody waits for it any more until it has answered."""
        self._is_late = True
        waiting, self._held = [*held, *self._held], []
        held.clear()
        _tell(waiting, self._not_recorded())

    async def close(self) -> None:
        """Write what waits, the count of refusals with it."""
        self._end_minute()
        while self._lines or self._held or self._writing is not None:
            if self._next is not None:
                self._next.cancel()
            self._flush()
            if self._writing is not None:
                await asyncio.wait([self._writing])
                await asyncio.sleep(0)
            if self.failing is not None:
                return


class Trace:
    """What one connection leaves in its socket's trail.

    Attributes:
        trail: that one.
    """

    def __init__(self, trail: Trail, peer: Peer) -> None:
        self.trail = trail
        self._peer = peer
        self._program = program_of(peer.pid)
        self._look_at = 0.0
        self._who = ""
        self.who(time.monotonic())

    def who(self, now: float) -> str:
        """Who asks, as part of a line; `now` is by time.monotonic.

        Once the program has ended that connected it isn't named: somebody else has the socket.
        """
        if now >= self._look_at:
            self._look_at = now + PROGRAM_S
            self._look()
            name = None if self._program is None else self._program.name
            self._who = audit.who(self.trail.socket, self._peer, name)
        return self._who

    def process(self) -> int:
        """The process that connected; 0 once it has ended, for its pid is given to others."""
        self._look()
        return 0 if self._program is None else self._peer.pid

    def _look(self) -> None:
        there = program_of(self._peer.pid)
        if there is None or self._program is None or there.started != self._program.started:
            self._program = None

    def refused(
        self,
        error: DPoPAgentError,
        method: str | None = None,
        params: Mapping[str, Any] | None = None,
        took_s: float | None = None,
        *,
        is_told: bool = True,
    ) -> None:
        """Somebody didn't get what he asked for, as far as that was understood.

        Unless he was told why, in full, the log is.
        """
        if not self.trail.takes_refusal(error):
            return
        if "rule" in error.details:  # with the origin that was asked for, not with a path
            log.info("refused by the rule %s: %s", error.details["rule"], error.message)
        elif not is_told:
            log.info("refused on the socket %s: %s", self.trail.socket, error)
        members = audit.refused(method, params or {}, error, self.trail.records.keys)
        self.trail.add(
            audit.event(self.who(time.monotonic()), method, error.type, took_s=took_s, **members)
        )

    def granted(self, request: Request, result: Mapping[str, Any], took_s: float) -> None:
        """Something was changed, if that is what the request is about."""
        method = request.method
        if method not in audit.CHANGES:
            return
        outcome = audit.BEGUN if result.get("pin_socket") else audit.DONE
        for members in audit.granted(method, request.params, result):
            self.trail.add(
                audit.event(self.who(time.monotonic()), method, outcome, took_s=took_s, **members)
            )


def _tell(held: list[tuple[str, Written]], error: DPoPAgentError | None) -> None:
    for _, written in held:
        written(error)


def _append(path: str, data: bytes, max_bytes: int) -> None:
    """Add to a file, all or nothing; one that would get longer than that becomes the older one.

    Raises:
        ConfigurationError: others can change the folder.
        OSError: it can't be written.
    """
    descriptor = _opened(path)
    try:
        size = os.fstat(descriptor).st_size
        if size and size + len(data) > max_bytes:
            os.replace(path, paths.older_audit_file(path))
            os.close(descriptor)
            descriptor = -1
            descriptor, size = _opened(path), 0
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data  # whoever wrote there last was killed meanwhile
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _opened(path: str) -> int:
    if not os.path.lexists(path):
        folder = os.path.dirname(path)
        os.stat(os.path.dirname(folder))  # one that has gone isn't to be made anew by this
        paths.make_private_folder(folder, "the audit", instead=paths.ANOTHER_STATE_FOLDER)
        paths.check_only_ours(folder, "the audit", instead=paths.ANOTHER_STATE_FOLDER)
        _make_room(folder)
    return paths.open_to_append(path)


def _make_room(folder: str) -> None:
    """Remove the oldest trails of sockets that come and go, where there are as many as are kept."""
    lasting = (None, paths.AGENT, paths.ADMIN, paths.MOUNTED, paths.EXEC)
    kept = sorted(
        (entry for entry in os.scandir(folder) if paths.socket_of(entry.name) not in lasting),
        key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns,
    )
    for entry in kept[: max(0, len(kept) - MAX_TRAILS + 1)]:
        for path in (paths.older_audit_file(entry.path), entry.path):
            if os.path.lexists(path):
                os.unlink(path)
