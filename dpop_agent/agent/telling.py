"""What leaves the agent on a filtered socket: whatever isn't named here stays inside.

Errors of stores, of the configuration and of the audit say where things are: paths, serials,
labels, what a module answered. That is for whoever runs the agent. An error goes out in its own
words only if these are made of what was asked and of the socket's own keys; any other, a new one
too, goes out with its type and a sentence from here. Of results and events those members go out
that are named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpop_agent.errors import (
    AgentUnavailable,
    Busy,
    ConsentRefused,
    DPoPAgentError,
    HtuRefused,
    InvalidParams,
    InvalidRequest,
    JktRequired,
    KeyCompromised,
    KeyDestroyed,
    KeyMismatch,
    KeyMissing,
    KeyPending,
    KeyRefused,
    KeyRetired,
    KeyStaged,
    KeySuspended,
    KeyUnknown,
    LeaseLost,
    LeaseUnavailable,
    Locked,
    MethodNotFound,
    NoActive,
    NotRecorded,
    ParseError,
    PinRefused,
    PolicyRefused,
    ProtocolError,
    RateExceeded,
    SignerFailed,
    StoreAbsent,
    StoreInUse,
    StoreUnknown,
    StoreUnusable,
    Timeout,
    TooManyConnections,
)

IN_THEIR_OWN_WORDS = frozenset(
    {
        AgentUnavailable,
        HtuRefused,
        InvalidParams,
        InvalidRequest,
        JktRequired,
        KeyCompromised,
        KeyDestroyed,
        KeyMismatch,
        KeyPending,
        KeyRetired,
        KeyStaged,
        KeySuspended,
        KeyUnknown,
        LeaseLost,
        LeaseUnavailable,
        MethodNotFound,
        NoActive,
        ParseError,
        PolicyRefused,
        RateExceeded,
        TooManyConnections,
    }
)
"""Errors made of what was asked and of the socket's own keys; one that is derived isn't meant."""

DETAILS = frozenset({"choices", "rule"})
"""Those of their `details` that go out."""

_ASK = "ask whoever runs the agent, who sees why with: dpop-agent status"

_SENTENCES: dict[type[DPoPAgentError], tuple[str, str]] = {
    DPoPAgentError: ("the agent can't do that now", _ASK),
    ProtocolError: ("the agent met an unexpected error", _ASK),
    KeyMissing: ("the key isn't in its store", _ASK),
    KeyRefused: ("the key's store doesn't sign with it", _ASK),
    ConsentRefused: (
        "the key wants a person's consent, which wasn't given",
        "ask whoever runs the agent to agree",
    ),
    StoreUnusable: ("the key's store can't sign now", _ASK),
    Locked: ("the key's store is locked", _ASK),
    PinRefused: ("a login to the key's store was refused, and none is tried by itself", _ASK),
    StoreAbsent: ("the key's store isn't there", _ASK),
    StoreInUse: ("another program holds the key's store for itself alone", _ASK),
    SignerFailed: ("the key's store doesn't work now", _ASK),
    StoreUnknown: ("the key's store isn't in the agent's configuration any more", _ASK),
    NotRecorded: ("the audit can't be written, and no proof leaves without its line", _ASK),
    Busy: (
        "as many requests wait for the key's store as may",
        "try again later, with fewer at once",
    ),
    Timeout: (
        "it wasn't done in time: the store, the touch that it wants, or the rest of a line",
        "try again; timeout_ms is how long you wait",
    ),
}
"""Message and hint of the others, by the nearest class that has one."""

_Shape = Mapping[str, Any]  # a member's name -> None, or the shape of what is in it

_GENERATION = dict.fromkeys(
    (
        *("generation", "jkt", "state", "jwk", "exportable", "protection", "local", "missing"),
        *("shared", "slot", "object_left", "touch", "created", "changed", "last_used"),
        *("origins_used", "origins_left_out", "drain_left_s"),
    )
)
_KEY: _Shape = {
    **dict.fromkeys(
        (
            *("key", "store", "store_state", "alg", "origins", "methods", "paths", "require_ath"),
            *("rate", "confirm_s", "allow_sign_proof", "rotate_every_s", "drain_s"),
            *("max_drain_s", "rotation_due", "touch", "policy_lost"),
        )
    ),
    "generations": _GENERATION,
}
_RESULTS: Mapping[str, _Shape] = {
    "hello": dict.fromkeys(("protocol", "agent", "methods", "admin_methods", "limits")),
    "proof.sign": dict.fromkeys(("signature",)),
    "key.list": {"keys": _KEY, "cursor": None},
    "lease": dict.fromkeys(("lease", "fence", "previous", "waited", "lasts_ms")),
    "status": {
        **dict.fromkeys(
            (
                *("agent", "protocol", "pid", "started", "proofs", "rotations_due", "destroyed"),
                *("origins", "origins_count"),
            )
        ),
        "stores": dict.fromkeys(("store", "state", "reason", "hint")),
    },
}
_EVENTS: Mapping[str, _Shape] = {
    "touch": dict.fromkeys(("id", "key", "jkt", "store", "consent")),
}


def error(e: DPoPAgentError) -> DPoPAgentError:
    """What is told of an error: itself, or one of its type that says what may be known there."""
    kind = type(e)
    message, hint = e.message, e.hint
    if kind in IN_THEIR_OWN_WORDS:
        if e.details.keys() <= DETAILS:
            return e
    else:
        message, hint = next(_SENTENCES[cls] for cls in kind.__mro__ if cls in _SENTENCES)
    details = {name: value for name, value in e.details.items() if name in DETAILS}
    told = kind.__new__(kind)  # some kinds have a signature of their own
    DPoPAgentError.__init__(
        told, message, hint=hint, retry=e.retry, retry_after_ms=e.retry_after_ms, details=details
    )
    return told


def result(method: str, members: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a result."""
    return _only(members, _RESULTS.get(method, {}))


def event(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of an event."""
    return _only(params, _EVENTS.get(name, {}))


def _only(members: Mapping[str, Any], shape: _Shape) -> dict[str, Any]:
    only = {}
    for name, value in members.items():
        if name in shape:
            inner = shape[name]
            only[name] = value if inner is None else [_only(item, inner) for item in value]
    return only
