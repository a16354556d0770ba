"""Keys, generations and stores as the wire shows them (PROTOCOL.md), in pages that fit a line."""

from __future__ import annotations

import json
import os
import re
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from dpop_agent import __version__
from dpop_agent.agent import drains, telling
from dpop_agent.agent.excerpts import Excerpt
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.nonces import Nonces
from dpop_agent.agent.records import Records, now_text
from dpop_agent.agent.signers import Signers
from dpop_agent.agent.uses import Use
from dpop_agent.errors import InvalidParams
from dpop_agent.protocol import (
    ADMIN_METHODS,
    AGENT_METHODS,
    MAX_LINE,
    MAX_REQUESTS,
    MAX_SEEN,
    MAX_TIMEOUT_MS,
    PROTOCOL_VERSION,
)

PAGE = MAX_LINE - 8 * 1024
"""Bytes of a page of keys, the envelope and one generation more left free."""

MAX_UNKNOWN = 32
"""Objects that aren't the agent's, as `status` lists them for each store."""

MAX_DUE = 32
"""Keys whose rotation is due, and keys that are destroyed, as `status` lists them."""

MAX_SERVERS = 32
"""Origins heard of, as `status` lists them: the latest."""

MAX_LISTINGS = 8
"""Listings under way: moments kept for their next pages."""

_UNUSED = Use(None, 0)
_CURSOR = re.compile(r"([0-9]{1,20}):([a-z0-9._-]{1,64})@([0-9]{1,10})")


class Views:
    """What is shown, at the moment that somebody asks."""

    def __init__(
        self, records: Records | Excerpt, signers: Signers, inventory: Inventory, nonces: Nonces
    ) -> None:
        self._records = records
        self._signers = signers
        self._inventory = inventory
        self._nonces = nonces
        self._listings: OrderedDict[int, Keys] = OrderedDict()
        self._moments = 0
        self._started = now_text()

    def swap(self, key: Key, old: Generation | None, new: Generation | None) -> dict[str, Any]:
        return self.key(key) | {
            "new": new and self._generation_members(key, new),
            "old": old and self._generation_members(key, old),
        }

    def key(self, key: Key) -> dict[str, Any]:
        """The key with as many of its newest generations as fit."""
        newest: list[dict[str, Any]] = []
        own = self._key_members(key)
        size = len(json.dumps(own))
        for generation in reversed(key.generations):
            members = self._generation_members(key, generation)
            size += len(json.dumps(members))
            if newest and size > PAGE // 2:
                break
            newest.insert(0, members)
        return {"keys": [own | {"generations": newest}]}

    def page(self, params: dict[str, Any]) -> dict[str, Any]:
        """One page; the cursor names a moment, and the generation that the next one begins with."""
        moment, first = _cursor(params.get("cursor"))
        keys = self._listings.get(moment)
        if keys is None:
            keys, moment = self._records.keys, 0
        names: Iterable[str]
        if "key" in params:
            names = [keys.named(params["key"]).name]
        else:
            names = islice(keys.names, bisect_left(keys.names, first[0]), None)
        page: list[dict[str, Any]] = []
        size = 0
        for name in names:
            key = keys[name]
            listed: list[dict[str, Any]] = []
            for generation in (
                key.generations if params.get("include_destroyed") else _worth_listing(key)
            ):
                if (name, generation.generation) < first:
                    continue
                members = self._generation_members(key, generation)
                size += len(json.dumps(members))
                if not listed:
                    size += len(json.dumps(self._key_members(key)))
                if size > PAGE:
                    if listed:
                        page.append(self._key_members(key) | {"generations": listed})
                    cursor = f"{self._keep(keys, moment)}:{name}@{generation.generation}"
                    return {"keys": page, "cursor": cursor}
                listed.append(members)
            if listed:
                page.append(self._key_members(key) | {"generations": listed})
        return {"keys": page}

    def _keep(self, keys: Keys, moment: int) -> int:
        """Remember a moment's keys for the next page, so that no page contradicts another."""
        if not moment:
            self._moments += 1
            moment = self._moments
        self._listings[moment] = keys
        self._listings.move_to_end(moment)
        if len(self._listings) > MAX_LISTINGS:
            self._listings.popitem(last=False)
        return moment

    def _key_members(self, key: Key) -> dict[str, Any]:
        signer = self._signers.get(key.store)
        return {
            "key": key.name,
            "store": key.store,
            "store_state": None if signer is None else signer.state,
            "alg": key.alg,
            **key.rules.members(),
            "allow_sign_proof": key.allow_sign_proof,
            "rotate_every_s": key.rotate_every_s,
            "drain_s": key.drain_s,
            "max_drain_s": key.max_drain_s,
            "rotation_due": drains.is_rotation_due(key, self._records.seen, datetime.now(UTC)),
            "touch": key.touch,
            **({"policy_lost": True} if key.policy_lost else {}),
        }

    def _generation_members(self, key: Key, generation: Generation) -> dict[str, Any]:
        seen = self._records.seen
        use = self._records.uses.get(generation.jkt, _UNUSED)
        draining = generation.state is State.DRAINING
        return {
            "generation": generation.generation,
            "jkt": generation.jkt or None,
            "state": generation.state,
            "jwk": dict(generation.jwk),
            "exportable": generation.exportable,
            "protection": generation.protection,
            "local": _is_local(generation),
            "missing": generation.jkt in self._inventory.missing,
            "shared": generation.shared,
            "slot": generation.slot,
            "object_left": generation.object_left,
            "touch": generation.touch,
            "created": generation.created,
            "changed": generation.changed,
            "last_used": use.at,
            "origins_used": use.origins,
            "origins_left_out": use.left_out,
            "drain_left_s": drains.drain_left_s(key, generation, seen) if draining else None,
        }

    def status(self, *, agent: Mapping[str, Any], proofs: int) -> dict[str, Any]:
        """The answer to `status`; `agent` are the members that are the agent's own."""
        return self._status(agent=agent, proofs=proofs, stores=self.stores())

    def status_of_own(self, *, proofs: int) -> dict[str, Any]:
        """The answer on a filtered socket: whether its keys can sign, and what was said there."""
        own = {key.store for key in self._records.keys.values()}
        stores = [
            {
                "store": name,
                "state": signer.state,
                "reason": told and told.message,
                "hint": told and told.hint,
            }
            for name, signer in self._signers.items()
            if name in own
            for told in (signer.error and telling.error(signer.error),)
        ]
        return self._status(agent={}, proofs=proofs, stores=stores)

    def _status(
        self, *, agent: Mapping[str, Any], proofs: int, stores: list[dict[str, Any]]
    ) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "agent": __version__,
            "protocol": PROTOCOL_VERSION,
            "pid": os.getpid(),
            "started": self._started,
            "proofs": proofs,
            **agent,
            "stores": stores,
            "rotations_due": list(self._records.rotations_due[:MAX_DUE]),
            "destroyed": list(self._records.destroyed[:MAX_DUE]),
            "origins": [
                {
                    "origin": origin,
                    "nonce_age_s": None if server.nonce is None else int(now - server.nonce_at),
                    "clock_offset_s": (
                        None if server.clock_offset_s is None else round(server.clock_offset_s)
                    ),
                    "iat_refused_age_s": (
                        None if server.iat_refused_at is None else int(now - server.iat_refused_at)
                    ),
                }
                for origin, server in list(self._nonces)[-MAX_SERVERS:]
            ],
            "origins_count": len(self._nonces),
        }

    def stores(self) -> list[dict[str, Any]]:
        return [
            {
                "store": name,
                "type": signer.config.type,
                "state": signer.state,
                "reason": signer.error and signer.error.message,
                "hint": signer.error and signer.error.hint,
                "module": signer.config.module,
                "backend": signer.config.backend,
                "label": signer.place.get("label"),
                "serial": signer.place.get("serial"),
                "model": signer.place.get("model"),
                "signer_pid": signer.pid,
                "signers": signer.config.signers,
                "signer_pids": signer.pids,
                "signers_reason": signer.fewer and signer.fewer.message,
                "signers_hint": signer.fewer and signer.fewer.hint,
                "slots": self._inventory.slots.get(name) if signer.state == "ready" else None,
                "unknown": self._inventory.unknown.get(name, [])[:MAX_UNKNOWN],
                "unknown_count": len(self._inventory.unknown.get(name, [])),
            }
            for name, signer in self._signers.items()
        ]


def _worth_listing(key: Key) -> Iterable[Generation]:
    """Those that aren't destroyed; of a key that is, whose name is taken, what stands for it."""
    if not key.is_destroyed:
        return (g for g in key.generations if g.state is not State.DESTROYED)
    return (g for g in key.generations if g.object_left or g is key.generations[-1])


def _is_local(generation: Generation) -> bool | None:
    """As its store tells; of one that doesn't, what isn't shared was made there by the agent."""
    if generation.local is None and generation.jkt and not generation.shared:
        return True
    return generation.local


def hello() -> dict[str, Any]:
    """The answer to `hello`."""
    return {
        "protocol": PROTOCOL_VERSION,
        "agent": __version__,
        "methods": list(AGENT_METHODS),
        "admin_methods": [name for name in ADMIN_METHODS if name not in AGENT_METHODS],
        "limits": {
            "line": MAX_LINE,
            "timeout_ms": MAX_TIMEOUT_MS,
            "requests": MAX_REQUESTS,
            "seen": MAX_SEEN,
        },
    }


def _cursor(text: str | None) -> tuple[int, tuple[str, int]]:
    """A moment, and the key and generation that its page begins with."""
    if text is None:
        return 0, ("", 0)
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise InvalidParams("key.list: cursor isn't one of an earlier answer", hint="leave it out")
    moment, name, number = found.groups()
    return int(moment), (name, int(number))
