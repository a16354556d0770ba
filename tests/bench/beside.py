"""Asks for proofs until it is ended, so that something is measured beside it.

python -m tests.bench.beside SOCKET KEY CONNECTIONS
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from tests.bench.asked import proof_by
from tests.bench.figures import CannotMeasure, Measures
from tests.bench.loads import concurrent, connected
from tests.processes import ROOT, end

SETTLED_S = 0.5


def beside(path: str, key: str, connections: int, measure: Callable[[], Measures]) -> Measures:
    """A measurement while another process asks for proofs by a key."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.beside", path, key, str(connections)], cwd=ROOT
    )
    try:
        time.sleep(SETTLED_S)
        return measure()
    finally:
        if process.poll() is not None:
            raise CannotMeasure("what was to be beside ended")
        end(process)


def main() -> None:
    path, key, connections = sys.argv[1:]
    with ExitStack() as stack:
        socks = [stack.enter_context(connected(path)) for _ in range(int(connections))]
        while True:
            concurrent(proof_by(key=key), socks, len(socks) * 100)


if __name__ == "__main__":
    main()
