"""`log`: what the audit has, read from its files, so that no agent is needed."""

from __future__ import annotations

import argparse
import os
import re
import time
from contextlib import ExitStack
from functools import partial

from dpop_agent import durations, paths
from dpop_agent.cli import arguments, calls, output
from dpop_agent.errors import ConfigurationError
from dpop_agent.jose import json_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime
    from typing import Any, BinaryIO

    Entry = dict[str, Any]

LOOK_S = 0.25
"""Seconds between looks for more."""

BEFORE = 10
"""Lines shown of what was before, where more is waited for and no time is named."""

_REFUSED = re.compile(r" *refused \([^)]*\)| *[0-9]+ more refused")

MAX_LINE = 64 * 1024
"""Bytes of a line; the agent's own are far shorter."""

_WIDEST = 24
"""Columns that a cell may have before it only pushes its own line out of place."""

_WIDEST_NARROW = 16
"""The same where the terminal has less than _WIDE columns."""

_WIDE = 100


def add_log(parser: arguments.Parser) -> None:
    """`dpop-agent log`."""
    parser.description = (
        "Show the audit: each proof, refusal, creation, change, unlock and lock, in local time. It "
        "is read from the agent's state folder, whether or not the agent runs. Programs are a "
        "hint: a program chooses its own name."
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a socket, such as agent or admin; by default all"
    )
    parser.add_argument("--key", metavar="NAME", type=arguments.key_name, help="of this key alone")
    parser.add_argument(
        "--origin", type=arguments.origin, help="for this origin alone: https://api.example.com"
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=_since,
        help="from then on: 15m or 2d ago, or 16:30, or 2026-11-26, or '2026-11-26 16:30'",
    )
    parser.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print lines of JSON, and errors too")
    parser.set_defaults(run=_log)


def _since(text: str) -> str:
    """A time as the audit's files have it; or so long ago."""
    from datetime import UTC, datetime, timedelta
    from datetime import time as time_of_day

    now = _now()
    try:
        try:
            found = now - timedelta(seconds=durations.seconds(text))
        except ValueError:
            if ":" in text[:3]:
                found = datetime.combine(now.astimezone(), time_of_day.fromisoformat(text))
            else:
                found = datetime.fromisoformat(text)
        found = found.astimezone(UTC)
    except (ValueError, OverflowError) as e:
        raise argparse.ArgumentTypeError(
            "it has to be a duration, such as 15m, 12h or 2d, or a time, such as 16:30, 2026-11-26 "
            "or '2026-11-26 16:30'"
        ) from e
    if found > now:
        raise argparse.ArgumentTypeError("it is in the future")
    return found.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def _log(args: Namespace) -> int:
    folder = paths.audit_folder(calls.state_folder())
    sockets = _sockets(folder)
    if not sockets and not (args.follow and args.name is None):
        raise ConfigurationError(
            f"nothing is recorded in {folder} yet",
            hint="a proof is, once the agent gives one, unless audit is off: dpop-agent config "
            "show; where the agent's state folder is another, set DPOP_AGENT_STATE_DIR to it",
        )
    if args.name is not None and args.name not in sockets:
        raise ConfigurationError(
            f"nothing is recorded of a socket {args.name[:80]}",
            hint=f"something is of: {', '.join(sorted(sockets))}",
        )
    with ExitStack() as opened:
        _show(args, _Reading(folder, args.name, opened))
    return 0


def _show(args: Namespace, reading: _Reading) -> None:
    """Print what is wanted; where more is, until somebody interrupts it."""
    show: Callable[[Iterable[Entry]], None] = _print_json if args.json else _Table().show
    found: Iterator[Entry] = filter(partial(_is_wanted, args), reading.there())
    if not args.follow:
        show(found)
        reading.tell_unreadable()
        return
    if args.since is None:
        from collections import deque

        found = iter(deque(found, maxlen=BEFORE))
    show(found)
    while True:
        show(filter(partial(_is_wanted, args), reading.more()))
        time.sleep(LOOK_S)


def _sockets(folder: str) -> set[str]:
    """Those of which something is recorded."""
    try:
        paths.check_only_ours(folder, "the audit", instead=paths.ANOTHER_STATE_FOLDER)
        return {name for name in map(paths.socket_of, os.listdir(folder)) if name is not None}
    except FileNotFoundError:
        return set()


def recorded(jti: str) -> list[Entry]:
    """What the audit has of proofs with that `jti`; nothing where there is no audit.

    Raises:
        DPoPAgentError: its files aren't ours alone.
    """
    with ExitStack() as opened:
        reading = _Reading(paths.audit_folder(calls.state_folder()), None, opened)
        return [entry for entry in reading.there() if entry.get("jti") == jti]


def _is_wanted(args: Namespace, entry: Entry) -> bool:
    if args.since is not None and entry["time"] < args.since:
        return False
    if entry.get("outcome") in ("counted", "lost"):
        return True  # nobody knows what there would be
    if args.key is not None and entry.get("key") != args.key:
        return False
    return args.origin is None or entry.get("origin") == args.origin


class _Reading:
    """The files of one socket, or of all."""

    def __init__(self, folder: str, name: str | None, opened: ExitStack) -> None:
        """`opened` closes what it opens."""
        self._folder = folder
        self._opened = opened
        self._name = name
        self._trails: dict[str, _Trail] = {}
        self._look()

    def _look(self) -> list[_Trail]:
        """The trails that weren't there before."""
        names = _sockets(self._folder) if self._name is None else {self._name}
        new = {n: _Trail(paths.audit_file(self._folder, n)) for n in names - self._trails.keys()}
        for trail in new.values():
            self._opened.callback(trail.close)
        self._trails |= new
        return list(new.values())

    def there(self) -> Iterator[Entry]:
        """What there is, in the order of time."""
        import heapq

        trails = self._trails.values()
        return heapq.merge(*(trail.there() for trail in trails), key=lambda entry: entry["time"])

    def more(self) -> list[Entry]:
        """What has come since."""
        came = [entry for trail in self._trails.values() for entry in trail.more()]
        came += [entry for trail in self._look() for entry in trail.there()]
        return sorted(came, key=lambda entry: str(entry["time"]))

    def tell_unreadable(self) -> None:
        """Say how many lines are left out."""
        import sys

        count = sum(trail.unreadable for trail in self._trails.values())
        if count:
            lines = output.many(count, "line")
            print(f"dpop-agent: {lines} couldn't be read, and are left out", file=sys.stderr)


class _Trail:
    """The files of one socket.

    Attributes:
        unreadable: how many lines weren't the agent's.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.unreadable = 0
        self._rest = b""
        # The newer one first: if it becomes the older one now, it is found twice, not missed.
        self._file = self._open(path)
        self._older = self._open(paths.older_audit_file(path))
        if self._older is not None and self._older_is_it(self._older):
            self._older.close()
            self._older = None

    def _older_is_it(self, other: BinaryIO) -> bool:
        return self._file is not None and os.path.samestat(
            os.fstat(self._file.fileno()), os.fstat(other.fileno())
        )

    @staticmethod
    def _open(path: str) -> BinaryIO | None:
        try:
            descriptor = paths.open_only_ours(path, "the audit", instead=paths.ANOTHER_STATE_FOLDER)
        except FileNotFoundError:
            return None
        return open(descriptor, "rb")

    def close(self) -> None:
        """Read no more."""
        for file in (self._file, self._older):
            if file is not None:
                file.close()

    def there(self) -> Iterator[Entry]:
        """What both files have."""
        if self._older is not None:
            with self._older as older:
                yield from self._entries(older)
            self._rest, self._older = b"", None
        yield from self.more()

    def more(self) -> Iterator[Entry]:
        """What has come since; also where the file became the older one meanwhile."""
        if self._file is not None:
            is_older = self._is_older  # asked first: nothing is added to it from then on
            yield from self._entries(self._file)
            if not is_older:
                return
            self._file.close()
        self._file, self._rest = self._open(self._path), b""
        if self._file is not None:
            yield from self._entries(self._file)

    @property
    def _is_older(self) -> bool:
        assert self._file is not None
        try:
            return not os.path.samestat(os.fstat(self._file.fileno()), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def _entries(self, file: BinaryIO) -> Iterator[Entry]:
        """Those whose lines are whole; the rest of the last one is kept for later."""
        while piece := file.readline(MAX_LINE):
            self._rest += piece
            if not piece.endswith(b"\n"):
                if len(self._rest) > MAX_LINE:
                    self._rest = self._rest[:MAX_LINE] + b"\0"  # that is no line any more
                continue
            line, self._rest = self._rest, b""
            entry = _entry(line)
            if entry is None:
                self.unreadable += 1
            else:
                yield entry


def _entry(line: bytes) -> Entry | None:
    try:
        entry = json_object(line)
    except ValueError:
        return None
    return entry if isinstance(entry.get("time"), str) else None


def _print_json(entries: Iterable[Entry]) -> None:
    import json

    for entry in entries:
        print(json.dumps(entry), flush=True)


class _Table:
    """Columns that don't wait for the last line to know how wide they are."""

    def __init__(self) -> None:
        self._room = output.width()
        self._widest = _WIDEST if self._room is None or self._room >= _WIDE else _WIDEST_NARROW
        # At a terminal each day is a line of its own, which leaves more room.
        self._sizes = [14, 6, 16, 9] if self._room is None else [8, 6, 13, 9]
        self._day = ""
        self._has_head = False

    def show(self, entries: Iterable[Entry]) -> None:
        """Print these, one a line."""
        for entry in entries:
            if not self._has_head:
                self._has_head = True
                self._print("TIME", "SOCKET", "WHO", "KEY", "WHAT", colour=output.HEAD)
            self._print(
                self._time(entry["time"]),
                output.plain(entry.get("socket") or "-"),
                output.plain(_who(entry)),
                output.plain(_key(entry)),
                output.plain(_what(entry)),
            )

    def _time(self, text: str) -> str:
        local = _local(text)
        if self._room is None or local is None:
            return _moment(text)
        day = f"{local:%Y-%m-%d}"
        if day != self._day:
            self._day = day
            print(output.paint(day, output.HEAD), flush=True)
        return f"{local:%H:%M:%S}"

    def _print(self, *cells: str, colour: str = "") -> None:
        *before, what = cells
        for number, cell in enumerate(before):
            self._sizes[number] = max(self._sizes[number], min(output.columns(cell), self._widest))
        line = ""
        for cell, size in zip(before, self._sizes, strict=True):
            line += cell + " " * (size - output.columns(cell)) + "  "
        if self._room is not None and output.columns(line + what) > self._room:
            begin, indent = line.rstrip(), "  "
            if output.columns(begin) > self._room:  # which generation it was matters most
                key = output.cut(before[-1], self._room // 2)
                begin, indent = line[: line.rindex(before[-1])].rstrip(), f"  {key}  "
            line = f"{output.cut(begin, self._room)}\n{indent}"
            what = output.cut(what, max(1, self._room - output.columns(indent)))
        end = output.paint(what, colour) if colour else _painted(what)
        print(output.paint(line, colour) + end, flush=True)


def _painted(what: str) -> str:
    """Refusals stand out."""
    refused = _REFUSED.match(what)
    if refused is None:
        return what
    return output.paint(refused[0], output.BAD) + what[refused.end() :]


def _local(text: str) -> datetime | None:
    """A time of the audit's, where we are; None if it is none."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        return None


def _moment(text: str) -> str:
    """A time of the audit's, without its year."""
    local = _local(text)
    return output.plain(text) if local is None else f"{local:%m-%d %H:%M:%S}"


def _who(entry: Entry) -> str:
    if entry.get("socket") is None:
        return "the agent"
    peer = entry.get("peer")
    if not isinstance(peer, dict):
        return "-"
    program, pid = peer.get("program"), peer.get("pid")
    if pid is None:
        return f"uid {peer.get('uid')}"
    return f"pid {pid}" if program is None else f"{program} {pid}"


def _key(entry: Entry) -> str:
    key, number, jkt = entry.get("key"), entry.get("generation"), entry.get("jkt")
    if key is None:
        return "-" if jkt is None else f"{str(jkt)[:8]}…"
    return str(key) if number is None else f"{key}@{number}"


def _what(entry: Entry) -> str:
    outcome, count = entry.get("outcome"), entry.get("count")
    if outcome == "counted":
        refusals = entry.get("refusals")
        kinds = refusals.items() if isinstance(refusals, dict) else ()
        told = ", ".join(f"{kind} {number}" for kind, number in kinds)
        return f"{count} more refused since {_moment(str(entry.get('since')))}: {told}"
    if outcome == "lost":
        return f"{count} lines couldn't be written"
    asked = _asked(entry)
    if outcome in ("done", "begun"):
        return asked if outcome == "done" else f"{asked}: its PIN is to be typed"
    rule = "" if entry.get("rule") is None else f", {entry['rule']}"
    return f"refused ({outcome}{rule}) {asked}"


def _asked(entry: Entry) -> str:
    """What somebody asked for."""
    method = entry.get("method")
    if method in ("proof", "proof.sign"):
        words = [entry.get("htm"), entry.get("origin")]
        if method == "proof.sign" or words == [None, None]:
            words.append(method)
    elif "store" in entry:
        words = [method, entry["store"] or "all stores"]
    else:
        given = entry.get("given")
        words = [method, entry.get("filtered"), *(given if isinstance(given, list) else ())]
    return " ".join(str(word) for word in words if word is not None) or "a line"
