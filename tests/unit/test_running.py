"""Commands beneath this process."""

from __future__ import annotations

import subprocess
import sys

ENDED_LATE = """
import os, signal
from dpop_agent.cli.running import beneath

ended = os.waitpid

def ended_in_the_last_moment(pid, options):
    found = ended(pid, options)
    signal.raise_signal(signal.SIGALRM)
    return found

os.waitpid = ended_in_the_last_moment
with beneath() as runs:
    status = runs.run(["sh", "-c", "exit 7"], os.environ, within_s=60, too_long=print)
print(status)
"""


def test_a_time_that_is_over_as_the_command_ends_ends_nothing_else() -> None:
    # In a process of its own: one with threads may hear of an end in another than it waits in.
    run = subprocess.run(
        [sys.executable, "-c", ENDED_LATE],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "7\n", "")
