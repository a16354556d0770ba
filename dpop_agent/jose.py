"""base64url, JWKs, thumbprints and the table of algorithms (RFC 7515, 7517, 7518, 7638, 8037)."""

from __future__ import annotations

import json
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Never


class Algorithm:
    """One row of the table below; sizes in bytes, an RSA signature's by keys made here."""

    __slots__ = ("coordinate_size", "crv", "digest", "kty", "name", "signature_size")

    def __init__(
        self, name: str, kty: str, crv: str | None, digest: str, coordinate: int, signature: int
    ) -> None:
        self.name = name
        self.kty = kty
        self.crv = crv
        self.digest = digest  # hashlib's name; EdDSA hashes by itself (RFC 8032)
        self.coordinate_size = coordinate
        self.signature_size = signature


# RSA keys have 2048 bits: RFC 7518 section 3.3 asks for no less, and more only costs time.
RSA_BITS = 2048

RSA_BITS_TAKEN = range(RSA_BITS, 4096 + 1)
"""Those of a key that somebody else made, and that is adopted."""

ALGORITHMS = {
    row.name: row
    for row in (
        Algorithm("ES256", "EC", "P-256", "sha256", 32, 64),
        Algorithm("ES384", "EC", "P-384", "sha384", 48, 96),
        Algorithm("ES512", "EC", "P-521", "sha512", 66, 132),
        Algorithm("RS256", "RSA", None, "sha256", 0, RSA_BITS // 8),
        Algorithm("PS256", "RSA", None, "sha256", 0, RSA_BITS // 8),
        Algorithm("EdDSA", "OKP", "Ed25519", "", 32, 64),
        Algorithm("Ed25519", "OKP", "Ed25519", "", 32, 64),  # RFC 9864's name for the same
    )
}

PUBLIC_MEMBERS = {
    "EC": ("crv", "kty", "x", "y"),
    "RSA": ("e", "kty", "n"),
    "OKP": ("crv", "kty", "x"),
}
"""The required public members of each `kty`, in the order in which RFC 7638 hashes them."""

THUMBPRINT_LENGTH = 43
"""Length of a base64url SHA-256 value: a `jkt`, an `ath`."""

MAX_DIGITS = 32
"""Digits of a JSON integer: more than any 64-bit number has."""

_URLSAFE = bytes.maketrans(b"+/", b"-_")
_STANDARD = bytes.maketrans(b"-_", b"+/")
_B64TOKEN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/")
_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def b64url(data: bytes) -> str:
    """base64url without padding (RFC 7515 section 2)."""
    return b2a_base64(data, newline=False).translate(_URLSAFE, b"=").decode("ascii")


def is_compact(text: str) -> bool:
    """Whether `text` has a signed JWT's form, three parts of base64url (RFC 7515 section 7.1)."""
    parts = text.split(".")
    return len(parts) == 3 and all(part and _ALPHABET.issuperset(part) for part in parts)


def b64url_decode(text: str) -> bytes:
    """The one byte string that `text` is the encoding of.

    Raises:
        ValueError: padding, a character outside the alphabet, or trailing bits that aren't zero.
    """
    if not _ALPHABET.issuperset(text):
        raise ValueError("not base64url without padding")
    try:
        data = a2b_base64(text.encode("ascii").translate(_STANDARD) + b"=" * (-len(text) % 4))
    except Base64Error as e:
        raise ValueError("not base64url without padding") from e
    if b64url(data) != text:
        raise ValueError("not the canonical base64url encoding")
    return data


def is_sha256(text: object) -> bool:
    """Whether `text` has the form of a base64url SHA-256 value, as `jkt` and `ath` have."""
    if not isinstance(text, str) or len(text) != THUMBPRINT_LENGTH:
        return False
    try:
        return len(b64url_decode(text)) == 32
    except ValueError:
        return False


def ec_jwk(crv: str, x: bytes, y: bytes) -> dict[str, str]:
    """A public EC JWK; the coordinates keep their leading zeros (RFC 7518 section 6.2.1.2)."""
    return {"kty": "EC", "crv": crv, "x": b64url(x), "y": b64url(y)}


def okp_jwk(crv: str, x: bytes) -> dict[str, str]:
    """A public OKP JWK (RFC 8037 section 2)."""
    return {"kty": "OKP", "crv": crv, "x": b64url(x)}


def rsa_jwk(n: int, e: int) -> dict[str, str]:
    """A public RSA JWK; the numbers have no leading zeros (RFC 7518 section 6.3.1)."""
    return {"kty": "RSA", "n": b64url(_uint(n)), "e": b64url(_uint(e))}


def _uint(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def is_public_jwk(jwk: object, alg: Algorithm) -> bool:
    """Whether it is a public key for `alg`, with the required members and no others (RFC 7517)."""
    if not isinstance(jwk, dict) or tuple(sorted(jwk)) != PUBLIC_MEMBERS[alg.kty]:
        return False
    if not all(isinstance(member, str) for member in jwk.values()):
        return False
    if jwk["kty"] != alg.kty or jwk.get("crv") != alg.crv:
        return False
    try:
        sizes = {len(b64url_decode(jwk[name])) for name in jwk.keys() - {"kty", "crv"}}
    except ValueError:
        return False
    return alg.kty == "RSA" or sizes == {alg.coordinate_size}


def alg_of(jwk: Mapping[str, str]) -> str | None:
    """The first algorithm of the table that a public key is for; None if it is for none."""
    for row in ALGORITHMS.values():
        if is_public_jwk(jwk, row):
            fits = row.kty != "RSA" or rsa_bits(jwk) in RSA_BITS_TAKEN
            return row.name if fits else None
    return None


def rsa_bits(jwk: Mapping[str, str]) -> int:
    """The bits of an RSA key's modulus."""
    return int.from_bytes(b64url_decode(jwk["n"]), "big").bit_length()


def signature_size(alg: Algorithm, jwk: Mapping[str, str]) -> int:
    """Bytes of a signature by that key: RFC 7518 section 3.4, RFC 8017 section 8, RFC 8032."""
    return (rsa_bits(jwk) + 7) // 8 if alg.kty == "RSA" else alg.signature_size


def thumbprint(jwk: Mapping[str, str]) -> str:
    """RFC 7638 section 3: SHA-256 over the required members, sorted, without white space."""
    import hashlib  # OpenSSL: a tenth of a command's start-up, and few need it

    members = ",".join(f'"{name}":"{jwk[name]}"' for name in PUBLIC_MEMBERS[jwk["kty"]])
    return b64url(hashlib.sha256(f"{{{members}}}".encode("ascii")).digest())


def is_access_token(text: str) -> bool:
    """Whether `text` can stand in an Authorization header (RFC 6750 section 2.1, `b64token`)."""
    return text.isascii() and _B64TOKEN.issuperset(text.rstrip("=")) and text[:1] not in ("", "=")


def access_token_hash(access_token: str) -> str:
    """`ath` (RFC 9449 section 4.2): SHA-256 over the ASCII of the access token.

    Raises:
        ValueError: the access token isn't ASCII.
    """
    import hashlib

    return b64url(hashlib.sha256(access_token.encode("ascii")).digest())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member appears twice")
    return members


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} isn't JSON")


def _integer(digits: str) -> int:
    # int has a limit too, but names a setting of the interpreter in its error.
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return int(digits)


_STRICT = json.JSONDecoder(
    object_pairs_hook=_once, parse_int=_integer, parse_constant=_refuse_constant
)


_PLAIN = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_integer)


def _plainly(text: str) -> dict[str, Any] | None:
    """A JSON object without escapes, and nothing around it; None if that isn't so."""
    if text[:1] != "{" or "\\" in text:
        return None
    try:
        value: dict[str, Any]
        value, end = _PLAIN.raw_decode(text)
    except ValueError:
        return None
    return value if end == len(text) else None


def _texts(value: object) -> int:
    """How many texts a JSON value has in it, the names of members included."""
    if isinstance(value, str):
        return 1
    if isinstance(value, dict):
        found = len(value)
        for member in value.values():
            if type(member) is str:
                found += 1
            elif member.__class__ is not int:
                found += _texts(member)
        return found
    if isinstance(value, list):
        return sum(map(_texts, value))
    return 0


class NotAnObject(ValueError):
    """JSON, but an array, a text, a number or the like."""


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that `data` is the UTF-8 text of (RFC 8259; RFC 7515 section 4).

    Raises:
        NotAnObject: JSON, but no object.
        ValueError: anything else, a member that appears twice, NaN, nesting without end.
    """
    try:
        text = data.decode("utf-8")
        value = _plainly(text)
        # Where each text between two quotes is found again, no member was there twice.
        if value is None or text.count('"') != 2 * _texts(value):
            value = _STRICT.decode(text)
    except UnicodeDecodeError as e:
        raise ValueError("not UTF-8") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"not JSON ({e.msg}, byte {e.pos})") from e
    except RecursionError as e:
        raise ValueError("nested too deeply") from e
    if not isinstance(value, dict):
        raise NotAnObject("not a JSON object")
    return value
