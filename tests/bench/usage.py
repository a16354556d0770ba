"""What processes cost: CPU time, memory, system calls. Another user's can only be read by root."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.bench.figures import CannotMeasure, Measures


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have had of the CPU so far, to the nanosecond."""
    spent = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        spent += int((thread / "schedstat").read_text().split()[0])
    return spent / 1e9


def with_cpu(measure: Callable[[], Measures], pids: Mapping[str, int], count: int) -> Measures:
    """A measurement, and the CPU time that each process took for one of its `count`, in µs."""
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    found = dict(measure())
    for name, pid in pids.items():
        found[name] = (cpu_seconds(pid) - before[name]) / count * 1e6
    return found


def pss_mib(pid: int) -> float:
    """A process's share of memory: what it shares with others counts in part (PSS)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss: +(\d+) kB$", text, flags=re.M)
    assert found, text
    return int(found[1]) / 1024


class Traced:
    """The system calls of a process, counted by strace, which makes each of them much slower."""

    def __init__(self, pid: int, report: Path) -> None:
        self._report = report
        self._strace = subprocess.Popen(
            ["strace", "-f", "-c", "-U", "calls,name", "-o", report, "-p", str(pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._strace.stderr is not None
        if "attached" not in self._strace.stderr.readline():
            raise CannotMeasure(f"strace: {self._strace.stderr.read()}")

    def end(self) -> int:
        """How many there were."""
        self._strace.send_signal(signal.SIGINT)
        self._strace.communicate()
        found = re.findall(r"^ *(\d+) +(\w+)$", self._report.read_text(), flags=re.M)
        return sum(int(calls) for calls, name in found if name != "total")


def with_calls(
    measure: Callable[[], object], pids: Mapping[str, int], count: int, folder: Path
) -> Measures:
    """The system calls that each process made for one of a measurement's `count`."""
    traced = {name: Traced(pid, folder / f"calls-{pid}") for name, pid in pids.items()}
    time.sleep(0.05)
    measure()
    return {name: each.end() / count for name, each in traced.items()}
