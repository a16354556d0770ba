"""How many proofs a rate allows, and when the next."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpop_agent.agent.rates import Allowance, Rates
from dpop_agent.agent.rules import Rate


def had(allowance: Allowance, now: float, *, asked: int = 1000) -> int:
    """How many are had of so many that are asked for at one moment."""
    count = 0
    while count < asked and allowance.wait_s(now) == 0:
        allowance.take()
        count += 1
    return count


def test_the_burst_is_had_at_once_and_then_one_after_the_other() -> None:
    allowance = Allowance(Rate(60, 10), 100.0)
    assert had(allowance, 100.0) == 10
    assert allowance.wait_s(100.0) == pytest.approx(1)
    assert allowance.wait_s(100.75) == pytest.approx(0.25)
    assert had(allowance, 101.0) == 1
    assert had(allowance, 104.5) == 3
    assert had(allowance, 105.0) == 1, "the half that was left counts"


def test_after_any_pause_no_more_than_the_burst_is_had_at_once() -> None:
    allowance = Allowance(Rate(60, 10), 0.0)
    assert had(allowance, 1e9) == 10


def test_whoever_waits_as_told_gets_one() -> None:
    allowance = Allowance(Rate(7, 1), 0.0)
    now = 0.0
    for _ in range(1000):
        allowance.take()
        now += allowance.wait_s(now) + 0.001  # as milliseconds are told
        assert allowance.wait_s(now) == 0


@settings(max_examples=200)
@given(
    st.builds(Rate, st.integers(1, 600), st.integers(1, 50)),
    st.lists(st.floats(0, 30), max_size=60),
)
def test_in_any_time_no_more_is_had_than_the_burst_and_the_rate_allow(
    rate: Rate, pauses: list[float]
) -> None:
    allowance, now, count = Allowance(rate, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        count += had(allowance, now)
        assert count <= rate.burst + now * rate.per_minute / 60 + 1e-6


def test_each_name_has_its_own_and_another_rate_begins_anew() -> None:
    rates = Rates()
    first = rates.allowance("a", Rate(60, 2), 0.0)
    assert had(first, 0.0) == 2
    assert rates.allowance("a", Rate(60, 2), 0.0) is first
    assert had(rates.allowance("b", Rate(60, 2), 0.0), 0.0) == 2
    assert had(rates.allowance("a", Rate(60, 3), 0.0), 0.0) == 3
