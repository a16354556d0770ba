"""The verbs: what people have done to keys. One of them at a time for each key."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dpop_agent.agent.background import Background
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.making import Making, as_pending, as_staged
from dpop_agent.agent.records import Records, now_text
from dpop_agent.agent.signers import Signers
from dpop_agent.agent.starting import START_TIMEOUT_S
from dpop_agent.channel import asked_of
from dpop_agent.errors import (
    IllegalTransition,
    InvalidParams,
    KeyCompromised,
    KeyDestroyed,
    KeyExists,
    KeyMissing,
    NotDurable,
    ObjectLeft,
)
from dpop_agent.jose import ALGORITHMS
from dpop_agent.protocol import KEY_SETTINGS, RULES

GIVE_ORIGINS = (
    "give --origin https://api.example.com, or --any-origin (on the wire origins, [] for any)"
)
"""The hint where nothing says which servers a key is for."""

_OWN_SETTINGS = KEY_SETTINGS.keys() - RULES.keys()


class Lifecycle:
    """What is done to keys."""

    def __init__(
        self,
        records: Records,
        signers: Signers,
        inventory: Inventory,
        making: Making,
        background: Background,
    ) -> None:
        self._records = records
        self._signers = signers
        self._inventory = inventory
        self._making = making
        self._background = background

    # Verbs; each takes the wire's parameters and raises what errors.py has for it

    async def create(self, params: Mapping[str, Any], default_store: str) -> Key:
        """`key.create`: a new key with one generation, which is active."""
        name = params["key"]
        async with self._making.alone(name):
            await self._making.settle_pending(name)
            keys = self._records.keys
            if self._records.repeated("key.create", params):
                if name in keys:
                    return keys.named(name)
                if any(gone.key == name for gone in keys.forgotten.values()):
                    raise KeyDestroyed(
                        f"the key {name} was made by that very request, and is forgotten since",
                        hint="for another key of that name, use another request_id",
                    )
            keys.require_new(name)
            key = self._new_key(params, default_store, alg=params.get("alg", "ES256"))
            await self._making.generate(key, command=("key.create", params))
            return self._records.keys.named(name)

    async def rotate(self, params: Mapping[str, Any]) -> tuple[Key, Generation | None]:
        """`key.rotate`: the staged generation, or a new one, becomes active; the old one drains.

        Returns the key, and the generation that drains from now on, if one does.
        """
        name, stage = params["key"], params.get("stage", False)
        async with self._making.alone(name):
            await self._making.settle_pending(name)
            key = self._records.keys.named(name)
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
                await self._making.generate(key, command=("key.rotate", params), stage=stage)
            else:
                await self._making.activate(name, key.staged.generation, ("key.rotate", params))
            now = self._records.keys.named(name)
            return now, None if stage else _drained(key, now)

    async def activate(self, params: Mapping[str, Any]) -> tuple[Key, Generation | None]:
        """`key.activate`: swaps a staged, draining or retired generation with the active one."""
        name, number = params["key"], params["generation"]
        async with self._making.alone(name):
            await self._making.settle_pending(name)
            key = self._records.keys.named(name)
            if self._records.repeated("key.activate", params):
                return key, _last_draining(key)
            generation = key.generation(number)
            if generation.state is State.SUSPENDED:
                raise IllegalTransition(
                    f"{name}@{number} is suspended", hint=key.to_resume(generation)
                )
            await self._making.activate(name, number, ("key.activate", params))
            now = self._records.keys.named(name)
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
        key = self._records.keys.named(name)
        if "generation" in params:
            chosen = [key.generation(params["generation"])]
            if chosen[0].state is not State.COMPROMISED:
                chosen[0].become(State.COMPROMISED, "")
        else:
            chosen = [g for g in key.generations if g.state is not State.DESTROYED]
        self._records.block(name, chosen)
        if self._records.repeated("key.compromise", params):
            return self._records.keys.named(name)
        try:
            await self._records.write(lambda keys: keys, command=("key.compromise", params))
        except NotDurable as e:
            self._background.start(
                self._records.write_blocks(self._background.quietly, ("key.compromise", params))
            )
            raise await self._not_in_the_ledger(name, e) from e
        return self._records.keys.named(name)

    async def destroy(self, params: Mapping[str, Any]) -> Key:
        """`key.destroy`: signs no more, then its object is deleted. Can't be undone.

        One that is destroyed, but whose object is left, is deleted now if its store lets it.

        Raises:
            StoreUnusable: before anything was changed if the store isn't there; after it if the
                store fails then: the generation stays destroyed, its object is deleted later.
        """
        name, number = params["key"], params["generation"]
        async with self._making.alone(name):
            await self._making.settle_pending(name)
            key = self._records.keys.named(name)
            if self._records.repeated("key.destroy", params):
                return key
            generation = key.generation(number)
            if generation.object_left and generation.slot is None:
                await self._making.delete_object(name, number)
                return self._records.keys.named(name)
            generation.become(State.DESTROYED, "")
            if generation.slot is None:
                await self._inventory.find(key, generation)
            await self._making.destroy(key, generation, command=("key.destroy", params))
            return self._records.keys.named(name)

    async def forget(self, params: Mapping[str, Any]) -> None:
        """`key.forget`: a key whose generations are all destroyed is no more, its name is free.

        What its generations left in the store is deleted first.

        Raises:
            IllegalTransition: one of its generations isn't destroyed.
            ObjectLeft: something of it is left in the store.
        """
        name = params["key"]
        async with self._making.alone(name):
            await self._making.settle_pending(name)
            if self._records.repeated("key.forget", params):
                return
            key = self._records.keys.named(name)
            for g in key.generations:
                if g.state is not State.DESTROYED:
                    raise IllegalTransition(
                        f"the key {name} can't be forgotten: {name}@{g.generation} is {g.state}",
                        hint=f"destroy it first: dpop-agent key destroy {name}@{g.generation}",
                    )
            for g in key.generations:
                if g.object_left and g.slot is not None:
                    raise ObjectLeft(
                        f"the key {name} can't be forgotten: the private key of "
                        f"{name}@{g.generation} is still in slot {g.slot}",
                        hint="have another key's made there: dpop-agent key create NAME --origin "
                        f"https://api.example.com --slot {g.slot} --reuse-slot; or empty the slot "
                        "with the vendor's tool, then: dpop-agent reload",
                    )
                if g.object_left:
                    await self._making.delete_object(name, g.generation)
            await self._records.write(
                lambda keys: keys.forget(name), command=("key.forget", params)
            )

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
            InvalidParams: what is asked for isn't what the key is; a new one has no origins.
            KeyMissing: the store has no such object.
            KeyExists: the ledger has it already.
        """
        name = params["key"]
        async with self._making.alone(name):
            await self._making.settle_pending(name)
            if self._records.repeated("key.adopt", params):
                return self._records.keys.named(name)
            key = self._records.keys.get(name)
            if key is None:
                self._records.keys.require_new(name)
                key = self._new_key(params, default_store, alg=params.get("alg", "ES256"))
            elif (
                params.get("alg", key.alg) != key.alg or params.get("store", key.store) != key.store
            ):
                raise InvalidParams(
                    f"key.adopt: the key {name} is for {key.alg} in the store {key.store}",
                    hint="adopt the object under another name",
                )
            elif "origins" in params:
                raise InvalidParams(
                    f"key.adopt: the key {name} is there, and keeps the origins that it has",
                    hint="leave out origins (--origin, --any-origin); to change them: dpop-agent "
                    f"key set {name}",
                )
            signer = self._signers[key.store]
            ref = await self._ref(key.store, params)
            answer = await signer.ask(
                "find", ref=ref, alg=key.alg, self_test=False, anew=True, limit_s=START_TIMEOUT_S
            )
            found = answer["key"]
            if found is None:
                raise KeyMissing(
                    f"the store {key.store} has no private key with the id {ref}",
                    hint="see what it has: dpop-agent status",
                )
            adopted = replace(as_staged(as_pending(key, ref, None), found), shared=True)
            _require_nobodys(self._records.keys, key.store, adopted)  # nobody touches in vain
            await signer.ask(
                asked_of(ref, adopted.jkt, key.alg) + secrets.token_bytes(32),
                on_touch=on_touch(key, adopted),
            )

            def add(keys: Keys) -> Keys:
                _require_nobodys(keys, key.store, adopted)
                return keys.with_(keys.get(name, key).with_(adopted))

            await self._records.write(add, command=("key.adopt", params))
            self._inventory.forget_unknown(key.store, ref)
            return self._records.keys.named(name)

    async def _ref(self, store: str, params: Mapping[str, Any]) -> str:
        """What a store finds the object by that a request names by this, or by its label."""
        if ("ref" in params) is ("label" in params):
            raise InvalidParams("key.adopt: ref or label is missing, or both are there")
        if "ref" in params:
            return str(params["ref"].lower())
        label = params["label"]
        await self._inventory.look(store, anew=True)
        unknown = self._inventory.unknown.get(store, ())
        fitting = [found["ref"] for found in unknown if found["label"] == label]
        if not fitting:
            raise KeyMissing(
                f"the store {store} has no unknown private key with the label {label!r}",
                hint="see what it has: dpop-agent status",
            )
        if len(fitting) > 1 or not fitting[0]:
            raise InvalidParams(
                f"key.adopt: the store {store} has {len(fitting)} private keys with the label "
                f"{label!r}",
                hint="give the ref of one, as dpop-agent status shows it"
                if all(fitting.count(ref) == 1 for ref in fitting)
                else "have its vendor's tool give them ids",
            )
        return fitting[0]

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
        async with self._making.alone(name):
            key = self._records.keys.named(name)
            if self._records.repeated(method, params):
                return key
            now = now_text()
            await self._records.write(
                lambda keys: keys.with_(change(keys.named(name), params, now)),
                command=(method, params),
            )
            return self._records.keys.named(name)

    def _new_key(self, params: Mapping[str, Any], default_store: str, *, alg: str) -> Key:
        if alg not in ALGORITHMS:
            raise InvalidParams(
                "alg isn't an algorithm that dpop-agent knows",
                hint=f"there are: {', '.join(ALGORITHMS)}",
            )
        store = params.get("store", default_store)
        self._signers[store]  # it has to be configured
        if "origins" not in params:  # nobody gets proofs for anywhere by leaving something out
            raise InvalidParams(
                f"nothing says which servers the new key {params['key']} is for",
                hint=GIVE_ORIGINS,
            )
        return _settled(Key(name=params["key"], store=store, alg=alg, created=now_text()), params)

    async def _not_in_the_ledger(self, name: str, error: NotDurable) -> NotDurable:
        """What is said of a block that the ledger couldn't take."""
        try:
            await self._records.reserve_blocks()
        except NotDurable as e:
            return NotDurable(
                f"{name} is blocked, but that isn't durable: {error.message}",
                hint="a restart of the agent forgets it: keep it running, and free space; it is "
                f"tried again until then. Nor can it be noted elsewhere: {e.message}",
                details={"survives_restart": False},
            )
        return NotDurable(
            f"{name} is blocked, and stays so if the agent is restarted; only the ledger doesn't "
            f"have it yet: {error.message}",
            hint="free space; it is tried again until then",
            details={"survives_restart": True},
        )


def _settled(key: Key, params: Mapping[str, Any]) -> Key:
    """The key with what is given; its policy isn't lost any more once its origins are.

    Raises:
        HtuRefused, InvalidParams: as `Rules.given` does.
    """
    lost = key.policy_lost and "origins" not in params
    given = {name: params[name] for name in _OWN_SETTINGS if name in params}
    return replace(key, rules=key.rules.given(params), policy_lost=lost, **given)


def _require_nobodys(keys: Keys, store: str, adopted: Generation) -> None:
    """Refuse an object that a generation is about, or that was compromised once.

    Raises:
        KeyExists, KeyCompromised
    """
    forgotten = keys.forgotten.get(adopted.jkt)
    if forgotten is not None and forgotten.compromised:
        raise KeyCompromised(
            f"that object was {forgotten.key}@{forgotten.generation}, compromised",
            hint="make a new key instead",
        )
    for key in keys.values():
        for g in key.generations:
            # A slot's id is used again; what is in it is told by its jkt alone.
            there = g.slot is None and key.store == store and g.ref == adopted.ref
            same = there or g.jkt == adopted.jkt
            if same and g.compromised:
                raise KeyCompromised(
                    f"that object was {key.name}@{g.generation}, compromised",
                    hint="make a new key instead",
                )
            if same and (g.state is not State.DESTROYED or g.object_left):
                raise KeyExists(
                    f"that object is {key.name}@{g.generation} already",
                    hint=f"see: dpop-agent key list {key.name} --all",
                )


def _set(key: Key, params: Mapping[str, Any], _now: str) -> Key:
    return _settled(key, params)


def _suspend(key: Key, params: Mapping[str, Any], now: str) -> Key:
    chosen = key.generation(params["generation"])
    return key.with_(chosen.become(State.SUSPENDED, now))


def _resume(key: Key, params: Mapping[str, Any], now: str) -> Key:
    chosen = key.generation(params["generation"])
    if chosen.state is not State.SUSPENDED:
        raise IllegalTransition(f"{key.name}@{chosen.generation} is {chosen.state}, not suspended")
    if "origins" in params and not key.policy_lost:
        raise InvalidParams(
            f"key.resume: the key {key.name} keeps the origins that it has",
            hint="leave out origins (--origin, --any-origin); to change them: dpop-agent key set "
            f"{key.name}",
        )
    key = _settled(key, params)
    if key.policy_lost:
        raise InvalidParams(
            f"what the key {key.name} may be used for was lost with its ledger",
            hint=GIVE_ORIGINS,
        )
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
