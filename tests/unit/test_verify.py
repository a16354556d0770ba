from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from hypothesis import given, settings
from hypothesis import strategies as st

from dpop_agent import jose
from dpop_agent.errors import HtuRefused, InvalidProof
from dpop_agent.verify import MAX_AGE_S, MAX_AHEAD_S, MAX_PROOF, Verified, verify
from tests import vectors
from tests.vectors import SoftKey

NOW = 1_800_000_000
HTU = "https://as.example/token"
KEY = SoftKey()
ATH = vectors.RFC9449_ATH
GONE = object()  # a member to leave out


def encoded(value: object) -> str:
    return jose.b64url(value if isinstance(value, bytes) else json.dumps(value).encode())


def header_of(key: SoftKey = KEY, **changes: object) -> dict[str, object]:
    header = {"typ": "dpop+jwt", "alg": key.alg, "jwk": key.jwk} | changes
    return {name: value for name, value in header.items() if value is not GONE}


def claims_of(**changes: object) -> dict[str, object]:
    claims = {"jti": "jti-1", "htm": "POST", "htu": HTU, "iat": NOW} | changes
    return {name: value for name, value in claims.items() if value is not GONE}


def forged(header: object = None, claims: object = None, key: SoftKey = KEY) -> str:
    """A proof that `key` really signed, whatever it says."""
    header = header_of(key) if header is None else header
    return key.complete(f"{encoded(header)}.{encoded(claims_of() if claims is None else claims)}")


def judge(proof: str, **options: Any) -> Verified:
    request: dict[str, Any] = {"htm": "POST", "htu": HTU, "now": NOW}
    return verify(proof, **(request | options))


def failure(proof: str, **options: Any) -> InvalidProof:
    with pytest.raises(InvalidProof) as failed:
        judge(proof, **options)
    said = f"{failed.value} {failed.value!r} {failed.value.to_wire()}"
    assert "\n" not in str(failed.value)
    longest = max(proof.split("."), key=len)
    assert not longest or longest not in said, "the proof is in the message"
    return failed.value


def test_the_rfcs_proof_for_a_token_request_passes() -> None:
    found = verify(
        vectors.RFC9449_TOKEN_REQUEST_PROOF,
        htm="POST",
        htu="https://server.example.com/token",
        now=1562262616,
    )
    assert (found.jkt, found.alg) == (vectors.RFC9449_JKT, "ES256")
    assert found.header["jwk"] == vectors.RFC9449_JWK
    assert found.claims["jti"] == "-BwC3ESc6acc2lTc"


def test_the_rfcs_proof_with_an_access_token_passes() -> None:
    found = verify(
        vectors.RFC9449_RESOURCE_PROOF,
        htm="GET",
        htu="https://resource.example.org/protectedresource",
        now=1562262618,
        access_token=vectors.RFC9449_ACCESS_TOKEN,
        jkt=vectors.RFC9449_JKT,
    )
    assert found.claims["ath"] == ATH


@pytest.mark.parametrize("alg", jose.ALGORITHMS)
def test_a_proof_of_the_product_passes_by_each_algorithm(alg: str) -> None:
    key = SoftKey(alg, seed=3)
    proof = key.proof(iat=NOW, ath=ATH, nonce="n-1")
    found = judge(proof, ath=ATH, nonce="n-1", jkt=key.jkt, seen_jti=set())
    assert (found.jkt, found.alg) == (key.jkt, alg)


def test_the_clock_of_the_system_is_the_default() -> None:
    proof = KEY.proof(iat=int(time.time()))
    assert verify(proof, htm="POST", htu=HTU).jkt == KEY.jkt


def test_what_was_verified_does_not_show_header_and_claims() -> None:
    assert repr(judge(forged())) == f"Verified(jkt='{KEY.jkt}', alg='ES256')"


def test_check_1_takes_one_header_and_no_more() -> None:
    proof = forged()
    assert verify([proof], htm="POST", htu=HTU, now=NOW).jkt == KEY.jkt
    for headers in ([], [proof, proof], (proof, forged())):
        with pytest.raises(InvalidProof) as failed:
            verify(headers, htm="POST", htu=HTU, now=NOW)
        assert failed.value.check == 1


GOOD = forged()
HEAD, BODY, SIGNATURE = GOOD.split(".")


@pytest.mark.parametrize(
    "proof",
    [
        "",
        ".",
        "..",
        "x",
        f"{HEAD}.{BODY}",
        f"{GOOD}.{SIGNATURE}",
        f"{GOOD}, {GOOD}",
        f"{GOOD},{GOOD}",
        f" {GOOD}",
        f"{GOOD}\n",
        f"{GOOD}=",
        f"{HEAD}=.{BODY}.{SIGNATURE}",
        f"{HEAD}.{BODY}.{SIGNATURE[:-1]}",
        f"{HEAD}.{BODY}.{SIGNATURE[:-1]}-",
        f"{HEAD}.{BODY}.+{SIGNATURE[1:]}",
        f"{HEAD}.{BODY}.é{SIGNATURE[1:]}",
        f"{HEAD}.{BODY}.\ud800{SIGNATURE[1:]}",
        f".{BODY}.{SIGNATURE}",
        f"{HEAD}..{SIGNATURE}",
        GOOD + "A" * MAX_PROOF,
        forged([header_of()]),
        forged(claims=[claims_of()]),
        forged(claims=1),
        forged(b"{"),
        forged(claims=b"\xff"),
        forged(claims=json.dumps(claims_of()).encode("utf-16")),
        forged(claims=b"\xef\xbb\xbf" + json.dumps(claims_of()).encode()),
        forged(claims=json.dumps(claims_of()).encode()[:-1] + b',"htm":"POST"}'),
        forged(claims=json.dumps(claims_of()).encode()[:-1] + b',"x":{"a":1,"a":1}}'),
        forged(json.dumps(header_of()).encode()[:-1] + b',"alg":"ES256"}'),
        forged(claims=json.dumps(claims_of()).encode()[:-1] + b',"x":NaN}'),
        forged(claims=b'{"iat":' + b"9" * 5000 + b"}"),
        forged(header_of(crit=["exp"])),
        forged(header_of(crit=["b64"], b64=False)),
    ],
)
def test_check_2_refuses_what_is_not_one_well_formed_jwt(proof: str) -> None:
    assert failure(proof).check == 2


def test_claims_that_are_nested_too_deep_are_refused() -> None:
    """From Python 3.13 on so deep a text can be read, and the claims aren't among it."""
    assert failure(forged(claims=b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}")).check in (2, 3)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: GONE} for name in ("jti", "htm", "htu", "iat")),
        *({name: None} for name in ("jti", "htm", "htu", "iat")),
        *({name: ""} for name in ("jti", "htm", "htu", "iat")),
        {"jti": 1},
        {"htm": ["POST"]},
        {"htu": {"a": HTU}},
        {"iat": True},
        {"iat": float(NOW)},
        {"iat": NOW + 0.5},
        {"iat": str(NOW)},
        {"iat": 10**300},
        {"iat": -(10**300)},
    ],
)
def test_check_3_wants_every_claim_in_its_type(changes: dict[str, object]) -> None:
    assert failure(forged(claims=claims_of(**changes))).check == 3


@pytest.mark.parametrize("typ", [GONE, None, "JWT", "jwt", "DPoP+JWT", "application/dpop+jwt", 1])
def test_check_4_wants_the_typ(typ: object) -> None:
    assert failure(forged(header_of(typ=typ))).check == 4


@pytest.mark.parametrize(
    "alg",
    [
        GONE,
        None,
        1,
        ["ES256"],
        "",
        "none",
        "None",
        "nonE",
        "HS256",
        "es256",
        "ES256K",
        "RS1",
        "RSA-OAEP",
    ],
)
def test_check_5_wants_a_known_asymmetric_algorithm(alg: object) -> None:
    assert failure(forged(header_of(alg=alg))).check == 5


def test_check_5_refuses_an_unsigned_proof() -> None:
    assert failure(f"{encoded(header_of(alg='none'))}.{encoded(claims_of())}.").check == 5


def flipped(text: str) -> str:
    data = bytearray(jose.b64url_decode(text))
    data[len(data) // 2] ^= 1
    return jose.b64url(bytes(data))


def test_check_6_refuses_a_proof_that_was_changed() -> None:
    assert failure(f"{HEAD}.{BODY}.{flipped(SIGNATURE)}").check == 6
    assert failure(f"{HEAD}.{encoded(claims_of(htm='GET'))}.{SIGNATURE}").check == 6
    more = encoded(header_of(kid="x"))
    assert failure(f"{more}.{BODY}.{SIGNATURE}").check == 6


@pytest.mark.parametrize("alg", jose.ALGORITHMS)
def test_check_6_refuses_another_keys_signature(alg: str) -> None:
    key, other = SoftKey(alg, 1), SoftKey(alg, 2)
    claims = claims_of()
    proof = forged(header_of(other), claims, key)
    if alg in ("RS256", "PS256"):  # one RSA key is all there is: change a byte of it
        jwk = key.jwk | {"n": flipped(key.jwk["n"])}
        proof = forged(header_of(key, jwk=jwk), claims, key)
    assert failure(proof).check == 6


def der(signing_input: bytes) -> bytes:
    assert isinstance(KEY.private, ec.EllipticCurvePrivateKey)
    return KEY.private.sign(signing_input, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"\x00" * 64,
        b"\xff" * 64,
        b"\x00" + jose.b64url_decode(SIGNATURE),
        jose.b64url_decode(SIGNATURE)[1:],
        jose.b64url_decode(SIGNATURE)[:63],
        jose.b64url_decode(SIGNATURE) + b"\x00",
        jose.b64url_decode(SIGNATURE)[:32] + b"\x00" + jose.b64url_decode(SIGNATURE)[32:],
        jose.b64url_decode(SIGNATURE)[:32] + b"\x00" * 32,
        b"\x00" * 32 + jose.b64url_decode(SIGNATURE)[32:],
        der(f"{HEAD}.{BODY}".encode()),
    ],
    ids=itertools.count(),
)
def test_check_6_takes_raw_ecdsa_signatures_of_one_width_alone(signature: bytes) -> None:
    assert failure(f"{HEAD}.{BODY}.{jose.b64url(signature)}").check == 6


def test_check_6_takes_both_values_of_s() -> None:
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
    data = jose.b64url_decode(SIGNATURE)
    twin = data[:32] + (order - int.from_bytes(data[32:], "big")).to_bytes(32, "big")
    assert judge(f"{HEAD}.{BODY}.{jose.b64url(twin)}").jkt == KEY.jkt


def test_check_6_takes_a_ps256_salt_of_32_bytes_alone() -> None:
    key = SoftKey("PS256")
    signing_input = f"{key.header}.{encoded(claims_of())}"
    for salt in (0, 20, 64, 222):
        pad = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=salt)
        signature = vectors.rsa_key().sign(signing_input.encode(), pad, hashes.SHA256())
        assert failure(f"{signing_input}.{jose.b64url(signature)}").check == 6


def test_check_6_does_not_take_one_rsa_padding_for_the_other() -> None:
    key = SoftKey("RS256")
    assert failure(forged(header_of(key, alg="PS256"), key=key)).check == 6


def test_check_6_refuses_rsa_keys_under_2048_bits() -> None:
    small = vectors.rsa_key(1024)
    numbers = small.public_key().public_numbers()
    header = {"typ": "dpop+jwt", "alg": "RS256", "jwk": jose.rsa_jwk(numbers.n, numbers.e)}
    signing_input = f"{encoded(header)}.{encoded(claims_of())}"
    signature = small.sign(signing_input.encode(), padding.PKCS1v15(), hashes.SHA256())
    failed = failure(f"{signing_input}.{jose.b64url(signature)}")
    assert failed.check == 6
    assert "1024 bits" in failed.message


@pytest.mark.parametrize(
    ("alg", "changes"),
    [
        ("ES256", {"kty": "OKP"}),
        ("ES256", {"kty": "oct"}),
        ("ES256", {"kty": GONE}),
        ("ES256", {"kty": ["EC"]}),
        ("ES256", {"crv": "P-384"}),
        ("ES256", {"crv": "secp256k1"}),
        ("ES256", {"crv": GONE}),
        ("ES256", {"x": GONE}),
        ("ES256", {"x": 1}),
        ("ES256", {"x": ""}),
        ("ES256", {"x": jose.b64url(b"\x00" * 32)}),
        ("ES256", {"x": jose.b64url(b"\x00" * 32), "y": jose.b64url(b"\x00" * 32)}),
        ("ES256", {"x": jose.b64url(b"\xff" * 32)}),
        ("ES256", {"x": jose.b64url(b"\x00" + jose.b64url_decode(KEY.jwk["x"]))}),
        ("ES256", {"x": jose.b64url(jose.b64url_decode(KEY.jwk["x"])[:31])}),
        ("ES256", {"x": KEY.jwk["x"] + "="}),
        ("ES256", {"x": KEY.jwk["x"][:-1] + chr(ord(KEY.jwk["x"][-1]) + 1)}),
        ("ES256", {"x": KEY.jwk["x"] + "\n"}),
        ("ES256", {"y": KEY.jwk["x"]}),
        ("Ed25519", {"crv": "Ed448"}),
        ("Ed25519", {"crv": "X25519"}),
        ("Ed25519", {"x": jose.b64url(b"\x01" * 31)}),
        ("Ed25519", {"x": jose.b64url(b"\x01" * 32)}),
        ("Ed25519", {"kty": "EC"}),
        ("RS256", {"n": GONE}),
        ("RS256", {"n": jose.b64url(b"\x00" + jose.b64url_decode(SoftKey("RS256").jwk["n"]))}),
        ("RS256", {"n": jose.b64url(b"\xff" * 2048)}),
        ("RS256", {"e": GONE}),
        ("RS256", {"e": "AA"}),
        ("RS256", {"e": "AQ"}),
        ("RS256", {"e": "AAEAAQ"}),
        ("RS256", {"e": 65537}),
        ("RS256", {"e": SoftKey("RS256").jwk["n"]}),
    ],
)
def test_check_6_refuses_a_jwk_that_is_no_key_for_the_algorithm(
    alg: str, changes: dict[str, object]
) -> None:
    key = SoftKey(alg)
    jwk = {name: v for name, v in (key.jwk | changes).items() if v is not GONE}
    assert failure(forged(header_of(key, jwk=jwk), key=key)).check == 6


@pytest.mark.parametrize("jwk", [GONE, None, "x", [], 1])
def test_check_6_wants_a_jwk(jwk: object) -> None:
    assert failure(forged(header_of(jwk=jwk))).check == 6


def test_check_6_does_not_take_one_curves_key_for_anothers_algorithm() -> None:
    assert failure(forged(header_of(KEY, alg="ES384"))).check == 6


@pytest.mark.parametrize("name", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
def test_check_7_refuses_a_private_key_and_does_not_repeat_it(name: str) -> None:
    failed = failure(forged(header_of(jwk=KEY.jwk | {name: "canary-private"})))
    assert failed.check == 7
    assert "canary-private" not in str(failed)


def test_check_7_refuses_a_symmetric_key() -> None:
    assert failure(forged(header_of(jwk={"kty": "oct", "k": "AA"}))).check == 7


def test_further_public_members_of_a_jwk_do_no_harm() -> None:
    jwk = KEY.jwk | {"kid": "k", "use": "sig", "alg": "ES256", "key_ops": ["verify"]}
    assert judge(forged(header_of(jwk=jwk))).jkt == KEY.jkt


@pytest.mark.parametrize("htm", ["GET", "post", "POST ", "POS"])
def test_check_8_compares_the_method_as_it_is(htm: str) -> None:
    assert failure(GOOD, htm=htm).check == 8


@pytest.mark.parametrize(
    ("claimed", "request_uri"),
    [
        ("https://as.example/token", "https://as.example/token?a=1#f"),
        ("https://as.example/token?x#y", "https://as.example/token"),
        ("HTTPS://AS.example:443/token", "https://as.example/token"),
        ("https://as.example", "https://as.example/"),
        ("https://as.example:/", "https://as.example/"),
        ("https://as.example?q", "https://as.example/"),
        ("https://as.example/%7euser", "https://as.example/~user"),
        ("https://as.example/a%2fb", "https://as.example/a%2Fb"),
        ("https://as.example/a/./b/../c", "https://as.example/a/c"),
        ("https://as.example/a/b/..", "https://as.example/a/"),
        ("https://as.example/../..", "https://as.example/"),
        ("http://127.0.0.1:80/cb", "http://127.0.0.1/cb"),
        ("https://[2001:DB8::1]:443/t", "https://[2001:db8::1]/t"),
    ],
)
def test_check_9_compares_by_syntax_and_scheme(claimed: str, request_uri: str) -> None:
    assert judge(forged(claims=claims_of(htu=claimed)), htu=request_uri).jkt == KEY.jkt


@pytest.mark.parametrize(
    ("claimed", "request_uri"),
    [
        ("https://as.example/token", "https://as.example/Token"),
        ("https://as.example/token", "https://as.example/token/"),
        ("https://as.example/token", "http://as.example/token"),
        ("https://as.example/token", "https://as.example:8443/token"),
        ("https://as.example/token", "https://evil.example/token"),
        ("https://as.example/a/b", "https://as.example/a%2Fb"),
        ("https://as.example//a", "https://as.example/a"),
        ("https://as.example./", "https://as.example/"),
        ("https://evil.example#@as.example/token", HTU),
        ("https://user@as.example/token", HTU),
        ("https://as.example\\@evil.example/token", HTU),
        ("https://as.exam\tple/token", HTU),
        ("https://as.example/token ", HTU),
        ("https://as.example/token\n", HTU),
        ("https://as.example:99999999/token", HTU),
        ("https://as.example:x/token", HTU),
        ("https://[::1/token", HTU),
        ("https://[::1]x/token", "https://[::1]/token"),
        ("https:///token", HTU),
        ("/token", HTU),
        ("token", HTU),
        ("https://äs.example/token", HTU),
        ("\ud800", HTU),
    ],
)
def test_check_9_refuses_another_uri(claimed: str, request_uri: str) -> None:
    assert failure(forged(claims=claims_of(htu=claimed)), htu=request_uri).check == 9


def test_check_9_shows_neither_query_nor_password() -> None:
    for htu in ("https://evil.example/?canary=1", "https://u:canary@evil.example/"):
        assert "canary" not in str(failure(forged(claims=claims_of(htu=htu))))


def test_check_10_wants_the_nonce_that_the_server_gave() -> None:
    proof = forged(claims=claims_of(nonce="n-1"))
    assert judge(proof, nonce="n-1").jkt == KEY.jkt
    assert judge(proof).jkt == KEY.jkt  # the server gave none: not compared
    for claims in (claims_of(), claims_of(nonce="n-2"), claims_of(nonce=None), claims_of(nonce=1)):
        assert failure(forged(claims=claims), nonce="n-1").check == 10


def test_check_11_wants_iat_within_the_window() -> None:
    for iat in (NOW - MAX_AGE_S, NOW, NOW + MAX_AHEAD_S):
        assert judge(forged(claims=claims_of(iat=iat))).claims["iat"] == iat
    for iat in (NOW - MAX_AGE_S - 1, NOW + MAX_AHEAD_S + 1, 0, -1, 2**53):
        assert failure(forged(claims=claims_of(iat=iat))).check == 11


def test_check_11_window_is_the_callers() -> None:
    proof = forged(claims=claims_of(iat=NOW - 300))
    assert judge(proof, max_age_s=300).claims["iat"] == NOW - 300
    assert failure(GOOD, now=NOW - 1, max_ahead_s=0).check == 11
    assert judge(GOOD, now=NOW + 0.9, max_age_s=1).jkt == KEY.jkt


def test_check_11_refuses_a_replay() -> None:
    seen: set[str] = set()
    judge(GOOD, seen_jti=seen)
    assert seen == {"jti-1"}
    assert failure(GOOD, seen_jti=seen).check == 11


def test_a_proof_that_fails_does_not_use_up_its_jti() -> None:
    seen: set[str] = set()
    failure(GOOD, jkt=vectors.RFC9449_JKT, seen_jti=seen)
    failure(GOOD, htm="GET", seen_jti=seen)
    assert seen == set()


def test_check_12_wants_the_hash_of_the_access_token() -> None:
    token = vectors.RFC9449_ACCESS_TOKEN
    proof = forged(claims=claims_of(ath=ATH))
    assert judge(proof, access_token=token).jkt == KEY.jkt
    assert judge(proof, ath=ATH).jkt == KEY.jkt
    for bad in (GOOD, forged(claims=claims_of(ath=ATH[::-1])), forged(claims=claims_of(ath=1))):
        for options in ({"access_token": token}, {"ath": ATH}):
            failed = failure(bad, **options)
            assert failed.check == 12
            assert token not in f"{failed} {failed!r} {failed.to_wire()}"


def test_check_12_wants_the_key_that_the_access_token_is_bound_to() -> None:
    assert judge(GOOD, jkt=KEY.jkt).jkt == KEY.jkt
    failed = failure(GOOD, jkt=vectors.RFC9449_JKT)
    assert failed.check == 12
    assert KEY.jkt in str(failed)
    assert vectors.RFC9449_JKT in str(failed)


@pytest.mark.parametrize("htu", ["", "/token", "ftp://h/", "https://u:canary@h/", "https://h:x/"])
def test_an_expected_htu_that_is_none_is_the_callers_fault(htu: str) -> None:
    with pytest.raises(HtuRefused) as refused:
        judge(GOOD, htu=htu)
    assert "canary" not in str(refused.value)


def test_an_access_token_and_its_hash_are_not_both_taken() -> None:
    with pytest.raises(ValueError, match="not both"):
        judge(GOOD, access_token="x", ath=ATH)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(("typ", "alg", "jwk", "crit", "kty", "crv", "x", "y", "n", "e", "d"))


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=40) | st.text("AQ._-=e", max_size=60),
    st.dictionaries(NAMES, JSON, max_size=4),
    st.dictionaries(NAMES, JSON, max_size=4),
    st.dictionaries(st.sampled_from(("jti", "htm", "htu", "iat", "ath", "nonce")), JSON),
)
def test_whatever_comes_is_a_proof_or_a_failed_check(
    text: str, header: dict[str, Any], jwk: dict[str, Any], claims: dict[str, Any]
) -> None:
    changed = forged(header_of(jwk=KEY.jwk | jwk) | header, claims_of(**claims))
    for proof in (text, changed):
        try:
            assert judge(proof, ath=ATH, nonce="n").jkt == KEY.jkt
        except InvalidProof as failed:
            assert 1 < failed.check <= 12  # noqa: PT017  (passing is fine too)
