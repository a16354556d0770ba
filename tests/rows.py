"""What clients may do to the agent, and what is promised: one row a case, each with its figures.

    python -m tests.rows [pytest's options …]

runs the tests that have the marker `row`, and prints what they reached of each row.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import pytest

from tests.bench import bars

_HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "≤": operator.le,
    "≥": operator.ge,
}


@dataclass(frozen=True)
class Bar:
    """What tests reach of a row, and what that has to be.

    Attributes:
        what: the name of the figure, which is no other row's.
        sign: how it has to compare: `=`, `<`, `≤` or `≥`.
        limit: to what.
    """

    what: str
    sign: str
    limit: float

    def judged(self, values: list[float]) -> float:
        """The value that is held against the bar: the worst; for a median of bars.py, that."""
        if self.what in bars.BARS:
            return bars.judged(self.what, values)
        bad = [value for value in values if not self.is_kept_by(value)]
        return (min if self.sign == "≥" else max)(bad or values)

    def is_kept_by(self, value: float) -> bool:
        return _HOLDS[self.sign](value, self.limit)


@dataclass(frozen=True)
class Row:
    """A case, and all that is promised about it."""

    case: str
    bars: tuple[Bar, ...]


def _at_least(limit: float, what: str) -> Bar:
    return Bar(what, "≥", limit)


def _below(limit: float, what: str) -> Bar:
    return Bar(what, "<", limit)


def _none(what: str) -> Bar:
    return Bar(what, "=", 0)


def _of_the_benchmark(bar: str) -> Bar:
    """What the fixture `measured` records."""
    return Bar(bar, "≤", bars.AT_MOST[bar])


ROWS = {
    1: Row(
        "malformed lines and frames",
        (
            _at_least(1_000_000, "malformed lines in process"),
            _at_least(1_000_000, "malformed frames of a signer in process"),
            _at_least(20_000, "malformed lines over a live socket"),
            _none("malformed lines and frames that crashed something or got no answer"),
            _below(10, "MiB that memory grew by for malformed lines and frames"),
        ),
    ),
    2: Row(
        "a message that is too long",
        (
            Bar("bytes of the longest line that is taken", "≤", 64 * 1024),
            _at_least(200, "lines without an end, each refused and its connection closed"),
            _below(2, "MiB that memory grew by for lines without an end"),
        ),
    ),
    3: Row(
        "slow clients",
        (
            _at_least(500, "connections at a byte a second, each refused after 5 s"),
            _below(2, "an honest client's p99 beside slow ones ÷ alone"),
            _of_the_benchmark(bars.LATE_LINE),
        ),
    ),
    4: Row(
        "idle connections",
        (
            _at_least(5000, "idle connections, where 6000 may be"),
            _below(2, "an honest client's p99 beside idle ones ÷ alone"),
            Bar("answers too_many_connections to one above the usual limit", "=", 1),
        ),
    ),
    5: Row(
        "no descriptor left",
        (
            _at_least(200, "connections to an agent that may have 64 descriptors"),
            _none("agents that ended for want of descriptors"),
            _below(0.5, "cores that an agent without descriptors keeps busy"),
            _of_the_benchmark(bars.DESCRIPTORS_BACK),
        ),
    ),
    6: Row(
        "a client that goes before its signature comes",
        (
            _at_least(10_000, "clients that went mid-signature"),
            _none("descriptors that they left, of the agent and of the signer"),
            _none("sessions of the PKCS#11 token that they left"),
            _none("signatures for a dead client, beyond those that its signer had begun"),
        ),
    ),
    16: Row(
        "`jti`",
        (
            _at_least(1_000_000, "proofs, end to end"),
            _none("proofs that have another's jti"),
            Bar("bytes that the operating system is asked for, for each proof", "=", 16),
        ),
    ),
    17: Row(
        "secrets where others read",
        (
            _at_least(4, "kinds of secrets looked for: PIN, access and refresh token, proof"),
            _none("secrets in DEBUG logs, state files, command lines and environments"),
            _none("processes that may leave a core file"),
        ),
    ),
    18: Row(
        "another uid connects, to a socket of mode 0666 in a folder of mode 0755",
        (
            _at_least(1000, "connections of another uid, each refused"),
            _none("bytes that another uid was answered, or that were parsed for it"),
        ),
    ),
    19: Row(
        "an unsafe socket folder",
        (
            _at_least(8, "kinds of unsafe folders that an agent refused, and named"),
            _none("unsafe folders in which an agent served"),
        ),
    ),
    20: Row(
        "something at the socket's path",
        (
            _at_least(2, "stale sockets that were replaced"),
            _none("live sockets, and files of other kinds, that were replaced"),
        ),
    ),
    21: Row(
        "another program of the same user wants a process's memory",
        (
            _none("ways into agent and signer that another program of the user has"),
            _at_least(10_000, "tries at new signers, from their first moment on"),
            _none("tries at new signers that opened something"),
        ),
    ),
    22: Row(
        "a process that connected ends, and its child keeps the connection",
        (
            _none("names of a program that had ended, in audit, log and prompts"),
            _none("connections judged by another uid than the one that connected"),
        ),
    ),
    23: Row(
        "a foreign listener, or a foreign folder, where a client looks for its agent",
        (
            _at_least(
                2, "foreign folders, its own and one above, that a client refused, saying whose"
            ),
            _none("bytes that a client sent to a foreign place"),
        ),
    ),
    24: Row(
        "a client that reaches only `agent.sock`, or only a filtered socket",
        (
            _none("admin methods that agent.sock answers"),
            _at_least(30, "attempts at more than a filtered socket gives"),
            _none("attempts at more that got or told something"),
        ),
    ),
    25: Row(
        "greedy connections, each with 64 proofs under way",
        (
            _of_the_benchmark(bars.HONEST),
            _of_the_benchmark(bars.HONEST_400),
            _of_the_benchmark(bars.OWNER),
            _at_least(0.9, "proofs of 400 greedy connections ÷ of 16"),
        ),
    ),
}
"""By their numbers in the list of cases; those between are about stores, disks and clocks."""

ROW_OF = {bar.what: number for number, row in ROWS.items() for bar in row.bars}
"""Which row each figure is of."""


class Reached:
    """`reached(WHAT, value)`: what a test reached of a row."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def __call__(self, what: str, value: float) -> None:
        assert what in ROW_OF, f"{what!r} isn't in tests/rows.py"
        self._record("reached", [what, value])


class Results:
    """What tests reached; a plugin of pytest.

    Attributes:
        values: by figure.
        without: by row, its tests that failed or were skipped.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.without: dict[int, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test's part."""
        rows = {int(str(value)) for name, value in report.user_properties if name == "row"}
        if not report.passed:
            for number in rows:
                self.without.setdefault(number, []).append(f"{report.nodeid} {report.outcome}")
        if rows and report.when == "call":
            for name, value in report.user_properties:
                if name in ("reached", "measured"):
                    what, figure = cast("tuple[str, float]", value)
                    self.values.setdefault(what, []).append(figure)

    def table(self) -> tuple[list[str], bool]:
        """The lines of the table, and whether every row has its results and keeps its bars."""
        lines, all_kept = [], True
        for number, row in ROWS.items():
            lines.append(f"{number:2}  {row.case}")
            for bar in row.bars:
                values = self.values.get(bar.what)
                found = bar.judged(values) if values else None
                kept = found is not None and bar.is_kept_by(found)
                reached = "no result" if found is None else _figure(found)
                word = "kept" if kept else "NOT KEPT"
                limit = f"{bar.sign} {_figure(bar.limit)}"
                lines.append(f"    {word:8}  {reached:>10}  {limit:>11}  {bar.what}")
                all_kept = all_kept and kept
            for test in self.without.get(number, ()):
                lines.append(f"    NOT KEPT  {test}")
                all_kept = False
        return lines, all_kept


def _figure(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}"


def main(words: list[str]) -> int:
    """Run the tests of the rows; 0 if all rows are kept."""
    results = Results()
    status = pytest.main(["-q", "-m", "row", *words], plugins=[results])
    lines, all_kept = results.table()
    print("\n".join(["", *lines]))
    return int(status) or int(not all_kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
