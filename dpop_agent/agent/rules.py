"""The rules by which a request gets a proof or doesn't: a key's, and those of a socket of its own.

Where there are both, both have to allow it. Pure: values in, values out; how often and by whose
consent is asked each time (`rates`, `consent`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from dpop_agent.errors import InvalidParams
from dpop_agent.htu import Target, is_below, origin_of, path_prefix, reads_one_way, target
from dpop_agent.protocol import RULES

DEFAULT_BURST = 10
"""Proofs at once that a rate allows which says nothing of it: a page and what it loads."""

MAX_NAMED = 8
"""Origins, methods or paths that an error names."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY")


class Rule(StrEnum):
    """A rule's name, as on the wire."""

    ORIGINS = "origins"
    METHODS = "methods"
    PATHS = "paths"
    REQUIRE_ATH = "require_ath"
    RATE = "rate"
    CONFIRM = "confirm_s"


class Rate(NamedTuple):
    """How often: proofs a minute, and how many at once after a pause."""

    per_minute: int
    burst: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be signed.

    Attributes:
        origins: for these alone; none: for every https server, and for http on this machine.
        methods: for these HTTP methods alone, compared as they are; none: for all.
        paths: below these alone, by whole segments; none: for all.
        require_ath: only with an access token, not at a token endpoint.
        rate: how often; None: as often as anybody asks.
        confirm_s: seconds that one consent of a person's holds, for one key, origin and socket; 0:
            each proof needs its own; None: nobody is asked.
    """

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    require_ath: bool = False
    rate: Rate | None = None
    confirm_s: int | None = None

    def given(self, params: Mapping[str, Any]) -> Rules:
        """These rules with those that the wire's parameters have.

        Raises:
            HtuRefused: an origin or a path that isn't one, or matches nothing.
            InvalidParams: a method that no request has.
        """
        changes = {name: _READ[name](params[name]) for name in RULES if name in params}
        return replace(self, **changes) if changes else self

    def members(self) -> dict[str, Any]:
        """The same for the wire and for files."""
        return {
            "origins": list(self.origins),
            "methods": list(self.methods),
            "paths": list(self.paths),
            "require_ath": self.require_ath,
            "rate": None if self.rate is None else self.rate._asdict(),
            "confirm_s": self.confirm_s,
        }

    def refusing(self, where: Target, htm: str, *, presents_access_token: bool) -> Rule | None:
        """The rule by which such a request gets no proof, whenever it comes; None: it may have one.

        Cleartext http to another host wants that very origin among `origins`.
        """
        if not self.has_origin(where):
            return Rule.ORIGINS
        if self.methods and htm not in self.methods:
            return Rule.METHODS
        if self.paths and not (self.has_path(where) and reads_one_way(where.path)):
            return Rule.PATHS
        if self.require_ath and not presents_access_token:
            return Rule.REQUIRE_ATH
        return None

    def has_origin(self, where: Target) -> bool:
        """Whether these are for its origin."""
        return where.origin in self.origins or not (self.origins or where.cleartext)

    def narrowed(self, by: Rules) -> Rules | Rule:
        """What these and others let pass, both of them; or the rule by which that is nothing.

        Others that have no origins are for all that these are for. The rate stays these rules' own:
        each is counted by itself.
        """
        origins = by.origins
        if self.origins:
            origins = tuple(o for o in origins or self.origins if o in self.origins)
        elif origins:
            origins = tuple(o for o in origins if not target(f"{o}/").cleartext)
        if not origins and (self.origins or by.origins):
            return Rule.ORIGINS
        methods = tuple(m for m in by.methods or self.methods if m in (self.methods or by.methods))
        if not methods and (self.methods or by.methods):
            return Rule.METHODS
        paths = _common_paths(self.paths, by.paths)
        if not paths and (self.paths or by.paths):
            return Rule.PATHS
        holds = [c for c in (self.confirm_s, by.confirm_s) if c is not None]
        return replace(
            self,
            origins=origins,
            methods=methods,
            paths=paths,
            require_ath=self.require_ath or by.require_ath,
            confirm_s=min(holds, default=None),
        )

    def has_path(self, where: Target) -> bool:
        """Whether a path is below one of `paths`, as it is written."""
        path = where.path
        return any(is_below(path, prefix) for prefix in self.paths)

    def why(self, rule: Rule, whose: str, where: Target, htm: str) -> str:
        """What is said of a refusal by one of these; a path is nobody's to see in a log.

        Args:
            rule: as `refusing` gave it.
            whose: the rules', as in "the key shop".
            where: what was asked for.
            htm: the method of that.
        """
        match rule:
            case Rule.ORIGINS if where.cleartext:
                return (
                    f"{where.origin} is cleartext http, where a proof can be read and the answer "
                    "forged"
                )
            case Rule.ORIGINS:
                return f"{whose} isn't for {where.origin}, only for {named(self.origins)}"
            case Rule.METHODS:
                return f"{whose} isn't for the method {htm}, only for {named(self.methods)}"
            case Rule.PATHS if self.has_path(where):
                return (
                    f"{whose} is for some paths alone, and this one could be read as another: it "
                    "has an empty segment, . or .., or an encoded slash, backslash, ? or #"
                )
            case Rule.PATHS:
                return f"{whose} isn't for that path, only for those below {named(self.paths)}"
            case Rule.REQUIRE_ATH:
                return f"{whose} is for requests with an access token alone, and this has no ath"
        raise AssertionError(rule)  # the others refuse no request for what it is


ANYTHING = Rules()
"""None of them: every https server, and http on this machine, however asked for."""


def _common_paths(these: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """The paths that are below both; none of one kind are all."""
    if not these or not others:
        return these or others
    narrower = [
        *(path for path in others if any(is_below(path, prefix) for prefix in these)),
        *(path for path in these if any(is_below(path, prefix) for prefix in others)),
    ]
    return tuple(dict.fromkeys(narrower))


def named(values: tuple[str, ...]) -> str:
    """Some of them, for people."""
    return ", ".join(values[:MAX_NAMED])


def _origins(value: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(origin_of, value)))


def _methods(value: list[str]) -> tuple[str, ...]:
    for htm in value:
        if htm not in _METHODS and htm.upper() in _METHODS:
            raise InvalidParams(
                f"methods are compared as they are, and no request has the method {htm}",
                hint=f"write it as {htm.upper()}",
            )
    return tuple(dict.fromkeys(value))


def _paths(value: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(path_prefix, value)))


def _rate(value: dict[str, int] | None) -> Rate | None:
    if value is None:
        return None
    per_minute = value["per_minute"]
    return Rate(per_minute, value.get("burst", min(DEFAULT_BURST, per_minute)))


_READ: Mapping[str, Any] = {
    "origins": _origins,
    "methods": _methods,
    "paths": _paths,
    "require_ath": bool,
    "rate": _rate,
    "confirm_s": lambda value: value,
}
