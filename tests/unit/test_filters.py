"""What a filtered socket leaves of a key's rules, and when its time is over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpop_agent.agent.excerpts import Excerpt
from dpop_agent.agent.filters import Filter
from dpop_agent.agent.keys import Key, Keys
from dpop_agent.agent.rules import Rate, Rule, Rules
from dpop_agent.htu import target

API, SHOP, LOCAL, PLAIN = (
    "https://api.example.com",
    "https://shop.example.com",
    "http://localhost:3000",
    "http://keycloak:8080",
)
PATHS = ("/", "/v1", "/v1/users", "/v2", "/v1users")
URIS = [
    *(f"{origin}{path}" for origin in (API, SHOP, LOCAL, PLAIN) for path in ("/", "/v1/users/7")),
    *(
        f"{API}{path}"
        for path in ("/v1", "/v1/", "/v1users", "/v2/x", "/v1/..;/v2", "/v1/%252e./x")
    ),
]


def some(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=3).map(tuple)


RULES = st.builds(
    Rules,
    origins=some((API, SHOP, LOCAL, PLAIN)),
    methods=some(("GET", "POST", "PUT")),
    paths=some(PATHS),
    require_ath=st.booleans(),
    rate=st.sampled_from([None, Rate(60, 10)]),
    confirm_s=st.sampled_from([None, 0, 60, 3600]),
)


def refusing(rules: Rules, uri: str, htm: str, *, ath: bool) -> Rule | None:
    return rules.refusing(target(uri), htm, presents_access_token=ath)


@settings(max_examples=400, deadline=None)
@given(RULES, RULES, st.sampled_from(["GET", "POST", "PUT", "get"]), st.booleans())
def test_a_filtered_socket_allows_what_the_key_and_itself_allow_and_never_more(
    key: Rules, own: Rules, htm: str, ath: bool
) -> None:
    both = key.narrowed(own)
    for uri in URIS:
        by_key, by_own = (refusing(rules, uri, htm, ath=ath) for rules in (key, own))
        if not own.origins and by_own is Rule.ORIGINS:
            by_own = refusing(Rules(**{**fields(own), "origins": key.origins}), uri, htm, ath=ath)
        allowed = isinstance(both, Rules) and refusing(both, uri, htm, ath=ath) is None
        assert allowed == (by_key is None and by_own is None), uri


def fields(rules: Rules) -> dict[str, Any]:
    return {name: getattr(rules, name) for name in Rules.__slots__}


@given(RULES, RULES)
def test_a_person_is_asked_as_often_as_either_wants_it_and_the_keys_rate_stays(
    key: Rules, own: Rules
) -> None:
    both = key.narrowed(own)
    if isinstance(both, Rules):
        wanted = [c for c in (key.confirm_s, own.confirm_s) if c is not None]
        assert both.confirm_s == (min(wanted) if wanted else None)
        assert both.rate == key.rate


@pytest.mark.parametrize(
    ("key", "own", "nothing_by"),
    [
        (Rules(origins=(API,)), Rules(origins=(SHOP,)), Rule.ORIGINS),
        (Rules(), Rules(origins=(PLAIN,)), Rule.ORIGINS),
        (Rules(methods=("GET",)), Rules(methods=("POST",)), Rule.METHODS),
        (Rules(paths=("/v1",)), Rules(paths=("/v2",)), Rule.PATHS),
    ],
)
def test_rules_without_anything_in_common_leave_nothing_rather_than_all(
    key: Rules, own: Rules, nothing_by: Rule
) -> None:
    assert key.narrowed(own) is nothing_by


@pytest.mark.parametrize(
    ("now", "now_s", "over"),
    [(999, 99, False), (1000, 99, True), (10**9, 0, True), (0, 100, True), (0, 10**9, True)],
    ids=["neither", "wall clock", "wall clock far", "own clock", "own clock, wall set back"],
)
def test_its_time_is_over_by_the_clock_that_gets_there_first(
    now: int, now_s: int, over: bool
) -> None:
    found = Filter("ci", ("shop",), "", expires_at=1000, expires_s=100)
    assert found.is_over(now, now_s) is over


# What its clients see


class Records:
    """Stands for the records."""

    def __init__(self, *keys: Key, socket: Filter) -> None:
        self.keys = Keys(keys)
        self.sockets = {socket.name: socket}
        self.now_s = 0
        self.seen: Any = None


def a_key(name: str, **rules: Any) -> Key:
    return Key(name=name, store="dict", alg="ES256", created="", rules=Rules(**rules))


def excerpt_of(records: Records) -> Excerpt:
    return Excerpt(records, "ci")  # type: ignore[arg-type]


def test_only_its_own_keys_are_there_with_what_both_rules_leave_of_them() -> None:
    own = Filter("ci", ("shop", "gone", "apart"), "", Rules(origins=(API,)), gone=("gone",))
    records = Records(
        a_key("shop", origins=(API, SHOP)),
        a_key("gone"),
        a_key("apart", origins=(SHOP,)),
        a_key("other"),
        socket=own,
    )
    keys = excerpt_of(records).keys
    assert set(keys) == {"shop"}
    assert keys["shop"].rules == Rules(origins=(API,))
    assert keys.forgotten == {}


def test_a_change_of_another_key_or_socket_changes_nothing_of_what_is_seen() -> None:
    records = Records(a_key("shop"), a_key("other"), socket=Filter("ci", ("shop",), ""))
    excerpt = excerpt_of(records)
    before = excerpt.keys
    records.keys = records.keys.with_(a_key("other", methods=("GET",)), a_key("third"))
    records.sockets = {**records.sockets, "x": Filter("x", ("other",), "")}
    assert excerpt.keys is before, "choices and consents for it hold on"
    records.keys = records.keys.with_(a_key("shop", methods=("GET",)))
    assert excerpt.keys is not before
    assert excerpt.keys["shop"].rules.methods == ("GET",)


def test_once_over_or_closed_nothing_is_there_whatever_the_clocks_say_then() -> None:
    records = Records(a_key("shop"), socket=Filter("ci", ("shop",), "", Rules(), (), 2**40, 9))
    excerpt = excerpt_of(records)
    assert set(excerpt.keys) == {"shop"}
    records.now_s = 9
    assert set(excerpt.keys) == set()
    records.now_s = 0
    assert set(excerpt.keys) == set()
    closed = excerpt_of(records)
    assert set(closed.keys) == {"shop"}
    closed.close()
    assert set(closed.keys) == set()


def test_one_that_was_removed_has_no_keys() -> None:
    records = Records(a_key("shop"), socket=Filter("ci", ("shop",), ""))
    excerpt = excerpt_of(records)
    assert set(excerpt.keys) == {"shop"}
    records.sockets = {}
    assert set(excerpt.keys) == set()
