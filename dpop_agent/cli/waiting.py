"""What is waited for, and how long already: a line on a terminal's standard error that is gone
once that is over. Where standard error is no terminal, there is none.
"""

from __future__ import annotations

import os
import sys
import time

from dpop_agent.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from typing import ClassVar, Self

    from dpop_agent.client import Touch

AFTER_S = 0.5
"""Seconds before anything is said: most is over sooner."""

_ERASE = "\r\x1b[K"
"""To the line's beginning, and it is blank (ECMA-48, EL)."""


class Waiting:
    """`with Waiting("making a key"):` what may take long; one in another says what it waits for in
    that one's place.

    Args:
        what: without the seconds, which are added; empty for what nothing is said of.
    """

    _line: ClassVar[_Line | None] = None

    def __init__(self, what: str) -> None:
        self._what = what
        self._outer: tuple[str, float] | None = None
        self._own: _Line | None = None

    def __enter__(self) -> Self:
        if Waiting._line is not None:
            self._outer = Waiting._line.says
            Waiting._line.say(self._what)
        elif output.takes_escapes(sys.stderr):
            Waiting._line = self._own = _Line(self._what)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._own is not None:
            Waiting._line = None
            self._own.end()
        elif self._outer is not None and Waiting._line is not None:
            Waiting._line.says = self._outer

    @staticmethod
    def touch(touch: Touch) -> None:
        """Ask for a touch or tell of a consent, and wait for that from now on."""
        line = Waiting._line
        if line is not None:
            line.erase()
        say_touch(touch)
        if line is not None:
            # A pinentry that asks for consent may have this very terminal.
            line.say("" if touch.consent else "waiting for the touch")


_said: set[str] = set()


def say_touch(touch: Touch) -> None:
    """Ask for a touch, on standard error: standard output may be a proof and nothing else.

    A consent is announced when it begins to wait and when its turn comes, and said once.
    """
    if touch.consent:
        if touch.key in _said:
            return
        _said.add(touch.key)
    if sys.stderr is not None:  # closed, print would take standard output
        print(output.plain(touch), file=sys.stderr, flush=True)


class _Line:
    """The line, and the thread that writes it.

    Attributes:
        says: what is waited for, and since when.
    """

    def __init__(self, what: str) -> None:
        from threading import Event, Lock, Thread

        self.says = (what, time.monotonic())
        self._ended: threading.Event = Event()
        self._writing: threading.Lock = Lock()
        self._is_there = False
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def say(self, what: str) -> None:
        """Wait for something else from now on."""
        self.says = (what, time.monotonic())

    def _run(self) -> None:
        while not self._ended.wait(AFTER_S):
            what, since = self.says
            if not what:
                continue
            seconds = f", {int(time.monotonic() - since)} s"
            text = output.cut(output.plain(what), _columns() - 1 - len(seconds)) + seconds
            with self._writing:
                if not self._ended.is_set():
                    self._write(_ERASE + text)
                    self._is_there = True

    def erase(self) -> None:
        """Have nothing there until it is written again."""
        with self._writing:
            if self._is_there:
                self._write(_ERASE)
                self._is_there = False

    def end(self) -> None:
        """Leave nothing there."""
        self._ended.set()
        self.erase()
        self._thread.join()

    @staticmethod
    def _write(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):  # a terminal that has gone is missed by nobody here
            pass


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
