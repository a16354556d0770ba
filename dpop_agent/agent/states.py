"""The states of a store, as one table. Pure.

Theory of operation

A store is in one `State`; what happens to it is an `Event`, and `TRANSITIONS` says what it becomes.
An event that the table doesn't have for a state raises, and nothing happens.

    DOWN ──START──► STARTING ──OPENED──► READY ──RELEASE──► RELEASED
      ▲                │                 │   ◄─────USE─────    │
      ├─────FAILED─────┘                 └───────BREAK─────────┤
      └───────────────────────DIED────────────────────── FAILING

    LOCKED ──UNLOCK──► UNLOCKING ──OPENED──► READY

DOWN has no process: the next request starts one, or is refused with `error` until it is time for
another try. STARTING and UNLOCKING load the module and log in; while somebody types a PIN requests
are refused. READY takes frames; RELEASED does too, and takes the place again with the first.
FAILING said that it can't be trusted any more and is about to end: what can be repeated waits for
the next process. LOCKED opens for nobody but `unlock`: that is where `lock` leads, and, for a PIN
that somebody types, a signer's end as well, for the PIN went with it. CLOSED is for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto


class State(Enum):
    """What a store is, to the agent."""

    DOWN = auto()
    STARTING = auto()
    LOCKED = auto()
    UNLOCKING = auto()
    READY = auto()
    RELEASED = auto()
    FAILING = auto()
    CLOSED = auto()


class Event(Enum):
    """What happens to a store."""

    START = auto()
    UNLOCK = auto()  # somebody is there to type
    ALLOW = auto()  # may be opened without anybody again
    OPENED = auto()
    FAILED = auto()
    WANT_PIN = auto()  # nothing but a PIN that somebody types opens it
    RELEASE = auto()
    USE = auto()
    BREAK = auto()
    DIED = auto()
    LOCK = auto()
    CLOSE = auto()


TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.DOWN: {
        Event.START: State.STARTING,
        Event.ALLOW: State.DOWN,
        Event.WANT_PIN: State.LOCKED,
        Event.LOCK: State.LOCKED,
        Event.CLOSE: State.CLOSED,
    },
    State.STARTING: {
        Event.OPENED: State.READY,
        Event.FAILED: State.DOWN,
        Event.ALLOW: State.DOWN,
        Event.WANT_PIN: State.LOCKED,
        Event.LOCK: State.LOCKED,
        Event.CLOSE: State.CLOSED,
    },
    State.LOCKED: {
        Event.UNLOCK: State.UNLOCKING,
        Event.ALLOW: State.DOWN,
        Event.WANT_PIN: State.LOCKED,
        Event.LOCK: State.LOCKED,
        Event.CLOSE: State.CLOSED,
    },
    State.UNLOCKING: {
        Event.OPENED: State.READY,
        Event.FAILED: State.DOWN,
        Event.WANT_PIN: State.LOCKED,
        Event.LOCK: State.LOCKED,
        Event.CLOSE: State.CLOSED,
    },
    State.READY: {
        Event.RELEASE: State.RELEASED,
        Event.BREAK: State.FAILING,
        Event.DIED: State.DOWN,
        Event.WANT_PIN: State.LOCKED,
        Event.LOCK: State.LOCKED,
        Event.CLOSE: State.CLOSED,
    },
    State.RELEASED: {
        Event.USE: State.READY,
        Event.BREAK: State.FAILING,
        Event.DIED: State.DOWN,
        Event.WANT_PIN: State.LOCKED,
        Event.LOCK: State.LOCKED,
        Event.CLOSE: State.CLOSED,
    },
    State.FAILING: {
        Event.DIED: State.DOWN,
        Event.ALLOW: State.DOWN,
        Event.WANT_PIN: State.LOCKED,
        Event.LOCK: State.LOCKED,
        Event.CLOSE: State.CLOSED,
    },
    State.CLOSED: {Event.LOCK: State.CLOSED, Event.CLOSE: State.CLOSED},
}

OPEN = (State.READY, State.RELEASED)
"""Those in which frames are taken."""

REFUSING = (State.DOWN, State.LOCKED, State.UNLOCKING)
"""Those in which a request is refused, or starts a process first."""


class IllegalEvent(Exception):
    """An event that can't happen in the state that the store is in: a mistake of this program."""


def after(state: State, event: Event) -> State:
    """What a store becomes.

    Raises:
        IllegalEvent
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalEvent(f"{event.name} in {state.name}") from None
