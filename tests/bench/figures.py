"""What was measured: by subject and measure, one value for each round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

P50, P99, SLOWEST, RATE = "p50, µs", "p99, µs", "slowest, µs", "a second"
AGENT_CPU, SIGNER_CPU, CPU = "CPU, agent, µs", "CPU, signer, µs", "CPU, µs"
AGENT_CALLS, SIGNER_CALLS = "system calls, agent", "system calls, signer"

Measures = Mapping[str, float]
"""What one measurement gave, by measure."""


class CannotMeasure(Exception):
    """Something that was to be measured failed; figures of it would mean nothing."""


class Step(NamedTuple):
    """One measurement, which is repeated in each round."""

    subject: str
    measure: Callable[[], Measures]


class Column(NamedTuple):
    """The values of all rounds of one measure of one subject."""

    subject: str
    measure: str


class Figures:
    """All values.

    Attributes:
        values: by subject and measure, in the order of rounds.
        derived: what follows from several columns of the same rounds, ratios mostly, by name.
    """

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}
        self.derived: dict[str, list[float]] = {}

    def add(self, subject: str, measures: Measures) -> None:
        """Note what a round gave."""
        columns = self.values.setdefault(subject, {})
        for measure, value in measures.items():
            columns.setdefault(measure, []).append(value)

    def of(self, column: Column) -> list[float]:
        """A column; empty where it wasn't measured."""
        return self.values.get(column.subject, {}).get(column.measure, [])

    def derive(self, name: str, how: Callable[..., float], *columns: Column) -> None:
        """Compute a figure of each round; nothing where one of the columns wasn't measured."""
        found = [self.of(column) for column in columns]
        if all(found):
            self.derived[name] = [how(*values) for values in zip(*found, strict=True)]


def in_rounds(steps: Iterable[Step], rounds: int, figures: Figures) -> None:
    """Measure each step once a round, after one round that doesn't count.

    Each round begins with another step, so that none always follows the same one.
    """
    steps = list(steps)
    for step in steps:
        step.measure()
    for number in range(rounds):
        first = number % len(steps)
        for step in steps[first:] + steps[:first]:
            figures.add(step.subject, step.measure())


def shown(values: list[float]) -> str:
    """The median, and the least and the most if there are several."""
    median = statistics.median(values)
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    if len(values) == 1:
        return f"{median:.{digits}f}"
    return f"{median:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
