"""What a key may be used for."""

from __future__ import annotations

from dpop_agent.agent.keys import Key
from dpop_agent.errors import HtuRefused, PolicyRefused
from dpop_agent.htu import Target

MAX_NAMED = 8
"""Origins that an error names."""


def require_allowed(key: Key, target: Target) -> None:
    """Let a target pass that the key was given, or any https or loopback one if it was given none.

    Raises:
        HtuRefused: cleartext http, and the key wasn't given that very origin.
        PolicyRefused: an origin that isn't the key's, or nobody knows which are.
    """
    if key.policy_lost:
        raise PolicyRefused(
            f"what the key {key.name} may be used for was lost with its ledger",
            hint=f"set it anew: dpop-agent key set {key.name} --origin ORIGIN, or --any-origin",
        )
    if target.origin in key.origins:
        return
    if target.cleartext:
        raise HtuRefused(
            f"{target.origin} is cleartext http, where a proof can be read and the answer forged",
            hint=f"use https, or {_allowing(key, target.origin)}",
        )
    if key.origins:
        named = ", ".join(key.origins[:MAX_NAMED])
        raise PolicyRefused(
            f"the key {key.name} isn't for {target.origin}, only for {named}",
            hint=f"use the key that is, or {_allowing(key, target.origin)}",
        )


def _allowing(key: Key, origin: str) -> str:
    """How to have proofs for one origin more, and none less."""
    if not key.origins:  # --origin would take all others from it
        return f"make a key for it: dpop-agent key create NAME --origin {origin}"
    if len(key.origins) > MAX_NAMED:
        return (
            f"allow it too, with every --origin that it has: dpop-agent key set {key.name} (and "
            f"see: dpop-agent key show {key.name})"
        )
    options = " ".join(f"--origin {one}" for one in (*key.origins, origin))
    return f"allow it too: dpop-agent key set {key.name} {options}"
