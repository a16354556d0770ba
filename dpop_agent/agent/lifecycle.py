"""Making, rotating, blocking and destroying keys, in steps that survive the agent's end.

Make: intent in the ledger → generate → read back and self-test in the signer → its jkt in the
ledger, active in the same replace that lets the old one drain. Destroy: destroyed in the ledger,
from when on it signs no more → deleted from the store → noted. What an agent that was killed left
half done, `reconcile` finishes or undoes once the store is open; it never deletes what the ledger
has no jkt for.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from dpop_agent.agent import drains
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.records import Asked, Records, now_text
from dpop_agent.agent.signers import GENERATE_TIMEOUT_S, START_TIMEOUT_S, Signer
from dpop_agent.errors import (
    AuthorizationRequired,
    DPoPAgentError,
    IllegalTransition,
    InvalidParams,
    KeyCompromised,
    KeyExists,
    KeyMissing,
    KeyPending,
    NoSlot,
    NotDurable,
    ObjectLeft,
    SlotTaken,
    StoreUnknown,
)
from dpop_agent.htu import origin_of
from dpop_agent.jose import ALGORITHMS
from dpop_agent.protocol import TOUCH_TIMEOUT_S

log = logging.getLogger("dpop_agent.lifecycle")

SAVE_S = 60.0
"""Seconds between saves of what was observed."""

MIN_TICK_S = 0.5
"""Seconds between looks at what is due, at the least."""

BLOCK_AGAIN_S = 1.0
"""Seconds between tries to write a block that couldn't be written."""

_SETTINGS = ("allow_sign_proof", "rotate_every_s", "drain_s", "max_drain_s", "touch")


class Lifecycle:
    """What is done to keys.

    Args:
        records: the keys.
        signers: by the names of their stores; the caller may change it later.
    """

    def __init__(self, records: Records, signers: Mapping[str, Signer]) -> None:
        self._records = records
        self._signers = signers
        self._by_name: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._said: dict[str, str] = {}
        self.missing: set[str] = set()
        self.unknown: dict[str, list[dict[str, str]]] = {}
        self.slots: dict[str, dict[str, int]] = {}
        self._overwriting: set[str] = set()
        self._undeletable: set[str] = set()  # by jkt: asked for anew when the store is opened

    @property
    def keys(self) -> Keys:
        """The keys now."""
        return self._records.keys

    def signer_of(self, key: Key) -> Signer:
        """The signer of the key's store.

        Raises:
            StoreUnknown: the configuration doesn't have that store any more.
        """
        return self.signer(key.store)

    def signer(self, store: str) -> Signer:
        """A store's signer.

        Raises:
            StoreUnknown: the configuration doesn't have it.
        """
        if store not in self._signers:
            raise StoreUnknown(f"there is no store {store} in the configuration")
        return self._signers[store]

    # Verbs; each takes the wire's parameters and raises what errors.py has for it

    async def create(self, params: Mapping[str, Any], default_store: str) -> Key:
        """`key.create`: a new key with one generation, which is active."""
        name = params["key"]
        async with self._by_name[name]:
            await self._settle_pending(name)
            if self._records.repeated("key.create", params) and name in self.keys:
                return self.keys.named(name)
            self.keys.require_new(name)
            key = self._new_key(params, default_store, alg=params.get("alg", "ES256"))
            await self._generate(key, asked=("key.create", params))
            return self.keys.named(name)

    async def rotate(self, params: Mapping[str, Any]) -> tuple[Key, Generation | None]:
        """`key.rotate`: the staged generation, or a new one, becomes active; the old one drains.

        Returns the key, and the generation that drains from now on, if one does.
        """
        name, stage = params["key"], params.get("stage", False)
        async with self._by_name[name]:
            await self._settle_pending(name)
            key = self.keys.named(name)
            if self._records.repeated("key.rotate", params):
                return key, _last_draining(key)
            if "slot" in params and key.staged is not None and not stage:
                raise IllegalTransition(
                    f"{name}@{key.staged.generation} is staged, and would become active",
                    hint=f"leave slot out, or activate it: "
                    f"dpop-agent key activate {name}@{key.staged.generation}",
                )
            if stage and key.staged is not None:
                raise IllegalTransition(
                    f"{name}@{key.staged.generation} is staged already",
                    hint=f"activate it: dpop-agent key activate {name}@{key.staged.generation}",
                )
            if key.staged is None:
                await self._generate(key, asked=("key.rotate", params), stage=stage)
            else:
                await self._activate(name, key.staged.generation, ("key.rotate", params))
            now = self.keys.named(name)
            return now, None if stage else _drained(key, now)

    async def activate(self, params: Mapping[str, Any]) -> tuple[Key, Generation | None]:
        """`key.activate`: swaps a staged, draining or retired generation with the active one."""
        name, number = params["key"], params["generation"]
        async with self._by_name[name]:
            await self._settle_pending(name)
            key = self.keys.named(name)
            if self._records.repeated("key.activate", params):
                return key, _last_draining(key)
            if key.generation(number).state is State.SUSPENDED:
                raise IllegalTransition(
                    f"{name}@{number} is suspended",
                    hint=f"resume it: dpop-agent key resume {name}@{number}",
                )
            await self._activate(name, number, ("key.activate", params))
            now = self.keys.named(name)
            return now, _drained(key, now)

    async def suspend(self, params: Mapping[str, Any]) -> Key:
        """`key.suspend`: reversible; signs no more until `key.resume`."""
        return await self._step("key.suspend", params, _suspend)

    async def resume(self, params: Mapping[str, Any]) -> Key:
        """`key.resume`: active again if no other is, else draining."""
        return await self._step("key.resume", params, _resume)

    async def compromise(self, params: Mapping[str, Any]) -> Key:
        """`key.compromise`: blocks at once and for ever; without a generation, all that live.

        Raises:
            NotDurable: blocked, but the ledger couldn't be written; that is tried again.
        """
        # No lock before the block: a rotation that waits for a card must not delay it.
        name = params["key"]
        key = self.keys.named(name)
        if "generation" in params:
            chosen = [key.generation(params["generation"])]
            if chosen[0].state is not State.COMPROMISED:
                chosen[0].become(State.COMPROMISED, "")
        else:
            chosen = [g for g in key.generations if g.state is not State.DESTROYED]
        self._records.block(name, chosen)
        for g in chosen:
            log.warning(
                "%s@%d is compromised, jkt %s", name, g.generation, g.jkt or "not known yet"
            )
        if self._records.repeated("key.compromise", params):
            return self.keys.named(name)
        try:
            await self._records.write(lambda keys: keys, asked=("key.compromise", params))
        except NotDurable as e:
            self._in_background(self._write_blocks())
            raise NotDurable(
                f"{name} is blocked, but that isn't durable: {e.message}",
                hint="it is tried again until it is; keep the agent running, and free space",
            ) from e
        return self.keys.named(name)

    async def destroy(self, params: Mapping[str, Any]) -> Key:
        """`key.destroy`: signs no more, then its object is deleted. Can't be undone.

        Raises:
            StoreUnusable: before anything was changed if the store isn't there; after it if the
                store fails then: the generation stays destroyed, its object is deleted later.
        """
        name, number = params["key"], params["generation"]
        async with self._by_name[name]:
            await self._settle_pending(name)
            key = self.keys.named(name)
            if self._records.repeated("key.destroy", params):
                return key
            generation = key.generation(number)
            generation.become(State.DESTROYED, "")
            if generation.slot is None:
                await self._find(key, generation)
            await self._destroy(key, generation, asked=("key.destroy", params))
            return self.keys.named(name)

    async def adopt(
        self,
        params: Mapping[str, Any],
        default_store: str,
        *,
        on_touch: Callable[[Key, Generation], Callable[[], None] | None],
    ) -> Key:
        """`key.adopt`: an object that is in the store already becomes a staged, shared generation.

        `on_touch` gives what to call if its self-test waits for a touch.

        Raises:
            KeyMissing: the store has no such object.
            KeyExists: the ledger has it already.
        """
        name, ref = params["key"], params["ref"].lower()
        async with self._by_name[name]:
            await self._settle_pending(name)
            if self._records.repeated("key.adopt", params):
                return self.keys.named(name)
            key = self.keys.get(name)
            if key is None:
                key = self._new_key(params, default_store, alg=params.get("alg", "ES256"))
            elif (
                params.get("alg", key.alg) != key.alg or params.get("store", key.store) != key.store
            ):
                raise InvalidParams(
                    f"key.adopt: the key {name} is for {key.alg} in the store {key.store}",
                    hint="adopt the object under another name",
                )
            signer = self.signer_of(key)
            answer = await signer.ask(
                "find", ref=ref, alg=key.alg, self_test=False, anew=True, limit_s=START_TIMEOUT_S
            )
            found = answer["key"]
            if found is None:
                raise KeyMissing(
                    f"the store {key.store} has no private key with the id {ref}",
                    hint="see what it has: dpop-agent status",
                )
            adopted = replace(_staged(_pending(key, ref, None), found), shared=True)
            _require_nobodys(self.keys, key.store, adopted)  # nobody touches in vain
            await signer.ask(
                "sign",
                ref=ref,
                jkt=adopted.jkt,
                alg=key.alg,
                input=secrets.token_urlsafe(),
                on_touch=on_touch(key, adopted),
            )

            def add(keys: Keys) -> Keys:
                _require_nobodys(keys, key.store, adopted)
                return keys.with_(keys.get(name, key).with_(adopted))

            await self._records.write(add, asked=("key.adopt", params))
            self._forget_unknown(key.store, ref)
            log.info("%s@%d is adopted, jkt %s", name, adopted.generation, adopted.jkt)
            return self.keys.named(name)

    async def set(self, params: Mapping[str, Any]) -> Key:
        """`key.set`: what is given is changed, the rest stays."""
        return await self._step("key.set", params, _set)

    async def _step(
        self,
        method: str,
        params: Mapping[str, Any],
        change: Callable[[Key, Mapping[str, Any], str], Key],
    ) -> Key:
        """A verb that changes the ledger alone."""
        name = params["key"]
        async with self._by_name[name]:
            key = self.keys.named(name)
            if self._records.repeated(method, params):
                return key
            now = now_text()
            await self._records.write(
                lambda keys: keys.with_(change(keys.named(name), params, now)),
                asked=(method, params),
            )
            return self.keys.named(name)

    def _new_key(self, params: Mapping[str, Any], default_store: str, *, alg: str) -> Key:
        if alg not in ALGORITHMS:
            raise InvalidParams(
                "alg isn't an algorithm that is known here",
                hint=f"there are: {', '.join(ALGORITHMS)}",
            )
        store = params.get("store", default_store)
        self.signer(store)
        new = Key(name=params["key"], store=store, alg=alg, created=now_text())
        return replace(new, **_settings(params))

    # Steps

    async def _generate(self, key: Key, *, asked: Asked, stage: bool = False) -> None:
        """A new generation: active, the old one draining, or staged."""
        signer = self.signer_of(key)
        old = self._to_overwrite(key.store, asked[1])
        overwrites = old and old.jkt
        try:
            reserved = await signer.ask(
                "reserve",
                alg=key.alg,
                slot=asked[1].get("slot"),
                overwrites=overwrites,
                taken=[
                    g.ref
                    for _, g in self.keys.in_store(key.store)
                    if g.slot is not None and g is not old
                ],
                limit_s=START_TIMEOUT_S,
            )
        except AuthorizationRequired as e:
            e.details["store"] = key.store
            raise
        except (NoSlot, SlotTaken) as e:
            e.hint = self._ways_to_a_slot(key, e) or e.hint
            raise
        ref = reserved["ref"]
        pending = _pending(key, ref, reserved["slot"])
        name, number = key.name, pending.generation
        # The request's id goes with its effect; a key that is new is there from its intent on.
        await self._records.write(
            lambda keys: keys.with_(keys.get(name, key).with_(pending)),
            asked=None if name in self.keys else asked,
        )
        info: Mapping[str, Any] | None
        if old is not None:
            self._overwriting.add(old.jkt)
        try:
            info = await signer.ask(
                "generate",
                ref=ref,
                alg=key.alg,
                label=f"dpop-agent {name}@{number}",
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
        await self._made(name, number, info, asked=asked, stage=stage)
        if key.store in self.slots:
            await self._quietly(key.store, self._list_unknown(key.store))
        if self.keys.named(name).generation(number).state is State.COMPROMISED:
            raise KeyCompromised(f"{name} was marked as compromised while {name}@{number} was made")

    def _to_overwrite(self, store: str, params: Mapping[str, Any]) -> Generation | None:
        """The generation whose slot may be used again, where that is asked for.

        Raises:
            SlotTaken: it isn't one that is over.
        """
        if not params.get("reuse_slot"):
            return None
        slot = params.get("slot")
        if slot is None:
            raise InvalidParams(
                "which slot is to be reused isn't said", hint="name it, as in --slot 82"
            )
        there = [(key, g) for key, g in self.keys.in_store(store) if g.slot == slot]
        for key, g in there:
            if not _over(g):
                raise SlotTaken(
                    f"slot {slot} has {key.name}@{g.generation}, which is {g.state}",
                    hint="a slot can be used again once its generation is retired or destroyed",
                )
        return there[0][1] if there else None

    def _ways_to_a_slot(self, key: Key, error: DPoPAgentError) -> str:
        free = error.details.get("free", [])
        over = [
            (owner, g)
            for owner, g in self.keys.in_store(key.store)
            if g.slot is not None and _over(g)
        ]
        error.details["reusable"] = [g.slot for _, g in over]
        ways = [f"free: --slot {' or '.join(free)}"] if free else []
        if over:
            names = ", ".join(f"{g.slot} ({o.name}@{g.generation}, {g.state})" for o, g in over)
            ways.append(f"to use again, with --slot and --reuse-slot: {names}")
        return "; ".join(ways)

    async def _made(
        self,
        name: str,
        number: int,
        info: Mapping[str, Any],
        *,
        stage: bool,
        asked: Asked | None = None,
    ) -> None:
        """A pending generation's object is there: staged, and active unless it is to wait."""
        now = now_text()
        drain_s = asked[1].get("drain_s") if asked and asked[0] == "key.rotate" else None

        def change(keys: Keys) -> Keys:
            key = keys.named(name)
            made = _staged(key.generation(number), info)
            keys = keys.overwritten(key.store, made.ref, made.jkt, now)
            key = keys.named(name)
            if made.compromised:
                return keys.with_(key.with_(made.become(State.COMPROMISED, now)))
            key = key.with_(made)
            return keys.with_(key if stage else key.activate(number, now, drain_s=drain_s))

        await self._records.write(change, asked=asked)
        log.info("%s@%d is made, jkt %s", name, number, info["jkt"])

    async def _activate(self, name: str, number: int, asked: Asked | None) -> None:
        """Swap, after a look whether the object is there."""
        key = self.keys.named(name)
        generation = key.generation(number)
        generation.become(State.ACTIVE, "")
        if generation.jkt in self._overwriting:
            raise IllegalTransition(f"{name}@{number} is being overwritten in its slot")
        if not await self._find(key, generation):
            raise KeyMissing(f"{name}@{number} can't be activated: its store has no such key")
        drain_s = asked[1].get("drain_s") if asked else None
        now = now_text()
        await self._records.write(
            lambda keys: keys.with_(keys.named(name).activate(number, now, drain_s=drain_s)),
            asked=asked,
        )
        log.info("%s@%d is active, jkt %s", name, number, generation.jkt)

    async def _destroy(
        self, key: Key, generation: Generation, *, asked: Asked | None = None
    ) -> None:
        name, number, now = key.name, generation.generation, now_text()

        def bury(keys: Keys) -> Keys:
            key = keys.named(name)
            gone = key.generation(number).become(State.DESTROYED, now, object_left=True)
            return keys.with_(key.with_(gone.buried()))

        await self._records.write(bury, asked=asked)
        if generation.slot is None:
            await self._delete_object(name, number)
        else:
            log.info(
                "%s@%d is destroyed, jkt %s; its key stays in slot %s until another is made there",
                name,
                number,
                generation.jkt,
                generation.slot,
            )

    async def _delete_object(self, name: str, number: int) -> None:
        key = self.keys.named(name)
        generation = key.generation(number)
        try:
            await self.signer_of(key).ask("destroy", ref=generation.ref, jkt=generation.jkt)
        except ObjectLeft:
            self._undeletable.add(generation.jkt)
            raise

        def deleted(keys: Keys) -> Keys:
            key = keys.named(name)
            return keys.with_(key.with_(replace(key.generation(number), object_left=False)))

        await self._records.write(deleted)
        log.info("%s@%d is destroyed, jkt %s", name, number, generation.jkt)

    async def _settle_pending(self, name: str) -> None:
        """Finish or undo a pending generation of this name, if there is one.

        Raises:
            KeyPending: its store can't be asked.
        """
        key = self.keys.get(name)
        for generation in key.generations if key else ():
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
            first = len(self.keys.named(name).generations) == 1
            await self._made(name, number, info, stage=not first)

    async def _found_or_undone(self, name: str, number: int) -> Mapping[str, Any] | None:
        """What the store has of a pending generation; if nothing, then nor has the ledger."""
        key = self.keys.named(name)
        ref = key.generation(number).ref
        answer = await self.signer_of(key).ask(
            "find", ref=ref, alg=key.alg, self_test=True, anew=True, limit_s=TOUCH_TIMEOUT_S
        )
        found: Mapping[str, Any] | None = answer["key"]
        if found is not None and found["jkt"] in self.keys.by_jkt:
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
        log.info("%s@%d came to nothing and is undone", name, number)

    async def _bury_half(self, name: str, number: int, jkt: str) -> None:
        """A public key without its private one: in the ledger first, then deleted."""
        now = now_text()

        def bury(keys: Keys) -> Keys:
            key = keys.named(name)
            half = key.generation(number).become(State.STAGED, now, jkt=jkt)
            return keys.with_(key.with_(half.become(State.DESTROYED, now, object_left=True)))

        await self._records.write(bury)
        await self._delete_object(name, number)

    async def _find(self, key: Key, generation: Generation) -> bool:
        """Whether the generation's object is in its store.

        Raises:
            StoreUnusable: unknown, which isn't the same as no.
        """
        answer = await self.signer_of(key).ask(
            "find", ref=generation.ref, alg=key.alg, self_test=False, anew=False
        )
        found = answer["key"] is not None and answer["key"]["jkt"] == generation.jkt
        if found:
            self.missing.discard(generation.jkt)
        elif generation.jkt not in self.missing:
            self.missing.add(generation.jkt)
            log.warning(
                "%s@%d is missing: its store has no such key (jkt %s)",
                key.name,
                generation.generation,
                generation.jkt,
            )
        return found

    # What nobody asks for

    async def reconcile(self, store: str) -> None:
        """A store was opened: finish or undo what was half done, see what is missing or unknown."""
        for name, key in list(self.keys.items()):
            if key.store != store:
                continue
            self._undeletable.difference_update(g.jkt for g in key.generations)
            async with self._by_name[name]:
                await self._finish(name)
                for generation in self.keys[name].generations if name in self.keys else ():
                    if generation.state not in (State.PENDING, State.DESTROYED):
                        await self._quietly(name, self._find(key, generation))
        await self._quietly(store, self._list_unknown(store))
        await self._unbroken(self.do_what_is_due())

    async def _finish(self, name: str) -> None:
        """Whatever of a key is half done."""
        for generation in self.keys[name].generations if name in self.keys else ():
            if generation.state is State.PENDING:
                await self._quietly(name, self._settle(name, generation.generation))
            elif (
                generation.object_left
                and generation.slot is None
                and generation.jkt not in self._undeletable
            ):
                await self._quietly(name, self._delete_object(name, generation.generation))

    async def _list_unknown(self, store: str) -> None:
        answer = await self.signer(store).ask("objects")
        listed = answer["objects"]
        if answer["slots"] is not None:
            await self._see_empty_slots(store, [found["ref"] for found in listed])
            self.slots[store] = answer["slots"]
        ours = {
            g.ref: g.jkt
            for key in self.keys.values()
            if key.store == store
            for g in key.generations
        }
        ours |= {g.ref: g.jkt for _, g in self.keys.in_store(store)}  # not what was there before
        self.unknown[store] = [
            found
            for found in listed
            if found["ref"] not in ours or found.get("jkt") not in (None, "", ours[found["ref"]])
        ]
        if self.unknown[store]:
            log.info(
                "store %s has %d private keys that aren't the agent's; they are left alone",
                store,
                len(self.unknown[store]),
            )

    async def _see_empty_slots(self, store: str, there: Collection[str]) -> None:
        """Destroyed generations whose slots somebody emptied have left nothing any more."""
        gone = [
            (key, g)
            for key, g in self.keys.in_store(store)
            if g.slot is not None and g.state is State.DESTROYED and g.ref not in there
        ]

        def emptied(keys: Keys) -> Keys:
            for key, g in gone:
                current = keys.named(key.name)
                left = replace(current.generation(g.generation), object_left=False)
                keys = keys.with_(current.with_(left))
            return keys

        if gone:
            await self._records.write(emptied)

    def _forget_unknown(self, store: str, ref: str) -> None:
        self.unknown[store] = [f for f in self.unknown.get(store, []) if f["ref"] != ref]

    async def watch_time(self) -> None:
        """Rotate, retire and destroy what is due, for as long as the agent runs."""
        loop = asyncio.get_running_loop()
        save_at, tried = loop.time() + SAVE_S, False
        while True:
            left = drains.next_event_s(self.keys, datetime.now(UTC))
            seconds = save_at - loop.time()
            if left is not None and not (left == 0 and tried):  # else again with the next save
                seconds = min(seconds, max(MIN_TICK_S, left))
            if await self._changed_within(seconds) and loop.time() < save_at:
                tried = False
                continue
            await self._unbroken(self.do_what_is_due())
            tried = True
            if loop.time() >= save_at:
                save_at, tried = loop.time() + SAVE_S, False
                await self._quietly("ledger", self._records.save(clean=False))

    async def _changed_within(self, seconds: float) -> bool:
        self._records.changed.clear()
        try:
            await asyncio.wait_for(self._records.changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def do_what_is_due(self) -> None:
        """Finish what is half done, retire, rotate, destroy."""
        await self._records.observe()
        if drains.retire(self.keys, "").changed_from(self.keys):
            await self._quietly(
                "ledger", self._records.write(lambda keys: drains.retire(keys, now_text()))
            )
        for name in list(self.keys):
            async with self._by_name[name]:
                await self._finish(name)
                key = self.keys.get(name)
                if key is None or not drains.is_rotation_due(key, datetime.now(UTC)):
                    self._said.pop(f"rotation of {name}", None)
                elif drains.is_rotation_by_hand(key):
                    await self._quietly(f"rotation of {name}", self._say_rotation_due(key))
                else:
                    await self._quietly(name, self._rotate_now(name))
        for key, generation in list(drains.to_destroy(self.keys)):
            async with self._by_name[key.name]:
                await self._quietly(key.name, self._destroy_if_there(key, generation))

    @staticmethod
    async def _say_rotation_due(key: Key) -> None:
        raise AuthorizationRequired(
            f"the rotation of {key.name} is due, and its store makes keys only for who has its "
            "management key",
            hint=f"dpop-agent key rotate {key.name}",
        )

    async def _rotate_now(self, name: str) -> None:
        key = self.keys.named(name)
        log.info("the rotation of %s is due", name)
        if key.staged is None:
            await self._generate(key, asked=("key.rotate", {}))
        else:
            await self._activate(name, key.staged.generation, None)

    async def _destroy_if_there(self, key: Key, generation: Generation) -> None:
        current = self.keys.named(key.name)
        due = [g for _, g in drains.to_destroy(Keys([current]))]
        for g in due:
            if g.generation == generation.generation and await self._find(current, g):
                await self._destroy(current, g)

    async def _quietly(self, what: str, work: Awaitable[object]) -> None:
        """Work that nobody waits for: its error goes to the log, once as long as it stays."""
        try:
            await work
        except DPoPAgentError as e:
            if self._said.get(what) != e.message:
                self._said[what] = e.message
                log.warning("%s: %s", what, e)
        else:
            self._said.pop(what, None)

    @staticmethod
    async def _unbroken(work: Awaitable[object]) -> None:
        """Work that has to go on another time, whatever comes of it this time."""
        try:
            await work
        except Exception:
            log.exception("keys weren't looked after, in a way that nobody thought of")

    async def _write_blocks(self) -> None:
        while not self._records.durable:
            await asyncio.sleep(BLOCK_AGAIN_S)
            await self._quietly("ledger", self._records.write(lambda keys: keys))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _require_nobodys(keys: Keys, store: str, adopted: Generation) -> None:
    """Refuse an object that a generation is about, or that was compromised once.

    Raises:
        KeyExists, KeyCompromised
    """
    for key in keys.values():
        for g in key.generations:
            # A slot's id is used again; what is in it is told by its jkt alone.
            there = g.slot is None and key.store == store and g.ref == adopted.ref
            same = there or g.jkt == adopted.jkt
            if same and g.compromised:
                raise KeyCompromised(f"that object was {key.name}@{g.generation}, compromised")
            if same and (g.state is not State.DESTROYED or g.object_left):
                raise KeyExists(f"that object is {key.name}@{g.generation} already")


def _pending(key: Key, ref: str, slot: str | None) -> Generation:
    now = now_text()
    return Generation(key.next_number, State.PENDING, ref, created=now, changed=now, slot=slot)


def _over(generation: Generation) -> bool:
    """Whether its slot may be used again, by command."""
    retired = generation.state is State.RETIRED and not generation.shared
    return retired or generation.state is State.DESTROYED


def _staged(pending: Generation, info: Mapping[str, Any]) -> Generation:
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


def _set(key: Key, params: Mapping[str, Any], _now: str) -> Key:
    return replace(key, **_settings(params))


def _suspend(key: Key, params: Mapping[str, Any], now: str) -> Key:
    chosen = key.generation(params["generation"])
    return key.with_(chosen.become(State.SUSPENDED, now))


def _resume(key: Key, params: Mapping[str, Any], now: str) -> Key:
    chosen = key.generation(params["generation"])
    if chosen.state is not State.SUSPENDED:
        raise IllegalTransition(f"{key.name}@{chosen.generation} isn't suspended")
    state = State.ACTIVE if key.active is None else State.DRAINING
    return key.with_(chosen.become(state, now))


def _drained(before: Key, after: Key) -> Generation | None:
    """The generation that was active before and isn't now."""
    old = before.active
    if old is None or after.active is None or old.generation == after.active.generation:
        return None
    return after.generation(old.generation)


def _last_draining(key: Key) -> Generation | None:
    draining = [g for g in key.generations if g.state is State.DRAINING]
    return max(draining, key=lambda g: (g.changed, g.generation), default=None)


def _settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """What a key may be used for, and for how long, as far as it is given.

    Raises:
        HtuRefused: one of the origins isn't one.
    """
    given = {name: params[name] for name in _SETTINGS if name in params}
    if "origins" in params:
        given["origins"] = tuple(dict.fromkeys(origin_of(uri) for uri in params["origins"]))
    return given
