"""The agent's log on standard error, which nobody may be reading: it never keeps the agent waiting.

What a full pipe or a stopped terminal doesn't take now is left out, and counted.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import sys

_STDERR = 2
_ATOMIC = select.PIPE_BUF
"""Bytes that a pipe takes all or none of (pipe(7))."""

_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))
"""Levels, and the journal's (sd-daemon(3))."""


class _ForJournal(logging.Formatter):
    """The journal has the time by itself, and takes the level from the line's beginning."""

    def format(self, record: logging.LogRecord) -> str:
        level = next((p for least, p in _PRIORITIES if record.levelno >= least), 7)
        return f"<{level}>{super().format(record)}"


class Log(logging.Handler):
    """Writes a line where it can be written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(
            _ForJournal()
            if _is_journal(_STDERR)
            else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
        )
        self._encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
        self._lost = 0
        self._descriptor = _not_blocking(_STDERR)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, or count it as lost."""
        try:
            if self._lost:
                lines = f"{self._lost} lines of the log couldn't be written and are left out here"
                self._write(lines)
                self._lost = 0
            self._write(self.format(record))
        except OSError:  # full, closed, or on a disk without space
            self._lost += 1

    def _write(self, line: str) -> None:
        left = f"{line}\n".encode(self._encoding, "backslashreplace")
        while left:
            if not self._poll.poll(0):
                raise BlockingIOError
            left = left[os.write(self._descriptor, left[:_ATOMIC]) :]


def _is_journal(descriptor: int) -> bool:
    """Whether it leads to the journal ($JOURNAL_STREAM, systemd.exec(5))."""
    found = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _not_blocking(descriptor: int) -> int:
    """The same pipe or terminal, opened anew: others have this one, and may want it to block."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or os.isatty(descriptor):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            return os.open(f"/dev/fd/{descriptor}", flags)
        except OSError:  # somebody else's terminal; whether it takes more is asked in any case
            pass
    return descriptor
