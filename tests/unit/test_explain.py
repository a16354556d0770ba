"""`explain` names the true cause first, and finds nothing in what is good."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpop_agent.cli.curl_run import redacted
from dpop_agent.cli.explain import _is_signed
from dpop_agent.client.explaining.case import Case, Known, Seen, Sources
from dpop_agent.client.explaining.findings import COLUMNS, Explanation
from dpop_agent.client.explaining.judges.table import JUDGES
from dpop_agent.client.explaining.messages import Unreadable, jws
from dpop_agent.client.explaining.reading import exchanges, messages
from dpop_agent.client.explaining.said import named
from dpop_agent.client.explaining.urls import difference
from dpop_agent.client.explaining.verdict import explained
from tests.unit import exchanges_by_hand as hand
from tests.unit.exchanges_by_hand import BROKEN, GOOD, KNOWN, MANGLED, Row

OF_BROKEN = [pytest.param(row, id=f"{row.cause}-{row.server}") for row in BROKEN]


def explain(text: str, metadata: Any = None, **more: Any) -> Explanation:
    options = {"known": KNOWN, "metadata": metadata, "is_signed": _is_signed}
    return explained(exchanges(text), Sources(**(options | more)))


def said(text: str, metadata: Any = None, **more: Any) -> str:
    """What is printed, as one line."""
    return " ".join(str(explain(text, metadata, **more)).split())


def first(text: str, **more: Any) -> str | None:
    found = explain(text, **more).findings
    return found[0].cause if found else None


@pytest.mark.parametrize("row", OF_BROKEN)
def test_the_true_cause_is_named_first(row: Row) -> None:
    found = explain(row.make(), row.metadata)
    assert [finding.cause for finding in found.findings][:1] == [row.cause], str(found)
    assert found.findings[0].summary
    assert found.findings[0].mend


def test_every_cause_is_there_under_two_servers() -> None:
    servers = defaultdict(set)
    for row in BROKEN:
        servers[row.cause].add(row.server)
    assert set(servers) == set(JUDGES)
    assert {cause for cause, names in servers.items() if len(names) < 2} == set()
    assert len(BROKEN) >= 40


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in GOOD])
def test_a_good_exchange_has_nothing_wrong_found(make: Callable[[], str]) -> None:
    found = explain(make())
    assert found.findings == ()
    assert not found
    assert str(found).startswith("Nothing wrong found")


@pytest.mark.parametrize(
    ("text", "line"), [pytest.param(text, line, id=name) for name, text, line in MANGLED]
)
def test_what_cannot_be_read_is_said_with_its_line(text: str, line: int | None) -> None:
    with pytest.raises(Unreadable) as refused:
        exchanges(text)
    assert refused.value.args[0]
    if line is not None:
        assert f"line {line}:" in str(refused.value)


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from('<>*{} :/\r\n\tAaz09."\\[]GETHTP1\0é&;='), max_size=300))
def test_no_text_makes_it_fail_otherwise(text: str) -> None:
    try:
        str(explain(text))
    except Unreadable:
        pass


@settings(deadline=None)
@given(st.sampled_from(BROKEN), st.data())
def test_no_broken_paste_makes_it_fail_otherwise(row: Row, data: st.DataObject) -> None:
    """Cut off, with lines left out, twice there, or changed."""
    lines = row.make().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    what = data.draw(st.sampled_from(["cut", "out", "twice", "junk", "half"]))
    changed = {
        "cut": lines[:at],
        "out": lines[:at] + lines[at + 1 :],
        "twice": [*lines[: at + 1], *lines[at:]],
        "junk": [*lines[:at], data.draw(st.text(max_size=40)), *lines[at:]],
        "half": [*lines[:at], lines[at][: len(lines[at]) // 2], *lines[at + 1 :]],
    }[what]
    try:
        str(explain("\n".join(changed)))
    except Unreadable:
        pass


SECRETS = [
    *(hand.OPAQUE, hand.BOUND, hand.access_token(None), hand.access_token(hand.OLD)),
    *(hand.NONCE, hand.FOREIGN, "rt-very-secret-refresh", "a-very-secret-code"),
    *("very-secret-verifier", "c2VjcmV0LXByaXZhdGUtcGFydA"),
]


@pytest.mark.parametrize("row", OF_BROKEN)
def test_nothing_secret_is_printed(row: Row) -> None:
    text = row.make()
    found = explain(text, row.metadata)
    for printed in (str(found), json.dumps(found.to_wire()), repr(found)):
        for secret in SECRETS:
            assert secret not in printed
        for sent in re.findall(r"(?m)^> DPoP: (.*)", text):
            for part in sent.replace(", ", ".").split("."):
                assert part not in printed


def test_a_server_that_repeats_secrets_has_them_left_out() -> None:
    echo = f"token {hand.BOUND} and {hand.OPAQUE} of cookie-with-a-secret aren't good"
    text = hand.resource(
        hand.rs(),
        answer=hand.error("invalid_token", echo),
        sent=(("Cookie", "session=cookie-with-a-secret"),),
        url=f"{hand.ME}?code=query-with-a-secret",
    )
    printed = str(explain(text))
    for secret in (hand.BOUND, hand.OPAQUE, "cookie-with-a-secret", "query-with-a-secret"):
        assert secret not in printed
    assert "code=…" in printed


def test_control_characters_of_a_server_do_not_reach_the_terminal() -> None:
    text = hand.resource(
        hand.rs(), answer={"error": "invalid_token", "message": "a\u001b[2Jb\u202ec"}
    )
    printed = str(explain(text))
    assert "\u001b" not in printed
    assert "\u202e" not in printed


def refused_grant(
    description: str, *, sent: str = "", url: str = "/token", body: str = "", **claims: Any
) -> str:
    """What is printed of a token request that a server refused with these words."""
    request = f"POST {url} HTTP/1.1\nHost: as.example\nDPoP: {hand.rs(**claims)}\n{sent}\n{body}"
    answer = json.dumps({"error": "invalid_grant", "error_description": description})
    found = explained([messages(request, f"HTTP/1.1 400 No\n\n{answer}")], Sources(known=KNOWN))
    return json.dumps(found.to_wire(), ensure_ascii=False) + str(found)


@pytest.mark.parametrize(
    ("secret", "request_"),
    [
        ("hunter2hunter2", {"sent": "Authorization: Basic Y2xpZW50Omh1bnRlcjJodW50ZXIy\n"}),
        ("p@ssw0rds", {"body": "grant_type=password&password=p%40ssw0rds"}),
        ("p%40ssw0rds", {"body": "grant_type=password&password=p%40ssw0rds"}),
        ("the-first", {"body": "code=the-first&code=the-second"}),
        ("the-first", {"url": "/token?code=the-first&code=the-second"}),
        ("of-a-scope", {"url": "/token?scope=of-a-scope"}),
        ("deep-down", {"body": '{"grant_type": "password", "user": [{"password": "deep-down"}]}'}),
        ("an-api-key", {"sent": "X-Api-Key: an-api-key\n"}),
        ("password-of-a-user", {"url": "https://user:password-of-a-user@as.example/token"}),
        ("a\x01control", {"sent": "Cookie: sid=a\x01control\n"}),
    ],
)
def test_what_a_server_repeats_of_a_secret_is_left_out_however_it_was_sent(
    secret: str, request_: dict[str, str]
) -> None:
    shown = "".join(c if c.isprintable() else " " for c in secret)
    printed = refused_grant(f"what about {secret} then", **request_)
    assert shown not in printed
    assert "what about [redacted] then" in printed


def test_half_a_secret_at_the_end_of_a_long_text_is_left_out() -> None:
    secret = "n0tJwt:" + "!z" * 60
    for before in range(0, 200, 7):
        said_ = "a" * before + f"{secret} " * 40
        for words in (said_, said_.replace(" ", "")):
            assert "!z!z!z!z" not in refused_grant(words, sent=f"Cookie: sid={secret}\n")


def test_a_slash_makes_no_path_of_a_long_word_that_nobody_knows() -> None:
    for word in ("abc/" + "Q" * 60, "/" + "Q" * 60, "/Qq+/" + "Qq/" * 20, "/a/b" * 10 + "=="):
        assert word not in refused_grant(f"what about {word} then")
    for path in ("/realms/a/protocol/openid-connect/token/introspect", "https://as.example/a/b/c"):
        assert path in refused_grant(f"what about {path} then")


@pytest.mark.parametrize(
    "request_",
    [
        {"body": "grant_type=authorization_code&code=a-secret-code&dpop_jkt=%1b%5b2J"},
        {"htu": "https://as.example/\x1b[2J/token"},
        {"nonce": "\x1b[2J" * 9},
        {"ath": "\x1b[2J"},
    ],
)
def test_nothing_in_a_paste_steers_a_terminal(request_: dict[str, Any]) -> None:
    assert "\x1b" not in refused_grant("no", **request_)


def test_a_wrong_agents_names_do_not_steer_a_terminal() -> None:
    text = hand.resource(hand.rs(), answer=hand.error("invalid_token", "no"))
    for known in KNOWN:
        wrong = Known("\x1b[2J", 1, "\x1b[3Jactive", known.jkt)
        assert "\x1b" not in str(explain(text, known=[wrong]))
        form = f"grant_type=authorization_code&code=a-secret-code&dpop_jkt={known.jkt}"
        request = f"POST /token HTTP/1.1\nHost: as.example\nDPoP: {hand.rs()}\n\n{form}"
        response = 'HTTP/1.1 400 No\n\n{"error": "invalid_grant"}'
        found = explained([messages(request, response)], Sources(known=[wrong]))
        assert "\x1b" not in str(found)


def test_the_base_path_that_makes_two_urls_differ_has_no_secret() -> None:
    printed = refused_grant(
        "no", sent="Cookie: sid=a-secret-in-a-path\n", htu="https://x/a-secret-in-a-path/token"
    )
    assert "a-secret-in-a-path" not in printed


@pytest.mark.parametrize("row", OF_BROKEN)
def test_it_fits_eighty_columns_and_begins_with_the_answer(row: Row) -> None:
    found = explain(row.make(), row.metadata)
    lines = found.lines(COLUMNS)
    assert found.findings[0].summary.startswith(lines[0])
    copied = ("http://", "https://", "dpop-agent ")  # these are never broken
    assert [
        line for line in lines if len(line) > COLUMNS and not any(c in line for c in copied)
    ] == []


# How output may have been pasted


def from_windows(text: str) -> str:
    return text.replace("\n", "\r\n")


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def escaped(text: str) -> str:
    return re.sub(r"(?m)^>", "&gt;", re.sub(r"(?m)^<", "&lt;", text))


def with_a_meter(text: str) -> str:
    meter = "  0     0    0     0    0     0      0      0 --:--:-- --:--:-- --:--:--     0"
    head = "  % Total    % Received % Xferd  Average Speed   Time    Time     Time  Current\n"
    text = text.replace("*   Trying", f"{head}\r{meter}*   Trying")
    return re.sub(r"(?m)^(> (?:GET|POST))", rf"\r{meter}\1", text)


def with_the_body_first(text: str) -> str:
    body = re.search(r"(?m)^< \n(\{.*?\})(?=\* )", text)
    if body is None or text.count("> Host") > 1:
        return text
    return f"{body[1]}\n{text.replace(body[1], '')}"


def with_the_body_last(text: str) -> str:
    body = re.search(r"(?m)^< \n(\{.*?\})(?=\* )", text)
    if body is None or text.count("> Host") > 1:
        return text
    return f"{text.replace(body[1], '')}\n{body[1]}\n"


def over_http2(text: str) -> str:
    text = re.sub(r"(?m)^> (GET|POST) (\S+) HTTP/1.1", r"> \1 \2 HTTP/2", text)
    text = re.sub(r"(?m)^< HTTP/1.1 (\d+) .*", r"< HTTP/2 \1 ", text)
    return re.sub(r"(?m)^([<>] )([A-Za-z-]+):", lambda m: m[1] + m[2].lower() + ":", text)


def wrapped_by_the_terminal(text: str) -> str:
    return re.sub(r"(?m)^(> DPoP: \S{60})(\S{80})(\S+)$", r"\1\n\2\n\3", text)


def quoted_in_a_mail(text: str) -> str:
    return "".join(f"> {line}\n" for line in text.splitlines())


def with_times(text: str) -> str:
    return re.sub(r"(?m)^(?=[*<>{}] )", "23:59:59.123456 [0-0] ", text)


@pytest.mark.parametrize("row", OF_BROKEN)
@pytest.mark.parametrize(
    "pasted",
    [
        *(from_windows, indented, escaped, with_a_meter, with_the_body_first, with_the_body_last),
        *(over_http2, wrapped_by_the_terminal, quoted_in_a_mail, with_times),
    ],
)
def test_however_it_was_pasted_the_answer_is_the_same(
    row: Row, pasted: Callable[[str], str]
) -> None:
    text = row.make()
    assert explain(pasted(text), row.metadata).findings == explain(text, row.metadata).findings


def test_a_header_that_curl_or_somebody_left_out_is_said_to_be_left_out() -> None:
    text = hand.oidc_provider_me("invalid_token", "invalid token provided", hand.rs())
    for left in (
        "DPoP [redacted]",
        "DPoP <hidden>",
        "DPoP ***",
        "[REDACTED]",
        "DPoP eyJ0eXAi...",
    ):
        found = explain(re.sub(r"> Authorization: .*", f"> Authorization: {left}", text))
        assert found.findings[0].cause != "access_token_not_bound"
        assert "left out" in str(found) or left == "[REDACTED]"
    found = explain(re.sub(r"> DPoP: .*", "> DPoP: [redacted]", text))
    assert "proof_malformed" not in {finding.cause for finding in found.findings}
    assert "left out" in str(found)


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [({"htm": "POST"}, "htm_mismatch"), ({"htu": f"{hand.ME}/x"}, "htu_mismatch")],
)
def test_what_our_curl_shows_without_signatures_is_explained_as_the_whole_is(
    wrong: dict[str, Any], cause: str
) -> None:
    text = hand.oidc_provider_me("invalid_dpop_proof", "", hand.rs(**wrong))
    shown = b"\n".join(redacted(line) for line in text.encode().splitlines()).decode()
    assert hand.BOUND not in shown
    assert ".…" in shown
    assert first(shown) == first(text) == cause
    assert "whether the proof's signature is good: it is left out" in str(explain(shown))
    assert "whether the proof's signature" not in str(explain(text))


def test_raw_messages_are_read_as_curl_output_is() -> None:
    request = f"GET {hand.ME} HTTP/1.1\r\nHost: api.example\r\nDPoP: {hand.rs(htm='POST')}\r\n"
    request += f"Authorization: DPoP {hand.BOUND}\r\n\r\n"
    response = (
        'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: DPoP error="invalid_dpop_proof"\r\n\r\n'
    )
    found = explained([messages(request, response)], Sources())
    assert found.findings[0].cause == "htm_mismatch"
    assert first(f"{request}{response}") == "htm_mismatch"
    for wrong in ((response, response), (request, request), ("", response)):
        with pytest.raises(Unreadable):
            messages(*wrong)


def test_a_form_in_a_raw_request_says_which_grant_it_is() -> None:
    request = f"POST {hand.TOKEN} HTTP/1.1\nHost: as.example\nDPoP: {hand.at()}\n\n"
    response = 'HTTP/1.1 400 Bad Request\n\n{"error":"invalid_grant"}'
    causes = [
        explained([messages(request + form, response)]).findings[0].cause
        for form in (hand.REFRESH, hand.CODE)
    ]
    assert causes == ["refresh_token_of_another_key", "code_of_another_key"]


# What is said of it


def test_a_known_generation_is_named_with_what_can_be_done() -> None:
    token = hand.access_token(hand.OLD)
    draining = said(hand.spring(hand.rs(token=token), token=token))
    assert "default@2 (draining)" in draining
    assert f"--jkt {hand.OLD.jkt}" in draining
    token = hand.access_token(hand.GONE)
    gone = said(hand.spring(hand.rs(token=token), token=token))
    assert "default@1 (destroyed)" in gone
    assert "Get a new access token" in gone


def test_without_an_agent_it_goes_on_and_says_so() -> None:
    token = hand.access_token(hand.OLD)
    found = explain(hand.spring(hand.rs(token=token), token=token), known=None)
    assert found.findings[0].cause == "access_token_of_another_key"
    assert "no agent" in str(found)


def test_an_opaque_access_token_is_said_to_be_opaque() -> None:
    text = hand.oidc_provider_me(
        "invalid_token", "invalid token provided", hand.rs(token=hand.OPAQUE), token=hand.OPAQUE
    )
    assert "it is opaque" in said(text)


def test_htm_and_htu_stand_side_by_side_with_what_differs() -> None:
    printed = str(explain(hand.spring(hand.rs(htu=f"{hand.API}/me"))))
    assert f"htu in the proof    {hand.API}/me\n" in printed
    assert f"URL of the request  {hand.ME}\n" in printed
    assert "the base path: /v1 is missing in the proof" in printed


@pytest.mark.parametrize(
    ("htu", "url", "what"),
    [
        ("http://a.example/x", "https://a.example/x", "the scheme"),
        ("https://b.example/x", "https://a.example/x", "the host"),
        ("https://a.example:8443/x", "https://a.example/x", "the port: 8443"),
        ("https://a.example/x/", "https://a.example/x", "the slash at the end, which the proof"),
        ("https://a.example/x", "https://a.example/x/", "the slash at the end, which the request"),
        ("https://a.example/x", "https://a.example/base/x", "the base path: /base is missing"),
        ("https://a.example/base/x", "https://a.example/x", "the base path: /base is in the proof"),
        ("https://a.example/a%2Fb", "https://a.example/a/b", "the escapes"),
        ("https://a.example/%7Eme", "https://a.example/~me", "the escapes"),
        ("https://a.example/X", "https://a.example/x", "capital letters in the path"),
        ("https://a.example/y", "https://a.example/x", "the path"),
        ("https://a.example/x?page=1", "https://a.example/x", "the query or fragment"),
        ("https://A.example/x", "https://a.example/x", "the spelling"),
        ("https://a.example:443/x", "https://a.example/x", "the spelling"),
        ("/x", "https://a.example/x", "htu isn't an absolute"),
        ("https://a.example/x", "https://a.example/x", None),
        ("https://a.example/x", "//a.example/x", None),
        ("http://a.example", "//a.example/", None),
        ("https://[::1]:8443/x", "https://[::1]:8443/x", None),
    ],
)
def test_what_makes_two_urls_differ_is_named(htu: str, url: str, what: str | None) -> None:
    found = difference(htu, url)
    assert found is None if what is None else found is not None and found.what.startswith(what)


def test_metadata_and_realm_show_by_which_url_a_server_knows_itself() -> None:
    metadata = {"issuer": "http://kc.internal", "token_endpoint": "http://kc.internal/token"}
    printed = said(hand.keycloak("DPoP HTTP URL mismatch", hand.at()), metadata)
    assert "the server calls itself http://kc.internal/token" in printed


def test_what_the_audit_has_of_a_jti_is_shown() -> None:
    seen = Seen("2026-11-26T21:59:00Z", 1, "default@3")
    printed = str(
        explain(hand.keycloak("DPoP proof has already been used", hand.at()), seen=lambda _: seen)
    )
    assert "2026-11-26T21:59:00Z, default@3 (the audit)" in printed


def test_a_private_key_in_a_proof_is_called_lost() -> None:
    text = hand.keycloak("Private key is present in DPoP header", hand.at(header=hand.PRIVATE))
    assert "Never use this key again" in said(text)


def test_the_last_request_is_explained_and_the_others_are_evidence() -> None:
    text = hand.spring(hand.rs(htm="PUT")) + hand.resource(hand.rs(jti="another"), status="200 OK")
    assert first(text) is None


def test_a_proxys_own_answer_is_passed_over() -> None:
    connect = (
        "> CONNECT api.example:443 HTTP/1.1\n> Host: api.example:443\n> \n< HTTP/1.1 200 OK\n< \n"
    )
    assert first(connect + hand.spring(hand.rs(htm="PUT"))) == "htm_mismatch"


def test_an_interim_response_is_passed_over() -> None:
    text = hand.spring(hand.rs(htm="PUT")).replace(
        "< HTTP/1.1 401", "< HTTP/1.1 100 Continue\n< \n< HTTP/1.1 401"
    )
    assert first(text) == "htm_mismatch"


@settings(deadline=None)
@given(st.text(max_size=120))
def test_any_text_is_read_as_a_proof_or_said_to_be_none(text: str) -> None:
    found = jws(text)
    assert found.wrong or text.count(".") == 2


def test_claims_of_any_type_are_no_reason_to_fail() -> None:
    values: list[Any] = [None, True, 7, 1e300, "x", [], {}, {"jkt": 7}, -(2**70)]
    for value in values:
        for name in ("jti", "htm", "htu", "iat", "ath", "nonce"):
            str(explain(hand.spring(hand.rs(**{name: value}))))
        for name in ("cnf", "exp", "iat", "iss", "aud"):
            token = hand.access_token(**{name: value})
            str(explain(hand.spring(hand.rs(token=token), token=token)))
        for name in ("typ", "alg", "jwk"):
            str(explain(hand.spring(hand.rs(header={name: value}))))


SECRET = st.text(
    alphabet="abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789-_", min_size=16
)


@settings(deadline=None)
@given(SECRET, st.sampled_from(BROKEN))
def test_no_secret_of_anybodys_is_printed_wherever_it_stands(secret: str, row: Row) -> None:
    text = row.make()
    places = {
        "> Accept: */*": [f"Cookie: sid={secret}", f"Authorization: Basic {secret}"],
        "< Date": [f"Set-Cookie: sid={secret}; Secure"],
    }
    for line, headers in places.items():
        for header in headers:
            found = explain(text.replace(line, f"{line[:2]}{header}\n{line}", 1), row.metadata)
            assert secret not in json.dumps(found.to_wire())
    for field in ("code", "refresh_token", "client_secret", "password", "assertion", "whatever"):
        command = f"$ curl -v -d '{field}={secret}' https://as.example/\n"
        text = re.sub(r"\$ curl .*\n", "", text)
        said = text.replace("error_description", f'{field}": "{secret}", "error_description')
        echoed = text.replace('"error_description": "', f'"error_description": "{secret} ')
        for changed in (command + text, command + said, command + echoed):
            assert secret not in json.dumps(explain(changed, row.metadata).to_wire())


def test_a_body_is_that_of_the_command_before_the_request() -> None:
    first_form = (
        "$ curl -v --data-urlencode 'grant_type=refresh_token' \\\n   https://as.example/token\n"
    )
    token = hand.token_request(hand.at(), status="200 OK", answer=hand.ISSUED)
    forms = [
        each.form
        for each in exchanges(
            f"{first_form}{token}+ curl -d 'a=b' --data=c=d https://x/\n{token}$ curl -v x\n{token}"
        )
    ]
    assert forms == [{"grant_type": "refresh_token"}, {"a": "b", "c": "d"}, {}]


def test_more_headers_than_servers_take_are_no_message() -> None:
    many = "> a: b\n" * 600
    with pytest.raises(Unreadable, match="line 502: a message with more than 500 headers"):
        exchanges(f"> GET / HTTP/1.1\n{many}> \n< HTTP/1.1 401 x\n< \n")


def test_metadata_without_dpop_say_why_nothing_was_bound() -> None:
    text = hand.token_request(
        hand.at(), status="200 OK", answer=hand.ISSUED | {"token_type": "Bearer"}
    )
    assert "it doesn't do DPoP" in said(text, {"issuer": hand.AS})
    algs = {"dpop_signing_alg_values_supported": ["ES256"]}
    assert "it doesn't do DPoP" not in said(text, algs)


def test_a_refused_bearer_request_without_anything_of_dpop_is_no_matter_of_the_scheme() -> None:
    bearer = (("WWW-Authenticate", 'Bearer error="invalid_token"'),)
    assert first(hand.resource(token=hand.OPAQUE, scheme="Bearer", got=bearer)) == (
        "access_token_invalid"
    )


def test_a_request_without_anything_is_told_that_it_has_neither() -> None:
    found = explain(hand.resource(token=None, got=(("WWW-Authenticate", 'DPoP algs="ES256"'),)))
    assert found.findings[0].summary == "The request has neither an access token nor a proof."


@pytest.mark.parametrize("pasted", [from_windows, indented, with_a_meter, quoted_in_a_mail])
def test_lines_are_counted_as_an_editor_does(pasted: Callable[[str], str]) -> None:
    text = pasted(hand.spring(hand.rs()).replace("> Accept: */*", "> Accept"))
    with pytest.raises(Unreadable, match="no header") as refused:
        exchanges(text)
    assert refused.value.line is not None
    assert "> Accept" in text.split("\n")[refused.value.line - 1]


WORDINGS = [
    ("Malformed DPoP token.", "proof_malformed"),
    ("Invalid 'htm' value.", "htm_mismatch"),
    ("Invalid 'htu' value.", "htu_mismatch"),
    ("Detected DPoP proof token replay.", "jti_seen"),
    ("Invalid 'iat' value.", "iat_old"),
    ("Invalid 'ath' value.", "ath_mismatch"),
    ("Missing 'ath' value.", "ath_missing"),
    ("DPoP proof token signature is invalid", "proof_signature"),
    ("This grant is DPoP bound and requires a DPoP proof.", "no_proof"),
    ("Token requests for this client must use DPoP.", "no_proof"),
    (
        "[A351202] The DPoP header is required because the client requires DPoP",
        "no_proof",
    ),
    ("The DPoP header did not include a public key in JWK format.", "proof_malformed"),
    ("The HTTP method doesn't match the JWT htm claim", "htm_mismatch"),
    ("The HTTP URI doesn't match the JWT htu claim", "htu_mismatch"),
    ("The DPoP proof JWT iat claim is behind or ahead of the current time", "iat_old"),
    ("The jti was used before: abc", "jti_seen"),
    ("The access token hash doesn't match the JWT ath claim", "ath_mismatch"),
    (
        "The DPoP proof JWK doesn't match the JWK SHA-256 thumbprint confirmation",
        "access_token_of_another_key",
    ),
    ("DPoP proof iat must be within 60 seconds", "iat_old"),
    ("DPoP proof has expired", "iat_old"),
    ("DPoP proof is expired", "iat_old"),
    ("DPoP proof key does not match cnf.jkt", "access_token_of_another_key"),
    ("DPoP thumbprint mismatch", "access_token_of_another_key"),
    ("jkt does not match", "access_token_of_another_key"),
    ("Access token is not sender-constrained", "access_token_not_bound"),
    ("access token is not DPoP-bound", "access_token_not_bound"),
    ("token missing cnf.jkt", "access_token_not_bound"),
    ("Access token expired", "access_token_invalid"),
    ("The access token is expired", "access_token_invalid"),
    ("Token has been revoked", "access_token_invalid"),
    ("The access token expired", "access_token_invalid"),
    ("Bearer token not allowed for DPoP-bound token", "scheme_bearer"),
    ("DPoP-bound access token used with Bearer scheme", "scheme_bearer"),
    ("DPoP proof alg is not supported", "alg_not_accepted"),
    ("unsupported signing algorithm", "alg_not_accepted"),
    ("The DPoP proof JWT algorithm is not supported", "alg_not_accepted"),
    ("DPoP proof typ header must be dpop+jwt", "proof_malformed"),
    ("DPoP proof is not a valid JWT", "proof_malformed"),
    ("The DPoP proof JWT header must contain the public key", "proof_malformed"),
    ("DPoP URI mismatch", "htu_mismatch"),
    ("DPoP proof URL does not match", "htu_mismatch"),
    ("The 'htu' claim does not match the request URI", "htu_mismatch"),
    ("Duplicate jti", "jti_seen"),
    ("DPoP jti reuse detected", "jti_seen"),
    ("DPoP proof already used", "jti_seen"),
    ("Missing DPoP proof", "no_proof"),
    ("DPoP proof required", "no_proof"),
    ("Missing DPoP header", "no_proof"),
    ("No DPoP header", "no_proof"),
    ("DPoP header not found", "no_proof"),
    ("dpop header is empty", "no_proof"),
    ("DPoP nonce required", "nonce_missing"),
    ("Missing nonce in DPoP proof", "nonce_missing"),
    ("DPoP nonce expired", "nonce_missing"),
    ("Signature verification failed", "proof_signature"),
]


@pytest.mark.parametrize(("description", "cause"), WORDINGS)
def test_words_that_no_server_here_uses_are_understood_too(description: str, cause: str) -> None:
    """As Duende, Quarkus, Nimbus, authlib, Authlete and others have them, or nearly so."""
    proofs = [] if cause == "no_proof" else [hand.rs(age=30)]
    text = hand.auth0("invalid_dpop_proof", description, *proofs)
    assert named(Case(exchanges(text), Sources())) == [cause]


def test_what_is_wrong_too_is_told_apart_from_guesses() -> None:
    text = hand.auth0("invalid_dpop_proof", "DPoP Proof htu mismatch", hand.rs(htm="PUT"))
    found = explain(text)
    assert [(f.cause, f.is_shown) for f in found.findings] == [
        ("htu_mismatch", False),
        ("htm_mismatch", True),
    ]
    assert "Wrong as well:\n- The proof is for another method than the request's." in str(found)
    opaque = hand.oidc_provider_me(
        "invalid_token", "invalid token provided", hand.rs(token=hand.OPAQUE), token=hand.OPAQUE
    )
    assert "Less likely, but possible:\n- " in str(explain(opaque))
