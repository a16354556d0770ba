"""A command at a terminal of its own, where a test types."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from tests.processes import START_S, Agent, end


class Terminal:
    """`dpop-agent WORDS…`, or another program, at a terminal of its own.

    Args:
        agent: whom it talks to.
        words: what it is told.
        program: what runs.
        stdin: its standard input where that isn't the terminal.
        env: its environment, else the agent's.
    """

    def __init__(
        self,
        agent: Agent,
        *words: str,
        program: Iterable[str] = (sys.executable, "-m", "dpop_agent"),
        stdin: int | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self._ours, theirs = pty.openpty()
        name = os.ttyname(theirs)
        take: Callable[[], Any] = lambda: os.close(os.open(name, os.O_RDWR))  # noqa: E731
        self.shown = ""
        self.process = subprocess.Popen(
            [*program, *words],
            stdin=theirs if stdin is None else stdin,
            stdout=theirs,
            stderr=theirs,
            env=env or agent.env,
            start_new_session=True,
            preexec_fn=take,  # the first terminal that is opened controls it
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end(self.process)
        os.close(self._ours)

    def until(self, text: str) -> None:
        """Wait until it has shown that."""
        while text not in self.shown:
            assert self._read(), f"it ended: {self.shown}"

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self.process.poll() is not None

    def type(self, line: str) -> None:
        os.write(self._ours, line.encode(errors="surrogateescape"))

    def end(self) -> tuple[int, str]:
        """Its exit status, and all that it showed."""
        while self._read():
            pass
        return self.process.wait(START_S), self.shown

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], START_S)
        assert ready, f"it says no more: {self.shown}"
        try:
            data = os.read(self._ours, 1024)
        except OSError:
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


def at_a_terminal(agent: Agent, *words: str, prompt: str, typed: str) -> tuple[int, str]:
    """`dpop-agent WORDS…` where somebody types once; its status, and all that it showed."""
    with Terminal(agent, *words) as terminal:
        terminal.until(prompt)
        terminal.type(typed + "\n")
        return terminal.end()
