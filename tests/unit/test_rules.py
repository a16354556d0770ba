"""Which requests get proofs by a key's rules, or a socket's; and which paths read one way alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpop_agent.agent.rules import Rate, Rule, Rules
from dpop_agent.errors import HtuRefused, InvalidParams
from dpop_agent.htu import Target, path_prefix, reads_one_way, target
from dpop_agent.protocol import RULES

API = "https://api.example.com"


def refusing(
    rules: Rules, uri: str = f"{API}/v1/me", htm: str = "GET", *, ath: bool = False
) -> Rule | None:
    return rules.refusing(target(uri), htm, presents_access_token=ath)


# Origins


@pytest.mark.parametrize(
    ("origins", "uri", "allowed"),
    [
        ((), f"{API}/", True),
        ((), "http://localhost:3000/", True),
        ((), "http://keycloak:8080/", False),
        (("http://keycloak:8080",), "http://keycloak:8080/", True),
        (("http://keycloak:8080",), "https://keycloak:8080/", False),
        ((API,), "HTTPS://API.Example.com:443/x?y", True),
        ((API,), "https://api.example.com.evil.example/", False),
        ((API,), f"https://evil.example#@{API.removeprefix('https://')}/", False),
        ((API,), "http://localhost/", False),
    ],
)
def test_origins_are_compared_whole(origins: tuple[str, ...], uri: str, allowed: bool) -> None:
    assert refusing(Rules(origins=origins), uri) == (None if allowed else Rule.ORIGINS)


# Methods, and what presents no access token


@pytest.mark.parametrize(
    ("htm", "allowed"), [("GET", True), ("POST", True), ("get", False), ("GETS", False), ("", True)]
)
def test_methods_are_compared_as_they_are(htm: str, allowed: bool) -> None:
    rules = Rules(methods=("GET", "POST")) if htm else Rules()
    assert refusing(rules, htm=htm or "BREW") == (None if allowed else Rule.METHODS)


def test_a_key_for_access_tokens_gives_no_proof_without_one() -> None:
    assert refusing(Rules(require_ath=True)) == Rule.REQUIRE_ATH
    assert refusing(Rules(require_ath=True), ath=True) is None


# Paths

ONE_READING = [
    "/",
    "/api",
    "/api/",
    "/api/v1/users/j%40x.io",
    "/%7euser/caf%C3%A9",
    "/a%20b",
    "/a.b/..c/d..",
    "/.well-known/x",
    "/a;v=1/b;c",
    "/100%25",
    "/a%2525b",
    "/users/%F0%9F%98%80",
]
TRICKS = [
    "//api",
    "/api//x",
    "/api//",
    "/api/..;/admin",
    "/api/..;a=b/admin",
    "/api/.;/admin",
    "/api/;/admin",
    "/api/;x",
    "/api/%2e%2e%3b/admin",
    "/api/..%3Ba/admin",
    "/a%2f..%2fb",
    "/a%2Fb",
    "/a%5cb",
    "/a%5C..%5Cb",
    "/%252e%252e/x",
    "/%252E./x",
    "/a%252f..%252fb",
    "/a%255cb",
    "/%25252e%25252e/x",
    "/%2525252e/x",
    "/a/%2e%2e%00/b",
    "/a%00/b",
    "/a%0a/b",
    "/a%0d%0aHost:%20x",
    "/a%7f",
    "/a/%2e%2e%20/b",
    "/a/%20../b",
    "/a/.../b",
    "/a/%20/b",
    "/%c0%ae%c0%ae/b",
    "/a%c0%afb",
    "/a/%ff",
    "/a/%ef%bc%8e%ef%bc%8e/b",
    "/a%ef%bc%8fb",
    "/a/%e2%80%a5/b",
    "/a/%25ef%25bc%258e./b",
    "/a/..%3F",
    "/a/..%23",
    "/a/.%3fx=1/b",
    "/a/..%253F",
    "/a/..%ef%bc%9fb",
    "/a/b%3fc",
    "/a/b%2523/c",
]


@pytest.mark.parametrize("path", ONE_READING)
def test_an_ordinary_path_reads_one_way(path: str) -> None:
    assert reads_one_way(path)
    assert refusing(Rules(paths=("/",)), API + path) is None


@pytest.mark.parametrize("path", [*TRICKS, "/a/../b", "/a/./b", "/a/%2e%2e/b"])
def test_a_path_with_two_readings_is_below_none(path: str) -> None:
    assert not reads_one_way(path)
    try:
        where = target(API + path)
    except HtuRefused:
        return  # it is nobody's target at all
    for prefix in ("/", "/a", "/api", path.split("/")[1] and f"/{path.split('/')[1]}"):
        rules = Rules(paths=(prefix or "/",))
        assert rules.refusing(where, "GET", presents_access_token=False) == Rule.PATHS
    assert refusing(Rules(), API + path) is None, "a key without paths isn't asked"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api", True),
        ("/api/", True),
        ("/api/x", True),
        ("/api/x/y;z", True),
        ("/apix", False),
        ("/api;x", False),
        ("/api.json", False),
        ("/api%2fx", False),
        ("/%61pi/x", False),
        ("/API/x", False),
        ("/", False),
        ("", False),
        ("/x/api", False),
        ("/v2", True),
        ("/v2/x?/api", True),
        ("/x?/api/", False),
        ("/x#/api/", False),
    ],
)
def test_paths_are_prefixes_of_whole_segments(path: str, allowed: bool) -> None:
    expected = None if allowed else Rule.PATHS
    assert refusing(Rules(paths=("/api", "/v2")), API + path) == expected


@pytest.mark.parametrize("path", ["/reset/s3cret", "/api/..;/s3cret"])
def test_a_refusal_doesnt_say_which_path_was_asked_for(path: str) -> None:
    rules = Rules(origins=(API,), paths=("/api", "/v2"))
    where = target(API + path)
    assert refusing(rules, API + path) == Rule.PATHS
    assert "s3cret" not in rules.why(Rule.PATHS, "the key shop", where, "GET")


# What may stand in rules


@pytest.mark.parametrize(
    ("params", "rules"),
    [
        ({}, Rules()),
        ({"origins": [f"{API}:443", API]}, Rules(origins=(API,))),
        (
            {"methods": ["GET", "GET", "BREW"], "paths": ["/", "/a;b"]},
            Rules(methods=("GET", "BREW"), paths=("/", "/a;b")),
        ),
        ({"rate": {"per_minute": 60}}, Rules(rate=Rate(60, 10))),
        ({"rate": {"per_minute": 3}}, Rules(rate=Rate(3, 3))),
        ({"rate": {"per_minute": 3, "burst": 7}}, Rules(rate=Rate(3, 7))),
        ({"require_ath": True, "confirm_s": 0}, Rules(require_ath=True, confirm_s=0)),
    ],
)
def test_rules_come_from_what_the_wire_says(params: dict[str, Any], rules: Rules) -> None:
    assert all(RULES[name].check(value) for name, value in params.items())
    assert Rules().given(params) == rules
    assert Rules().given(rules.members()) == rules
    assert all(RULES[name].check(value) for name, value in rules.members().items())


def test_each_rule_can_be_taken_off_again() -> None:
    none: dict[str, Any] = {"origins": [], "methods": [], "paths": []}
    none |= {"require_ath": False, "rate": None, "confirm_s": None}
    every = Rules((API,), ("GET",), ("/v1",), True, Rate(1, 1), 0)
    assert set(none) == set(RULES)
    assert every.given(none) == Rules()
    assert every.given({"methods": []}) == replace(every, methods=())


@pytest.mark.parametrize(
    ("path", "says", "hint"),
    [
        ("", "begins with a slash", "write it as in /"),
        ("api/v1", "begins with a slash", "write it as in /api/v1"),
        (f"{API}/v1", "begins with a slash", "host and port are the origin's"),
        ("/api/", "ends with no slash", "write it as /api"),
        ("//", "ends with no slash", "write it as /"),
        ("/api?x", "no query", "leave out"),
        ("/api#x", "no query", "leave out"),
        ("/api/*", "no wildcards", "leave out"),
        ("/api/**/x", "no wildcards", "leave out"),
        ("/caf\u00e9", "has the character \u00e9", "%"),
        ("/a b", "has the character", "%20"),
        ("/a%2", "percent sign", "%25"),
        ("/a\\b", "backslash", "%5C"),
        ("/" + "a" * 256, "257 characters", "the beginning of it"),
        *((trick, "could be read in another way|ends with no slash", "write") for trick in TRICKS),
        ("/a/../b", "could be read in another way", "write it as in /api/v1"),
    ],
)
def test_a_path_that_can_match_nothing_is_refused_with_what_to_do(
    path: str, says: str, hint: str
) -> None:
    with pytest.raises(HtuRefused, match=says) as refused:
        Rules().given({"paths": ["/fine", path]})
    assert hint in refused.value.hint
    assert "\n" not in str(refused.value)


def test_a_method_in_the_wrong_case_is_refused_with_the_right_one() -> None:
    with pytest.raises(InvalidParams, match="no request has the method get") as refused:
        Rules().given({"methods": ["POST", "get"]})
    assert refused.value.hint == "write it as GET"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("methods", "GET"),
        ("methods", ["GET POST"]),
        ("methods", [""]),
        ("methods", ["G\u00c9T"]),
        ("methods", ["M"] * 33),
        ("paths", "/"),
        ("paths", [1]),
        ("paths", ["/"] * 33),
        ("require_ath", 1),
        ("require_ath", None),
        ("rate", 60),
        ("rate", {}),
        ("rate", {"burst": 1}),
        ("rate", {"per_minute": 0}),
        ("rate", {"per_minute": -1}),
        ("rate", {"per_minute": 1.5}),
        ("rate", {"per_minute": True}),
        ("rate", {"per_minute": 1, "burst": 0}),
        ("rate", {"per_minute": 1, "burst": None}),
        ("rate", {"per_minute": 1, "per_hour": 1}),
        ("rate", {"per_minute": 10**7}),
        ("confirm_s", -1),
        ("confirm_s", 1.0),
        ("confirm_s", "each"),
        ("confirm_s", False),
        ("confirm_s", 10**9),
    ],
)
def test_what_is_no_rule_isnt_taken_from_the_wire(name: str, value: Any) -> None:
    assert not RULES[name].check(value)


# Whatever the rules and whatever is asked

ORIGINS = [API, "https://b.example:8443", "http://localhost:3000"]
CLEARTEXT = "http://keycloak:8080"
PATHS = ["/", "/v1", "/v1/me", "/a;b", "/%7e"]


def some(*values: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), max_size=3, unique=True).map(tuple)


every_rules = st.builds(
    Rules,
    some(*ORIGINS, CLEARTEXT),
    some("GET", "POST", "BREW"),
    some(*PATHS),
    st.booleans(),
    st.none() | st.builds(Rate, st.integers(1, 9), st.integers(1, 9)),
    st.none() | st.integers(0, 99),
)
one_more: st.SearchStrategy[dict[str, Any]] = st.one_of(
    some(*ORIGINS).filter(bool).map(lambda value: {"origins": value}),
    some("GET", "POST", "PUT").filter(bool).map(lambda value: {"methods": value}),
    some(*PATHS, "/admin").filter(bool).map(lambda value: {"paths": value}),
    st.just({"require_ath": True}),
    st.just({"rate": Rate(1, 1)}),
    st.just({"confirm_s": 0}),
)
segments = st.lists(
    st.sampled_from(["v1", "me", "a;b", "%7e", "..;", "%252e", "", "x%2fy", "admin", "."]),
    max_size=4,
).map(lambda parts: "/" + "/".join(parts))


@st.composite
def targets(draw: st.DrawFn) -> Target:
    """Of what `target` takes, and more: no path is too odd for the rules."""
    origin = draw(st.sampled_from([*ORIGINS, CLEARTEXT, "https://c.example"]))
    path = draw(st.sampled_from([*PATHS, *ONE_READING, *TRICKS]) | segments)
    return Target(origin + path, origin, cleartext=origin == CLEARTEXT)


@settings(max_examples=500)
@given(every_rules, one_more, targets(), st.sampled_from(["GET", "POST", "PUT"]), st.booleans())
def test_a_policy_with_one_rule_more_never_allows_more(
    rules: Rules, more: dict[str, Any], where: Target, htm: str, ath: bool
) -> None:
    (name,) = more
    without = replace(rules, **{name: getattr(Rules(), name)})
    narrower = replace(without, **more)
    if narrower.refusing(where, htm, presents_access_token=ath) is None:
        assert without.refusing(where, htm, presents_access_token=ath) is None


@settings(max_examples=500)
@given(every_rules, targets(), st.sampled_from(["GET", "POST", "PUT"]), st.booleans())
def test_what_refuses_is_a_rule_that_is_there_and_that_refuses_alone(
    rules: Rules, where: Target, htm: str, ath: bool
) -> None:
    rule = rules.refusing(where, htm, presents_access_token=ath)
    if rule is None:
        return
    origins = Rules(origins=rules.origins)  # without which cleartext is refused
    alone = replace(origins, **{rule.value: getattr(rules, rule.value)})
    assert alone.refusing(where, htm, presents_access_token=ath) == rule
    assert alone != Rules() or where.cleartext
    said = rules.why(rule, "the key shop", where, htm)
    assert said.startswith(("the key shop is", where.origin))
    assert "\n" not in said


@settings(max_examples=500)
@given(segments, st.sampled_from(PATHS))
def test_a_path_below_a_prefix_has_its_segments_in_every_reading(path: str, prefix: str) -> None:
    from posixpath import normpath
    from urllib.parse import unquote

    where = Target(API + path, API, cleartext=False)
    if Rules(paths=(prefix,)).refusing(where, "GET", presents_access_token=False) is not None:
        return

    def cut(path: str) -> str:
        return "/".join(segment.partition(";")[0] for segment in path.split("/"))

    for times in range(3):
        for reading in (str, cut):
            resolved, below = normpath(reading(path)), reading(prefix).rstrip("/")
            assert resolved == reading(prefix) or resolved.startswith(f"{below}/"), times
        path, prefix = unquote(path), unquote(prefix)


@settings(max_examples=300)
@given(st.text(max_size=20))
def test_no_text_as_a_prefix_breaks_more_than_its_refusal(text: str) -> None:
    try:
        prefix = path_prefix(text)
    except HtuRefused:
        return
    assert refusing(Rules(paths=(prefix,)), API + prefix) is None


def test_reading_the_longest_path_is_soon_done() -> None:
    """Each decoding is one pass, and there are three of them however often it was encoded."""
    assert not reads_one_way("/" + "%" + "25" * 4000 + "2e")
    assert reads_one_way("/" + "%25" * 2600)
