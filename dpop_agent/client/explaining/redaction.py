"""What of an exchange may stand in a report: no secret of it, and nothing that might be one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dpop_agent.client.explaining.messages import Exchange, is_jwt, split

CUT = "…"

LONG = 40
"""Characters from which on a word that nobody knows counts as a secret."""

SHORT = 8
"""Characters of a secret from which on it is looked for in what the server says."""

_JWT = re.compile(r"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*")
_WORD = re.compile(rf"[A-Za-z0-9_~+/=.%-]{{{LONG},}}")
_HARMLESS_FIELDS = frozenset(
    {
        *("grant_type", "response_type", "scope", "token_type", "client_assertion_type", "prompt"),
        *("token_type_hint", "code_challenge_method", "dpop_jkt", "response_mode", "client_id"),
        *("redirect_uri", "resource", "audience", "error", "error_description", "expires_in"),
        *("iss", "requested_token_type", "subject_token_type", "login_hint", "error_uri"),
        *("message", "detail", "errorsummary", "errorcode", "title", "status", "path"),
    }
)
_REDACTED = re.compile(
    r"(?:[A-Za-z]+\s+)?[\[<({*]*\s*(?:redacted|hidden|removed|masked|secret|x{3,}|\*{3,}|\.{3,}|…+|-+"
    r"|snip(?:ped)?|token|proof|jwt|access[ _-]?token|omitted|elided|cut|sig(?:nature)?)"
    r"\s*[\])}>*]*\.*",
    re.IGNORECASE,
)
# What no JWT and no access token has (RFC 9110's token68), and people put for what they leave out.
_MARKS = re.compile(r"[<>\[\](){}*•█]|…|\.{3}")
_UNFILLED = re.compile(
    r"\$\w+|\$?\{\{?[^{}]*\}?\}|\$\([^()]*\)|%\w+%|\[object \w+\]|undefined|null|none|nil"
)


def is_redacted(value: str) -> bool:
    """Whether somebody put something else in a secret's place, or in a part's of it, or cut it."""
    if is_unfilled(value):
        return False
    return _MARKS.search(value) is not None or any(
        _REDACTED.fullmatch(part.strip()) for part in (value, *value.split("."))
    )


def is_unfilled(value: str) -> bool:
    """Whether it is what a program sends where a variable had no value."""
    return _UNFILLED.fullmatch(value.strip().lower()) is not None


class Redaction:
    """Takes the secrets of some exchanges out of texts.

    Args:
        exchanges: whose headers, queries and bodies have the secrets.
        known: what may be shown whole, such as thumbprints.
    """

    def __init__(self, exchanges: Iterable[Exchange], known: Iterable[str] = ()) -> None:
        self._known = frozenset(known)
        secrets = {
            secret
            for exchange in exchanges
            for secret in _secrets(exchange)
            if len(secret) >= SHORT and secret not in self._known
        }
        self._secrets = sorted(secrets, key=len, reverse=True)

    def text(self, text: object, limit: int = 300) -> str:
        """Somebody else's words on one line, without control characters."""
        found = "".join(c if c.isprintable() else " " for c in str(text)[: 8 * limit])
        for secret in self._secrets:
            found = found.replace(secret, f"[{secret_name(secret)}]")
        found = _JWT.sub("[JWT]", found)
        found = _WORD.sub(lambda word: self._word(word[0]), found)
        found = " ".join(found.split())
        return found if len(found) <= limit else found[: limit - 1] + CUT

    def url(self, url: str) -> str:
        """A URL without user name, and without the values of its query."""
        scheme, authority, path, query = split(url)
        authority = authority.rpartition("@")[2]
        segments = [self._segment(segment) for segment in path.split("/")]
        names = "&".join(
            f"{self.text(part.partition('=')[0], 40)}={CUT}" for part in query.split("&") if part
        )
        whole = f"{scheme}//{authority}" if authority else ""
        found = f"{whole}{'/'.join(segments)}{'?' if names else ''}{names}"
        return "".join(c if c.isprintable() else "?" for c in found[:2000])

    def _segment(self, segment: str) -> str:
        for secret in self._secrets:
            segment = segment.replace(secret, CUT)
        return segment if len(segment) < LONG or " " in segment else f"{segment[:4]}{CUT}"

    def _word(self, word: str) -> str:
        return word if word in self._known or "/" in word else f"[{len(word)} characters]"


def secret_name(secret: str) -> str:
    """What is put in its place."""
    return "JWT" if is_jwt(secret) else "redacted"


def beginning(secret: str) -> str:
    """Enough of a nonce or a jti to tell it from another."""
    shown = "".join(c if c.isprintable() else "?" for c in secret)
    return shown if len(shown) <= SHORT else f"{shown[: SHORT - 2]}{CUT}"


def _secrets(exchange: Exchange) -> Iterable[str]:
    for name in ("Authorization", "Proxy-Authorization", "Cookie", "DPoP"):
        for value in exchange.sent(name):
            yield value
            yield from value.replace(";", " ").replace(",", " ").split()
            for pair in value.split(";"):
                yield pair.partition("=")[2].strip()
            if value.count(".") >= 2:
                yield value.rpartition(".")[2]
    for value in exchange.got("Set-Cookie"):
        yield value.partition(";")[0].partition("=")[2]
    for name, value in exchange.form.items():
        if name.lower() not in _HARMLESS_FIELDS:
            yield value
    for name, value in exchange.answer.items():
        # What has blanks is a sentence; what it repeats of the request is looked for by itself.
        if isinstance(value, str) and name.lower() not in _HARMLESS_FIELDS and " " not in value:
            yield value
