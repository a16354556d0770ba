"""Files of checked lines: JSON that a person can read, and in which no changed bit goes unnoticed.

    {"version": 2, …, "lines": {"keys": 2, "requests": 0}, "check": "0123456789abcdef",
    "keys": [
    {…, "check": "…"},
    {…, "check": "…"}
    ],
    "requests": [
    ]}

Each line with members ends with a checksum of its own text; the first one also says how many
others there are. The whole is one JSON document. The checksums are for disks and editors that err:
whoever may write the file can make new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from dpop_agent import paths
from dpop_agent.errors import ConfigurationError
from dpop_agent.jose import json_object

T = TypeVar("T")

_MARK = b', "check": "'
_VERSION = re.compile(rb'\{"version": ([0-9]{1,9})[,}]')

_CHUNK = 1000
"""Lines joined at once."""

_BREATH = 64
"""Lines made anew between two moments at which the thread lets others run: about half a
millisecond of work."""

_KINDS: Mapping[int, str] = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Line(NamedTuple):
    """A line that was read: its number in the file, from 1, its members, and its text."""

    number: int
    members: dict[str, Any]
    text: bytes


def sealed(members: Mapping[str, Any]) -> bytes:
    """A line with its checksum."""
    text = json.dumps(members).encode("ascii")
    return text[:-1] + _MARK + _checksum(text) + b'"}'


def unsealed(line: bytes) -> dict[str, Any]:
    """The members of a line whose checksum fits.

    Raises:
        ValueError: what is wrong with it.
    """
    before, mark, rest = line.rpartition(_MARK)
    text = before + b"}"
    if not mark or rest != _checksum(text) + b'"}':
        raise ValueError("its checksum doesn't fit")
    return json_object(text)


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode("ascii")


class Sealed:
    """Lines by name, kept while their values stay the same objects: few change between writes."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[object, bytes]] = {}

    def learn(self, name: str, value: object, text: bytes) -> None:
        """The line that a value was read from."""
        self._lines[name] = value, text

    def lines(
        self, values: Mapping[str, T], members: Callable[[str, T], Mapping[str, Any]]
    ) -> list[bytes]:
        """The lines of these values, in their order; those of others are forgotten.

        Blocks for a moment now and then, so that other threads run meanwhile.
        """
        known, made = self._lines, 0
        self._lines = {}
        for name, value in values.items():
            kept = known.get(name)
            if kept is None or kept[0] is not value:
                kept = value, sealed(members(name, value))
                made += 1
                if made % _BREATH == 0:
                    time.sleep(0.0001)
            self._lines[name] = kept
        return [line for _, line in self._lines.values()]


def composed(header: Mapping[str, Any], sections: Mapping[str, Sequence[bytes]]) -> Iterator[bytes]:
    """A file's text, in pieces."""
    counts = {name: len(lines) for name, lines in sections.items()}
    yield sealed({**header, "lines": counts})[:-1]
    for name, lines in sections.items():
        yield b',\n"%s": [' % name.encode("ascii")
        for start in range(0, len(lines), _CHUNK):
            yield (b",\n" if start else b"\n") + b",\n".join(lines[start : start + _CHUNK])
        yield b"\n]"
    yield b"}\n"


def version_of(data: bytes) -> int:
    """Which version's form a file has.

    Raises:
        ValueError: none that could be told.
    """
    found = _VERSION.match(data)
    if found is None:
        raise ValueError("line 1 doesn't begin with a version")
    return int(found[1])


def parsed(
    data: bytes, sections: Sequence[str], optional: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, list[Line]]]:
    """A file's first line, and the lines of its sections.

    Raises:
        ValueError: which line is wrong, and how.
    """
    rows = data.split(b"\n")
    position = 0

    def take(end: bytes) -> bytes:
        nonlocal position
        if position >= len(rows):
            raise ValueError(f"it ends after line {position}")
        row = rows[position]
        position += 1
        if not row.endswith(end):
            raise ValueError(f"line {position} doesn't end as it was written")
        return row[: len(row) - len(end)]

    def must(text: bytes) -> None:
        if take(b"") != text:
            raise ValueError(f"line {position} isn't {text.decode('ascii') or 'empty'}")

    def members(text: bytes) -> dict[str, Any]:
        try:
            return unsealed(text)
        except ValueError as e:
            raise ValueError(f"line {position}: {e}") from e

    header = members(take(b",") + b"}")
    counts = header.pop("lines", None)
    sections = [*sections, *(name for name in optional if name in (counts or ()))]
    if (
        not isinstance(counts, dict)
        or list(counts) != list(sections)
        or not all(type(n) is int and n >= 0 for n in counts.values())
    ):
        raise ValueError("line 1 doesn't say how many lines there are")
    found: dict[str, list[Line]] = {}
    for name in sections:
        must(b'"%s": [' % name.encode("ascii"))
        found[name] = []
        for left in reversed(range(counts[name])):
            text = take(b"," if left else b"")
            found[name].append(Line(position, members(text), text))
        must(b"]}" if name == sections[-1] else b"],")
    must(b"")
    if position != len(rows):
        raise ValueError(f"line {position} isn't the last one")
    return header, found


def read_file(path: str) -> bytes | None:
    """What a file has; None if there is none.

    Raises:
        ValueError: something else is in its place, or others can change it.
        OSError: it can't be read.
    """
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return None
    if kind != stat.S_IFREG:  # nor a link: it would be replaced, and what it leads to stay behind
        raise ValueError(f"it is {_KINDS.get(kind, 'something')}, not a file")
    try:
        descriptor = paths.open_only_ours(path, "the file", instead="restore it from a backup")
    except ConfigurationError as e:
        raise ValueError(e.message) from e
    with open(descriptor, "rb") as file:
        return file.read()
