"""What time does to keys: drains end, retired objects are destroyed, rotations fall due. Pure.

Only time counts that the agent was there to observe: what is used while it is off isn't seen, and a
wall clock that jumps would destroy a key whose access tokens live.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from dpop_agent.agent.keys import RETIRED_S, Generation, Key, Keys, State
from dpop_agent.agent.uses import Seen


def drain_left_s(key: Key, generation: Generation, seen: Seen) -> int:
    """Observed seconds until a draining generation is retired, if it isn't used meanwhile."""
    drain_s = key.drain_s if generation.drain_s is None else generation.drain_s
    until_idle = drain_s - seen.idle_s(generation)
    return max(0, min(until_idle, key.max_drain_s - seen.in_state_s(generation)))


def _drained(key: Key, seen: Seen) -> list[Generation]:
    return [
        g for g in key.generations if g.state is State.DRAINING and drain_left_s(key, g, seen) == 0
    ]


def is_drain_over(key: Key, seen: Seen) -> bool:
    """Whether a generation of a key has to be retired."""
    return bool(_drained(key, seen))


def retire(keys: Keys, names: Iterable[str], seen: Seen, now: str) -> Keys:
    """These keys, the generations of those named retired whose drain is over."""
    changed = []
    for name in names:
        key = keys.named(name)
        over = [g.become(State.RETIRED, now) for g in _drained(key, seen)]
        changed.append(key.with_(*over))
    return keys.with_(*changed)


def to_destroy(key: Key, seen: Seen) -> list[Generation]:
    """The retired generations whose time is over; that of shared ones, and in slots, never is."""
    return [g for g in key.generations if _ends(g) and seen.in_state_s(g) >= RETIRED_S]


def _ends(g: Generation) -> bool:
    return g.state is State.RETIRED and not g.shared and g.slot is None


def is_rotation_by_hand(key: Key) -> bool:
    """Whether a rotation needs somebody who has the store's management key."""
    return key.active is not None and key.active.slot is not None and key.staged is None


def is_rotation_due(key: Key, seen: Seen, now: datetime) -> bool:
    """Whether a key's schedule asks for a new generation."""
    return _rotation_left_s(key, seen, now) == 0


def _rotation_left_s(key: Key, seen: Seen, now: datetime) -> float | None:
    """Seconds until a key's rotation is due; None if it has no schedule or nothing to rotate.

    By the wall clock, so that it is caught up after the agent was off, or by observed time, so that
    a clock set back doesn't put it off: whichever comes first. A rotation destroys nothing.
    """
    if key.rotate_every_s is None or key.active is None:
        return None
    since_s = (now - datetime.fromisoformat(key.active.changed)).total_seconds()
    return max(0.0, key.rotate_every_s - max(since_s, seen.in_state_s(key.active)))


def next_end_s(key: Key, seen: Seen) -> int | None:
    """Seconds until the next of a key's drains is over; None if there is none."""
    draining = (g for g in key.generations if g.state is State.DRAINING)
    return min((drain_left_s(key, g, seen) for g in draining), default=None)


def events_s(key: Key, seen: Seen, now: datetime) -> list[float]:
    """Seconds until each rotation and each end of a retired object, which take the key's store."""
    left: list[float] = []
    due = _rotation_left_s(key, seen, now)
    if due is not None and (due or not is_rotation_by_hand(key)):
        left.append(due)
    left += [max(0, RETIRED_S - seen.in_state_s(g)) for g in key.generations if _ends(g)]
    return left
