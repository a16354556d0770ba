"""What of an exchange may stand in a report: no secret of it, and nothing that might be one."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, unquote_plus

from dpop_agent.client.explaining.messages import Exchange, is_jwt, split

CUT = "…"

LONG = 40
"""Characters from which on a word that nobody knows counts as a secret."""

SHORT = 8
"""Characters of a secret from which on it is looked for in what the server says."""

_JWT = re.compile(r"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*")
_WORD = re.compile(rf"[A-Za-z0-9_~+/=.%-]{{{LONG},}}")
_SECRET_HEADER = re.compile(
    r"authoriz|authent|(?:\A|[_-])auth(?:\Z|[_-])|token|secret|key|passw|credential|cookie|session"
    r"|signature|jwt|\Adpop\Z",
    re.IGNORECASE,
)
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


def one_line(text: str) -> str:
    """A text without line ends, and without what steers a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


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
            for found in _secrets(exchange)
            if len(secret := one_line(found).strip()) >= SHORT and secret not in self._known
        }
        self._secrets = sorted(secrets, key=len, reverse=True)

    def text(self, text: object, limit: int = 300) -> str:
        """Somebody else's words on one line, without control characters."""
        found = self._begun(one_line(str(text)), 8 * limit)
        for secret in self._secrets:
            found = found.replace(secret, f"[{secret_name(secret)}]")
        found = _JWT.sub("[JWT]", found)
        found = _WORD.sub(lambda word: self._word(word[0]), found)
        found = " ".join(found.split())
        return found if len(found) <= limit else found[: limit - 1] + CUT

    def _begun(self, text: str, size: int) -> str:
        """The beginning of a text, without half a secret or half a word at its end."""
        if len(text) <= size:
            return text
        end = text.rfind(" ", 0, size) if " " in text[:size] else size
        has_moved = True
        while has_moved:
            has_moved = False
            for secret in self._secrets:
                at = text.find(secret, max(0, end - len(secret) + 1), end + len(secret) - 1)
                if at >= 0:
                    end, has_moved = at, True
        return text[:end]

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
        is_path = word.startswith("/") and not re.search(rf"[+=]|[^/]{{{LONG},}}", word)
        return word if is_path or word in self._known else f"[{len(word)} characters]"


def secret_name(secret: str) -> str:
    """What is put in its place."""
    return "JWT" if is_jwt(secret) else "redacted"


def beginning(secret: str) -> str:
    """Enough of a nonce or a jti to tell it from another."""
    shown = "".join(c if c.isprintable() else "?" for c in secret)
    return shown if len(shown) <= SHORT else f"{shown[: SHORT - 2]}{CUT}"


def _secrets(exchange: Exchange) -> Iterable[str]:
    for name, value in exchange.request_headers:
        if _SECRET_HEADER.search(name):
            yield from _of_header(value)
    for value in exchange.got("Set-Cookie"):
        yield value.partition(";")[0].partition("=")[2]
    _, authority, _, query = split(exchange.url)
    yield from _of_user(authority.rpartition("@")[0])
    yield from _of_form(query, harmless=frozenset())
    body = (exchange.request_body or b"").decode("utf-8", "replace").strip()
    try:
        yield from _of_json(json.loads(body))
    except (ValueError, RecursionError):
        yield from _of_form(body, harmless=_HARMLESS_FIELDS)
    for name, value in {**exchange.form, **exchange.answer}.items():
        # What has blanks is a sentence; what it repeats of the request is looked for by itself.
        is_said = name in exchange.answer and " " in str(value)
        if isinstance(value, str) and name.lower() not in _HARMLESS_FIELDS and not is_said:
            yield value


def _of_header(value: str) -> Iterable[str]:
    yield value
    yield from value.replace(";", " ").replace(",", " ").split()
    for pair in value.split(";"):
        yield pair.partition("=")[2].strip()
    if value.count(".") >= 2:
        yield value.rpartition(".")[2]
    scheme, _, encoded = value.strip().partition(" ")
    if scheme.lower() == "basic":
        try:
            yield from _of_user(b64decode(encoded).decode("utf-8", "replace"))
        except ValueError:
            pass


def _of_user(text: str) -> Iterable[str]:
    """A user's or a client's name and password (RFC 7617; escaped by RFC 6749 section 2.3.1)."""
    password = text.partition(":")[2]
    yield from (text, password, unquote(password), unquote_plus(password))


def _of_form(text: str, *, harmless: frozenset[str]) -> Iterable[str]:
    """The values, as they are and as they are meant; of a name that is there twice both."""
    for pair in text.split("&"):
        name, _, value = pair.partition("=")
        if unquote_plus(name).lower() not in harmless:
            yield from (value, unquote_plus(value))


def _of_json(value: Any, name: str = "") -> Iterable[str]:
    """The strings in it, however deep."""
    if isinstance(value, str):
        if name.lower() not in _HARMLESS_FIELDS:
            yield value
    elif isinstance(value, dict):
        for each, member in value.items():
            yield from _of_json(member, each)
    elif isinstance(value, list):
        for member in value:
            yield from _of_json(member, name)
