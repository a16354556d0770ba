"""The reserve for blocks that the ledger can't take: what was compromised while the disk was full.

A file whose room was made when there was some, and that is overwritten in place: most file systems
need no further room for that. Each block has a record of its own, which fits a disk's sector, so
that none is ever half written over another.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import replace

from dpop_agent import paths
from dpop_agent.agent.forms import Block, block_from
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.lines import read_file, sealed, unsealed

RECORD = 512
"""Bytes of a record: a sector of any disk."""

ROOM = 256
"""Records that there is room for: 128 KiB."""


def _record_of(line: bytes) -> bytes:
    return line.ljust(RECORD - 1) + b"\n"


def _line_of(record: bytes) -> bytes:
    line = record.rstrip(b" \n")
    if _record_of(line) != record:
        raise ValueError("it doesn't end as it was written")
    return line


_EMPTY = _record_of(b"")


class Blocks:
    """The blocks in the reserve.

    Attributes:
        kept: those that it has.
    """

    def __init__(self, path: str) -> None:
        """Read the file, if it is there.

        Raises:
            ValueError: it isn't as it was written; which record is wrong.
            OSError: it can't be read.
        """
        self._path = path
        self.kept: set[Block] = set()
        self._free: list[int] = []  # records by number, from 0
        data = read_file(path)
        self._made = data is not None
        if data is not None:
            self._read(data)

    def _read(self, data: bytes) -> None:
        if len(data) != ROOM * RECORD:
            raise ValueError(f"it has {len(data)} bytes, not {ROOM * RECORD}")
        for number in range(ROOM):
            record = data[number * RECORD : (number + 1) * RECORD]
            if record == _EMPTY:
                self._free.append(number)
                continue
            try:
                self.kept.add(block_from(unsealed(_line_of(record))))
            except ValueError as e:
                raise ValueError(f"line {number + 1}: {e}") from e

    def make(self) -> None:
        """Make room, if there is none yet: by writing it, as what is only promised may be lacking.

        Raises:
            OSError: there isn't enough.
        """
        if self._made and os.path.lexists(self._path):
            return
        self._made = False
        paths.replace_file(self._path, [_EMPTY] * ROOM)
        paths.sync_folder(os.path.dirname(self._path))
        self._free, self._made = list(range(ROOM)), True
        self.kept.clear()

    def keep(self, blocks: Iterable[Block]) -> None:
        """Have these in the file, durably.

        Raises:
            OSError: they can't be written there.
        """
        self.make()
        new = [block for block in blocks if block not in self.kept]
        if len(new) > len(self._free):
            raise OSError("its reserve for blocks has no room left")
        with open(self._path, "r+b", buffering=0, opener=_in_place) as file:
            for block, number in zip(new, self._free, strict=False):
                record = _record_of(sealed(block._asdict()))
                os.pwrite(file.fileno(), record, number * RECORD)
            os.fsync(file.fileno())
        del self._free[: len(new)]
        self.kept.update(new)

    def clear(self) -> None:
        """The ledger has them all.

        Raises:
            OSError: they stay, which does no harm.
        """
        if not self.kept:
            return
        with open(self._path, "r+b", buffering=0, opener=_in_place) as file:
            for number in set(range(ROOM)).difference(self._free):
                os.pwrite(file.fileno(), _EMPTY, number * RECORD)
            os.fsync(file.fileno())
        self._free = list(range(ROOM))
        self.kept.clear()


def with_blocks(keys: Keys, blocks: Collection[Block], now: str) -> Keys:
    """These keys, with what was blocked compromised."""
    changed: list[Key] = []
    refs = {(block.key, block.ref) for block in blocks}
    for name in {block.key for block in blocks}:
        key = keys.get(name)
        if key is None:
            continue
        blocked = [
            compromised
            for g in key.generations
            # Found after a lost ledger, it has another date.
            if (
                Block(name, g.ref, g.created) in blocks
                or (key.policy_lost and (name, g.ref) in refs)
            )
            and (compromised := _compromised(g, now)) is not g
        ]
        if blocked:
            changed.append(key.with_(*blocked))
    return keys.with_(*changed)


def _compromised(generation: Generation, now: str) -> Generation:
    if generation.state is State.PENDING:
        return generation if generation.compromised else replace(generation, compromised=True)
    if generation.state in (State.COMPROMISED, State.DESTROYED):
        return generation
    return generation.become(State.COMPROMISED, now)


def _in_place(path: str, _flags: int) -> int:
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
