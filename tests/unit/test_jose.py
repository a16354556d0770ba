from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key
from jwt import PyJWS
from jwt.api_jwk import PyJWK

from dpop_agent import jose
from dpop_agent.verify import verify
from tests import vectors
from tests.vectors import SoftKey

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("jwk", "jkt"),
    [
        (vectors.RFC9449_JWK, vectors.RFC9449_JKT),
        (vectors.RFC7638_JWK, vectors.RFC7638_JKT),
        (vectors.RFC8037_JWK, vectors.RFC8037_JKT),
    ],
    ids=["RFC 9449", "RFC 7638", "RFC 8037"],
)
def test_thumbprints_are_those_of_the_rfcs(jwk: dict[str, str], jkt: str) -> None:
    assert jose.thumbprint(jwk) == jkt
    assert jose.thumbprint({"kid": "2011-04-29", "use": "sig"} | jwk) == jkt


def test_ath_is_that_of_the_rfc() -> None:
    assert jose.access_token_hash(vectors.RFC9449_ACCESS_TOKEN) == vectors.RFC9449_ATH


def test_an_access_token_beyond_ascii_is_refused() -> None:
    with pytest.raises(ValueError, match="ascii"):
        jose.access_token_hash("é")


def test_a_thousand_keys_keep_their_leading_zeros_and_independent_parties_accept_them() -> None:
    short = 0
    for seed in range(1000):
        key = SoftKey("ES256", seed)
        assert isinstance(key.private, ec.EllipticCurvePrivateKey)
        numbers = key.private.public_key().public_numbers()
        short += min(numbers.x, numbers.y).bit_length() <= 248
        assert [len(key.jwk[name]) for name in "xy"] == [43, 43]

        proof = key.proof(iat=NOW)
        assert accepted_by_joserfc(proof, key)
        found = verify(proof, htm="POST", htu="https://as.example/token", now=NOW)
        assert found.jkt == key.jkt
    assert short >= 5


def accepted_by_joserfc(proof: str, key: SoftKey) -> bool:
    independent = import_key(dict(key.jwk))
    assert isinstance(independent, ECKey | RSAKey | OKPKey)
    registry = jws.JWSRegistry(algorithms=[key.alg])
    registry.max_header_length = 1024  # an RSA key in the header is longer than its default
    found = jws.deserialize_compact(proof, independent, registry=registry)
    return bool(found.headers()["jwk"] == key.jwk and independent.thumbprint() == key.jkt)


def accepted_by_pyjwt(proof: str, key: SoftKey) -> bool:
    independent = PyJWK(dict(key.jwk), key.alg)
    found = PyJWS().decode_complete(proof, independent, algorithms=[key.alg])
    return bool(found["header"]["jwk"] == key.jwk)


# Each knows Ed25519 keys by one name alone.
JUDGES = [(accepted_by_joserfc, alg) for alg in jose.ALGORITHMS if alg != "EdDSA"] + [
    (accepted_by_pyjwt, alg) for alg in jose.ALGORITHMS if alg != "Ed25519"
]


@pytest.mark.parametrize(("accepted", "alg"), JUDGES)
def test_independent_parties_accept_a_proof_by_each_algorithm(
    accepted: Callable[[str, SoftKey], bool], alg: str
) -> None:
    key = SoftKey(alg, seed=7)
    assert accepted(key.proof(iat=NOW, ath=vectors.RFC9449_ATH, nonce="n-1"), key)


@pytest.mark.parametrize("alg", jose.ALGORITHMS)
def test_the_table_has_the_sizes_of_real_keys_and_signatures(alg: str) -> None:
    key = SoftKey(alg)
    row = jose.ALGORITHMS[alg]
    assert len(key.sign(b"x")) == row.signature_size
    assert key.jwk["kty"] == row.kty
    assert key.jwk.get("crv") == row.crv
    assert set(key.jwk) == set(jose.PUBLIC_MEMBERS[row.kty])
    if "x" in key.jwk:
        assert len(jose.b64url_decode(key.jwk["x"])) == row.coordinate_size


def test_rsa_numbers_have_no_leading_zeros() -> None:
    jwk = jose.rsa_jwk(2**2047 + 1, 65537)
    assert jwk["e"] == "AQAB"
    assert len(jose.b64url_decode(jwk["n"])) == 256


@given(st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_base64url_round_trips(data: bytes) -> None:
    text = jose.b64url(data)
    assert not set(text) & set("+/=")
    assert jose.b64url_decode(text) == data


@pytest.mark.parametrize(
    "text",
    ["AQ==", "A", "AB+/", "AQ\n", " AQ", "A Q", "AR", "AQJ", "AÀ", "AQ.AQ", "\x00AQ", "\ud800"],
)
def test_base64url_that_is_not_canonical_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base64url"):
        jose.b64url_decode(text)


@pytest.mark.parametrize(
    "text",
    [
        None,
        1,
        b"0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
        ["0"] * 43,
        "",
        vectors.RFC9449_JKT[:-1],
        vectors.RFC9449_JKT + "A",
        vectors.RFC9449_JKT[:-1] + "J",
        vectors.RFC9449_JKT[:-1] + "=",
        vectors.RFC9449_JKT[:-1] + "\n",
    ],
)
def test_only_a_canonical_sha256_is_taken_for_a_jkt_or_an_ath(text: object) -> None:
    assert jose.is_sha256(vectors.RFC9449_JKT)
    assert not jose.is_sha256(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}{}",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":"\n"}',
        b'{"a":' + b"9" * 33 + b"}",
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 30_000,
        b'{"a":' * 10_000,
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xc0\x80"}',
    ],
)
def test_what_is_not_plain_json_with_unique_members_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  (that it is this type is the claim)
        jose.json_object(data)
    assert not isinstance(refused.value, jose.NotAnObject)
    assert "sys." not in str(refused.value)


@pytest.mark.parametrize("data", [b"[]", b"[{}]", b"1", b"null", b"true", b'"{}"'])
def test_json_that_is_no_object_is_told_apart(data: bytes) -> None:
    with pytest.raises(jose.NotAnObject):
        jose.json_object(data)


@pytest.mark.parametrize("bits", [2048, 2049, 3072, 4096])
def test_an_rsa_signature_is_as_long_as_its_keys_modulus(bits: int) -> None:
    jwk = jose.rsa_jwk((1 << bits - 1) + 1, 65537)
    assert jose.rsa_bits(jwk) == bits
    for alg in ("RS256", "PS256"):
        assert jose.signature_size(jose.ALGORITHMS[alg], jwk) == (bits + 7) // 8


def by_pairs(line: bytes) -> object:
    """The object on a line, or what is wrong with it, by a parser that looks at each member."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a member appears twice")
        return dict(pairs)

    decoder = json.JSONDecoder(
        object_pairs_hook=once, parse_int=jose._integer, parse_constant=jose._refuse_constant
    )
    try:
        return decoder.decode(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def read(line: bytes) -> object:
    try:
        return jose.json_object(line)
    except jose.NotAnObject:
        return json.loads(line)
    except ValueError:
        return None


REQUEST = (
    b'{"jsonrpc":"2.0","id":"1","method":"proof","params":{"htm":"GET","htu":"https://a.example/",'
    b'"seen":[{"htu":"https://b.example/","nonce":"n"}],"timeout_ms":250,"ath":null}}'
)
MEMBERS = [b'"htm":"PUT",', b'"htm":1,', b'"id":2,', b'"a":"b",', b'"":"",', b'"htu":"https://c/",']
PIECES = [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b'\\"',
    b"\\u0022",
    b"NaN",
    b"null",
    b" ",
]
PIECES += [b"1", b"\xff", b"\xc3\xa4"]


def mutated(chance: random.Random) -> bytes:
    line = bytearray(REQUEST)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        if chance.random() < 0.3:
            at = chance.choice([i + 1 for i, byte in enumerate(line) if byte in b"{,"] or [0])
            line[at:at] = chance.choice(MEMBERS)
            continue
        at = chance.randrange(len(line) + 1)
        end = at + chance.choice((0, 0, 1, 8))
        line[at:end] = chance.choice(PIECES)
    return bytes(line)


def compare_readings(count: int, seed: int) -> None:
    chance = random.Random(seed)
    good = twice = 0
    for _ in range(count):
        line = mutated(chance)
        wanted = by_pairs(line)
        assert read(line) == wanted, line
        good += wanted is not None
        if wanted is None:
            with suppress(ValueError):
                json.loads(line)
                twice += 1
    assert good > count / 10
    assert twice > count / 100  # what is wrong with those is a repeated member, or NaN


def test_a_member_that_appears_twice_is_found_by_counting_as_by_looking_at_each() -> None:
    compare_readings(20_000, 1)


@pytest.mark.long
def test_of_three_million_requests_none_is_read_otherwise_than_member_by_member() -> None:
    compare_readings(3_000_000, 2)
