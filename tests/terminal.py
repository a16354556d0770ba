"""Terminals of the tests' own, where somebody sits who reads and types."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from tests.processes import START_S, Agent, end


class Screen:
    """A terminal.

    Args:
        size: its lines and columns, else nobody knows them.

    Attributes:
        name: its path.
        shown: all that was shown there so far.
    """

    def __init__(self, size: tuple[int, int] = (0, 0)) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(size)
        self.name = os.ttyname(self._theirs)
        self.shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._ours)
        os.close(self._theirs)

    def resize(self, size: tuple[int, int]) -> None:
        termios.tcsetwinsize(self._ours, size)

    def until(self, text: str) -> None:
        """Wait until it has shown that."""
        self.until_count(text, 1)

    def until_count(self, text: str, times: int) -> None:
        """Wait until it has shown that so often."""
        deadline = time.monotonic() + 3 * START_S
        while self.shown.count(text) < times:
            assert self._read(), f"it ended: {self.shown}"
            assert time.monotonic() < deadline, f"it says other things: {self.shown}"

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode(errors="surrogateescape"))

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], START_S)
        assert ready, f"it says no more: {self.shown}"
        try:
            data = os.read(self._ours, 4096)
        except OSError:
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


class Terminal(Screen):
    """`dpop-agent WORDS…` at a terminal of its own.

    Args:
        agent: whom it talks to; None where `env` says so.
        words: what it is told.
        stdin: its standard input where that isn't the terminal.
        env: its environment, else the agent's.
        preexec: words before the command.
        size: the terminal's lines and columns.
    """

    def __init__(
        self,
        agent: Agent | None,
        *words: str,
        stdin: int | None = None,
        env: dict[str, str] | None = None,
        preexec: Iterable[str] = (),
        size: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(size)
        take: Callable[[], Any] = lambda: os.close(os.open(self.name, os.O_RDWR))  # noqa: E731
        self.process = subprocess.Popen(
            [*preexec, sys.executable, "-m", "dpop_agent", *words],
            stdin=self._theirs if stdin is None else stdin,
            stdout=self._theirs,
            stderr=self._theirs,
            env=env if agent is None or env is not None else agent.env,
            start_new_session=True,
            preexec_fn=take,  # the first terminal that is opened controls it
        )
        os.close(self._theirs)  # so that the end of the process is the end of file

    def __exit__(self, *exc_info: object) -> None:
        end(self.process)
        os.close(self._ours)

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self.process.poll() is not None

    def end(self) -> tuple[int, str]:
        """Its exit status, and all that it showed."""
        while self._read():
            pass
        return self.process.wait(START_S), self.shown


def at_a_terminal(agent: Agent, *words: str, prompt: str, typed: str) -> tuple[int, str]:
    """`dpop-agent WORDS…` where somebody types once; its status, and all that it showed."""
    with Terminal(agent, *words) as terminal:
        terminal.until(prompt)
        terminal.type(typed + "\n")
        return terminal.end()


def unlock(agent: Agent, pin: str) -> tuple[int, str]:
    """`dpop-agent unlock` where somebody types a PIN; its status, and all that it showed."""
    return at_a_terminal(agent, "unlock", prompt="PIN of the store", typed=pin)


def left(shown: str) -> str:
    """What still stands on a terminal that was sent this: lines that were erased don't."""
    return "\n".join(line.split("\r\x1b[K")[-1].rstrip("\r") for line in shown.split("\n"))
