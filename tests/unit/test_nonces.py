"""What servers said, by origin."""

from __future__ import annotations

import pytest

from dpop_agent.agent.nonces import (
    MAX_BACKDATING_S,
    MAX_ORIGINS,
    MIN_BACKDATING_S,
    NONCE_LIFETIME_S,
    Nonces,
)

A, B = "https://a.example", "https://b.example"


def seen(
    origin: str = A,
    nonce: str | None = None,
    offset: float | None = None,
    *,
    now: float = 0.0,
    into: Nonces | None = None,
) -> Nonces:
    nonces = Nonces() if into is None else into
    nonces.observe(origin, nonce=nonce, clock_offset_s=offset, now=now)
    return nonces


def test_nothing_is_known_at_first() -> None:
    nonces = Nonces()
    assert nonces.nonce(A, 0.0) is None
    assert nonces.backdating_s(A) == 0
    assert list(nonces) == []


def test_a_nonce_is_its_origins_alone() -> None:
    nonces = seen(A, "n-a")
    assert nonces.nonce(A, 0.0) == "n-a"
    assert nonces.nonce(B, 0.0) is None


def test_the_last_nonce_counts() -> None:
    nonces = seen(A, "new", now=2.0, into=seen(A, "old", now=1.0))
    assert nonces.nonce(A, 2.0) == "new"


def test_an_answer_without_a_nonce_leaves_the_one_before() -> None:
    nonces = seen(A, None, -10.0, now=5.0, into=seen(A, "kept"))
    assert nonces.nonce(A, 5.0) == "kept"
    assert nonces.backdating_s(A) == 10


def test_a_nonce_is_forgotten_after_a_day() -> None:
    nonces = seen(A, "n", now=100.0)
    assert nonces.nonce(A, 100.0 + NONCE_LIFETIME_S) == "n"
    assert nonces.nonce(A, 100.1 + NONCE_LIFETIME_S) is None


def test_what_was_heard_since_doesnt_make_a_nonce_younger() -> None:
    nonces = seen(A, None, 0.0, now=NONCE_LIFETIME_S, into=seen(A, "n", now=0.0))
    assert nonces.nonce(A, NONCE_LIFETIME_S + 1) is None


@pytest.mark.parametrize(
    ("offset", "moves"),
    [
        (0.0, 0.0),
        (1000.0, 0.0),
        (MIN_BACKDATING_S, 0.0),
        (-MIN_BACKDATING_S + 0.1, 0.0),
        (-MIN_BACKDATING_S, MIN_BACKDATING_S),
        (-60.5, 60.5),
        (-MAX_BACKDATING_S, MAX_BACKDATING_S),
        (-MAX_BACKDATING_S - 0.1, 0.0),
        (-86_400.0, 0.0),
    ],
)
def test_iat_goes_back_for_a_clock_that_is_behind_by_300_seconds_at_most(
    offset: float, moves: float
) -> None:
    nonces = seen(A, None, offset)
    assert nonces.backdating_s(A) == moves
    assert nonces.backdating_s(B) == 0


def test_a_clock_that_was_set_right_moves_nothing_any_more() -> None:
    assert seen(A, None, 0.0, into=seen(A, None, -100.0)).backdating_s(A) == 0


def test_origins_are_bounded_and_the_one_heard_of_longest_ago_goes_first() -> None:
    nonces = seen(A, "n-a")
    for n in range(MAX_ORIGINS - 1):
        seen(f"https://{n}.example", "n", into=nonces)
    seen(A, None, 0.0, into=nonces)
    seen(B, "n-b", into=nonces)
    assert len(list(nonces)) == MAX_ORIGINS
    assert nonces.nonce("https://0.example", 0.0) is None
    assert nonces.nonce(A, 0.0) == "n-a"
    assert nonces.nonce(B, 0.0) == "n-b"
