"""The twelve checks of RFC 9449 section 4.3, by their numbers there.

For tests and `dpop-agent verify`. It judges what the rest of the package builds, so it shares none
of its code: encodings, thumbprint and URI comparison are written anew.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import MutableSet, Sequence
from dataclasses import dataclass, field
from typing import Any, Never
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from dpop_agent.errors import HtuRefused, InvalidProof

MAX_PROOF = 16 * 1024
"""Characters of a proof: twice what servers commonly take for a whole header."""

MAX_AGE_S = 60
MAX_AHEAD_S = 5
"""How far `iat` may lie back and ahead; RFC 9449 section 11.1 leaves it to the server."""

_RSA_BITS = range(2048, 8192 + 1)  # RFC 7518 section 3.3; above, only the time grows

_ECDSA: dict[str, tuple[ec.EllipticCurve, int, hashes.HashAlgorithm]] = {
    "ES256": (ec.SECP256R1(), 32, hashes.SHA256()),
    "ES384": (ec.SECP384R1(), 48, hashes.SHA384()),
    "ES512": (ec.SECP521R1(), 66, hashes.SHA512()),
}
_RSA: dict[str, padding.AsymmetricPadding] = {
    "RS256": padding.PKCS1v15(),
    # RFC 7518 section 3.5: the salt is as long as the hash, no other length will do.
    "PS256": padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32),
}
_EDDSA = ("EdDSA", "Ed25519")
_CRV = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"} | dict.fromkeys(_EDDSA, "Ed25519")

# RFC 7638 section 3.2 and RFC 8037 section 2, in the order that is hashed.
_HASHED = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n"), "OKP": ("crv", "kty", "x")}
# RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1.
_PRIVATE = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9\-._~]")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:@\\]+)(?::(?P<port>[0-9]{0,5}))?")
_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Verified:
    """A proof that passed: the thumbprint of its key, its algorithm, header and claims."""

    jkt: str
    alg: str
    header: dict[str, Any] = field(repr=False)
    claims: dict[str, Any] = field(repr=False)


def verify(
    proof: str | Sequence[str],
    *,
    htm: str,
    htu: str,
    access_token: str | None = None,
    ath: str | None = None,
    jkt: str | None = None,
    nonce: str | None = None,
    now: float | None = None,
    max_age_s: float = MAX_AGE_S,
    max_ahead_s: float = MAX_AHEAD_S,
    seen_jti: MutableSet[str] | None = None,
) -> Verified:
    """Judge a proof as a server does, by RFC 9449 section 4.3.

    Args:
        proof: the value of the request's DPoP header, or the values of all of them.
        htm: the request's method.
        htu: the request's URI; query and fragment are ignored.
        access_token: the one that is presented with the proof.
        ath: its hash, instead of it.
        jkt: the thumbprint that the access token is bound to.
        nonce: the nonce that the server gave.
        now: seconds since 1970; the system's clock where it isn't given.
        max_age_s: how long ago `iat` may be, in seconds.
        max_ahead_s: how far ahead `iat` may be, in seconds.
        seen_jti: proofs accepted before (section 11.1); an accepted proof's `jti` is added.

    Raises:
        InvalidProof: the check that failed; a replay counts as check 11.
        HtuRefused: the argument `htu` isn't an absolute URI.
        ValueError: both `access_token` and `ath` are given.
    """
    if access_token is not None and ath is not None:
        raise ValueError("give access_token or ath, not both")
    try:
        wanted = _normal(htu)
    except ValueError as e:
        raise HtuRefused(f"the expected htu {e}", hint="give it as https://host/path") from e

    header, claims, signing_input, signature = _parts(_single(proof))
    _check_claims(claims)
    if header.get("typ") != "dpop+jwt":
        raise InvalidProof(4, "typ isn't dpop+jwt")
    alg = _algorithm(header)
    jwk = _public_jwk(header)
    check_signature(alg, jwk, signing_input, signature)
    if claims["htm"] != htm:
        raise InvalidProof(8, f"htm is {_shown(claims['htm'])}, the request's is {_shown(htm)}")
    _check_htu(claims["htu"], wanted)
    if nonce is not None and claims.get("nonce") != nonce:
        given = "not the one that the server gave" if "nonce" in claims else "missing"
        raise InvalidProof(10, f"the nonce is {given}")
    _check_time(claims["iat"], time.time() if now is None else now, max_age_s, max_ahead_s)
    if seen_jti is not None and claims["jti"] in seen_jti:
        raise InvalidProof(11, "a proof with this jti was accepted before (section 11.1)")
    if access_token is not None:
        ath = _encode(hashlib.sha256(access_token.encode()).digest())
    if ath is not None and claims.get("ath") != ath:
        given = "the hash of another access token" if "ath" in claims else "missing"
        raise InvalidProof(12, f"ath is {given}")
    found = _thumbprint(jwk)
    if jkt is not None and found != jkt:
        raise InvalidProof(12, f"the proof's key is {found}, the expected one {_shown(jkt)}")
    if seen_jti is not None:
        seen_jti.add(claims["jti"])
    return Verified(found, alg, header, claims)


def _single(proof: str | Sequence[str]) -> str:
    values = [proof] if isinstance(proof, str) else proof
    if len(values) != 1:
        raise InvalidProof(1, f"there are {len(values)} DPoP headers, one is allowed")
    return values[0]


def _parts(proof: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Header, claims, signing input and signature of a compact JWS (RFC 7515 section 7.1)."""
    if len(proof) > MAX_PROOF:
        raise InvalidProof(2, f"it has {len(proof)} characters, at most {MAX_PROOF} are accepted")
    if not proof:
        raise InvalidProof(2, "there is no proof, only an empty text")
    parts = proof.split(".")
    if len(parts) != 3:
        found = "1 part" if len(parts) == 1 else f"{len(parts)} parts"
        raise InvalidProof(2, f"it has {found}, a signed JWT has three")
    try:
        header, claims, signature = (_decode(part) for part in parts)
    except ValueError as e:
        raise InvalidProof(2, f"a part of it is {e}") from e
    parsed = _object("header", header)
    if "crit" in parsed:  # RFC 7515 section 4.1.11: extensions that aren't understood
        raise InvalidProof(2, "its header has crit, and no extension is known here")
    return (
        parsed,
        _object("claims", claims),
        proof.rpartition(".")[0].encode("ascii"),
        signature,
    )


def _object(what: str, data: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # RFC 7515 section 4 for the header, RFC 7519 section 4 for the claims
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a member appears twice")
        return dict(pairs)

    def constant(name: str) -> Never:
        raise ValueError(f"{name} isn't JSON")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError) as e:
        raise InvalidProof(2, f"the {what} can't be read as JSON with unique members") from e
    if not isinstance(value, dict):
        raise InvalidProof(2, f"the {what} isn't a JSON object")
    return value


def _check_claims(claims: dict[str, Any]) -> None:
    for name in ("jti", "htm", "htu"):
        if not isinstance(claims.get(name), str) or not claims[name]:
            raise InvalidProof(3, f"{name} is missing or not a string")
    iat = claims.get("iat")
    if type(iat) is not int or abs(iat) > 2**53:  # neither a bool nor a float
        raise InvalidProof(3, "iat is missing or not an integer of seconds")


def _algorithm(header: dict[str, Any]) -> str:
    alg = header.get("alg")
    if not isinstance(alg, str):
        raise InvalidProof(5, "alg is missing or not a string")
    if alg not in _ECDSA and alg not in _RSA and alg not in _EDDSA:
        raise InvalidProof(5, f"alg {_shown(alg)} isn't an asymmetric algorithm known here")
    return alg


def _public_jwk(header: dict[str, Any]) -> dict[str, Any]:
    jwk = header.get("jwk")
    if not isinstance(jwk, dict):
        raise InvalidProof(6, "the header has no jwk to verify with")
    if private := sorted(_PRIVATE & jwk.keys()):
        raise InvalidProof(7, f"jwk has the private member {private[0]}")
    return jwk


def check_signature(alg: str, jwk: dict[str, Any], signed: bytes, signature: bytes) -> None:
    """Check 6 alone: `signature`, as JWS has it, is one of `signed` by the key in `jwk`.

    Raises:
        InvalidProof: it isn't, or `jwk` isn't a key for `alg`.
    """
    kty = "EC" if alg in _ECDSA else "RSA" if alg in _RSA else "OKP"
    if jwk.get("kty") != kty or (kty != "RSA" and jwk.get("crv") != _CRV[alg]):
        raise InvalidProof(6, f"jwk isn't a key for {alg}")
    try:
        if alg in _ECDSA:
            _verify_ecdsa(alg, jwk, signed, signature)
        elif alg in _RSA:
            _verify_rsa(alg, jwk, signed, signature)
        else:
            key = ed25519.Ed25519PublicKey.from_public_bytes(_member(jwk, "x", 32))
            key.verify(signature, signed)
    except InvalidSignature as e:
        raise InvalidProof(6, "the signature wasn't made with the key in jwk") from e


def _verify_ecdsa(alg: str, jwk: dict[str, Any], signed: bytes, signature: bytes) -> None:
    curve, size, digest = _ECDSA[alg]
    x, y = (int.from_bytes(_member(jwk, name, size), "big") for name in "xy")
    try:
        key = ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError as e:
        raise InvalidProof(6, "jwk isn't a point on its curve") from e
    if len(signature) != 2 * size:  # RFC 7518 section 3.4: R and S, never DER
        raise InvalidProof(6, f"the signature has {len(signature)} bytes, {alg} has {2 * size}")
    r, s = (int.from_bytes(half, "big") for half in (signature[:size], signature[size:]))
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(digest))


def _verify_rsa(alg: str, jwk: dict[str, Any], signed: bytes, signature: bytes) -> None:
    n, e = (_number(jwk, name) for name in "ne")
    if n.bit_length() not in _RSA_BITS:
        raise InvalidProof(6, f"the RSA key has {n.bit_length()} bits, 2048 to 8192 are accepted")
    try:
        key = rsa.RSAPublicNumbers(e, n).public_key()
    except ValueError as error:
        raise InvalidProof(6, "jwk isn't an RSA key") from error
    key.verify(signature, signed, _RSA[alg], hashes.SHA256())


def _member(jwk: dict[str, Any], name: str, size: int | None = None) -> bytes:
    value = jwk.get(name)
    try:
        data = _decode(value) if isinstance(value, str) else b""
    except ValueError as e:
        raise InvalidProof(6, f"jwk's {name} is {e}") from e
    if not data or size not in (None, len(data)):
        raise InvalidProof(6, f"jwk's {name} is missing or has the wrong length")
    return data


def _number(jwk: dict[str, Any], name: str) -> int:
    data = _member(jwk, name)
    if data[0] == 0:  # RFC 7518 section 2, Base64urlUInt: one key would have many thumbprints
        raise InvalidProof(6, f"jwk's {name} has leading zeros")
    return int.from_bytes(data, "big")


def _check_htu(claimed: str, wanted: str) -> None:
    try:
        found = _normal(claimed)
    except ValueError as e:
        raise InvalidProof(9, f"htu {e}") from e
    if found != wanted:
        raise InvalidProof(9, f"htu is {_shown(found)}, the request's is {_shown(wanted)}")


def _normal(uri: str) -> str:
    """`uri` by RFC 3986 sections 6.2.2 and 6.2.3, without query and fragment.

    Raises:
        ValueError: says, as the end of a sentence, what `uri` isn't.
    """
    if not uri.isascii() or not uri.isprintable() or " " in uri:
        raise ValueError("has a character that no URI can have")
    try:
        parts = urlsplit(uri)
    except ValueError as e:
        raise ValueError("isn't a URI") from e
    authority = _AUTHORITY.fullmatch(parts.netloc)
    if parts.scheme not in _DEFAULT_PORTS or authority is None:
        raise ValueError("isn't an absolute http or https URI without a user name")
    host = _unescaped(authority["host"]).lower()
    default = _DEFAULT_PORTS[parts.scheme]
    port = int(authority["port"] or default)
    path = _without_dots(_unescaped(parts.path))
    return f"{parts.scheme}://{host}{'' if port == default else f':{port}'}{path}"


def _unescaped(text: str) -> str:
    """Section 6.2.2.2: no escapes that nobody needs, the others in upper case."""

    def one(escape: re.Match[str]) -> str:
        char = chr(int(escape[1], 16))
        return char if _UNRESERVED.fullmatch(char) else escape[0].upper()

    return _ESCAPE.sub(one, text)


def _without_dots(path: str) -> str:
    """Section 6.2.2.3, by the outcome of section 5.2.4's loop."""
    segments = path.split("/")[1:]
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments and segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _check_time(iat: int, now: float, max_age_s: float, max_ahead_s: float) -> None:
    if iat < now - max_age_s:
        raise InvalidProof(11, f"iat is too old: {now - iat:.0f} s, {max_age_s} s are allowed")
    if iat > now + max_ahead_s:
        raise InvalidProof(
            11, f"iat is in the future: by {iat - now:.0f} s, {max_ahead_s} s are allowed"
        )


def _thumbprint(jwk: dict[str, Any]) -> str:
    """RFC 7638 section 3."""
    hashed = {name: jwk[name] for name in _HASHED[jwk["kty"]]}
    return _encode(hashlib.sha256(json.dumps(hashed, separators=(",", ":")).encode()).digest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise ValueError("not base64url without padding")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _encode(data) != text:
        raise ValueError("not in the canonical base64url encoding")
    return data


def _shown(text: str) -> str:
    """Untrusted text for a message: no control characters, not endless."""
    return ascii(text if len(text) <= 120 else text[:120] + "...")
