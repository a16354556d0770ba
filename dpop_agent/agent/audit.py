"""What the audit says: one JSON line for each proof, refusal, creation, change, unlock and
lock.

Of a target it has the origin alone, and of a request no more than is named here: access tokens,
proofs, PINs, paths and queries can't get in by being forgotten.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from dpop_agent.agent.keys import Generation, Key, Keys
from dpop_agent.errors import DPoPAgentError, HtuRefused
from dpop_agent.htu import target
from dpop_agent.peer import Peer
from dpop_agent.proof import is_htm, is_jti, parse_signing_input
from dpop_agent.protocol import ADMIN_METHODS, AGENT_METHODS

DONE = "done"
"""The outcome of what was granted; that of a refusal is the error's type."""

BEGUN = "begun"
"""The outcome of an `unlock` after which somebody still types the PIN."""

COUNTED = "counted"
"""The outcome of refusals that were only counted."""

LOST = "lost"
"""The outcome of lines that couldn't be written."""

CHANGES = frozenset(ADMIN_METHODS) - frozenset(AGENT_METHODS) - {"key.attestation", "socket.list"}
"""Methods that are recorded when they are granted, beside the two that give proofs; the others only
read, or tell the agent what servers said.
"""

_HARMLESS = {"key", "generation", "request_id", "store", "socket", "keys", "cursor"}

_json = json.JSONEncoder(separators=(",", ":")).encode


def who(socket: str | None, peer: Peer | None = None, program: str | None = None) -> str:
    """Where a request came from, as part of a line; no socket where the agent acts by itself."""
    said = None if peer is None else {"uid": peer.uid, "pid": peer.pid or None, "program": program}
    return f'"socket":{_json(socket)},"peer":{_json(said)}'


def signed(method: str, key: Key, generation: Generation, origin: str) -> str:
    """What is the same for all proofs of a generation for an origin, as part of a line."""
    return (
        f'"method":"{method}","outcome":"{DONE}","key":"{key.name}",'
        f'"generation":{generation.generation},"jkt":"{generation.jkt}","origin":"{origin}"'
    )


def proof(who: str, signed: str, *, htm: str, jti: str, took_s: float) -> str:
    """The line of a proof, now.

    Args:
        who: as the function of that name made it.
        signed: the same.
        htm: its HTTP method.
        jti: its jti, as JSON.
        took_s: seconds since the request.
    """
    # htm has no character that JSON escapes.
    us = int(took_s * 1e6)
    return (
        f'{{"time":"{_stamp(time.time())}",{who},{signed},"htm":"{htm}","jti":{jti},"us":{us}}}\n'
    )


def event(
    who: str, method: str | None, outcome: str, *, took_s: float | None = None, **members: Any
) -> str:
    """The line of anything else, now; what it has no member for is null."""
    whole = {
        "method": method,
        "outcome": outcome,
        **dict.fromkeys(("key", "generation", "jkt", "origin", "htm", "jti")),
        **members,
        "us": None if took_s is None else int(took_s * 1e6),
    }
    return f'{{"time":"{_stamp(time.time())}",{who},{_json(whole)[1:]}\n'


def refused(
    method: str | None, params: Mapping[str, Any], error: DPoPAgentError, keys: Keys
) -> dict[str, Any]:
    """The members of a refusal: what was asked for, as far as that was understood."""
    members = {name: params[name] for name in ("key", "generation", "jkt", "htm") if name in params}
    if "signing_input" in params:
        members |= _of_signing_input(params["signing_input"])
    elif "htu" in params:
        members["origin"] = _origin(params["htu"])
    if method in ("proof", "proof.sign"):
        members |= _signer(keys, params)
    if "rule" in error.details:
        members["rule"] = error.details["rule"]
    return members | _more(method, params)


def granted(
    method: str, params: Mapping[str, Any], result: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The members of a change that was made; `key.adopt_all` makes several."""
    if method == "key.adopt_all":
        for adopted in result["adopted"]:
            yield {**adopted, "store": result["store"]}
        return
    members = _more(method, params)
    if method == "store.self_test":
        if result["jkt"] is not None:
            yield members | {name: result[name] for name in ("key", "generation", "jkt")}
        return
    if "key" in params:
        members["key"] = params["key"]
        chosen = result.get("new") or _chosen(method, params, result.get("keys"))
        members |= {"generation": params.get("generation")}
        if chosen is not None:
            members |= {"generation": chosen["generation"], "jkt": chosen["jkt"]}
    yield members


def _chosen(method: str, params: Mapping[str, Any], keys: Any) -> Mapping[str, Any] | None:
    """The generation that an answer is about."""
    generations = keys[0]["generations"] if keys else []
    if method in ("key.create", "key.adopt"):
        return generations[-1] if generations else None
    return next((g for g in generations if g["generation"] == params.get("generation")), None)


def _more(method: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """The store, or the filtered socket and its keys, of a request that is about one, and which
    settings it gives, without their values: the ledger and the log have those.
    """
    if method is None or method not in CHANGES:
        return {}
    more: dict[str, Any] = {}
    if "key" not in params and "store" in ADMIN_METHODS[method]:
        more["store"] = params.get("store")
    if "socket" in params:
        more["filtered"] = params["socket"]
    if "keys" in params:
        more["keys"] = params["keys"]
    if given := sorted(params.keys() - _HARMLESS):
        more["given"] = given
    return more


def counted(since: float, refusals: Mapping[str, int]) -> dict[str, Any]:
    """The members of refusals that were only counted: how many of each type since then."""
    return {"since": _stamp(since), "count": sum(refusals.values()), "refusals": dict(refusals)}


def _signer(keys: Keys, params: Mapping[str, Any]) -> dict[str, Any]:
    """Who would have signed, if somebody would."""
    if "jkt" in params:
        key, generation = keys.by_jkt.get(params["jkt"], (None, None))
    else:
        try:
            key, generation = keys.signer(
                params.get("key"), None, presents_access_token="ath" in params
            )
        except DPoPAgentError:
            return {}
    if key is None or generation is None:
        return {}
    return {"key": key.name, "generation": generation.generation, "jkt": generation.jkt}


def _of_signing_input(text: str) -> dict[str, Any]:
    try:
        _, claims = parse_signing_input(text)
    except ValueError:
        return {}
    htm, jti, htu = (claims.get(name) for name in ("htm", "jti", "htu"))
    return {
        "htm": htm if is_htm(htm) else None,
        "jti": jti if is_jti(jti) else None,
        "origin": _origin(htu) if isinstance(htu, str) else None,
    }


def _origin(htu: str) -> str | None:
    try:
        return target(htu).origin
    except HtuRefused:
        return None


def _stamp(now: float) -> str:
    """RFC 3339 UTC, in microseconds, so that texts sort as times do."""
    second = int(now)
    return f"{_second(second)}.{int((now - second) * 1e6):06d}Z"


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def text(lines: Iterable[str]) -> bytes:
    """Lines as they go into a file: ASCII, as JSON escapes the rest."""
    return "".join(lines).encode("ascii")
