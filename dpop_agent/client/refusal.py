"""What a server's refusal says: RFC 9110's challenges, and the errors of RFC 6749, 6750 and 9449."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MAX_CHALLENGE_BODY = 16 * 1024
"""Bytes of a body that may say `use_dpop_nonce`; RFC 6749 section 5.2's errors are short."""

MAX_CHALLENGE_HEADER = 8 * 1024
"""Characters of a WWW-Authenticate header that are looked at."""

CHALLENGE_STATUSES = (400, 401)  # both occur at authorization servers and at resource servers

# RFC 9110 section 11: challenges and their parameters share one comma-separated list.
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105  (RFC 9110's word)
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


def is_json(content_type: Sequence[str]) -> bool:
    media_type = content_type[0].partition(";")[0].strip().lower() if content_type else ""
    return media_type == "application/json" or media_type.endswith("+json")


def has_error(www_authenticate: Iterable[str], error: str) -> bool:
    """Whether a challenge has the parameter `error` with that value."""
    return any(
        params.get("error") == error
        for header in www_authenticate
        for _, params in challenges(header)
    )


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
