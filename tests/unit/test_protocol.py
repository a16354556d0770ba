from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpop_agent import errors
from dpop_agent.errors import ProtocolError
from dpop_agent.protocol import (
    ADMIN_METHODS,
    AGENT_METHODS,
    MAX_LINE,
    Event,
    decode_request,
    decode_response,
    encode_error,
    encode_event,
    encode_request,
    encode_result,
)
from tests import vectors

JKT = vectors.RFC9449_JKT
ATH = vectors.RFC9449_ATH
PARSE, INVALID, NO_METHOD, PARAMS = -32700, -32600, -32601, -32602


def line(method: object = "hello", params: object = None, **changes: object) -> bytes:
    message = {"jsonrpc": "2.0", "id": 1, "method": method} | changes
    if params is not None:
        message["params"] = params
    return json.dumps(message).encode() + b"\n"


def refusal(data: bytes, methods: Any = AGENT_METHODS) -> ProtocolError:
    with pytest.raises(ProtocolError) as refused:
        decode_request(data, methods)
    error = refused.value
    assert error.hint, "every refusal says what to do next"
    assert "\n" not in str(error)
    assert len(encode_error(error.request_id, error)) < MAX_LINE
    return error


PROOF = {"htm": "POST", "htu": "https://as.example/token"}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("hello", {}),
        ("hello", {"client": "curl"}),
        ("proof", PROOF),
        ("proof", PROOF | {"key": "a.b_c-9", "jkt": JKT, "ath": ATH, "nonce": "n", "seen": []}),
        ("proof", PROOF | {"nonce": None, "timeout_ms": 1}),
        ("proof", PROOF | {"seen": [{"htu": "https://h/", "nonce": "n"}], "timeout_ms": 60_000}),
        ("proof", PROOF | {"seen": [{"htu": "https://h/", "date": "2026-11-20T19:05:00Z"}] * 32}),
        ("proof.sign", {"signing_input": "a.b", "jkt": JKT}),
        ("observe", {"seen": [{"htu": "https://h/", "date": "2026-11-20T19:05:00.123Z"}]}),
        ("key.list", {}),
        ("key.list", {"key": "default", "include_destroyed": True, "cursor": "c"}),
        ("status", {}),
    ],
)
def test_a_good_request_is_taken_as_it_was_sent(method: str, params: dict[str, Any]) -> None:
    for end in (b"\n", b"\r\n", b""):
        request = decode_request(line(method, params).rstrip() + end, AGENT_METHODS)
        assert (request.id, request.method, request.params) == (1, method, params)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("key.create", {"key": "k"}),
        (
            "key.create",
            {
                "key": "k",
                "store": "soft",
                "alg": "PS256",
                "origins": ["https://h"],
                "allow_sign_proof": True,
                "request_id": "0123456789abcdef",
            },
        ),
        ("key.destroy", {"key": "k", "generation": 1}),
        ("key.set", {"key": "k", "origins": []}),
        ("reload", {}),
    ],
)
def test_what_changes_things_is_answered_on_the_admin_socket_alone(
    method: str, params: dict[str, Any]
) -> None:
    assert decode_request(line(method, params), ADMIN_METHODS).params == params
    refused = refusal(line(method, params))
    assert refused.code == NO_METHOD
    assert "admin.sock" in refused.hint


def test_params_may_be_left_out() -> None:
    assert decode_request(line("status"), AGENT_METHODS).params == {}


@pytest.mark.parametrize("good", [0, -1, 2**53 - 1, "", "abc", "é", "x" * 64])
def test_an_id_is_a_short_text_or_an_integer(good: object) -> None:
    assert decode_request(line(id=good), AGENT_METHODS).id == good


NOT_JSON = [
    b"",
    b"\n",
    b" ",
    b"GET / HTTP/1.1\r\n",
    b"{",
    b"{}{}",
    b"{'jsonrpc':'2.0'}",
    b'{"jsonrpc":"2.0","id":1,"method":"hello",}',
    b'{"jsonrpc":"2.0","id":1,"method":"hello"} x',
    b'{"jsonrpc":"2.0","id":1,"id":2,"method":"hello"}',
    b'{"jsonrpc":"2.0","id":1,"method":"hello","meth\\u006fd":"status"}',
    b'{"jsonrpc":"2.0","id":1,"method":"proof","params":{"htm":"GET","htm":"POST"}}',
    b'{"jsonrpc":"2.0","id":NaN,"method":"hello"}',
    b'{"jsonrpc":"2.0","id":Infinity,"method":"hello"}',
    b'{"jsonrpc":"2.0","id":1,"method":"hello","params":{"client":-Infinity}}',
    b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"hello"}',
    b'{"jsonrpc":"2.0","id":' + b"9" * 50 + b',"method":"hello"}',
    b"[" * 50_000,
    b'{"a":' * 10_000,
    b'{"jsonrpc":"2.0","id":1,"method":"hello","params":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    b'{"jsonrpc":"2.0","id":1,"method":"hel\xfflo"}',
    b'{"jsonrpc":"2.0","id":1,"method":"\xed\xa0\x80"}',
    b'{"jsonrpc":"2.0","id":1,"method":"\xc1\xa1"}',
    b"\xef\xbb\xbf" + line(),
    line().decode().encode("utf-16"),
    line().decode().encode("utf-16-le"),
    line().decode().encode("utf-32"),
    b'{"jsonrpc":"2.0","id":1,"method":"a\x00b"}',
    b'{"jsonrpc":"2.0","id":1,"method":"a\nb"}',
    b"\x00" * 100,
]


@pytest.mark.parametrize("data", NOT_JSON)
def test_a_line_that_is_not_json_with_unique_members_is_a_parse_error(data: bytes) -> None:
    refused = refusal(data)
    assert refused.code == PARSE
    assert refused.request_id is None
    assert "sys." not in str(refused)


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"[" + line().strip() + b"]",
        b"[" + line().strip() + b"," + line().strip() + b"]",
        b"1",
        b"null",
        b"true",
        b'"hello"',
    ],
)
def test_a_batch_or_another_value_is_an_invalid_request(data: bytes) -> None:
    assert refusal(data).code == INVALID


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        line(jsonrpc="1.0"),
        line(jsonrpc=2.0),
        line(jsonrpc=None),
        b'{"id":1,"method":"hello"}',
        b'{"jsonrpc":"2.0","method":"hello"}',
        line(id=None),
        line(id=True),
        line(id=False),
        line(id=1.0),
        line(id=1.5),
        line(id=[]),
        line(id={}),
        line(id=2**53),
        line(id=-(2**53)),
        line(id="x" * 65),
        b'{"jsonrpc":"2.0","id":1e999,"method":"hello"}',
        b'{"jsonrpc":"2.0","id":1}',
        line(None),
        line(1),
        line(["hello"]),
        line(params=[]),
        line("proof", ["POST", "https://as.example/token"]),
        line(params="x"),
        line(params=1),
        b'{"jsonrpc":"2.0","id":1,"method":"hello","params":null}',
        line(extra=1),
        line(result={}),
        line(Method="hello"),
    ],
)
def test_an_object_that_is_no_json_rpc_request_is_an_invalid_request(data: bytes) -> None:
    assert refusal(data).code == INVALID


@pytest.mark.parametrize(
    "method", ["", "Hello", "hello ", "rpc.discover", "sign", "__init__", "\ud800", "x" * 50_000]
)
def test_an_unknown_method_is_refused(method: str) -> None:
    refused = refusal(line(method))
    assert refused.code == NO_METHOD
    assert refused.request_id == 1


def test_an_unknown_method_is_told_the_nearest_one() -> None:
    assert "did you mean proof?" in refusal(line("prooff")).hint


@pytest.mark.parametrize("name", ["iat", "jti", "typ", "jwk", "alg", "exp"])
def test_what_the_agent_alone_writes_is_refused_and_not_ignored(name: str) -> None:
    for method, params in (
        ("proof", PROOF | {name: 1}),
        ("proof.sign", {"signing_input": "a.b", "jkt": JKT, name: 1}),
    ):
        refused = refusal(line(method, params))
        assert refused.code == PARAMS
        assert refused.message == f"{method} takes no {name}"
        assert "the agent alone writes" in refused.hint


@pytest.mark.parametrize(
    ("method", "name", "values"),
    [
        ("hello", "client", [1, None, "x" * 65, ["x"]]),
        ("proof", "htm", ["", "G ET", "GET\n", "GÉT", 1, None, "A" * 33]),
        ("proof", "htu", ["", 1, None, ["https://h/"], "https://h/" + "a" * 40_000]),
        ("proof", "key", ["", "A", "-a", ".a", "a/b", "a\n", "a" * 65, "é", 1, None, True]),
        ("proof", "jkt", ["", JKT[:-1], JKT + "A", JKT[:-1] + "J", JKT[:-1] + "=", 1, None, []]),
        ("proof", "ath", ["", ATH[:-1], ATH + "A", "ath", "é" * 43, 1, None, {}]),
        ("proof", "nonce", ["", "a b", 'a"b', "a\\b", "a\n", "é", "\ud800", "n" * 513, 1, False]),
        ("proof", "timeout_ms", [0, -1, 60_001, 1.0, 1.5, True, "1", None, 10**30]),
        ("proof", "seen", [None, {}, "x", [1], [[]], [{}], [{"htu": 1}], [{"nonce": "n"}]]),
        ("observe", "seen", [[{"htu": "https://h/"}] * 33, [{"htu": "https://h/", "x": 1}]]),
        ("observe", "seen", [[{"htu": "https://h/", "nonce": v}] for v in (None, "", "a b", 1)]),
        (
            "observe",
            "seen",
            [
                [{"htu": "https://h/", "date": date}]
                for date in (
                    None,
                    1,
                    "",
                    "Fri, 20 Nov 2026 19:05:00 GMT",
                    "2026-11-20T19:05:00+00:00",
                    "2026-11-20T19:05:00",
                    "2026-11-20 19:05:00Z",
                    "2026-11-20T19:05:00Z\n",
                    "٢٠٢٦-11-20T19:05:00Z",
                )
            ],
        ),
        ("proof.sign", "signing_input", ["", 1, None, "a" * 20_000]),
        ("key.list", "include_destroyed", [0, 1, "true", None]),
        ("key.list", "cursor", [1, None, "c" * 129]),
        ("key.create", "origins", [None, "https://h", {}, [1], ["https://h"] * 65, ["h" * 301]]),
        ("key.create", "alg", [1, None, "A" * 17]),
        ("key.create", "request_id", ["", "short", "with space", "x" * 65, 12_345_678, None]),
        ("key.destroy", "generation", [0, -1, True, 1.0, "1", None, 2**31 + 1]),
        ("key.set", "allow_sign_proof", [0, "false", None]),
    ],
)
def test_a_parameter_of_a_wrong_type_or_form_is_refused_by_its_name(
    method: str, name: str, values: list[object]
) -> None:
    required: dict[str, dict[str, object]] = {
        "proof": dict(PROOF),
        "proof.sign": {"signing_input": "a.b", "jkt": JKT},
        "key.create": {"key": "k"},
        "key.destroy": {"key": "k", "generation": 1},
        "key.set": {"key": "k"},
    }
    for value in values:
        refused = refusal(line(method, required.get(method, {}) | {name: value}), ADMIN_METHODS)
        assert refused.code == PARAMS, value
        assert f"{method}: {name} has to be" in refused.message, value
        assert refused.request_id == 1


@pytest.mark.parametrize(
    ("method", "name"),
    [(m, n) for m, forms in ADMIN_METHODS.items() for n, form in forms.items() if form.required],
)
def test_a_required_parameter_that_is_missing_is_named(method: str, name: str) -> None:
    some: tuple[object, ...] = ("https://h/", "GET", "k", JKT, "a.b", "00ff", 1, [], ["k"], True)
    params = {
        n: next((value for value in some if form.check(value)), None)
        for n, form in ADMIN_METHODS[method].items()
        if form.required and n != name
    }
    refused = refusal(line(method, params), ADMIN_METHODS)
    assert (refused.code, refused.message) == (PARAMS, f"{method}: {name} is missing")


@pytest.mark.parametrize("method", ADMIN_METHODS)
def test_an_unknown_parameter_is_refused_by_every_method(method: str) -> None:
    refused = refusal(line(method, {"canary_name": "canary-value"}), ADMIN_METHODS)
    assert refused.code == PARAMS
    assert "canary" not in str(refused)


def test_an_access_token_in_place_of_its_hash_is_not_repeated() -> None:
    for params in ({"ath": "canary-access"}, {"access_token": "canary-access"}):
        assert "canary-access" not in str(refusal(line("proof", PROOF | params)))


def test_a_refusal_carries_the_id_where_there_was_a_usable_one() -> None:
    assert refusal(line("nope", id="r-1")).request_id == "r-1"
    assert refusal(line(jsonrpc="1.0", id=7)).request_id == 7
    assert refusal(line(id=True)).request_id is None


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["2.0", "GET", "https://h/", JKT, *ADMIN_METHODS])
    | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["htu", "nonce", "date"]) | st.text(max_size=4), inner)
    ),
    max_leaves=6,
)
NAMES = sorted({name for forms in ADMIN_METHODS.values() for name in forms} | {"iat", "x"})
REQUESTS = st.fixed_dictionaries(
    {
        "jsonrpc": st.just("2.0") | VALUES,
        "id": st.integers(0, 9) | VALUES,
        "method": st.sampled_from([*ADMIN_METHODS]) | VALUES,
        "params": st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4) | VALUES,
    },
    optional={"x": VALUES},
)


@settings(max_examples=2500, deadline=None)
@example(b"[" * 50_000)
@given(
    st.binary(max_size=80) | st.text('{}[]":,0129.eE+-truefalsn\\u ', max_size=60).map(str.encode)
)
def test_any_bytes_are_a_request_or_a_protocol_error(data: bytes) -> None:
    try:
        request = decode_request(data, ADMIN_METHODS)
    except ProtocolError as e:
        assert e.code in (PARSE, INVALID, NO_METHOD, PARAMS)  # noqa: PT017  (passing is fine too)
    else:
        assert request.method in ADMIN_METHODS


@settings(max_examples=500, deadline=None)
@given(REQUESTS)
def test_any_json_is_a_checked_request_or_a_protocol_error(message: dict[str, Any]) -> None:
    try:
        request = decode_request(json.dumps(message).encode(), ADMIN_METHODS)
    except ProtocolError as e:
        assert e.code in (PARSE, INVALID, NO_METHOD, PARAMS)  # noqa: PT017  (passing is fine too)
    else:
        forms = ADMIN_METHODS[request.method]
        assert all(forms[name].check(value) for name, value in request.params.items())
        assert encode_result(request.id, {})


def test_every_line_is_one_line_of_ascii() -> None:
    lines = [
        encode_request(1, "proof", {"htu": "é\n\u2028\ud800"}),
        encode_result("é\n", {"proof": "é\r\n"}),
        encode_error(None, errors.KeyUnknown("é\nx", hint="\u2028")),
    ]
    for data in lines:
        assert data.isascii()
        assert data.endswith(b"\n")
        assert data.count(b"\n") == 1
        assert b"\r" not in data


def test_a_request_that_was_encoded_is_decoded_as_it_was() -> None:
    request = decode_request(encode_request(7, "proof", PROOF), AGENT_METHODS)
    assert (request.id, request.method, request.params) == (7, "proof", PROOF)


def test_a_request_that_fits_no_line_is_refused_before_it_is_sent() -> None:
    room = MAX_LINE - len(encode_request(1, "proof", {"htu": ""}))
    assert len(encode_request(1, "proof", {"htu": "a" * room})) == MAX_LINE
    with pytest.raises(errors.InvalidParams, match=f"more than {MAX_LINE} bytes"):
        encode_request(1, "proof", {"htu": "a" * (room + 1)})


def test_a_result_that_fits_no_line_is_an_internal_error() -> None:
    with pytest.raises(ProtocolError, match="doesn't fit") as refused:
        encode_result(1, {"keys": "a" * MAX_LINE})
    assert refused.value.code == -32603


def test_a_result_is_decoded_with_its_id_and_unknown_members_are_ignored() -> None:
    data = b'{"jsonrpc":"2.0","id":3,"result":{"a":1,"new":[]},"new":1}\r\n'
    assert decode_response(data) == (3, {"a": 1, "new": []})


def test_an_error_is_decoded_to_its_class() -> None:
    request_id, error = decode_response(encode_error(3, errors.KeyUnknown("no key 'a'")))
    assert request_id == 3
    assert isinstance(error, errors.KeyUnknown)
    request_id, error = decode_response(encode_error(None, errors.ParseError("x")))
    assert request_id is None
    assert isinstance(error, errors.ParseError)


def test_an_event_is_decoded_with_the_id_of_its_request() -> None:
    for told, number in (({"id": 3, "key": "a"}, 3), ({"id": "x"}, None), ({}, None)):
        about, event = decode_response(encode_event("touch", told))
        assert isinstance(event, Event)
        assert (about, event.name, event.params) == (number, "touch", told)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"[]",
        b"1",
        b'{"method":"touch"}',
        b'{"method":"touch","params":[]}',
        b'{"method":1,"params":{}}',
        b"{}",
        b'{"id":1}',
        b'{"result":{}}',
        b'{"id":1,"result":null}',
        b'{"id":1,"result":[]}',
        b'{"id":1,"result":"x"}',
        b'{"id":[],"result":{}}',
        b'{"id":true,"result":{}}',
        b'{"id":"1","result":{}}',
        b'{"id":1,"id":2,"result":{}}',
        b'{"id":1,"result":{"x":NaN}}',
        b'{"id":1,"result":' + b"[" * 50_000,
        b'{"id":1,"result":{}}\xff',
        b'{"id":1,"result":{}}'.decode().encode("utf-16"),
    ],
)
def test_an_answer_that_is_none_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_response(data)
