"""What was measured, as people and as programs read it, and whether the bars were kept."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.bars import AT_LEAST, BARS, is_kept, judged
from tests.bench.figures import Figures, shown
from tests.bench.revisions import Revision

LIBRARIES = ("python-pkcs11", "cryptography", "pyjwt", "httpx", "msgspec", "uvloop")
PROGRAMS = {
    "softhsm2": ["softhsm2-util", "--version"],
    "openssh": ["ssh", "-V"],
}


def print_subjects(figures: Figures, *, but: set[str]) -> None:
    """A table of the subjects that aren't among `but`: their measures, each with its spread."""
    subjects = {name: columns for name, columns in figures.values.items() if name not in but}
    measures = list(dict.fromkeys(measure for columns in subjects.values() for measure in columns))
    rows = [["", *measures]]
    for name, columns in subjects.items():
        rows.append([name, *(shown(columns[m]) if m in columns else "" for m in measures)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def print_derived(figures: Figures, *, but: set[str]) -> None:
    """What follows from the columns and has no bar."""
    for name, values in figures.derived.items():
        if name not in but and name not in BARS:
            print(f"  {shown(values):24} {name}")


def print_bars(figures: Figures, *, all_parts: bool) -> bool:
    """Print each bar and what was measured; whether all were kept that were measured.

    Args:
        all_parts: that each was to be measured, so those that weren't are shown too.
    """
    print(f"\n{'bar':>8}  {'judged':>7}  {'median':>7}  {'least to most':>15} {'times':>5}")
    missed = []
    for bar, limit in BARS.items():
        values = figures.derived.get(bar)
        sign = "≥" if bar in AT_LEAST else "≤"
        if not values:
            if all_parts:
                print(f"{sign} {limit:6.2f}  {'not measured':>39}  {bar}")
            continue
        if not is_kept(bar, values):
            missed.append(bar)
        print(
            f"{sign} {limit:6.2f}  {judged(bar, values):7.2f}  {statistics.median(values):7.2f}  "
            f"{min(values):7.2f} {max(values):7.2f}  {len(values):4}  {bar}"
        )
    for bar in missed:
        print(f"missed: {bar}")
    return not missed


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": model[0] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Of what takes part, as far as it is here."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, command in PROGRAMS.items():
        try:
            said = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            ).stdout
        except FileNotFoundError:
            continue
        found[name] = said.splitlines()[0].strip() if said else ""
    return found


def as_json(figures: Figures, revisions: list[Revision], before: dict[str, Any]) -> dict[str, Any]:
    """All of it: each value of each round."""

    def spread(values: list[float]) -> dict[str, Any]:
        return {
            "median": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "values": values,
        }

    return {
        "revision": revisions[0].commit,
        "against": revisions[1].commit if len(revisions) > 1 else None,
        "command": sys.argv[1:],
        "machine": before,
        "versions": versions(),
        "measured": {
            subject: {measure: spread(values) for measure, values in columns.items()}
            for subject, columns in figures.values.items()
        },
        "derived": {name: spread(values) for name, values in figures.derived.items()},
        "bars": {
            bar: {
                "limit": BARS[bar],
                "at": "least" if bar in AT_LEAST else "most",
                "judged": judged(bar, values),
                "kept": is_kept(bar, values),
            }
            for bar in BARS
            if (values := figures.derived.get(bar))
        },
    }
