"""The state folder: which keys there are, in which state; and what was seen of their use.

    ledger.json   the keys, the requests that were carried out, which thumbprints forgotten keys
                  had, and the filtered sockets; written by verbs alone
    uses.json     when keys signed and for whom, and the time observed; written about every minute
    blocks        the reserve for what is compromised while the ledger can't be written
    clean-stop    there, if the last agent ended in order, with nothing unsaved
    ledger.lock   held by the one agent that writes all these

The ledger is the truth about keys: an object in a store that it doesn't list is a stranger's. So it
is never started empty over a file that can't be read, and never changed in place.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from dpop_agent import paths
from dpop_agent.agent import forms, lock
from dpop_agent.agent.blocks import Blocks, with_blocks
from dpop_agent.agent.filters import Filter
from dpop_agent.agent.forms import Remembered
from dpop_agent.agent.keys import Forgotten, Key, Keys, State
from dpop_agent.agent.lines import (
    Line,
    Sealed,
    composed,
    parsed,
    read_file,
    version_of,
)
from dpop_agent.agent.uses import Use
from dpop_agent.errors import ConfigurationError, LedgerUnreadable, NotDurable
from dpop_agent.jose import json_object

VERSION = 2
"""Of the files' form; version 1, without checksums and with all in one file, is read too."""

FILE = "ledger.json"
USES = "uses.json"
BLOCKS = "blocks"
CLEAN_STOP = "clean-stop"
LOCK = "ledger.lock"

_SECTIONS = ("keys", "requests")
_FORGOTTEN, _SOCKETS = "forgotten", "sockets"
"""Sections that are there once a key was forgotten, and while there are filtered sockets."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Contents:
    """All that the ledger says at one moment.

    `requests` has what was asked by request id, `observed_s` where the agent's own clock stood,
    `sockets` the filtered ones by name.
    """

    keys: Keys = field(default_factory=Keys)
    requests: Mapping[str, Remembered] = field(default_factory=dict)
    observed_s: int = 0
    sockets: Mapping[str, Filter] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Times:
    """What was seen of the keys' use, as `Seen` has it."""

    uses: Mapping[str, Use] = field(default_factory=dict)
    observed_s: int = 0
    unclean_s: int | None = None


class Reading:
    """What a state folder's files have, whether or not an agent writes to it.

    Attributes:
        path: the ledger's.
        is_there: whether there is one; else it has nothing.
        is_current: it is of this version.
        contents, times: what its files have.
        blocks: the reserve.
        clean: whether the agent that wrote them ended in order, with nothing unsaved.
    """

    def __init__(self, folder: str) -> None:
        """Read the files in `folder`.

        Raises:
            LedgerUnreadable: it has a file that can't be read.
        """
        self._begin(folder, FILE)
        # Before the ledger: what is cleared there meanwhile is in the ledger.
        self.blocks: Blocks = self._read(BLOCKS, Blocks)
        data = self._read(FILE, read_file)
        if data is not None:
            self.is_there = True
            self.clean = os.path.lexists(self._place(CLEAN_STOP))
            self._read(FILE, lambda _path: self._load(data))
        self._read(USES, self._load_uses)

    def _begin(self, folder: str, file: str) -> None:
        self.path = os.path.join(folder, file)
        self._folder = folder
        self._keys, self._requests, self._uses = Sealed(), Sealed(), Sealed()
        self._forgotten, self._sockets = Sealed(), Sealed()
        self.contents, self.times, self.clean = Contents(), Times(), True
        self.is_current = False
        self.is_there = False

    def text(self, now: str) -> Iterator[bytes]:
        """A ledger that says the same, in pieces; what the reserve has is compromised `now`."""
        keys = with_blocks(self.contents.keys, self.blocks.kept, now)
        return self._text(replace(self.contents, keys=keys))

    def _text(self, contents: Contents) -> Iterator[bytes]:
        sections = {
            "keys": self._keys.lines(contents.keys, forms.key_members),
            "requests": self._requests.lines(contents.requests, forms.request_members),
        }
        if contents.keys.forgotten:
            sections[_FORGOTTEN] = self._forgotten.lines(
                contents.keys.forgotten, forms.forgotten_members
            )
        if contents.sockets:
            sections[_SOCKETS] = self._sockets.lines(contents.sockets, forms.socket_members)
        header = {"version": VERSION, "observed_s": contents.observed_s}
        return composed(header, sections)

    def _place(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _read(self, name: str, read: Callable[[str], T]) -> T:
        path = self._place(name)
        try:
            return read(path)
        except OSError as e:
            raise _unreadable(name, path, e.strerror or type(e).__name__) from e
        except ValueError as e:
            raise _unreadable(name, path, str(e)) from e

    def _load(self, data: bytes) -> None:
        version = version_of(data)
        if version == 1:
            self._load_version_1(data)
            return
        _require_version(version)
        header, sections = parsed(data, _SECTIONS, optional=[_FORGOTTEN, _SOCKETS])
        forms.require(header, forms.LEDGER_HEADER, "line 1")
        keys = _section(sections["keys"], self._keys, forms.key_from, "key", _name)
        requests: dict[str, Remembered] = {}
        for number, members, text in sections["requests"]:
            name, request = _on_line(number, forms.request_from, members)
            if name in requests:
                raise ValueError(f"line {number}: the request {name} appears twice")
            requests[name] = request
            self._requests.learn(name, request, text)
        forgotten = _section(
            sections.get(_FORGOTTEN, ()), self._forgotten, forms.forgotten_from, "jkt", _jkt
        )
        sockets = _section(
            sections.get(_SOCKETS, ()), self._sockets, forms.socket_from, "socket", _name
        )
        known = Keys(keys.values(), forgotten.values())
        self.contents = Contents(known, requests, header["observed_s"], sockets)
        self.is_current = True
        _require_one_of_each(self.contents)

    def _load_version_1(self, data: bytes) -> None:
        document = json_object(data)
        forms.require(document, forms.LEDGER_1, "the ledger")
        keys: dict[str, Key] = {}
        uses: dict[str, Use] = {}
        for number, members in enumerate(document["keys"], 1):
            key, times = _on_line(number, forms.key_from_version_1, members, "key number")
            if key.name in keys:
                raise ValueError(f"the key {key.name} appears twice")
            keys[key.name] = key
            uses |= {jkt: forms.use_from_version_1(old) for jkt, old in times.items() if jkt}
        requests = {
            name: forms.request_from_version_1(name, value)
            for name, value in document["requests"].items()
        }
        self.contents = Contents(Keys(keys.values()), requests)
        _require_one_of_each(self.contents)
        self.times, self.clean = Times(uses), document["clean"]

    def _load_uses(self, path: str) -> None:
        data = read_file(path)
        if data is None:
            self.clean = self.clean and not (self.is_current and self.contents.keys)
            return
        _require_version(version_of(data))
        header, sections = parsed(data, ("uses",))
        forms.require(header, forms.USES_HEADER, "line 1")
        uses: dict[str, Use] = {}
        for number, members, text in sections["uses"]:
            jkt, use = _on_line(number, forms.use_from, members)
            if jkt in uses:
                raise ValueError(f"line {number}: the jkt {jkt} appears twice")
            if use.at_s > header["observed_s"]:
                raise ValueError(f"line {number}: at_s is later than observed_s in line 1")
            if jkt in self.contents.keys.by_jkt:
                uses[jkt] = use
                self._uses.learn(jkt, use, text)
        self.clean = os.path.lexists(self._place(CLEAN_STOP))
        self.times = Times(uses, header["observed_s"], header["unclean_s"])


class Copy(Reading):
    """A ledger that somebody keeps as a file of its own."""

    def __init__(self, path: str) -> None:
        """Read it.

        Raises:
            LedgerUnreadable: it can't be read, or isn't there.
        """
        self._begin(*os.path.split(path))
        try:
            data = read_file(path)
            if data is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._load(data)
        except (OSError, ValueError) as e:
            why = e.strerror if isinstance(e, OSError) else str(e)
            raise LedgerUnreadable(
                f"the ledger {path} can't be read ({why})", hint="use another copy"
            ) from e
        self.is_there = True


class Ledger(Reading):
    """The open state folder; holding it means being its only writer."""

    def __init__(self, folder: str, *, holder: str = "a process") -> None:
        """Open `folder`, which is made with mode 0700 where it isn't there.

        `holder` is what another agent is told that wants it too.

        Raises:
            ConfigurationError: another agent has it, or others can write to the folder.
            LedgerUnreadable: it has a file that can't be read.
        """
        try:
            paths.make_private_folder(
                folder, "the state folder", instead=paths.ANOTHER_STATE_FOLDER
            )
            paths.check_only_ours(folder, "the state folder", instead=paths.ANOTHER_STATE_FOLDER)
            self._lock = lock.take(os.path.join(folder, LOCK), holder=holder)
        except lock.Held as e:
            raise ConfigurationError(
                f"another agent uses the state folder {folder}: {e}",
                hint="use that one, end it, or set DPOP_AGENT_STATE_DIR",
            ) from e
        except OSError as e:
            raise ConfigurationError(
                f"the state folder {folder} can't be used ({e.strerror})",
                hint="make it writable, or set DPOP_AGENT_STATE_DIR",
            ) from e
        try:
            super().__init__(folder)
        except BaseException:
            os.close(self._lock)
            raise

    def write(self, contents: Contents) -> None:
        """Replace the ledger, durably: the old contents or the new ones survive, whatever happens.

        Blocks for an fsync of file and folder.

        Raises:
            NotDurable: the write failed; `contents` is what the file has.
        """
        text = self._text(contents)
        try:
            paths.replace_file(self.path, text)
            self.contents = contents  # as the file has it now, durable or not
            self.is_current = True
            paths.sync_folder(self._folder)
        except OSError as e:
            raise _not_durable(self.path, e) from e

    def save(self, times: Times, *, clean: bool) -> None:
        """Replace what was seen of the keys' use; `clean`: nothing comes after it.

        Blocks for several fsyncs.

        Raises:
            NotDurable: the write failed; that the next agent isn't told that all is saved may have
                succeeded all the same.
        """
        path, clean_stop = self._place(USES), self._place(CLEAN_STOP)
        header = {
            "version": VERSION,
            "observed_s": times.observed_s,
            "unclean_s": times.unclean_s,
        }
        try:
            if os.path.lexists(clean_stop):  # what needs no room comes first
                os.unlink(clean_stop)
                paths.sync_folder(self._folder)
            lines = self._uses.lines(times.uses, forms.use_members)
            paths.replace_file(path, composed(header, {"uses": lines}))
            self.times = times
            paths.sync_folder(self._folder)
        except OSError as e:
            raise _not_durable(path, e) from e
        if not self.is_current:
            self.write(self.contents)
        try:
            if clean:
                os.close(os.open(clean_stop, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
                paths.sync_folder(self._folder)
            else:
                self.blocks.make()
        except OSError as e:
            raise _not_durable(clean_stop if clean else self._place(BLOCKS), e) from e

    def close(self) -> None:
        """Let another agent have it."""
        os.close(self._lock)


def _section(
    lines: Iterable[Line],
    sealed: Sealed,
    read: Callable[[dict[str, Any]], T],
    what: str,
    name_of: Callable[[T], str],
) -> dict[str, T]:
    """What a section's lines say, by name; `sealed` keeps the lines.

    Raises:
        ValueError: which line is wrong, and how.
    """
    found: dict[str, T] = {}
    for number, members, text in lines:
        value = _on_line(number, read, members)
        name = name_of(value)
        if name in found:
            raise ValueError(f"line {number}: the {what} {name} appears twice")
        found[name] = value
        sealed.learn(name, value, text)
    return found


def _name(named: Key | Filter) -> str:
    return named.name


def _jkt(forgotten: Forgotten) -> str:
    return forgotten.jkt


def _on_line(
    number: int, read: Callable[[dict[str, Any]], T], members: dict[str, Any], what: str = "line"
) -> T:
    try:
        return read(members)
    except ValueError as e:
        raise ValueError(f"{what} {number}: {e}") from e


def _require_version(version: int) -> None:
    if version != VERSION:
        raise ValueError(f"it has version {version}, this agent reads 1 to {VERSION}")


def _require_one_of_each(contents: Contents) -> None:
    """No two generations are one key pair, and none is of a later time than the ledger."""
    seen: dict[str, str] = {}
    for key in contents.keys.values():
        for g in key.generations:
            which = f"{key.name}@{g.generation}"
            if g.since_s > contents.observed_s:
                raise ValueError(f"since_s of {which} is later than observed_s")
            if g.jkt and g.state is not State.DESTROYED:
                if g.jkt in seen:
                    raise ValueError(f"{seen[g.jkt]} and {which} have the same jkt")
                seen[g.jkt] = which


_HINTS = {
    FILE: "restore it from a backup, or move it away to start with none",
    USES: "restore it from a backup, or move it away: drains begin anew then, and for which "
    "servers keys signed is forgotten",
    BLOCKS: "if nothing was marked as compromised while the disk was full, move it away; else move "
    "it away and mark those keys again, before anything else",
}


def _unreadable(name: str, path: str, why: str) -> LedgerUnreadable:
    if name == FILE:
        what = f"the ledger {path} can't be read ({why}), and starting without it would forget"
        return LedgerUnreadable(f"{what} every key", hint=_HINTS[name])
    what = "how keys were used" if name == USES else "which keys are compromised"
    return LedgerUnreadable(
        f"the ledger's file {path} can't be read ({why}), and starting without it would forget "
        f"{what}",
        hint=_HINTS[name],
    )


def _not_durable(path: str, error: OSError) -> NotDurable:
    return NotDurable(
        f"the ledger {path} can't be written ({error.strerror or error})",
        hint="free space or make the folder writable, then try again",
    )
