"""Bad input gets a clear answer, the agent goes on serving, nothing is lost."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from dpop_agent.protocol import ADMIN_METHODS, AGENT_METHODS, MAX_LINE
from tests.agent.wire import Wire, mutated, refusal, request
from tests.processes import Agent, resident_kib
from tests.rows import Reached

JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
TARGET: dict[str, Any] = {"htm": "GET", "htu": "https://api.example.com/"}
LONG_NAME = "a" * 65


def each(name: str, *values: Any) -> list[tuple[str, dict[str, Any]]]:
    """A proof with each of these values of one parameter."""
    return [("proof", TARGET | {name: value}) for value in values]


@pytest.fixture
def wire(shared_agent: Agent) -> Iterator[Wire]:
    """A connection that still answers afterwards; and no key has changed."""
    with Wire(shared_agent.socket) as wire:
        before = wire.result("key.list")["keys"]
        yield wire
        assert wire.result("proof", **TARGET)["key"] == "default"
        after = wire.result("key.list")["keys"]
    for keys in (before, after):
        for key in keys:
            for generation in key["generations"]:
                del generation["last_used"]
                generation.pop("origins_used", None)
    assert after == before


@pytest.fixture
def admin(shared_agent: Agent, wire: Wire) -> Iterator[Wire]:
    with Wire(shared_agent.admin_socket) as admin:
        yield admin


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [
        (b"", -32700, "parse_error"),
        (b"hello", -32700, "parse_error"),
        (b"{", -32700, "parse_error"),
        (b'{"jsonrpc":"2.0","id":1,"method":"status"}}', -32700, "parse_error"),
        (b'{"jsonrpc":"2.0","id":1,"method":"status"} {}', -32700, "parse_error"),
        (b'{"jsonrpc":"2.0","id":1,"method":"stat\xff"}', -32700, "parse_error"),
        (b'{"jsonrpc":"2.0","id":1,"method":"stat\x00us"}', -32700, "parse_error"),
        (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"status"}', -32700, "parse_error"),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"status"}', -32700, "parse_error"),
        (b'{"jsonrpc":"2.0","id":1,"id":1,"method":"status"}', -32700, "parse_error"),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"proof",'
            b'"params":{"htm":"GET","htu":"https://a.example/","htu":"https://b.example/"}}',
            -32700,
            "parse_error",
        ),
        (b"[" * 30_000, -32700, "parse_error"),
        (b'{"a":' * 10_000, -32700, "parse_error"),
        (b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"status"}', -32700, "parse_error"),
        (b'[{"jsonrpc":"2.0","id":1,"method":"status"}]', -32600, "invalid_request"),
        (b"[]", -32600, "invalid_request"),
        (b"1", -32600, "invalid_request"),
        (b"null", -32600, "invalid_request"),
        (b'"status"', -32600, "invalid_request"),
        (b"{}", -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","method":"status"}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":null,"method":"status"}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":true,"method":"status"}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"status"}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":[1],"method":"status"}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":9007199254740993,"method":"status"}', -32600, "invalid_request"),
        (
            b'{"jsonrpc":"2.0","id":"' + b"x" * 65 + b'","method":"status"}',
            -32600,
            "invalid_request",
        ),
    ],
)
def test_a_line_that_is_no_request_is_answered_without_an_id(
    wire: Wire, line: bytes, code: int, kind: str
) -> None:
    wire.send(line + b"\n")
    answer = wire.next()
    assert answer["id"] is None
    error = refusal(answer)
    assert (error["code"], error["type"]) == (code, kind)
    assert error["hint"]


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"jsonrpc": "1.0"}, -32600),
        ({"jsonrpc": None}, -32600),
        ({"method": None}, -32600),
        ({"method": 7}, -32600),
        ({"method": ["status"]}, -32600),
        ({"params": []}, -32600),
        ({"params": "GET"}, -32600),
        ({"params": None}, -32600),
        ({"extra": 1}, -32600),
        ({"method": "sign"}, -32601),
        ({"method": "Status"}, -32601),
        ({"method": ""}, -32601),
        ({"method": "\ud800"}, -32601),
        ({"method": "x" * 50_000}, -32601),
        ({"method": "key.create"}, -32601),
        ({"method": "key.destroy"}, -32601),
        ({"method": "key.set"}, -32601),
        ({"method": "reload"}, -32601),
        ({"method": "Lease"}, -32601),
    ],
)
def test_a_request_that_is_wrong_in_form_is_answered_with_its_id(
    wire: Wire, members: dict[str, Any], code: int
) -> None:
    message = {"jsonrpc": "2.0", "id": "mine", "method": "status", "params": {}} | members
    wire.send(json.dumps(message).encode() + b"\n")
    answer = wire.next()
    assert answer["id"] == "mine"
    error = refusal(answer)
    assert error["code"] == code
    assert error["hint"]
    assert len(error["message"]) < 200


def test_a_method_of_admin_sock_is_refused_on_agent_sock_with_where_to_send_it(wire: Wire) -> None:
    error = wire.error("key.destroy", key="default", generation=1)
    assert error["type"] == "method_not_found"
    assert "admin.sock" in error["hint"]


@pytest.mark.row(24)
def test_no_admin_method_is_answered_on_agent_sock(wire: Wire, reached: Reached) -> None:
    answered = [
        method
        for method in ADMIN_METHODS.keys() - AGENT_METHODS.keys()
        if wire.error(method)["type"] != "method_not_found"
    ]
    assert answered == []
    reached("admin methods that agent.sock answers", len(answered))


def test_a_misspelt_method_or_parameter_is_told_the_nearest(
    wire: Wire, shared_agent: Agent
) -> None:
    assert "did you mean status?" in wire.error("statuss")["hint"]
    assert "did you mean nonce?" in wire.error("proof", **TARGET, nonc="x")["hint"]
    assert "there are: look" in wire.error("status", verbose=True)["hint"]
    with Wire(shared_agent.admin_socket) as admin:
        assert "no parameters" in admin.error("reload", verbose=True)["hint"]


@pytest.mark.parametrize("name", ["iat", "jti", "typ", "jwk", "alg", "exp"])
def test_what_the_agent_alone_writes_is_refused_and_not_ignored(wire: Wire, name: str) -> None:
    error = wire.error("proof", **TARGET, **{name: 1})
    assert (error["code"], error["type"]) == (-32602, "invalid_params")
    assert name in error["message"]
    assert "the agent alone writes" in error["hint"]


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("proof", {}),
        ("proof", {"htm": "GET"}),
        ("proof", {"htu": "https://api.example.com/"}),
        *each("htm", "", "GET POST", "GÉT", "A" * 33, None, 1),
        *each("htu", "", None, 1, ["https://h/"]),
        *each("key", "", "Default", "-a", "a b", "a/b", "../a", LONG_NAME, None, 1, {}),
        *each("jkt", "", JKT[:-1], JKT + "A", JKT[:-1] + "="),
        *each("jkt", JKT[:-1] + "J"),  # not the canonical encoding of 32 bytes
        *each("ath", "", JKT[:-1], JKT + "A", JKT[:-1] + "/", JKT[:-1] + "é", None, 1),
        *each("nonce", "", " ", "a b", 'a"b', "a\\b", "a\nb", "a\x7f", "é", "n" * 513, 1, []),
        *each("timeout_ms", 0, -1, 60_001, 1.5, "1000", True, None, 10**30),
        *each("seen", {}),
        *each("seen", [1]),
        *each("seen", [{}]),
        *each("seen", [{"htu": "https://h.example/", "nonce": None}]),
        *each("seen", [{"htu": "https://h.example/", "nonce": "a b"}]),
        *each("seen", [{"htu": "https://h.example/", "age": 1}]),
        *each("seen", [{"htu": "https://h.example/"}] * 33),
        ("observe", {}),
        ("observe", {"seen": None}),
        *[
            ("observe", {"seen": [{"htu": "https://h.example/", "date": date}]})
            for date in (
                "",
                "now",
                1,
                None,
                "2026-11-20",
                "2026-11-20T19:05:00",
                "2026-11-20T19:05:00+00:00",
                "2026-13-20T19:05:00Z",
                "2026-02-30T19:05:00Z",
                "0000-01-01T00:00:00Z",
                "Fri, 20 Nov 2026 19:05:00 GMT",
            )
        ],
        ("hello", {"client": 1}),
        ("hello", {"client": "x" * 65}),
        ("proof", TARGET | {"shares_nonce": 1}),
        ("lease", {}),
        ("lease", {"name": ""}),
        ("lease", {"name": "a b"}),
        ("lease", {"name": "x" * 129}),
        ("lease", {"name": "a", "wait_ms": -1}),
        ("lease", {"name": "a", "wait_ms": 60_001}),
        ("release", {}),
        ("release", {"lease": ""}),
        ("release", {"lease": 1}),
        ("key.list", {"include_destroyed": 1}),
        ("key.list", {"cursor": 1}),
        ("key.list", {"cursor": "nonsense"}),
        ("key.list", {"cursor": "a@-1"}),
        ("proof.sign", {"jkt": JKT}),
        ("proof.sign", {"signing_input": "e30.e30"}),
        ("proof.sign", {"signing_input": "", "jkt": JKT}),
        ("proof.sign", {"signing_input": "a" * 16_385, "jkt": JKT}),
    ],
)
def test_a_parameter_that_is_missing_or_wrong_is_invalid_params(
    wire: Wire, method: str, params: dict[str, Any]
) -> None:
    error = wire.error(method, **params)
    assert (error["code"], error["type"], error["retry"]) == (-32602, "invalid_params", "no")
    assert error["hint"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("key.create", {}),
        ("key.create", {"key": "shop"}),
        ("key.create", {"key": "Shop", "origins": []}),
        ("key.create", {"key": LONG_NAME, "origins": []}),
        ("key.create", {"key": "shop", "origins": [], "alg": "HS256"}),
        ("key.create", {"key": "shop", "origins": [], "alg": "none"}),
        ("key.create", {"key": "shop", "origins": [], "alg": 256}),
        ("key.create", {"key": "shop", "origins": None}),
        ("key.create", {"key": "shop", "origins": "https://a.example"}),
        ("key.create", {"key": "shop", "origins": [1]}),
        ("key.create", {"key": "shop", "origins": ["https://a.example"] * 65}),
        ("key.create", {"key": "shop", "origins": [], "allow_sign_proof": "yes"}),
        ("key.create", {"key": "shop", "origins": [], "exportable": True}),
        ("key.create", {"key": "shop", "origins": [], "request_id": "short"}),
        ("key.create", {"key": "shop", "origins": [], "request_id": "with a blank"}),
        ("key.create", {"key": "shop", "origins": [], "request_id": "x" * 65}),
        ("key.destroy", {"key": "default"}),
        ("key.destroy", {"key": "default", "generation": 0}),
        ("key.destroy", {"key": "default", "generation": True}),
        ("key.destroy", {"key": "default", "generation": "1"}),
        ("key.set", {}),
        ("key.set", {"key": "default", "alg": "ES384"}),
        ("key.set", {"key": "default", "allow_sign_proof": None}),
        ("reload", {"force": True}),
    ],
)
def test_a_change_with_a_wrong_parameter_changes_nothing(
    admin: Wire, method: str, params: dict[str, Any]
) -> None:
    error = admin.error(method, **params)
    assert (error["code"], error["type"]) == (-32602, "invalid_params")
    assert error["hint"]


@pytest.mark.parametrize(
    ("method", "params", "kind"),
    [
        ("key.create", {"key": "default", "origins": []}, "key_exists"),
        ("key.create", {"key": "shop", "origins": [], "store": "elsewhere"}, "store_unknown"),
        ("key.create", {"key": "shop", "origins": ["https://a.example/path"]}, "htu_refused"),
        ("key.create", {"key": "shop", "origins": ["a.example"]}, "htu_refused"),
        ("key.create", {"key": "shop", "origins": ["https://u:p@a.example"]}, "htu_refused"),
        ("key.destroy", {"key": "nobody", "generation": 1}, "key_unknown"),
        ("key.destroy", {"key": "default", "generation": 2}, "key_unknown"),
        ("key.set", {"key": "nobody"}, "key_unknown"),
        ("key.set", {"key": "default", "origins": ["https://a.example/?q"]}, "htu_refused"),
        ("key.list", {"key": "nobody"}, "key_unknown"),
    ],
)
def test_a_change_that_is_refused_changes_nothing(
    admin: Wire, method: str, params: dict[str, Any], kind: str
) -> None:
    error = admin.error(method, **params)
    assert (error["code"], error["type"], error["retry"]) == (-32000, kind, "no")
    assert error["hint"]


@pytest.mark.parametrize(
    "htu",
    [
        "http://as.example/token",
        "https://as.example/a/../b",
        "https://as.example/a/%2E%2e/b",
        "https://user:pw@as.example/",
        "https://as.example\\@evil.example/t",
        "https://as.example/a\tb",
        "https://as.example/a\r\nb",
        " https://as.example/",
        "https://as.example/caf\u00e9",
        "https://b\u00fccher.example/",
        "https://[fe80::1%25eth0]/",
        "https://as.example:0443/",
        "https://as%2eexample/",
        "https://as.example/%zz",
        "/token",
        "as.example/token",
        "ftp://as.example/",
        "https:///token",
        "https://as.example/" + "a" * 8192,
    ],
)
def test_a_target_uri_with_two_readings_is_refused_wherever_it_comes_from(
    wire: Wire, htu: str
) -> None:
    error = wire.error("proof", htm="GET", htu=htu)
    assert (error["type"], error["retry"]) == ("htu_refused", "no")
    assert error["hint"]
    assert "pw" not in json.dumps(error)
    if not htu.startswith("http://"):
        assert wire.error("observe", seen=[{"htu": htu, "nonce": "n"}])["type"] == "htu_refused"
        assert wire.error("proof", **TARGET, seen=[{"htu": htu}])["type"] == "htu_refused"


def test_an_unknown_key_is_told_which_there_are(wire: Wire) -> None:
    error = wire.error("proof", **TARGET, key="work")
    assert (error["type"], error["retry"]) == ("key_unknown", "no")
    assert error["message"] == "there is no key work"
    assert error["hint"].startswith("there are: ")
    assert "default" in error["hint"]


def test_an_agent_without_keys_says_how_to_make_one(agent: Agent) -> None:
    with Wire(agent.socket) as wire:
        error = wire.error("proof", **TARGET)
    assert error["type"] == "key_unknown"
    assert error["hint"].startswith("make it with: dpop-agent key create default --origin ")


@pytest.mark.row(2)
def test_a_line_may_have_61440_bytes_and_none_more(shared_agent: Agent, reached: Reached) -> None:
    whole = request("status")
    with Wire(shared_agent.socket) as wire:
        for end in (b"\n", b"\r\n"):
            wire.send(whole[:-1].ljust(MAX_LINE - len(end)) + end)
            assert "result" in wire.next()
        wire.send(whole[:-1].ljust(MAX_LINE) + b"\n")
        answer = wire.next()
        assert answer["id"] is None
        error = refusal(answer)
        assert error["type"] == "parse_error"
        assert f"{MAX_LINE} bytes" in error["message"]
        assert wire.line() is None
    reached("bytes of the longest line that is taken", MAX_LINE)


def test_what_comes_before_a_line_that_is_too_long_is_answered(shared_agent: Agent) -> None:
    with Wire(shared_agent.socket) as wire:
        try:
            wire.send(request("status", number="before") + b"x" * (2 * MAX_LINE) + b"\n")
        except BrokenPipeError:
            pass  # refused while it was still coming
        assert wire.next()["id"] == "before"
        assert refusal(wire.next())["type"] == "parse_error"
        assert wire.line() is None


@pytest.mark.row(2)
def test_endless_lines_cost_the_agent_no_memory(shared_agent: Agent, reached: Reached) -> None:
    def pour(mib: int) -> None:
        with Wire(shared_agent.socket) as wire:
            for _ in range(mib):
                try:
                    wire.send(b"x" * 1024 * 1024)
                except OSError:
                    break
            else:
                pytest.fail("the agent took it all")
            assert refusal(wire.next())["type"] == "parse_error"
            assert wire.line() is None

    for _ in range(10):
        pour(4)
    before = resident_kib(shared_agent.pid)
    for _ in range(200):
        pour(4)
    grew_kib = resident_kib(shared_agent.pid) - before
    assert grew_kib < 2 * 1024
    reached("lines without an end, each refused and its connection closed", 200)
    reached("MiB that memory grew by for lines without an end", grew_kib / 1024)


@pytest.mark.row(1)
def test_any_bytes_get_an_answer_a_line_and_the_agent_stays(
    shared_agent: Agent, reached: Reached
) -> None:
    """Requests with a few bytes changed; the seed is fixed, so that a failure comes again."""
    chance = random.Random(9449)
    pid, before, refused = shared_agent.pid, resident_kib(shared_agent.pid), 0
    while refused < 20_000:
        lines = [mutated(chance) for _ in range(50)]
        with Wire(shared_agent.socket) as wire:
            wire.send(b"".join(line + b"\n" for line in lines))
            wire.half_close()
            for answer in wire.lines(len(lines)):
                if "error" in answer:
                    assert refusal(answer)["type"] != "internal"
                    refused += 1
            assert wire.line() is None
    assert shared_agent.client().status()["pid"] == pid
    grew_kib = resident_kib(pid) - before
    assert grew_kib < 10 * 1024
    reached("malformed lines over a live socket", refused)
    reached("malformed lines and frames that crashed something or got no answer", 0)
    reached("MiB that memory grew by for malformed lines and frames", grew_kib / 1024)


def test_what_a_client_sends_by_mistake_is_not_repeated_to_anybody(shared_agent: Agent) -> None:
    secret = "canary-4f1c9d"
    with Wire(shared_agent.socket) as wire:
        for params in (
            TARGET | {"ath": secret},
            TARGET | {"access_token": secret},
            TARGET | {secret: 1},
            TARGET | {"nonce": secret + " "},
            TARGET | {"htm": secret + " "},
            {"htm": "GET", "htu": f"https://u:{secret}@h.example/"},
            {"htm": "GET", "htu": f"https://h.example/../{secret}"},
        ):
            assert secret not in json.dumps(wire.error("proof", **params))
        assert secret not in json.dumps(wire.error(secret))
        wire.send(b'{"' + secret.encode() + b"\n")
        assert secret not in json.dumps(wire.next())
    assert secret not in shared_agent.log.read_text()


def test_a_client_that_only_connects_and_goes_is_no_trouble(shared_agent: Agent) -> None:
    for _ in range(50):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(shared_agent.socket)
    for _ in range(50):
        with Wire(shared_agent.socket) as wire:
            wire.send(request("proof", TARGET))
    assert shared_agent.client().proof("GET", "https://api.example.com/").state == "active"
