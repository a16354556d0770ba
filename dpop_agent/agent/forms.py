"""What files say of keys, requests, uses and blocks: each member's form, checked when it is read.

A member that isn't known is refused: an older agent that dropped it would undo what it is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

from dpop_agent.agent.filters import Filter
from dpop_agent.agent.keys import (
    MAX_GENERATIONS,
    PROTECTIONS,
    TOUCHES,
    Forgotten,
    Generation,
    Key,
    State,
)
from dpop_agent.agent.rules import ANYTHING, Rules
from dpop_agent.agent.uses import MAX_FIRST, MAX_LAST, Use
from dpop_agent.config import STORE_NAME
from dpop_agent.errors import DPoPAgentError, HtuRefused
from dpop_agent.htu import origin_of
from dpop_agent.jose import (
    ALGORITHMS,
    b64url,
    is_public_jwk,
    is_sha256,
    thumbprint,
)
from dpop_agent.protocol import (
    ADMIN_METHODS,
    KEY_NAME,
    MAX_SECONDS,
    MAX_SOCKET_KEYS,
    REF,
    REQUEST_ID,
    RULES,
    SLOT,
    Param,
    is_socket_name,
)

_MAX_CLOCK_S = 2**40
_NO_RULES = ANYTHING.members()
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class Remembered(NamedTuple):
    """A request that was carried out, for a caller that asks again.

    Attributes:
        params: SHA-256 of its parameters, base64url.
        at: when it was, RFC 3339 UTC.
        at_s: the same by the agent's own clock.
    """

    method: str
    params: str
    at: str
    at_s: int


class Block(NamedTuple):
    """A generation that is compromised, whatever the ledger says; a pending one has no jkt yet."""

    key: str
    ref: str
    created: str


@dataclass(frozen=True, slots=True)
class OldTimes:
    """What version 1 said of a generation beside what version 2 says."""

    last_used: str | None
    origins_used: Mapping[str, str]
    observed_s: int
    idle_s: int


def _is_text(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, str) and pattern.fullmatch(v) is not None


def _is_date(value: Any) -> bool:
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_count(low: int, high: int) -> Callable[[Any], bool]:
    return lambda v: type(v) is int and low <= v <= high


def _or_null(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: v is None or check(v)


def _is_origin(value: Any) -> bool:
    try:
        return isinstance(value, str) and origin_of(value) == value
    except HtuRefused:
        return False


def _is_rule(name: str) -> Callable[[Any], bool]:
    """As the wire has it, and as it is kept."""
    check, none = RULES[name].check, _NO_RULES[name]

    def is_rule(value: Any) -> bool:
        if value == none and type(value) is type(none):  # as most are, of thousands of keys
            return True
        try:
            return check(value) and ANYTHING.given({name: value}).members()[name] == value
        except DPoPAgentError:
            return False

    return is_rule


def _are_used(at_most: int) -> Callable[[Any], bool]:
    return lambda v: (
        isinstance(v, dict)
        and len(v) <= at_most
        and all(_is_origin(origin) and _is_date(at) for origin, at in v.items())
    )


def _are_names(*, low: int) -> Callable[[Any], bool]:
    return lambda v: (
        isinstance(v, list)
        and low <= len(v) <= MAX_SOCKET_KEYS
        and all(map(_is_text(KEY_NAME), v))
        and len(v) == len(set(v))
    )


_BOOL = Param("true or false", lambda v: type(v) is bool)
_MAYBE = Param("true, false or null", _or_null(lambda v: type(v) is bool))
_KEY = Param("a key's name", _is_text(KEY_NAME))
_DATE_FORM = Param("an RFC 3339 date in UTC", _is_date)
_DATE_OR_NULL = Param("an RFC 3339 date in UTC, or null", _or_null(_is_date))
_SECONDS = Param("seconds, 0 to ten years", _is_count(0, MAX_SECONDS))
_CLOCK = Param("seconds", _is_count(0, _MAX_CLOCK_S))
_SINCE = Param("seconds", _is_count(-_MAX_CLOCK_S, _MAX_CLOCK_S))
_JKT = Param("an RFC 7638 thumbprint", is_sha256)
_REF_FORM = Param("what a store finds an object by", _is_text(REF))

LEDGER_HEADER = {"version": _CLOCK.must(), "observed_s": _CLOCK.must()}
USES_HEADER = LEDGER_HEADER | {
    "unclean_s": Param("seconds or null", _or_null(_is_count(0, _MAX_CLOCK_S))).must()
}
LEDGER_1 = {
    "version": _CLOCK.must(),
    "clean": _BOOL.must(),
    "requests": Param("an object", lambda v: isinstance(v, dict)).must(),
    "keys": Param("a list", lambda v: isinstance(v, list)).must(),
}

KEY = {
    "name": _KEY.must(),
    "store": Param("a store's name", _is_text(STORE_NAME)).must(),
    "alg": Param("an algorithm that dpop-agent knows", lambda v: v in tuple(ALGORITHMS)).must(),
    "created": _DATE_FORM.must(),
    **{name: Param(form.says, _is_rule(name)) for name, form in RULES.items()},
    "origins": Param("a list of origins", _is_rule("origins")).must(),
    "allow_sign_proof": _BOOL.must(),
    "rotate_every_s": Param(
        "seconds, 1 to ten years, or null", _or_null(_is_count(1, MAX_SECONDS))
    ).must(),
    "drain_s": _SECONDS.must(),
    "max_drain_s": _SECONDS.must(),
    "touch": _MAYBE,
    "policy_lost": _BOOL,
    "generations": Param(
        f"a list of 1 to {MAX_GENERATIONS} generations",
        lambda v: isinstance(v, list) and 1 <= len(v) <= MAX_GENERATIONS,
    ).must(),
}

_GENERATION = {
    "generation": Param("a number from 1 on", _is_count(1, 2**31)).must(),
    "state": Param("a state that is known here", lambda v: v in list(State)).must(),
    "ref": _REF_FORM.must(),
    "created": _DATE_FORM.must(),
    "changed": _DATE_FORM.must(),
    "jkt": Param("an RFC 7638 thumbprint or empty", lambda v: v == "" or is_sha256(v)).must(),
    "jwk": Param("a public key or empty", lambda v: isinstance(v, dict)).must(),
    "exportable": _BOOL.must(),
    "protection": Param(
        "hardware, software-token, keychain or empty",
        lambda v: v in (*PROTECTIONS, ""),
    ).must(),
    "local": _MAYBE.must(),
    "shared": _BOOL.must(),
    "object_left": _BOOL.must(),
    "slot": Param("a slot or null", _or_null(_is_text(SLOT))),
    "touch": Param("never, always, cached or null", lambda v: v in (None, *TOUCHES)),
    "compromised": _BOOL.must(),
    "drain_s": Param("seconds, 0 to ten years, or null", _or_null(_is_count(0, MAX_SECONDS))),
}
GENERATION = _GENERATION | {"since_s": _SINCE.must()}
GENERATION_1 = _GENERATION | {
    "last_used": _DATE_OR_NULL.must(),
    "origins_used": Param("origins with dates", _are_used(MAX_FIRST + MAX_LAST)).must(),
    "observed_s": _CLOCK.must(),
    "idle_s": _CLOCK.must(),
}

FORGOTTEN = {
    "jkt": _JKT.must(),
    "key": _KEY.must(),
    "generation": _GENERATION["generation"],
    "at": _DATE_FORM.must(),
    "compromised": _BOOL.must(),
}

SOCKET = {
    "name": Param("a socket's name", is_socket_name).must(),
    "keys": Param("a list of keys' names", _are_names(low=1)).must(),
    "gone": Param("a list of keys' names", _are_names(low=0)).must(),
    "created": _DATE_FORM.must(),
    "expires_at": Param("seconds or null", _or_null(_is_count(0, _MAX_CLOCK_S))).must(),
    "expires_s": Param("seconds or null", _or_null(_is_count(0, _MAX_CLOCK_S))).must(),
    **{name: Param(form.says, _is_rule(name)).must() for name, form in RULES.items()},
}

REQUEST = {
    "request": Param("a request's id", _is_text(REQUEST_ID)).must(),
    "method": Param("a method", lambda v: isinstance(v, str) and v in ADMIN_METHODS).must(),
    "params": Param("a SHA-256", is_sha256).must(),
    "at": _DATE_FORM.must(),
    "at_s": _CLOCK.must(),
}

USE = {
    "jkt": _JKT.must(),
    "at": _DATE_OR_NULL.must(),
    "at_s": _SINCE.must(),
    "first": Param(f"at most {MAX_FIRST} origins with dates", _are_used(MAX_FIRST)).must(),
    "last": Param(f"at most {MAX_LAST} origins with dates", _are_used(MAX_LAST)).must(),
    "left_out": _CLOCK.must(),
}

BLOCK = {"key": _KEY.must(), "ref": _REF_FORM.must(), "created": _DATE_FORM.must()}


def must(holds: bool, otherwise: str) -> None:
    """Go on if something holds.

    Raises:
        ValueError: it doesn't.
    """
    if not holds:
        raise ValueError(otherwise)


def require(members: Any, forms: Mapping[str, Param], what: str) -> None:
    """Let members pass that have these forms.

    Raises:
        ValueError: which one doesn't.
    """
    must(isinstance(members, dict), f"{what} isn't an object")
    for name, value in members.items():
        if name not in forms:
            raise ValueError(f"{what} has a member that isn't known here, {name[:64]!r}")
        if not forms[name].check(value):
            raise ValueError(f"{name} of {what} isn't {forms[name].says}")
    for name, form in forms.items():
        if form.required and name not in members:
            raise ValueError(f"{what} has no {name}")


def digest_of(params: Mapping[str, Any]) -> str:
    """What tells a request's parameters from others."""
    return b64url(sha256(json.dumps(params, sort_keys=True).encode("ascii")).digest())


def rules_from(members: Mapping[str, Any]) -> Rules:
    """The rules among members that were checked; those that aren't there let everything pass."""
    return ANYTHING.given({n: v for n, v in members.items() if n in RULES and v != _NO_RULES[n]})


def key_members(name: str, key: Key) -> dict[str, Any]:
    """A key as the ledger has it."""
    members = {f.name: getattr(key, f.name) for f in fields(key) if f.name != "rules"}
    return members | {
        **key.rules.members(),
        "name": name,
        "generations": [{f.name: getattr(g, f.name) for f in fields(g)} for g in key.generations],
    }


def key_from(members: Any) -> Key:
    """A key from the ledger.

    Raises:
        ValueError: it can't be one.
    """
    return _key(members, GENERATION, lambda g: Generation(**g))


def key_from_version_1(members: Any) -> tuple[Key, dict[str, OldTimes]]:
    """A key from a ledger of version 1, and by jkt what isn't in a ledger any more.

    Raises:
        ValueError: it can't be one.
    """
    times: dict[str, OldTimes] = {}

    def generation(g: dict[str, Any]) -> Generation:
        old = OldTimes(**{f.name: g.pop(f.name) for f in fields(OldTimes)})
        times[g["jkt"]] = old
        return Generation(**g, since_s=-old.observed_s)

    return _key(members, GENERATION_1, generation), times


def _key(
    members: Any, forms: Mapping[str, Param], made: Callable[[dict[str, Any]], Generation]
) -> Key:
    what = "a key"
    if isinstance(members, dict) and KEY["name"].check(members.get("name")):
        what = f"the key {members['name']}"
    require(members, KEY, what)
    generations: list[Generation] = []
    for number, g in enumerate(members["generations"], 1):
        which = f"{what}'s generation number {number} in the list"
        if isinstance(g, dict) and forms["generation"].check(g.get("generation")):
            which = f"{members['name']}@{g['generation']}"
        require(g, forms, which)
        generation = made(dict(g, state=State(g["state"])))
        _require_sound(generation, members["alg"], which)
        if generations and generation.generation <= generations[-1].generation:
            raise ValueError(f"{which} comes after generation {generations[-1].generation}")
        generations.append(generation)
    try:
        return Key(
            **{name: value for name, value in members.items() if name not in RULES}
            | {"rules": rules_from(members), "generations": tuple(generations)}
        )
    except DPoPAgentError as e:
        raise ValueError(e.message) from e


def _require_sound(g: Generation, alg: str, which: str) -> None:
    """What a generation's members have to do with one another."""
    if (g.jkt == "") != (g.state is State.PENDING):
        raise ValueError(f"{which} is {g.state}, which doesn't fit its jkt")
    if not g.jwk and g.state not in (State.PENDING, State.DESTROYED):
        raise ValueError(f"{which} is {g.state} and has no jwk")
    if g.jwk and not (is_public_jwk(g.jwk, ALGORITHMS[alg]) and thumbprint(g.jwk) == g.jkt):
        raise ValueError(f"jwk of {which} isn't an {alg} key with the thumbprint jkt")
    if g.object_left and g.state is not State.DESTROYED:
        raise ValueError(f"{which} has object_left, and is {g.state}")
    if g.state is State.COMPROMISED and not g.compromised:
        raise ValueError(f"{which} is compromised, and its member compromised is false")
    if g.compromised and g.state not in (State.PENDING, State.COMPROMISED, State.DESTROYED):
        raise ValueError(f"{which} was compromised, and is {g.state}")


def forgotten_members(_jkt: str, forgotten: Forgotten) -> dict[str, Any]:
    """What stays of a forgotten key's generation, as the ledger has it."""
    return {f.name: getattr(forgotten, f.name) for f in fields(forgotten)}


def forgotten_from(members: dict[str, Any]) -> Forgotten:
    """The same from the ledger.

    Raises:
        ValueError
    """
    require(members, FORGOTTEN, "a forgotten generation")
    return Forgotten(**members)


def socket_members(name: str, socket: Filter) -> dict[str, Any]:
    """A filtered socket as the ledger has it."""
    return {
        "name": name,
        "keys": list(socket.keys),
        "gone": list(socket.gone),
        "created": socket.created,
        "expires_at": socket.expires_at,
        "expires_s": socket.expires_s,
        **socket.rules.members(),
    }


def socket_from(members: dict[str, Any]) -> Filter:
    """The same from the ledger.

    Raises:
        ValueError
    """
    what = "a socket"
    if SOCKET["name"].check(members.get("name")):
        what = f"the socket {members['name']}"
    require(members, SOCKET, what)
    must(set(members["gone"]) <= set(members["keys"]), f"{what} has no key of its gone ones")
    own = {name: value for name, value in members.items() if name not in RULES}
    own |= {"keys": tuple(members["keys"]), "gone": tuple(members["gone"])}
    try:
        return Filter(**own, rules=rules_from(members))
    except DPoPAgentError as e:
        raise ValueError(e.message) from e


def request_members(name: str, request: Remembered) -> dict[str, Any]:
    """A request as the ledger has it."""
    return {"request": name, **request._asdict()}


def request_from(members: dict[str, Any]) -> tuple[str, Remembered]:
    """A request from the ledger, and its id.

    Raises:
        ValueError
    """
    require(members, REQUEST, "a request")
    members = dict(members)
    return members.pop("request"), Remembered(**members)


def request_from_version_1(name: str, value: Any) -> Remembered:
    """A request from a ledger of version 1.

    Raises:
        ValueError
    """
    if not isinstance(value, dict) or set(value) != {"method", "params", "at"}:
        raise ValueError("a request isn't one")
    members = {"request": name, **value, "params": digest_of(value["params"]), "at_s": 0}
    return request_from(members)[1]


def use_members(jkt: str, use: Use) -> dict[str, Any]:
    """A use as its file has it."""
    return {"jkt": jkt, **{f.name: getattr(use, f.name) for f in fields(use)}}


def use_from(members: dict[str, Any]) -> tuple[str, Use]:
    """A use from its file, and the jkt.

    Raises:
        ValueError
    """
    require(members, USE, "a use")
    if not members["first"].keys().isdisjoint(members["last"]):
        raise ValueError("a use has an origin twice")
    members = dict(members)
    return members.pop("jkt"), Use(**members)


def use_from_version_1(times: OldTimes) -> Use:
    """What version 1 said of a generation's signatures, as if the agent's clock stood at 0 then."""
    used = list(times.origins_used.items())
    return Use(
        times.last_used,
        -times.idle_s,
        first=dict(used[:MAX_FIRST]),
        last=dict(used[MAX_FIRST:]),
        left_out=len(used) // (MAX_FIRST + MAX_LAST),  # it kept as many, and counted no others
    )


def block_from(members: dict[str, Any]) -> Block:
    """A block from the reserve.

    Raises:
        ValueError
    """
    require(members, BLOCK, "a block")
    return Block(**members)
