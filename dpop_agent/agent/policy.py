"""What a key may be used for."""

from __future__ import annotations

from dpop_agent.agent.keys import Key
from dpop_agent.errors import HtuRefused, PolicyRefused
from dpop_agent.htu import Target


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
            hint=f"use https, or allow it: dpop-agent key set {key.name} --origin {target.origin}",
        )
    if key.origins:
        raise PolicyRefused(
            f"the key {key.name} isn't for {target.origin}, only for {', '.join(key.origins[:8])}",
            hint="use the key that is, or see: dpop-agent key set",
        )
