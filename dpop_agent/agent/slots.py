"""Which of a card's slots may be used again: only those of the agent's own that are over. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpop_agent.agent.keys import Generation, Keys, State
from dpop_agent.errors import DPoPAgentError, InvalidParams, SlotTaken


def may_be_overwritten(generation: Generation) -> bool:
    """Whether its slot may be used again, by command."""
    retired = generation.state is State.RETIRED and not generation.shared
    return retired or generation.state is State.DESTROYED


def to_overwrite(keys: Keys, store: str, params: Mapping[str, Any]) -> Generation | None:
    """The generation whose slot may be used again, where that is asked for.

    Raises:
        SlotTaken: it isn't one that is over.
    """
    if not params.get("reuse_slot"):
        return None
    slot = params.get("slot")
    if slot is None:
        raise InvalidParams("no slot was named to use again", hint="name it, as in --slot 82")
    there = [(key, g) for key, g in keys.in_slots(store) if g.slot == slot]
    for key, g in there:
        if not may_be_overwritten(g):
            raise SlotTaken(
                f"slot {slot} has {key.name}@{g.generation}, which is {g.state}",
                hint="a slot can be used again once its generation is retired or destroyed",
            )
    return there[0][1] if there else None


def ways_to_a_slot(keys: Keys, store: str, error: DPoPAgentError) -> str:
    """A hint for who got no slot: those that are free, those that may be used again."""
    free = error.details.get("free", [])
    over = [(owner, g) for owner, g in keys.in_slots(store) if may_be_overwritten(g)]
    error.details["reusable"] = [g.slot for _, g in over]
    ways = [f"free: --slot {' or '.join(free)}"] if free else []
    if over:
        names = ", ".join(f"{g.slot} ({o.name}@{g.generation}, {g.state})" for o, g in over)
        ways.append(f"to use again, with --slot and --reuse-slot: {names}")
    return "; ".join(ways)
