"""How long things take: compared with a control by tests, with seconds by `tests/bench` alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.bench.bars import BARS


def ratio(what: Callable[[], object], control: Callable[[], object], *, rounds: int = 5) -> float:
    """How many times as long as the control something takes.

    Each by the quickest of its rounds, which take turns: what else the machine does counts little.
    """
    quickest = {what: float("inf"), control: float("inf")}
    for _ in range(rounds):
        for call in quickest:
            began = time.perf_counter()
            call()
            quickest[call] = min(quickest[call], time.perf_counter() - began)
    return quickest[what] / quickest[control]


class Measured:
    """`with measured(BAR):` how long the block takes, if it doesn't raise."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    @contextmanager
    def __call__(self, bar: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.ratio(bar, time.perf_counter() - began)

    def ratio(self, bar: str, value: float) -> None:
        """Record a bar's value: seconds, or times a control in the same test."""
        assert bar in BARS, f"{bar!r} isn't in tests/bench/bars.py"
        self._record("measured", [bar, value])
