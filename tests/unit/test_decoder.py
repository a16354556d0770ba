"""A question for a proof that was asked before is understood as it was then, and as if it were
new."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from dpop_agent.errors import ProtocolError
from dpop_agent.protocol import (
    AGENT_METHODS,
    MAX_KNOWN,
    MAX_KNOWN_LINE,
    Decoder,
    Request,
    decode_request,
)
from tests import vectors

JKT = vectors.RFC9449_JKT
HTU = "https://api.example.com/v1/me"
QUESTIONS = [
    {"htm": "GET", "htu": HTU},
    {"htm": "POST", "htu": HTU, "jkt": JKT, "ath": vectors.RFC9449_ATH, "nonce": "n"},
    {"htm": "GET", "htu": HTU, "seen": [{"htu": HTU, "nonce": "n"}], "timeout_ms": 250},
    {"htm": "GET", "htu": HTU, "key": "default", "nonce": None},
    {"htm": "GET", "htu": "https://api.example.com/ä/x\\"},
]
PIECES = [
    b'"',
    b"\\",
    b"\0",
    b"{",
    b"}",
    b":",
    b",",
    b" ",
    b"\r",
    b"\xff",
    b"0",
    b"-",
    b"id",
    b"null",
]
PIECES += [b',"id":2', b',"method":"status"', b',"jsonrpc":"1.0"', b',"htm":"PUT"', b',"params":{}']
NUMBERS = [
    b"1",
    b"0",
    b"-0",
    b"-7",
    b"01",
    b"1.0",
    b"1e3",
    b"9007199254740991",
    b"9007199254740992",
]
NUMBERS += [
    b"9007199254740992",
    b"9" * 15,
    b"9" * 40,
    b'"text"',
    b"null",
    b"true",
    b"",
    b" 1",
    b"1 ",
]


def mutated(line: bytes, chance: random.Random) -> bytes:
    changed = bytearray(line)
    for _ in range(chance.choice((0, 0, 1, 1, 2))):
        at = chance.randrange(len(changed) + 1)
        changed[at : at + chance.choice((0, 0, 1, 8))] = chance.choice(PIECES)
    return bytes(changed)


def one_of(chance: random.Random, seen: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """What stands before a line's id and behind it; mostly of a line that was sent before."""
    if seen and chance.random() < 0.7:
        before, after = chance.choice(seen)
        return (before, after) if chance.random() < 0.8 else (before, chance.choice(seen)[1])
    params = json.dumps(chance.choice(QUESTIONS), separators=(",", ":")).encode()
    before, after = chance.choice(
        [
            (b'{"jsonrpc":"2.0","id":', b',"method":"proof","params":' + params + b"}"),
            (b'{"jsonrpc": "2.0", "id": ', b', "method": "proof", "params": ' + params + b"}\r"),
            (b'{"method":"proof","params":' + params + b',"jsonrpc":"2.0","id":', b"}"),
        ]
    )
    new = (mutated(before, chance) if chance.random() < 0.2 else before, mutated(after, chance))
    seen.append(new)
    del seen[:-100]
    return new


def said(decode: Callable[[], Request]) -> tuple[object, ...]:
    try:
        found = decode()
    except ProtocolError as e:
        return type(e), e.message, e.hint, e.request_id
    return found.id, type(found.id), found.method, found.params


def compare(count: int, seed: int) -> None:
    chance, decoder = random.Random(seed), Decoder(AGENT_METHODS)
    seen: list[tuple[bytes, bytes]] = []
    good = 0
    for _ in range(count):
        before, after = one_of(chance, seen)
        line = before + chance.choice(NUMBERS) + after
        wanted = said(lambda: decode_request(line, AGENT_METHODS))  # noqa: B023  (called at once)
        assert said(lambda: decoder.request(line)) == wanted, line  # noqa: B023
        good += wanted[1] is int
    assert count / 10 < good < count * 9 / 10


def test_a_question_is_understood_as_if_it_were_new() -> None:
    compare(20_000, 1)


@pytest.mark.long
def test_of_three_million_questions_each_is_understood_as_if_it_were_new() -> None:
    compare(3_000_000, 2)


def asked(number: int, **params: object) -> bytes:
    params = {"htm": "GET", "htu": HTU} | params
    return json.dumps(
        {"jsonrpc": "2.0", "id": number, "method": "proof", "params": params},
        separators=(",", ":"),
    ).encode()


def test_what_is_remembered_is_bounded_in_count_and_size_and_has_no_server_answers() -> None:
    decoder = Decoder(AGENT_METHODS)
    for number in range(3 * MAX_KNOWN):
        decoder.request(asked(number, htu=f"{HTU}/{number}"))
        assert 1 <= len(decoder._known) <= MAX_KNOWN
    known = dict(decoder._known)
    decoder.request(asked(1, htu=f"{HTU}/{'x' * MAX_KNOWN_LINE}"))
    decoder.request(asked(1, seen=[{"htu": HTU, "nonce": "n"}]))
    with pytest.raises(ProtocolError):
        decoder.request(asked(1, jkt="short"))
    assert decoder._known == known
