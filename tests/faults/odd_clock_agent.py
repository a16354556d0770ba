"""`dpop-agent serve` whose clocks are off by what a file says, and that looks at the time often.

    python -m tests.faults.odd_clock_agent FILE …

FILE has two numbers: seconds to add to the wall clock, and to CLOCK_BOOTTIME. What follows on the
command line is ignored.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime, tzinfo
from pathlib import Path

from dpop_agent.agent import records, upkeep
from dpop_agent.cli.main import main

LOOK_S = 0.1

real_time, real_boottime = time.time, records.boottime


def offsets(file: Path) -> tuple[float, float]:
    wall, boot = file.read_text().split()
    return float(wall), float(boot)


if __name__ == "__main__":
    file = Path(sys.argv[1])

    class OddDatetime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(time.time(), tz)

    time.time = lambda: real_time() + offsets(file)[0]
    records.boottime = lambda: real_boottime() + offsets(file)[1]
    for module in (upkeep, records):
        module.datetime = OddDatetime  # type: ignore[attr-defined]
    upkeep.SAVE_S = upkeep.MIN_TICK_S = LOOK_S
    sys.exit(main(["serve"]))
