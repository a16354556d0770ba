"""What time does to keys: drains end, retired objects are destroyed, rotations fall due. Pure.

Only time counts that the agent was there to observe: what is used while it is off isn't seen, and a
wall clock that jumps would destroy a key whose access tokens live.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from dpop_agent.agent.keys import RETIRED_S, Generation, Key, Keys, State

_COUNTED = frozenset({State.ACTIVE, State.DRAINING, State.RETIRED})


def observe(keys: Keys, seconds: int) -> Keys:
    """These keys after that much observed time."""
    for key in keys.values():
        counted = [
            replace(g, observed_s=g.observed_s + seconds, idle_s=g.idle_s + seconds)
            for g in key.generations
            if g.state in _COUNTED
        ]
        keys = keys.with_(key.with_(*counted))
    return keys


def after_unclean_stop(keys: Keys) -> Keys:
    """Its last minute wasn't saved: for all that is known, every draining generation was used."""
    for key in keys.values():
        draining = [replace(g, idle_s=0) for g in key.generations if g.state is State.DRAINING]
        keys = keys.with_(key.with_(*draining))
    return keys


def retire(keys: Keys, now: str) -> Keys:
    """These keys, the generations retired whose drain is over."""
    for key in keys.values():
        over = [
            g.become(State.RETIRED, now)
            for g in key.generations
            if g.state is State.DRAINING and key.drain_left_s(g) == 0
        ]
        keys = keys.with_(key.with_(*over))
    return keys


def to_destroy(keys: Keys) -> Iterator[tuple[Key, Generation]]:
    """The retired generations whose time is over; that of shared ones, and in slots, never is."""
    for key in keys.values():
        for g in key.generations:
            if _ends(g) and g.observed_s >= RETIRED_S:
                yield key, g


def _ends(g: Generation) -> bool:
    return g.state is State.RETIRED and not g.shared and g.slot is None


def is_rotation_by_hand(key: Key) -> bool:
    """Whether a rotation needs somebody who has the store's management key."""
    return key.active is not None and key.active.slot is not None and key.staged is None


def is_rotation_due(key: Key, now: datetime) -> bool:
    """Whether a key's schedule asks for a new generation."""
    return _rotation_left_s(key, now) == 0


def _rotation_left_s(key: Key, now: datetime) -> float | None:
    """Seconds until a key's rotation is due; None if it has no schedule or nothing to rotate.

    By the wall clock, so that it is caught up after the agent was off, or by observed time, so that
    a clock set back doesn't put it off: whichever comes first. A rotation destroys nothing.
    """
    if key.rotate_every_s is None or key.active is None:
        return None
    since_s = (now - datetime.fromisoformat(key.active.changed)).total_seconds()
    return max(0.0, key.rotate_every_s - max(since_s, key.active.observed_s))


def next_event_s(keys: Keys, now: datetime) -> float | None:
    """Seconds until the next of all these; None if nothing is due ever."""
    left: list[float] = []
    for key in keys.values():
        due = _rotation_left_s(key, now)
        if due is not None and (due or not is_rotation_by_hand(key)):
            left.append(due)
        for g in key.generations:
            if g.state is State.DRAINING:
                left.append(key.drain_left_s(g))
            elif _ends(g):
                left.append(max(0, RETIRED_S - g.observed_s))
    return min(left, default=None)
