from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpop_agent import jose, proof
from dpop_agent.htu import target
from dpop_agent.jose import json_object
from tests import vectors
from tests.vectors import SoftKey


def decoded(part: str) -> dict[str, object]:
    return dict(json.loads(jose.b64url_decode(part)))


@pytest.mark.parametrize("alg", jose.ALGORITHMS)
def test_the_header_is_exactly_typ_alg_and_the_public_jwk(alg: str) -> None:
    key = SoftKey(alg)
    assert decoded(key.header) == {"typ": "dpop+jwt", "alg": alg, "jwk": key.jwk}


def test_the_header_leaves_out_everything_that_is_not_the_public_key() -> None:
    more = {"d": "canary-d", "kid": "k", "use": "sig", "alg": "ES256"} | vectors.RFC9449_JWK
    header = decoded(proof.header("ES256", more))
    assert header["jwk"] == vectors.RFC9449_JWK


@pytest.mark.parametrize(
    "jwk",
    [
        {"kty": "EC", "crv": "P-256", "x": "AA"},
        {"kty": "RSA", "n": "AA"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "y": "AA"},
    ],
)
def test_a_jwk_with_other_members_than_its_kty_has_makes_no_header(jwk: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not a public JWK"):
        proof.header("ES256", jwk)


@pytest.mark.parametrize("ath", [None, vectors.RFC9449_ATH])
@pytest.mark.parametrize("nonce", [None, "eyJ7S_zG.eyJH0-Z.HX4w-7v"])
def test_the_claims_are_exactly_those_of_section_4_2(ath: str | None, nonce: str | None) -> None:
    signing_input = proof.signing_input(
        "H", htm="POST", htu="https://as.example/token", iat=1_800_000_000, ath=ath, nonce=nonce
    )
    header, claims = signing_input.split(".")
    found = decoded(claims)
    wanted = {
        "jti": found["jti"],
        "htm": "POST",
        "htu": "https://as.example/token",
        "iat": 1_800_000_000,
    }
    if ath:
        wanted["ath"] = ath
    if nonce:
        wanted["nonce"] = nonce
    assert header == "H"
    assert found == wanted
    assert type(found["iat"]) is int


@given(
    htm=st.from_regex(proof._HTM, fullmatch=True),
    path=st.text("aZ09-._~!$&'()*+,;=:@/%", max_size=20).map(lambda path: path.replace("%", "%2F")),
    nonce=st.none() | st.text(sorted(proof._NQCHAR), min_size=1, max_size=40),
    ath=st.none() | st.binary(min_size=32, max_size=32).map(jose.b64url),
)
def test_claims_of_any_form_that_is_let_in_are_json_with_those_very_values(
    htm: str, path: str, nonce: str | None, ath: str | None
) -> None:
    htu = f"https://as.example/{path}"
    if "/." in htu:
        return  # a dot segment
    assert target(htu).htu == htu
    _, claims = proof.signing_input("", htm=htm, htu=htu, iat=7, ath=ath, nonce=nonce).split(".")
    found = json_object(jose.b64url_decode(claims))
    assert found.pop("jti")
    wanted = {"htm": htm, "htu": htu, "iat": 7, "ath": ath, "nonce": nonce}
    assert found == {name: value for name, value in wanted.items() if value is not None}


def test_every_proof_has_its_own_jti_of_128_bits() -> None:
    seen = {
        str(decoded(proof.signing_input("", htm="GET", htu="h", iat=0).split(".")[1])["jti"])
        for _ in range(2000)
    }
    assert len(seen) == 2000
    assert {len(jose.b64url_decode(jti)) for jti in seen} == {16}


def test_jti_comes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", lambda size: bytes(range(size)))
    _, claims = proof.signing_input("", htm="GET", htu="h", iat=0).split(".")
    assert decoded(claims)["jti"] == jose.b64url(bytes(range(16)))


NQCHAR = "".join(map(chr, [0x21, *range(0x23, 0x5C), *range(0x5D, 0x7F)]))  # RFC 9449 section 8.1


@pytest.mark.parametrize("nonce", [*NQCHAR, NQCHAR, "n" * 512])
def test_a_nonce_within_the_grammar_is_taken(nonce: str) -> None:
    assert proof.is_nonce(nonce)


@pytest.mark.parametrize(
    "nonce",
    [
        "",
        "n" * 513,
        *(chr(c) for c in range(256) if chr(c) not in NQCHAR),
        "n\n",
        "\u0130",
        "\ud800",
        None,
        1,
        True,
        b"n",
        ["n"],
    ],
)
def test_a_nonce_outside_the_grammar_is_not_taken(nonce: object) -> None:
    assert not proof.is_nonce(nonce)


@pytest.mark.parametrize("htm", ["GET", "POST", "M-SEARCH", "get", "X!#$%&'*+.^_`|~9"])
def test_an_http_method_is_taken_verbatim(htm: str) -> None:
    assert proof.is_htm(htm)


@pytest.mark.parametrize(
    "htm", ["", "G ET", "GET\n", "GÉT", "G,T", 'G"T', "G/T", "A" * 33, 1, None]
)
def test_what_is_no_http_method_is_not_taken(htm: object) -> None:
    assert not proof.is_htm(htm)


def test_a_signing_input_is_parsed_as_it_was_built() -> None:
    key = SoftKey()
    text = proof.signing_input(key.header, htm="GET", htu="https://h/", iat=1, nonce="n")
    header, claims = proof.parse_signing_input(text)
    assert header == {"typ": "dpop+jwt", "alg": "ES256", "jwk": key.jwk}
    assert claims.pop("jti")
    assert claims == {"htm": "GET", "htu": "https://h/", "iat": 1, "nonce": "n"}


OBJECT = jose.b64url(b"{}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        OBJECT,
        f"{OBJECT}.",
        f".{OBJECT}",
        f"{OBJECT}.{OBJECT}.",
        f"{OBJECT}.{OBJECT}.{OBJECT}",
        f"{OBJECT}.{OBJECT}=",
        f"{OBJECT}\n.{OBJECT}",
        f"{OBJECT}.{jose.b64url(b'[]')}",
        f"{OBJECT}.{jose.b64url(b'x')}",
        OBJECT + "." + jose.b64url(b'{"iat":1,"iat":2}'),
        OBJECT + "." + jose.b64url(b'{"iat":NaN}'),
    ],
)
def test_what_is_not_two_unambiguous_json_objects_is_no_signing_input(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (any ValueError is the contract)
        proof.parse_signing_input(text)
