"""What stores have of what the ledger says: found, missing, unknown.

An exception means unknown, never missing; what is missing is never forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from dpop_agent.agent.background import gently
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.labels import named_by
from dpop_agent.agent.records import Records
from dpop_agent.agent.signers import Signers

log = logging.getLogger("dpop_agent.inventory")


class Inventory:
    """What was seen in the stores, as far as they were asked.

    Attributes:
        missing: by jkt, generations that their store answered for and doesn't have.
        unknown: by store, private keys that the ledger doesn't have.
        slots: by store, how many places for keys there are and are free.
    """

    def __init__(self, records: Records, signers: Signers) -> None:
        self._records = records
        self._signers = signers
        self.missing: set[str] = set()
        self.unknown: dict[str, list[dict[str, str]]] = {}
        self.slots: dict[str, dict[str, int]] = {}
        self._one_listing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def find(self, key: Key, generation: Generation, *, looking: bool = False) -> bool:
        """Whether the generation's object is in its store; `looking` yields to who signs.

        Raises:
            StoreUnusable: unknown, which isn't the same as no.
        """
        answer = await self._signers[key.store].ask(
            "find",
            ref=generation.ref,
            alg=key.alg,
            self_test=False,
            anew=False,
            looking=looking,
        )
        found = answer["key"] is not None and answer["key"]["jkt"] == generation.jkt
        self._note(key, generation, is_there=found)
        return found

    def _note(self, key: Key, generation: Generation, *, is_there: bool) -> None:
        _, now = self._records.keys.by_jkt.get(generation.jkt, (key, generation))
        if is_there or now.state is State.DESTROYED:
            self.missing.discard(generation.jkt)
        elif generation.jkt not in self.missing:
            self.missing.add(generation.jkt)
            log.warning(
                "%s@%d is missing: its store has no such key (jkt %s)",
                key.name,
                generation.generation,
                generation.jkt,
            )

    async def look(self, store: str, *, anew: bool = False) -> list[tuple[Key, Generation]]:
        """See which generations are missing and which objects nobody knows, by one listing.

        `anew` has the store looked at as it is now, whatever its module saw before.

        Returns the generations that a listing doesn't tell of: `find` does.

        Raises:
            StoreUnusable
        """
        async with self._one_listing[store]:
            keys = self._records.keys  # what is made from now on may come too late for the listing
            listed = await self._list(store, anew=anew)
        there: defaultdict[str, list[str | None]] = defaultdict(list)
        for item in listed or ():
            there[item["ref"]].append(item["jkt"])
        untold = []
        async for key in gently(keys.values()):
            for g in key.generations if key.store == store else ():
                if g.state in (State.PENDING, State.DESTROYED):
                    continue
                seen = there[g.ref] if listed is not None else [None]
                if len(seen) > 1 or seen == [None]:
                    untold.append((key, g))
                else:
                    self._note(key, g, is_there=seen == [g.jkt])
        if listed is not None:
            await self._see_unknown(store, listed)
        return untold

    async def _list(self, store: str, *, anew: bool) -> list[dict[str, Any]] | None:
        """What a store has; None if it can't tell."""
        signer = self._signers[store]
        answer = await signer.ask("objects", begin=True, anew=anew, looking=True)
        listed: list[dict[str, Any]] | None = answer["objects"]
        while listed is not None and answer["more"]:
            answer = await signer.ask("objects", begin=False, anew=False, looking=True)
            listed += answer["objects"]
        if listed is not None and answer["slots"] is not None:
            await self._see_empty_slots(store, [found["ref"] for found in listed])
            self.slots[store] = answer["slots"]
        return listed

    async def _see_unknown(self, store: str, listed: list[dict[str, Any]]) -> None:
        ours: dict[str, str] = {}
        keys = self._records.keys
        async for key in gently(keys.values()):
            _add_refs(ours, store, key)
        for key in self._records.keys.changed_from(keys):
            _add_refs(ours, store, key)
        # Of the generations that had a slot the one that is there now.
        ours |= {g.ref: g.jkt for _, g in self._records.keys.in_slots(store)}
        before = self.unknown.get(store)
        self.unknown[store] = [
            found
            for found in listed
            if found["ref"] not in ours or found["jkt"] not in (None, ours[found["ref"]])
        ]
        if self.unknown[store] and self.unknown[store] != before:
            log.info(
                "store %s has %d private key%s that the ledger doesn't list, left alone%s",
                store,
                len(self.unknown[store]),
                "" if len(self.unknown[store]) == 1 else "s",
                "; if the ledger was lost: dpop-agent key adopt --all"
                if any(named_by(found["label"]) for found in self.unknown[store])
                else "",
            )

    async def _see_empty_slots(self, store: str, there: Collection[str]) -> None:
        """Destroyed generations whose slots somebody emptied have left nothing any more."""
        gone = [
            (key, g)
            for key, g in self._records.keys.in_slots(store)
            if g.state is State.DESTROYED and g.ref not in there
        ]

        def emptied(keys: Keys) -> Keys:
            for key, g in gone:
                current = keys.named(key.name)
                left = replace(current.generation(g.generation), object_left=False)
                keys = keys.with_(current.with_(left))
            return keys

        if gone:
            await self._records.write(emptied)

    def forget_unknown(self, store: str, *refs: str) -> None:
        self.unknown[store] = [f for f in self.unknown.get(store, []) if f["ref"] not in refs]


def _add_refs(ours: dict[str, str], store: str, key: Key) -> None:
    """Note what a store has of a key, or had; the former goes before."""
    if key.store == store:
        for g in sorted(key.generations, key=lambda g: g.is_there):
            ours[g.ref] = g.jkt
