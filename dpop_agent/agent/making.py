"""Making and destroying generations, in steps that survive the agent's end.

Make: intent in the ledger → generate → read back and self-test in the signer → its jkt in the
ledger, active in the same replace that lets the old one drain. Destroy: destroyed in the ledger,
from when on it signs no more → deleted from the store → noted. What an agent that was killed left
half done, `finish` finishes or undoes once the store is open; it never deletes what the ledger
has no jkt for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from dpop_agent.agent import labels
from dpop_agent.agent.background import Background
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.keys import MAX_GENERATIONS, Generation, Key, Keys, State
from dpop_agent.agent.records import Command, Records, now_text
from dpop_agent.agent.signers import GENERATE_TIMEOUT_S, Signers
from dpop_agent.agent.slots import to_overwrite, ways_to_a_slot
from dpop_agent.agent.starting import START_TIMEOUT_S
from dpop_agent.errors import (
    AuthorizationRequired,
    Busy,
    DPoPAgentError,
    IllegalTransition,
    KeyCompromised,
    KeyMissing,
    KeyPending,
    LimitReached,
    Locked,
    NoSlot,
    ObjectLeft,
    SlotTaken,
    StoreAbsent,
)
from dpop_agent.protocol import TOUCH_TIMEOUT_S

log = logging.getLogger("dpop_agent.making")

FIRST_DELETE_PAUSE_S, LONGEST_DELETE_PAUSE_S = 60.0, 24 * 3600.0
"""Seconds between the tries to delete a key that its store failed to delete, doubled each time."""


class Making:
    """The steps that verbs and upkeep are made of."""

    def __init__(
        self, records: Records, signers: Signers, inventory: Inventory, background: Background
    ) -> None:
        self._records = records
        self._signers = signers
        self._inventory = inventory
        self._background = background
        # A lock is there for as long as somebody has it or waits for it: names can be made up.
        self._by_name: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._overwriting: set[str] = set()
        self._deleting: dict[str, _Deleting] = {}  # by jkt: what isn't deleted yet

    def alone(self, name: str) -> asyncio.Lock:
        """Whoever changes a key holds its lock."""
        return self._by_name.setdefault(name, asyncio.Lock())

    def try_again_to_delete(self, key: Key) -> None:
        """Its store was opened anew, and may be able to delete by now what it couldn't."""
        for generation in key.generations:
            if (deleting := self._deleting.get(generation.jkt)) is not None:
                deleting.impossible = False

    async def generate(self, key: Key, *, command: Command, stage: bool = False) -> None:
        """A new generation: active, the old one draining, or staged."""
        signer = self._signers[key.store]
        old = to_overwrite(self._records.keys, key.store, command[1])
        overwrites = old and old.jkt
        try:
            reserved = await signer.ask(
                "reserve",
                alg=key.alg,
                slot=command[1].get("slot"),
                overwrites=overwrites,
                taken=[g.ref for _, g in self._records.keys.in_slots(key.store) if g is not old],
                limit_s=START_TIMEOUT_S,
            )
        except AuthorizationRequired as e:
            e.details["store"] = key.store
            raise
        except (NoSlot, SlotTaken) as e:
            e.hint = ways_to_a_slot(self._records.keys, key.store, e) or e.hint
            raise
        ref = reserved["ref"]
        pending = as_pending(key, ref, reserved["slot"])
        name, number = key.name, pending.generation
        # The request's id goes with its effect; a key that is new is there from its intent on.
        await self._records.write(
            lambda keys: keys.with_(keys.get(name, key).with_(pending)),
            command=None if name in self._records.keys else command,
        )
        info: Mapping[str, Any] | None
        if old is not None:
            self._overwriting.add(old.jkt)
        try:
            info = await signer.ask(
                "generate",
                ref=ref,
                alg=key.alg,
                label=labels.label_of(name, number),
                overwrites=overwrites,
                limit_s=GENERATE_TIMEOUT_S,
                again=False,
            )
        except (AuthorizationRequired, SlotTaken) as e:  # what is in the slot is somebody else's
            e.details["store"] = key.store
            await self._undo(name, number)
            raise
        except DPoPAgentError as e:
            # Made or not, the ledger doesn't know; the store does.
            try:
                info = await self._found_or_undone(name, number)
            except DPoPAgentError:
                log.warning("%s@%d stays pending until its store can be asked", name, number)
                raise e from None
            if info is None:
                raise
        finally:
            if old is not None:
                self._overwriting.discard(old.jkt)
        await self._made(name, number, info, command=command, stage=stage)
        if key.store in self._inventory.slots:
            await self._background.quietly(key.store, self._inventory.look(key.store))
        if self._records.keys.named(name).generation(number).state is State.COMPROMISED:
            raise KeyCompromised(f"{name} was marked as compromised while {name}@{number} was made")

    async def _made(
        self,
        name: str,
        number: int,
        info: Mapping[str, Any],
        *,
        stage: bool,
        command: Command | None = None,
    ) -> None:
        """A pending generation's object is there: staged, and active unless it is to wait."""
        now = now_text()
        drain_s = command[1].get("drain_s") if command and command[0] == "key.rotate" else None

        def change(keys: Keys) -> Keys:
            key = keys.named(name)
            made = as_staged(key.generation(number), info)
            keys = keys.overwritten(key.store, made.ref, made.jkt, now)
            key = keys.named(name)
            if made.compromised:
                return keys.with_(key.with_(made.become(State.COMPROMISED, now)))
            key = key.with_(made)
            return keys.with_(key if stage else key.activate(number, now, drain_s=drain_s))

        await self._records.write(change, command=command)

    async def activate(self, name: str, number: int, command: Command | None) -> None:
        """Swap, after a look whether the object is there."""
        key = self._records.keys.named(name)
        generation = key.generation(number)
        generation.become(State.ACTIVE, "")
        if generation.jkt in self._overwriting:
            raise IllegalTransition(f"{name}@{number} is being overwritten in its slot")
        if not await self._inventory.find(key, generation):
            raise KeyMissing(f"{name}@{number} can't be activated: its store has no such key")
        drain_s = command[1].get("drain_s") if command else None
        now = now_text()
        await self._records.write(
            lambda keys: keys.with_(keys.named(name).activate(number, now, drain_s=drain_s)),
            command=command,
        )

    async def destroy(
        self, key: Key, generation: Generation, *, command: Command | None = None
    ) -> None:
        name, number, now = key.name, generation.generation, now_text()

        def bury(keys: Keys) -> Keys:
            key = keys.named(name)
            gone = key.generation(number).become(State.DESTROYED, now, object_left=True)
            return keys.with_(key.with_(gone.buried()))

        await self._records.write(bury, command=command)
        if generation.slot is None:
            await self.delete_object(name, number)

    async def delete_object(self, name: str, number: int) -> None:
        """Delete what a destroyed generation left in its store."""
        key = self._records.keys.named(name)
        generation = key.generation(number)
        try:
            # Not again: what a module crashed over is tried after a pause.
            await self._signers[key.store].ask(
                "destroy", ref=generation.ref, jkt=generation.jkt, again=False
            )
        except DPoPAgentError as e:
            if not isinstance(e, (Locked, StoreAbsent, Busy)):  # those are the store's
                deleting = self._deleting.setdefault(generation.jkt, _Deleting())
                deleting.failed(impossible=isinstance(e, ObjectLeft))
            raise
        self._deleting.pop(generation.jkt, None)

        def deleted(keys: Keys) -> Keys:
            key = keys.named(name)
            return keys.with_(key.with_(replace(key.generation(number), object_left=False)))

        await self._records.write(deleted)

    async def settle_pending(self, name: str) -> None:
        """Finish or undo a pending generation of this name, if there is one.

        Raises:
            KeyPending: its store can't be asked.
        """
        for generation in self._records.keys.generations(name):
            if generation.state is State.PENDING:
                try:
                    await self._settle(name, generation.generation)
                except DPoPAgentError as e:
                    raise KeyPending(
                        f"{name}@{generation.generation} is half made, and can't be finished now: "
                        f"{e.message}",
                        hint=e.hint,
                    ) from e

    async def _settle(self, name: str, number: int) -> None:
        """Finish a pending generation whose object is there; undo one whose object isn't.

        A rotation that was cut short leaves it staged: nobody was told of it, and the old one is
        active still. A key's first one becomes active, as was asked.
        """
        info = await self._found_or_undone(name, number)
        if info is not None:
            first = len(self._records.keys.named(name).generations) == 1
            await self._made(name, number, info, stage=not first)

    async def _found_or_undone(self, name: str, number: int) -> Mapping[str, Any] | None:
        """What the store has of a pending generation; if nothing, then nor has the ledger."""
        key = self._records.keys.named(name)
        ref = key.generation(number).ref
        answer = await self._signers[key.store].ask(
            "find", ref=ref, alg=key.alg, self_test=True, anew=True, limit_s=TOUCH_TIMEOUT_S
        )
        found: Mapping[str, Any] | None = answer["key"]
        if found is not None and found["jkt"] in self._records.keys.by_jkt:
            found = None  # what its slot had before
        elif found is None and answer["half"] is not None:
            await self._bury_half(name, number, answer["half"])
            return None
        if found is None:
            await self._undo(name, number)
        return found

    async def _undo(self, name: str, number: int) -> None:
        """Nothing was made: the ledger has nothing either."""

        def undo(keys: Keys) -> Keys:
            rest = keys.named(name).without(number)
            return keys.with_(rest) if rest.generations else keys.without(name)

        await self._records.write(undo)

    async def _bury_half(self, name: str, number: int, jkt: str) -> None:
        """A public key without its private one: in the ledger first, then deleted."""
        now = now_text()

        def bury(keys: Keys) -> Keys:
            key = keys.named(name)
            half = key.generation(number).become(State.STAGED, now, jkt=jkt)
            return keys.with_(key.with_(half.become(State.DESTROYED, now, object_left=True)))

        await self._records.write(bury)
        await self.delete_object(name, number)

    def unfinished(self, key: Key | None) -> list[Generation]:
        """What of a key is half done, and can be tried now."""
        return [
            g
            for g in (key.generations if key else ())
            if g.state is State.PENDING
            or (g.object_left and g.slot is None and self._deleting.get(g.jkt, _DUE).is_due)
        ]

    async def finish(self, name: str) -> None:
        """Whatever of a key is half done."""
        for generation in self.unfinished(self._records.keys.get(name)):
            step = self._settle if generation.state is State.PENDING else self.delete_object
            await self._background.quietly(name, step(name, generation.generation))


class _Deleting:
    """The tries to delete one key's object.

    Attributes:
        impossible: its store can't; it is asked again when it was opened anew.
    """

    def __init__(self) -> None:
        self.impossible = False
        self._pause_s = FIRST_DELETE_PAUSE_S
        self._not_before = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the next try may be made."""
        return not self.impossible and time.monotonic() >= self._not_before

    def failed(self, *, impossible: bool) -> None:
        """One more came to nothing."""
        self.impossible = impossible
        if not impossible:
            self._not_before = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_DELETE_PAUSE_S)


_DUE = _Deleting()


def as_pending(key: Key, ref: str, slot: str | None) -> Generation:
    """A key's next generation, before it is made.

    Raises:
        LimitReached
    """
    if len(key.generations) >= MAX_GENERATIONS:
        raise LimitReached(
            f"the key {key.name} has {MAX_GENERATIONS} generations, as many as one key keeps",
            hint="destroy those that aren't needed any more, or make another key",
        )
    now = now_text()
    return Generation(key.next_number, State.PENDING, ref, created=now, changed=now, slot=slot)


def as_staged(pending: Generation, info: Mapping[str, Any]) -> Generation:
    return pending.become(
        State.STAGED,
        now_text(),
        jkt=info["jkt"],
        jwk=info["jwk"],
        exportable=info["exportable"],
        protection=info["protection"],
        local=info["local"],
        slot=info["slot"],
        touch=info["touch"],
    )
