"""A request and its response, whoever recorded them; and what stands in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dpop_agent.jose import b64url_decode, json_object

Headers = tuple[tuple[str, str], ...]

PRIVATE_MEMBERS = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))
"""RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1."""


class Unreadable(ValueError):
    """What was given can't be read as a request and its response.

    Attributes:
        what: what is wrong with it.
        line: where, from 1; None where it is no matter of one line.
    """

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what if line is None else f"line {line}: {what}")
        self.what = what
        self.line = line


@dataclass(frozen=True, slots=True, repr=False)
class Exchange:
    """A request and its response. No repr, since both have secrets.

    Attributes:
        method: the request's.
        url: as it went over the wire, query included; `//host/path` where the scheme isn't known.
        request_headers: names and values, in their order.
        status: the response's; None where it isn't known.
        response_headers: names and values, in their order.
        request_body: None where it isn't known.
        response_body: None where it isn't known, or wasn't read.
    """

    method: str
    url: str
    request_headers: Headers
    status: int | None
    response_headers: Headers
    request_body: bytes | None = None
    response_body: bytes | None = None

    def sent(self, name: str) -> list[str]:
        """The values of a request's header."""
        return _values(self.request_headers, name)

    def got(self, name: str) -> list[str]:
        """The values of a response's header."""
        return _values(self.response_headers, name)

    @property
    def origin(self) -> str:
        """Scheme, host and port, as far as they are known."""
        scheme, authority, *_ = split(self.url)
        return f"{scheme}//{authority}" if scheme else f"//{authority}"

    @property
    def form(self) -> dict[str, str]:
        """The parameters of the request's body and query (RFC 6749 appendix B, or JSON)."""
        body = (self.request_body or b"").decode("utf-8", "replace")
        found = dict(parse_qsl(split(self.url)[3]))
        if body.lstrip().startswith("{"):
            members = json_in(body) or {}
            return found | {k: v for k, v in members.items() if isinstance(v, str)}
        return found | dict(parse_qsl(body.strip()))

    @property
    def answer(self) -> dict[str, Any]:
        """The members of the response's JSON; none where it has no object."""
        return json_in((self.response_body or b"").decode("utf-8", "replace")) or {}


def split(url: str) -> tuple[str, str, str, str]:
    """Scheme with its colon, authority, path, query: as they stand there."""
    scheme, separator, rest = url.partition("://")
    if separator:
        scheme += ":"
    else:
        scheme, rest = "", url.removeprefix("//") if url.startswith("//") else url
    rest, _, query = rest.partition("#")[0].partition("?")
    authority, slash, path = rest.partition("/")
    return scheme, authority, slash + path, query


def _values(headers: Headers, name: str) -> list[str]:
    return [value for each, value in headers if each.lower() == name.lower()]


def json_in(text: str) -> dict[str, Any] | None:
    """The last JSON object in a text, which several bodies may follow one another in."""
    decoder, found, at = json.JSONDecoder(), None, 0
    for _ in range(64):  # texts that have more braces than that aren't JSON
        at = text.find("{", at)
        if at < 0:
            break
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if isinstance(value, dict):
            found = value
    return found


@dataclass(frozen=True, slots=True)
class Jws:
    """A JWS in its compact form (RFC 7515 section 7.1), as far as it can be read.

    Attributes:
        header: its members; none where it can't be read.
        claims: the same.
        wrong: what can't be read of it, as the end of a sentence; empty where all can.
    """

    header: Mapping[str, Any] = field(repr=False)
    claims: Mapping[str, Any] = field(repr=False)
    wrong: str = ""


def jws(text: str) -> Jws:
    """What a compact JWS says; nobody's signature is checked."""
    parts = text.split(".")
    if len(parts) != 3:
        many = "1 part" if len(parts) == 1 else f"{len(parts)} parts"
        return Jws({}, {}, f"has {many}, and a signed JWT has three")
    read: list[dict[str, Any]] = []
    wrong = ""
    for part, what in zip(parts[:2], ("header", "claims"), strict=True):
        try:
            read.append(json_object(b64url_decode(part)))
        except ValueError:
            is_base64 = not {*"=+/"}.isdisjoint(part)
            form = "base64 with =, + or /, and a JWT has base64url without them"
            cant = f"has {what} that can't be read as base64url and JSON"
            wrong = wrong or (f"has {what} in {form}" if is_base64 else cant)
            read.append({})
    if not wrong and not parts[2]:
        wrong = "has no signature"
    return Jws(read[0], read[1], wrong)


def is_jwt(text: str) -> bool:
    """Whether it is a signed JWT that can be read; all else is opaque."""
    return text.count(".") == 2 and not jws(text).wrong


def without_query(url: str) -> str:
    """A URL without query and fragment, as `htu` has it."""
    return url.partition("#")[0].partition("?")[0]


def has_authority(url: str) -> bool:
    """Whether it is an absolute http or https URI."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)
