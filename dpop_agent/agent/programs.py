"""Which program is behind a pid: a hint for people, and nothing to decide by.

A program chooses its own name, and a socket may be handed on: only the uid is a boundary.
"""

from __future__ import annotations

from typing import NamedTuple

_STARTED = 19  # of what stands behind the name in /proc/PID/stat: field 22 (proc(5))


class Program(NamedTuple):
    """A process's program.

    Attributes:
        name: what it calls itself, 15 bytes of it.
        started: when the process was: its pid is given to others again.
    """

    name: str
    started: bytes


def program_of(pid: int) -> Program | None:
    """The program of a process; None if that has ended, or there is no /proc, or `pid` is 0."""
    if not pid:
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            before, _, rest = file.read().rpartition(b")")
        fields = rest.split()
        if fields[0] in (b"Z", b"X"):
            return None
        return Program(before.partition(b"(")[2].decode("utf-8", "replace"), fields[_STARTED])
    except (OSError, IndexError):
        return None
