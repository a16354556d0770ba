"""Ends and removes all that a run made, once its standard input ends: however the run ended.

python -m tests.hardware.janitor FOLDER

Its standard input is the pid of the tests, who lead a group of processes, once there are any; a
second line says that somebody reads what it prints: what it couldn't remove.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.hardware.looking import Failed
from tests.hardware.places import Run

END_S = 20.0
"""Seconds for the tests to end what they started, before they are killed."""

ATTEMPTS = 4


def clean_up(run: Run, leader: int | None) -> str:
    """What is left, for people; nothing if all is gone."""
    if leader is not None:
        _end(leader)
    told = "" if leader is None else _deleted(run)
    shutil.rmtree(run.folder, ignore_errors=True)
    if run.folder.exists():
        told += f"; the folder {run.folder}"
    return told


def _deleted(run: Run) -> str:
    """What couldn't be deleted. It is tried again, but for a PIN that was refused: what was just
    ended may have left a card busy for a moment.
    """
    why = ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            left = run.delete_ours()
        except Failed as e:
            why = str(e)
            if run.is_over():
                break
            time.sleep(attempt)
        else:
            return ", ".join(sorted({f"{thing.label} ({thing.kind})" for thing in left}))
    return f"that can't be told ({why}); look for objects whose label begins with dpop-agent"


def _end(leader: int) -> None:
    deadline = time.monotonic() + END_S
    with suppress(ProcessLookupError):
        os.kill(leader, signal.SIGTERM)
    while _is_there(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    while _is_there(leader) and time.monotonic() < deadline + END_S:
        time.sleep(0.05)


def _is_there(group: int) -> bool:
    """Whether a process of the group runs; those that ended and weren't waited for don't."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state not in "ZX":
            return True
    return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run = Run(Path(sys.argv[1]))
    first, _, rest = sys.stdin.read().partition("\n")
    left = clean_up(run, int(first) if first else None)
    try:
        if left or not rest:  # nobody else tells it, where the run was killed
            print(f"left behind: {left or 'nothing'}", flush=True)
    except OSError:
        pass
