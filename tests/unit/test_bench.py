"""What the benchmark makes of its measurements."""

from __future__ import annotations

from functools import partial
from operator import truediv

import pytest

from tests.bench import bars
from tests.bench.figures import Column, Figures, Measures, Step, in_rounds
from tests.bench.loads import measures


def test_each_round_measures_everything_once_and_begins_with_another() -> None:
    order: list[str] = []
    figures = Figures()

    def measure(name: str) -> Measures:
        order.append(name)
        return {"n": len(order)}

    steps = [Step(name, partial(measure, name)) for name in "abc"]
    in_rounds(steps, 3, figures)
    rounds = ["".join(order[n : n + 3]) for n in range(0, len(order), 3)]
    assert rounds == ["abc", "abc", "bca", "cab"]
    assert figures.values["a"] == {"n": [4, 9, 11]}, "the first round doesn't count"


def test_a_ratio_is_of_values_of_the_same_round() -> None:
    figures = Figures()
    for ours, alone in ((6.0, 2.0), (20.0, 5.0)):
        figures.add("ours", {"p50": ours})
        figures.add("alone", {"p50": alone})
    figures.derive("ratio", truediv, Column("ours", "p50"), Column("alone", "p50"))
    figures.derive("left out", truediv, Column("ours", "p50"), Column("nobody", "p50"))
    assert figures.derived == {"ratio": [3.0, 4.0]}


@pytest.mark.parametrize(
    ("bar", "values", "kept"),
    [
        (bars.SEQUENTIAL, [1.0, 3.5, 99.0], True),
        (bars.SEQUENTIAL, [1.0, 3.6, 99.0], False),
        (bars.CONCURRENT, [0.1, 0.85, 0.9], True),
        (bars.CONCURRENT, [0.1, 0.84, 0.9], False),
        (bars.BACK, [0.1, 0.1, 2.1], False),  # seconds are promised each time
    ],
)
def test_a_bar_is_kept_by_the_median_and_seconds_by_each(
    bar: str, values: list[float], kept: bool
) -> None:
    assert bars.is_kept(bar, values) == kept


def test_no_bar_is_both_the_most_and_the_least() -> None:
    assert not set(bars.AT_MOST) & set(bars.AT_LEAST)


def test_a_rare_wait_is_told_only_of_enough_requests() -> None:
    assert set(measures([0.001] * 30, 0.03)) == {"p50, µs", "a second"}
    assert measures([*[0.001] * 197, *[0.005] * 3], 0.2)["p99, µs"] == pytest.approx(5000)
