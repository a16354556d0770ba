"""What is remembered of signatures, and of the time that the agent was there to see."""

from __future__ import annotations

import json

import pytest

from dpop_agent.agent.drains import drain_left_s, is_drain_over, retire
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.uses import MAX_FIRST, MAX_LAST, Seen, Use
from dpop_agent.agent.views import PAGE

AT, LATER = "2026-11-20T19:05:00Z", "2026-11-21T00:00:00Z"
REAL = ["https://as.example.com", "https://api.example.com"]


def use(*origins: str, at: str = AT) -> Use:
    found = Use(None, 0)
    for origin in origins:
        found = found.signed(origin, at, 1)
    return found


def invented(count: int) -> list[str]:
    return [f"https://{n}.invented.example" for n in range(count)]


@pytest.mark.parametrize("count", [32, 1000])
def test_invented_origins_dont_push_the_real_ones_out_and_are_counted(count: int) -> None:
    found = use(*REAL, *invented(count))
    assert list(found.origins)[:2] == REAL
    assert len(found.origins) + found.left_out == len(REAL) + count
    assert list(found.origins)[-1] == invented(count)[-1]


def test_where_the_first_ones_were_invented_the_last_are_kept_and_the_rest_is_counted() -> None:
    found = use(*invented(100), *REAL)
    assert list(found.origins)[-2:] == REAL
    assert found.left_out == 102 - MAX_FIRST - MAX_LAST


def test_an_origin_that_comes_again_has_its_last_time_and_pushes_nobody_out() -> None:
    many = invented(MAX_FIRST + MAX_LAST)
    again = use(*many)
    for origin in (many[0], many[-1], many[MAX_FIRST]):
        again = again.signed(origin, LATER, 2)
        assert again.origins[origin] == LATER
    assert set(again.origins) == set(many)
    assert again.left_out == 0
    assert (again.at, again.at_s) == (LATER, 2)
    assert list(again.last)[-1] == many[MAX_FIRST]


def test_the_longest_origins_that_there_are_leave_a_generation_within_a_page() -> None:
    host = ".".join(["x" * 60] * 4)
    longest = [f"https://{n:03}.{host}:65535" for n in range(MAX_FIRST + MAX_LAST)]
    assert len(json.dumps(use(*longest).origins)) < PAGE // 4


def test_a_destroyed_generations_use_keeps_its_date_alone() -> None:
    assert use(*REAL).buried() == Use(AT, 1)


def draining(since_s: int = 0) -> Generation:
    return Generation(1, State.DRAINING, "ab", AT, AT, jkt="j", since_s=since_s)


def key(generation: Generation) -> Key:
    return Key("a", "soft", "ES256", AT, drain_s=100, max_drain_s=300, generations=(generation,))


@pytest.mark.parametrize(
    ("seen", "left"),
    [
        (Seen(40), 100),
        (Seen(30), 100),  # the clock of an agent that was killed is behind
        (Seen(90), 50),
        (Seen(150), 0),
        (Seen(130, uses={"j": Use(AT, 120)}), 90),
        (Seen(130, uses={"j": Use(AT, 20)}), 10),  # as its key's active generation
        (Seen(130, 125), 95),
        (Seen(130, 125, uses={"j": Use(AT, 128)}), 98),
        (Seen(330, uses={"j": Use(AT, 330)}), 10),  # max_drain_s
        (Seen(400, uses={"j": Use(AT, 400)}), 0),
    ],
)
def test_a_drain_is_counted_from_its_begin_the_last_use_or_the_last_unclean_end(
    seen: Seen, left: int
) -> None:
    one = key(draining(since_s=40))
    assert drain_left_s(one, one.generations[0], seen) == left
    assert is_drain_over(one, seen) is (left == 0)


def test_what_was_used_meanwhile_is_not_retired() -> None:
    keys = Keys([key(draining())])
    assert is_drain_over(keys["a"], Seen(100))
    assert retire(keys, ["a"], Seen(100, uses={"j": Use(AT, 99)}), LATER)["a"] == keys["a"]
    (over,) = retire(keys, ["a"], Seen(100), LATER)["a"].generations
    assert (over.state, over.changed) == (State.RETIRED, LATER)
