"""What a server's refusal says (RFC 6749 section 5.2, RFC 6750 section 3.1, RFC 9449), without I/O.

The error is in the challenge (RFC 9110 section 11) or in the body alone, at either kind of server.
"""

from __future__ import annotations

import re

from dpop_agent.jose import b64url_decode, json_object
from dpop_agent.proof import TCHAR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from dpop_agent.client.answers import Proof

MAX_CHALLENGE_BODY = 16 * 1024
"""Bytes of a body that may name an error; RFC 6749 section 5.2's are short."""

MAX_CHALLENGE_HEADER = 8 * 1024
"""Characters of a WWW-Authenticate header that are looked at."""

CHALLENGE_STATUSES = (400, 401)  # both occur at authorization servers and at resource servers

CLOCK_AHEAD_S = 2
"""Seconds from which on an agent counts as ahead of a server; a Date has whole ones."""

CLOCK_BEHIND_S = 10
"""Seconds from which on it counts as behind: a proof is as old as its request was under way."""

# What Keycloak, Bluesky and others write where `iat` is the reason, and where it isn't.
_OF_TIME = re.compile(r"\biat\b|time|clock|active|expired|too old|future|stale|skew|\bage\b", re.I)
_OF_SOMETHING_ELSE = re.compile(
    r"jti|replay|already|htu|htm|ur[il]\b|method|alg|nonce|\bath\b|thumbprint|jkt|signature|missing"
    r"|mismatch|jwk|\btyp\b",
    re.I,
)

# RFC 9110 section 11: challenges and their parameters share one comma-separated list.
_TOKEN = f"[{TCHAR}]+"
_GAP = re.compile(r"[ \t,]*")
_PARAM = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))(?=[ \t]*(?:,|\Z))')
_SCHEME = re.compile(rf"({_TOKEN})(?=[ \t,]|\Z)")
_TO_COMMA = re.compile(r"[^,]*")
_ESCAPED = re.compile(r"\\(.)")


class Answer:
    """A response's status, and its headers: each field line's value by itself."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: Callable[[str], Sequence[str]]) -> None:
        self.status = status
        self.headers = headers


class Refusal:
    """What a 400 or 401 says.

    Attributes:
        errors: the codes, such as `invalid_token`; empty where it names none.
        of_proof: that it was the proof that was refused, not what came with it.
        maybe_of_time: that it was, and perhaps for its `iat`.
    """

    __slots__ = ("_description", "errors", "maybe_of_time", "of_proof")

    def __init__(self, errors: Iterable[str], description: str) -> None:
        self.errors = frozenset(errors)
        self._description = description
        of_time = _OF_TIME.search(description) is not None
        # Keycloak has no error of its own for proofs.
        self.of_proof = "invalid_dpop_proof" in self.errors or (
            not self.errors.isdisjoint(("invalid_request", "invalid_token"))
            and of_time
            and "dpop proof" in description.lower()
        )
        self.maybe_of_time = self.of_proof and (
            of_time or _OF_SOMETHING_ELSE.search(description) is None
        )

    @classmethod
    def from_challenges(cls, www_authenticate: Iterable[str]) -> Refusal:
        """What the challenges of a response say."""
        params = [params for header in www_authenticate for _, params in challenges(header)]
        return cls(
            (each["error"] for each in params if "error" in each),
            " ".join(each.get("error_description", "") for each in params),
        )

    def and_body(self, body: bytes | None) -> Refusal:
        """That, and what the response's JSON says; nothing where it isn't any, or too long."""
        try:
            members = json_object(body or b"")
        except ValueError:
            return self
        error, description = members.get("error"), members.get("error_description")
        return Refusal(
            [*self.errors, error] if isinstance(error, str) else self.errors,
            f"{self._description} {description}" if isinstance(description, str) else "",
        )


def decoded(body: bytes, content_encoding: Sequence[str]) -> bytes | None:
    """A body without its content codings (RFC 9110 section 8.4); None if it is too long or broken.

    Brotli and zstd aren't read: of a few bytes they make gigabytes before anybody can stop them.
    """
    import zlib

    codings = [coding.strip().lower() for line in content_encoding for coding in line.split(",")]
    for coding in reversed(codings):
        if coding in ("", "identity"):
            continue
        if coding not in ("gzip", "x-gzip", "deflate"):
            return None
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip's or zlib's header
        try:
            body = decoder.decompress(body, MAX_CHALLENGE_BODY + 1)
        except zlib.error:
            return None
        if not decoder.eof:
            return None
    return body if len(body) <= MAX_CHALLENGE_BODY else None


def dated(values: Sequence[str]) -> datetime | None:
    """What the values of a response's Date say (RFC 9110 section 6.6.1); None for all but one."""
    from datetime import UTC
    from email.utils import parsedate_to_datetime

    if len(values) != 1:
        return None
    try:
        when = parsedate_to_datetime(values[0])
    except (ValueError, OverflowError, TypeError):
        return None
    # "-0000", which RFC 5322 allows, has none.
    return when.replace(tzinfo=when.tzinfo or UTC)


def clock_offset_s(date: float | None, proof: Proof) -> int | None:
    """Seconds that a server's clock was ahead of the proof's `iat`; None where that isn't known."""
    iat = _iat(proof)
    return None if date is None or iat is None else round(date - iat)


def _iat(proof: Proof) -> int | None:
    try:
        iat = json_object(b64url_decode(proof.value.split(".")[1])).get("iat")
    except (ValueError, IndexError):
        return None
    return iat if type(iat) is int else None


def is_json(content_type: Sequence[str]) -> bool:
    media_type = _media_type(content_type)
    return media_type == "application/json" or media_type.endswith("+json")


def is_event_stream(content_type: Sequence[str]) -> bool:
    """Whether a body may never end, and is its reader's alone."""
    return _media_type(content_type) == "text/event-stream"


def _media_type(content_type: Sequence[str]) -> str:
    return content_type[0].partition(";")[0].strip().lower() if content_type else ""


def challenges(www_authenticate: str) -> list[tuple[str, dict[str, str]]]:
    """Schemes and parameters of a WWW-Authenticate header (RFC 9110 section 11.6.1).

    What isn't a scheme or a parameter is skipped; so are the values of old schemes that have no
    parameters.
    """
    found: list[tuple[str, dict[str, str]]] = []
    text = www_authenticate[:MAX_CHALLENGE_HEADER]
    at = _end_of_match(_GAP, text, 0)
    while at < len(text):
        if found and (param := _PARAM.match(text, at)):
            name, quoted, plain = param.groups()
            found[-1][1].setdefault(
                name.lower(), plain if quoted is None else _ESCAPED.sub(r"\1", quoted)
            )
            at = param.end()
        elif scheme := _SCHEME.match(text, at):
            found.append((scheme[1].lower(), {}))
            at = scheme.end()
        else:
            at = _end_of_match(_TO_COMMA, text, at)
        at = _end_of_match(_GAP, text, at)
    return found


def _end_of_match(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
