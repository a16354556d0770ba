"""Commands beneath this process."""

from __future__ import annotations

import os
import signal

import pytest

from dpop_agent.cli.running import beneath


def test_a_time_that_is_over_as_the_command_ends_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    came: list[int] = []
    ended = os.waitpid

    def ended_in_the_last_moment(pid: int, options: int) -> tuple[int, int]:
        found = ended(pid, options)
        signal.raise_signal(signal.SIGALRM)
        return found

    monkeypatch.setattr(os, "waitpid", ended_in_the_last_moment)
    before = signal.signal(signal.SIGALRM, lambda number, _: came.append(number))
    try:
        with beneath() as runs:
            status = runs.run(["sh", "-c", "exit 7"], os.environ, within_s=60, too_long=came.append)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (status, came) == (7, [])
