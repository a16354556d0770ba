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
    assert nonces.told(A, 0.0)[0] is None
    assert nonces.told(A, 0.0)[1] == 0
    assert list(nonces) == []


def test_a_nonce_is_its_origins_alone() -> None:
    nonces = seen(A, "n-a")
    assert nonces.told(A, 0.0)[0] == "n-a"
    assert nonces.told(B, 0.0)[0] is None


def test_the_last_nonce_counts() -> None:
    nonces = seen(A, "new", now=2.0, into=seen(A, "old", now=1.0))
    assert nonces.told(A, 2.0)[0] == "new"


def test_an_answer_without_a_nonce_leaves_the_one_before() -> None:
    nonces = seen(A, None, -10.0, now=5.0, into=seen(A, "kept"))
    assert nonces.told(A, 5.0)[0] == "kept"
    assert nonces.told(A, 0.0)[1] == 10


def test_a_nonce_is_forgotten_after_a_day() -> None:
    nonces = seen(A, "n", now=100.0)
    assert nonces.told(A, 100.0 + NONCE_LIFETIME_S)[0] == "n"
    assert nonces.told(A, 100.1 + NONCE_LIFETIME_S)[0] is None


def test_a_refused_nonce_is_forgotten_unless_there_is_a_newer_one() -> None:
    nonces = seen(A, "stale", into=seen(B, "stale"))
    nonces.observe(A, nonce=None, clock_offset_s=None, now=1.0, refused_nonce="stale")
    assert nonces.told(A, 1.0)[0] is None
    assert nonces.told(B, 1.0)[0] == "stale"
    nonces.observe(B, nonce="new", clock_offset_s=None, now=1.0)
    nonces.observe(B, nonce=None, clock_offset_s=None, now=2.0, refused_nonce="stale")
    assert nonces.told(B, 2.0)[0] == "new"


def test_a_proof_that_was_refused_for_its_time_is_remembered() -> None:
    nonces = seen(A, "n", into=seen(B))
    nonces.observe(A, nonce=None, clock_offset_s=None, now=3.0, iat_refused=True)
    nonces.observe(A, nonce="n2", clock_offset_s=None, now=4.0)
    assert {origin: server.iat_refused_at for origin, server in nonces} == {B: None, A: 3.0}


def test_what_was_heard_since_doesnt_make_a_nonce_younger() -> None:
    nonces = seen(A, None, 0.0, now=NONCE_LIFETIME_S, into=seen(A, "n", now=0.0))
    assert nonces.told(A, NONCE_LIFETIME_S + 1)[0] is None


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
    assert nonces.told(A, 0.0)[1] == moves
    assert nonces.told(B, 0.0)[1] == 0


def test_one_origins_date_moves_no_other_origins_iat() -> None:
    nonces = seen(B, None, -30.0, into=seen(A, None, -60.0))
    for other in (f"{A}:8443", A.replace("https", "http"), A.replace("a.", "b.a."), "https://c"):
        assert nonces.told(other, 0.0)[1] == 0
    assert (nonces.told(A, 0.0)[1], nonces.told(B, 0.0)[1]) == (60, 30)


def test_a_clock_that_was_set_right_moves_nothing_any_more() -> None:
    assert seen(A, None, 0.0, into=seen(A, None, -100.0)).told(A, 0.0)[1] == 0


def test_origins_are_bounded_and_the_one_heard_of_longest_ago_goes_first() -> None:
    nonces = seen(A, "n-a")
    for n in range(MAX_ORIGINS - 1):
        seen(f"https://{n}.example", "n", into=nonces)
    seen(A, None, 0.0, into=nonces)
    seen(B, "n-b", into=nonces)
    assert len(list(nonces)) == MAX_ORIGINS
    assert nonces.told("https://0.example", 0.0)[0] is None
    assert nonces.told(A, 0.0)[0] == "n-a"
    assert nonces.told(B, 0.0)[0] == "n-b"
