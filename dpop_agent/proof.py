"""Header, claims and signing input of a DPoP proof (RFC 9449 section 4.2).

The one form that every verifier accepts: `typ`, `alg`, `jwk` with its required members, and the
claims `jti`, `htm`, `htu`, `iat`, plus `ath` with an access token and `nonce` where one was given.
"""

from __future__ import annotations

import json
import os
import re

from dpop_agent.jose import PUBLIC_MEMBERS, b64url, b64url_decode, json_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

TYP = "dpop+jwt"
JTI_BYTES = 16  # RFC 9449 section 4.2 asks for 96 random bits or more

MAX_NONCE = 512
"""Characters of a server's nonce: untrusted text that goes into a signed JWT."""

# RFC 9449 section 8.1: nonce = 1*NQCHAR, NQCHAR = %x21 / %x23-5B / %x5D-7E
_NQCHAR = frozenset(chr(c) for c in range(0x21, 0x7F)) - {'"', "\\"}
# RFC 9110 section 5.6.2: method = token
TCHAR = r"!#$%&'*+\-.^_`|~0-9A-Za-z"
MAX_HTM = 32
_HTM = re.compile(f"[{TCHAR}]{{1,{MAX_HTM}}}")
_JTI = re.compile(r"[!-~]{16,64}")

_COMPACT = json.JSONEncoder(separators=(",", ":")).encode


def is_nonce(text: object) -> bool:
    """Whether `text` is a nonce by RFC 9449 section 8.1, and of a sensible length."""
    return isinstance(text, str) and 0 < len(text) <= MAX_NONCE and _NQCHAR.issuperset(text)


def is_htm(text: object) -> bool:
    """Whether `text` is an HTTP method (RFC 9110 section 9.1), kept verbatim in the proof."""
    return isinstance(text, str) and _HTM.fullmatch(text) is not None


def is_jti(text: object) -> bool:
    """Whether `text` is fit to be somebody else's `jti`: visible ASCII, 16 to 64 characters."""
    return isinstance(text, str) and _JTI.fullmatch(text) is not None


def new_jti() -> str:
    """A `jti` that no other proof has."""
    return b64url(os.urandom(JTI_BYTES))


def header(alg: str, jwk: Mapping[str, str]) -> str:
    """The encoded JOSE header; always the same for one key, so it is made once and kept."""
    public = {name: jwk[name] for name in ("kty", "crv", "x", "y", "n", "e") if name in jwk}
    if set(public) != set(PUBLIC_MEMBERS[jwk["kty"]]):
        raise ValueError("not a public JWK")
    return b64url(_COMPACT({"typ": TYP, "alg": alg, "jwk": public}).encode("ascii"))


def signing_input(
    header: str,
    *,
    htm: str,
    htu: str,
    iat: int,
    ath: str | None = None,
    nonce: str | None = None,
    jti: str | None = None,
) -> str:
    """What gets signed: the encoded header and new claims.

    Args:
        header: as `header` made it.
        htm: the HTTP method, as `is_htm` has it.
        htu: the target URI as `htu.target` gave it.
        iat: seconds since 1970, the floor of now.
        ath: hash of the access token that is presented, if one is.
        nonce: the server's nonce, as `is_nonce` has it, if it gave one.
        jti: one that `new_jti` made for this proof; by default a new one.
    """
    # None of these has a character that JSON escapes.
    with_ath = "" if ath is None else f',"ath":"{ath}"'
    with_nonce = "" if nonce is None else f',"nonce":"{nonce}"'
    jti = jti or new_jti()
    claims = f'{{"jti":"{jti}","htm":"{htm}","htu":"{htu}","iat":{iat}{with_ath}{with_nonce}}}'
    return f"{header}.{b64url(claims.encode('ascii'))}"


def parse_signing_input(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of somebody else's signing input, for `proof.sign`.

    Raises:
        ValueError: not two base64url parts that are JSON objects without repeated members.
    """
    header, dot, claims = text.partition(".")
    if not dot:
        raise ValueError("a signing input is two base64url parts with a dot between them")
    return json_object(b64url_decode(header)), json_object(b64url_decode(claims))
