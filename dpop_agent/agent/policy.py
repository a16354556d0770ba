"""What a key may be used for."""

from __future__ import annotations

from math import ceil

from dpop_agent.agent.keys import Key
from dpop_agent.agent.rules import MAX_NAMED, Rate, Rule
from dpop_agent.errors import HtuRefused, PolicyRefused, RateExceeded
from dpop_agent.htu import Target

_ANOTHER_SOCKET = "for more, its owner adds another socket: dpop-agent socket add NAME"


def require_allowed(
    key: Key,
    target: Target,
    htm: str,
    *,
    presents_access_token: bool,
    socket: str | None = None,
) -> None:
    """Let a request pass that the key's rules let pass, whenever it comes.

    `socket` is the filtered one that it came on, for which the rules are: what anybody else may do
    with the key isn't told there.

    Raises:
        HtuRefused: cleartext http, and the key wasn't given that very origin.
        PolicyRefused: one of its rules, which `details` names, or nobody knows what they are.
    """
    if key.policy_lost:
        raise PolicyRefused(
            f"what the key {key.name} may be used for was lost with its ledger",
            hint=f"set it anew: dpop-agent key set {key.name} --origin ORIGIN, or --any-origin",
            details={"rule": Rule.ORIGINS.value},
        )
    rule = key.rules.refusing(target, htm, presents_access_token=presents_access_token)
    if rule is None:
        return
    whose = f"the key {key.name}" if socket is None else f"the key {key.name} on this socket"
    message = key.rules.why(rule, whose, target, htm)
    details = {"rule": rule.value}
    hint = _way_on(rule, key, target, htm) if socket is None else _ANOTHER_SOCKET
    if rule is Rule.ORIGINS and target.cleartext:
        if socket is None:
            hint = f"use https, or {allowing_origin(key, target.origin)}"
        raise HtuRefused(message, hint=hint, details=details)
    raise PolicyRefused(message, hint=hint, details=details)


def rate_exceeded(
    key: Key, rate: Rate, wait_s: float, *, socket: str | None = None
) -> RateExceeded:
    """The refusal of a proof that the key's rate doesn't allow for so many seconds."""
    more = f", or allow more: dpop-agent key set {key.name} --rate N/min"
    return _rate_exceeded(f"the key {key.name}", rate, wait_s, more if socket is None else "")


def socket_rate_exceeded(rate: Rate, wait_s: float) -> RateExceeded:
    """The refusal of a proof that the rate of its socket doesn't allow for so many seconds."""
    return _rate_exceeded("this socket", rate, wait_s)


def _rate_exceeded(whose: str, rate: Rate, wait_s: float, more: str = "") -> RateExceeded:
    return RateExceeded(
        f"{whose} has given all that its rate allows for now: at most {rate.per_minute} a minute "
        f"and {rate.burst} at once",
        hint=f"ask again in {ceil(wait_s)} s{more}",
        retry_after_ms=ceil(wait_s * 1000),
        details={"rule": Rule.RATE.value},
    )


def _way_on(rule: Rule, key: Key, target: Target, htm: str) -> str:
    """What people can do about a rule's refusal, as a hint."""
    if rule is Rule.ORIGINS:
        return f"use the key that is, or {allowing_origin(key, target.origin)}"
    if rule is Rule.METHODS:
        return f"use a key that is, or {allowing(key, '--method', key.rules.methods, htm)}"
    if rule is Rule.PATHS:
        if key.rules.has_path(target):
            return "give the path without these"
        return f"use a key that is, or {allowing(key, '--path', key.rules.paths, 'PATH')}"
    return (
        "send ath with the request that presents the access token (dpop-agent proof: "
        "--access-token-file); for requests without one, such as those for access tokens, use a "
        "key without that rule"
    )


def allowing_origin(key: Key, origin: str) -> str:
    """How to have proofs for one origin more, and none less."""
    if not key.rules.origins:  # --origin would take all others from it
        return f"make a key for it: dpop-agent key create NAME --origin {origin}"
    return allowing(key, "--origin", key.rules.origins, origin)


def allowing(key: Key, option: str, has: tuple[str, ...], more: str) -> str:
    """How to have a rule allow one more, and none less of those that it has."""
    if len(has) > MAX_NAMED:
        return (
            f"allow it too, with every {option} that it has: dpop-agent key set {key.name} (and "
            f"see: dpop-agent key show {key.name})"
        )
    options = " ".join(f"{option} {one}" for one in (*has, more))
    return f"allow it too: dpop-agent key set {key.name} {options}"
