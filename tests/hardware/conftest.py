"""What becomes of each check, one line of JSON each, for the report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.hardware.places import Run
from tests.processes import HARDWARE_RUN

_RUN = os.environ.get(HARDWARE_RUN)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if _RUN is None or (report.when != "call" and report.passed):
        return
    name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
    why = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        why = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = str(crash.message if crash else report.longrepr).strip().splitlines()[0]
    line = {"what": name, "how": report.outcome, "why": why, "seconds": report.duration}
    with Run(Path(_RUN)).results.open("a") as results:
        results.write(json.dumps(line) + "\n")
