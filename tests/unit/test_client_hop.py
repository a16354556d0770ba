"""The rules of one HTTP hop, without HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from dpop_agent.client.answers import ABSENT, Proof
from dpop_agent.client.hop import Done, Origins, Read, Send, Sign, Tell, hop
from dpop_agent.client.refusal import MAX_CHALLENGE_HEADER, Answer, Refusal, challenges
from dpop_agent.errors import ConfigurationError, HtuRefused, NonceRequired
from tests.timing import ratio
from tests.unit.fake_agent import JKT

API = "https://api.example.com"
JSON = ("Content-Type", "application/json")
WANTED = b'{"error":"use_dpop_nonce"}'
DATE = ("Date", "Fri, 20 Nov 2026 19:05:00 GMT")


def answer(status: int, *headers: tuple[str, str]) -> Answer:
    def values(name: str) -> list[str]:
        return [value for field, value in headers if field.lower() == name.lower()]

    return Answer(status, values)


class Hop:
    """Runs a hop; `steps` are what it asked for."""

    def __init__(self, *answers: Answer, body: bytes | None = None, **arguments: Any) -> None:
        self.steps: list[Sign | Send | Read | Tell] = []
        self.answers = list(answers)
        self.body = body
        self.stored: str | None = "stored"
        self.tries_nonce = False
        self.arguments: dict[str, Any] = {
            "htm": "GET",
            "authority": API,
            "path": "/me",
            "authorization": [],
            "access_token": None,
            "origins": Origins([API]),
            "key": "default",
            "jkt": None,
            "replayable": True,
            "redirected_body": False,
        } | arguments

    def run(self) -> Proof | None:
        self.done = self._run()
        return self.done.proof

    def _run(self) -> Done:
        steps, result = hop(**self.arguments), None
        try:
            while True:
                step = steps.send(result)
                self.steps.append(step)
                result = self._do(step)
        except StopIteration as done:
            came: Done = done.value
            return came

    def _do(self, step: Sign | Send | Read | Tell) -> Any:
        if isinstance(step, Sign):
            nonce = step.arguments["nonce"]
            shares = step.arguments.get("shares_nonce", False)
            return Proof(
                value=f"proof-{len(self.of(Sign))}",
                key="default",
                jkt=JKT,
                state="active",
                nonce=self.stored if nonce is ABSENT else nonce,
                tries_nonce=shares and self.tries_nonce,
            )
        if isinstance(step, Send):
            return self.answers.pop(0)
        return self.body if isinstance(step, Read) else None

    def of(self, kind: type[Any]) -> list[Any]:
        return [step for step in self.steps if isinstance(step, kind)]

    @property
    def kinds(self) -> list[str]:
        return [type(step).__name__ for step in self.steps]


def test_a_listed_server_gets_a_proof() -> None:
    run = Hop(answer(200))
    proof = run.run()
    assert run.kinds == ["Sign", "Send"]
    assert run.of(Sign)[0].arguments == {
        "htm": "GET",
        "uri": f"{API}/me",
        "key": "default",
        "jkt": None,
        "access_token": None,
        "nonce": ABSENT,
        "shares_nonce": True,
    }
    assert run.of(Send)[0].proof is proof


@pytest.mark.parametrize(
    "authority",
    [
        "https://other.example",
        "http://api.example.com",
        "https://api.example.com:8443",
        "https://api.example.com.evil.example",
        "https://api.example.com\\@evil.example",
        "https://user@api.example.com",
        "ws://api.example.com",
    ],
)
def test_an_unlisted_server_gets_no_proof_and_no_access_token(authority: str) -> None:
    run = Hop(answer(200, ("DPoP-Nonce", "n1")), authority=authority)
    assert run.run() is None
    assert run.kinds == ["Send"]
    assert run.of(Send)[0].proof is None
    with_access_token = Hop(authority=authority, authorization=["dpop geheim"])
    with pytest.raises(ConfigurationError) as caught:
        with_access_token.run()
    assert with_access_token.steps == []
    assert "geheim" not in str(caught.value)


def test_the_same_origin_written_otherwise_is_listed() -> None:
    for authority in ("HTTPS://API.Example.com", "https://api.example.com:443"):
        assert Hop(answer(200), authority=authority).run() is not None


@pytest.mark.parametrize(
    ("authorization", "access_token"),
    [
        (["DPoP abc"], "abc"),
        (["dpop  abc "], "abc"),
        (["Bearer abc"], None),
        (["Basic abc"], None),
        (["DPoPx abc"], None),
        ([], None),
    ],
)
def test_an_access_token_is_bound_only_where_it_is_presented(
    authorization: list[str], access_token: str | None
) -> None:
    run = Hop(answer(200), authorization=authorization, jkt=JKT)
    run.run()
    assert run.of(Sign)[0].arguments["access_token"] == access_token
    assert run.of(Sign)[0].arguments["jkt"] == JKT


def test_two_authorizations_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="several"):
        Hop(authorization=["DPoP a", "Bearer b"]).run()


@pytest.mark.parametrize("status", [200, 204, 302, 403, 500])
def test_another_nonce_is_told_from_every_answer(status: int) -> None:
    run = Hop(answer(status, ("DPoP-Nonce", "n1"), DATE, JSON), body=WANTED)
    run.run()
    assert run.kinds == ["Sign", "Send", "Tell"]
    assert run.of(Tell)[0].seen == {"htu": f"{API}/me", "nonce": "n1"}


def test_the_nonce_that_was_used_is_not_told_again() -> None:
    run = Hop(answer(200, ("DPoP-Nonce", "stored")))
    run.run()
    assert run.kinds == ["Sign", "Send"]


@pytest.mark.parametrize(
    "headers",
    [
        [("DPoP-Nonce", "n1"), ("DPoP-Nonce", "n2")],
        [("DPoP-Nonce", "")],
        [("DPoP-Nonce", 'a"b')],
        [("DPoP-Nonce", "a b")],
        [("DPoP-Nonce", "n1, n2")],
        [("DPoP-Nonce", "é")],
        [("DPoP-Nonce", "x" * 513)],
    ],
)
def test_a_repeated_or_malformed_nonce_is_none(headers: list[tuple[str, str]]) -> None:
    run = Hop(answer(401, *headers, ("WWW-Authenticate", 'DPoP error="use_dpop_nonce"')))
    run.run()
    assert run.kinds == ["Sign", "Send", "Tell"]
    assert "nonce" not in run.of(Tell)[0].seen


CHALLENGE = ("WWW-Authenticate", 'DPoP algs="ES256 PS256", error="use_dpop_nonce"')


@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize(
    ("headers", "reads"),
    [
        ([CHALLENGE], False),
        ([CHALLENGE, JSON], False),
        ([JSON], True),
        ([("Content-Type", "text/plain")], True),
        ([], True),
        ([("Content-Type", "Application/Problem+JSON; charset=utf-8")], True),
        ([("WWW-Authenticate", 'DPoP error="invalid_token"'), JSON], True),
    ],
)
def test_a_nonce_challenge_is_answered_once_with_a_new_proof(
    status: int, headers: list[tuple[str, str]], reads: bool
) -> None:
    again = answer(status, *headers, ("DPoP-Nonce", "n2"))
    run = Hop(answer(status, *headers, ("DPoP-Nonce", "n1"), DATE), again, body=WANTED)
    proof = run.run()
    each = ["Sign", "Send", *(["Read"] * reads)]
    assert run.kinds == [*each, *each, "Tell"]
    first, second = run.of(Sign)
    assert first.arguments["nonce"] is ABSENT
    assert second.arguments["nonce"] == "n1"
    assert second.arguments["seen"] == [
        {"htu": f"{API}/me", "nonce": "n1", "date": "2026-11-20T19:05:00Z"}
    ]
    assert proof is not None
    assert [send.proof.value for send in run.of(Send)] == ["proof-1", "proof-2"]
    assert proof.value == "proof-2"
    assert run.of(Tell)[0].seen["nonce"] == "n2"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, [JSON, CHALLENGE]),
        (403, [JSON, CHALLENGE]),
        (500, [JSON, CHALLENGE]),
        (401, [("Content-Type", "text/event-stream")]),
        (403, [("Content-Type", "text/plain")]),
    ],
)
def test_nothing_else_is_read_or_sent_again(status: int, headers: list[tuple[str, str]]) -> None:
    run = Hop(answer(status, *headers, ("DPoP-Nonce", "n1")), body=WANTED)
    run.run()
    assert run.kinds == ["Sign", "Send", "Tell"]


@pytest.mark.parametrize(
    "challenge",
    [
        'DPoP error_description="error=use_dpop_nonce"',
        'DPoP realm=", error=\\"use_dpop_nonce\\""',
    ],
)
def test_what_only_looks_like_a_challenge_is_none(challenge: str) -> None:
    run = Hop(answer(401, ("WWW-Authenticate", challenge), ("DPoP-Nonce", "n1")))
    run.run()
    assert run.kinds == ["Sign", "Send", "Read", "Tell"]


@pytest.mark.parametrize("body", [None, b"", b"[]", b"\xff", b'{"error":"invalid_grant"}'])
def test_a_body_that_says_something_else_is_no_challenge(body: bytes | None) -> None:
    run = Hop(answer(400, JSON, ("DPoP-Nonce", "n1")), body=body)
    run.run()
    assert run.kinds == ["Sign", "Send", "Read", "Tell"]


def test_without_a_nonce_nothing_is_sent_again() -> None:
    run = Hop(answer(401, CHALLENGE, JSON), body=WANTED)
    run.run()
    assert run.kinds == ["Sign", "Send", "Tell"]


@pytest.mark.parametrize("nonce", ["n1", "stored"])
def test_a_body_that_can_not_be_sent_twice_is_not(nonce: str) -> None:
    run = Hop(answer(401, CHALLENGE, ("DPoP-Nonce", nonce)), replayable=False)
    with pytest.raises(NonceRequired) as caught:
        run.run()
    assert caught.value.nonce == nonce
    assert run.kinds == ["Sign", "Send", "Tell"]
    assert run.of(Tell)[0].seen == {"htu": f"{API}/me", "nonce": nonce}


@pytest.mark.parametrize(
    ("dates", "told"),
    [
        (["Fri, 20 Nov 2026 19:05:00 GMT"], "2026-11-20T19:05:00Z"),
        (["Fri, 20 Nov 2026 21:05:00 +0200"], "2026-11-20T19:05:00Z"),
        (["Fri, 20 Nov 2026 19:05:00 -0000"], "2026-11-20T19:05:00Z"),
        (["yesterday"], None),
        (["Fri, 20 Nov 0200 00:00:00 GMT"], None),
        (["Fri, 20 Nov 2026 19:05:00 GMT"] * 2, None),
    ],
)
def test_the_servers_clock_is_told_where_it_refused(dates: list[str], told: str | None) -> None:
    run = Hop(answer(401, *(("Date", date) for date in dates)))
    run.run()
    assert [tell.seen for tell in run.of(Tell) if "refused_nonce" not in tell.seen] == (
        [{"htu": f"{API}/me", "date": told}] if told else []
    )


def test_origins_have_to_be_a_list_of_origins() -> None:
    with pytest.raises(ConfigurationError, match="a text"):
        Origins(API)
    with pytest.raises(ConfigurationError, match="empty"):
        Origins([])
    with pytest.raises(HtuRefused, match=r"give it as https://as\.example"):
        Origins(["https://as.example/realms/one"])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('DPoP error="use_dpop_nonce"', [("dpop", {"error": "use_dpop_nonce"})]),
        (
            'DPoP algs="ES256 ES384", error="use_dpop_nonce", error_description="a, b=\\"c\\""',
            [
                (
                    "dpop",
                    {
                        "algs": "ES256 ES384",
                        "error": "use_dpop_nonce",
                        "error_description": 'a, b="c"',
                    },
                )
            ],
        ),
        (
            'Bearer realm="x, DPoP error=use_dpop_nonce", dpop ERROR = use_dpop_nonce',
            [
                ("bearer", {"realm": "x, DPoP error=use_dpop_nonce"}),
                ("dpop", {"error": "use_dpop_nonce"}),
            ],
        ),
        ("Basic, DPoP", [("basic", {}), ("dpop", {})]),
        (" ,, DPoP a=1,,b=2 , ", [("dpop", {"a": "1", "b": "2"})]),
        ('Negotiate YQ==, DPoP error="e"', [("negotiate", {}), ("dpop", {"error": "e"})]),
        ("DPoP a=1, a=2", [("dpop", {"a": "1"})]),
        ('DPoP a="unfinished', [("dpop", {})]),
        ('error="use_dpop_nonce"', []),
        ("", []),
    ],
)
def test_challenges_are_parsed_as_rfc_9110_has_them(
    header: str, expected: list[tuple[str, dict[str, str]]]
) -> None:
    assert challenges(header) == expected


def test_a_challenge_may_stand_in_any_field_line() -> None:
    lines = ["Bearer", 'DPoP algs="ES256", error="invalid_token"']
    assert Refusal.from_challenges(lines).errors == {"invalid_token"}


@pytest.mark.parametrize("part", ['x="\\",', 'a="', "a=,", "a ", "\\", '="'])
def test_a_hostile_challenge_costs_what_its_first_8_kib_cost(part: str) -> None:
    endless = "DPoP " + part * 100_000
    eighth = endless[: MAX_CHALLENGE_HEADER // 8]
    assert ratio(lambda: challenges(endless), lambda: challenges(eighth), rounds=25) < 32


# Of one that others wait for


@pytest.mark.parametrize(
    ("stored", "came", "told"),
    [
        ("stored", answer(200), {"nonce": "stored"}),
        ("stored", answer(200, ("DPoP-Nonce", "stored")), {"nonce": "stored"}),
        ("stored", answer(200, ("DPoP-Nonce", "new")), {"nonce": "new"}),
        ("stored", answer(500), {"nonce": "stored"}),
        ("stored", answer(401, CHALLENGE), {"refused_nonce": "stored"}),
        (None, answer(200), {}),
        (None, answer(200, ("DPoP-Nonce", "new")), {"nonce": "new"}),
        (None, answer(403), {}),
    ],
)
def test_whatever_is_heard_of_a_nonce_that_was_tried_is_told_at_once(
    stored: str | None, came: Answer, told: dict[str, str]
) -> None:
    run = Hop(came)
    run.stored, run.tries_nonce = stored, True
    run.run()
    assert run.kinds == ["Sign", "Send", "Tell"]
    assert run.of(Tell)[0].seen == {"htu": f"{API}/me", **told}


def test_a_nonce_that_was_tried_and_refused_is_told_with_the_second_proof_alone() -> None:
    run = Hop(answer(401, CHALLENGE, ("DPoP-Nonce", "new")), answer(200))
    run.tries_nonce = True
    run.run()
    assert run.kinds == ["Sign", "Send", "Sign", "Send"]
    again = run.of(Sign)[1].arguments
    assert again["seen"] == [{"htu": f"{API}/me", "nonce": "new"}]
    assert "shares_nonce" not in again
