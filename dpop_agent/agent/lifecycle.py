"""Making, changing and destroying keys, in steps that survive the agent's end between any two.

Make: intent in the ledger → generate → read back and self-test in the signer → its jkt in the
ledger. Destroy: destroyed in the ledger, from when on it signs no more → deleted from the store →
noted. What a killed agent left half done, `recover` finishes or undoes once the store is open; it
never deletes what the ledger has no jkt for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.ledger import Contents, Ledger
from dpop_agent.agent.signers import GENERATE_TIMEOUT_S, Signer
from dpop_agent.errors import (
    DPoPAgentError,
    InvalidParams,
    KeyPending,
    RequestIdReused,
    StoreUnknown,
)
from dpop_agent.htu import origin_of
from dpop_agent.jose import ALGORITHMS

log = logging.getLogger("dpop_agent.lifecycle")

REQUEST_LIFETIME = timedelta(hours=24)
"""How long a request id is remembered."""


def now_text() -> str:
    """RFC 3339 UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Lifecycle:
    """The ledger's keys and what is done to them."""

    def __init__(self, ledger: Ledger, signers: Mapping[str, Signer]) -> None:
        """Args: `signers` by the names of their stores; the caller may change it later."""
        self._ledger = ledger
        self._signers = signers
        self._writing = asyncio.Lock()
        self._by_name: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._used: dict[str, str] = {}
        self.missing: set[str] = set()

    @property
    def keys(self) -> Keys:
        """The keys as the ledger has them."""
        return self._ledger.contents.keys

    def signer_of(self, key: Key) -> Signer:
        """The signer of the key's store.

        Raises:
            StoreUnknown: the configuration doesn't have that store any more.
        """
        return self._signer(key.store)

    def _signer(self, store: str) -> Signer:
        if store not in self._signers:
            raise StoreUnknown(f"there is no store {store} in the configuration")
        return self._signers[store]

    # Verbs

    async def create(self, params: Mapping[str, Any], default_store: str) -> Key:
        """`key.create`.

        Raises:
            KeyExists, StoreUnknown, AlgorithmUnsupported, InvalidParams, RequestIdReused,
            StoreUnusable, NotDurable, Timeout
        """
        name, alg = params["key"], params.get("alg", "ES256")
        if alg not in ALGORITHMS:
            raise InvalidParams(
                "key.create: alg isn't an algorithm that is known here",
                hint=f"there are: {', '.join(ALGORITHMS)}",
            )
        origins = _origins(params)
        async with self._by_name[name]:
            await self._settle_pending(name)
            if self._repeated("key.create", params):
                return self.keys.named(name)
            self.keys.require_new(name)
            signer = self._signer(params.get("store", default_store))
            ref = (await signer.ask("reserve", alg=alg))["ref"]
            now = now_text()
            key = Key(
                name=name,
                store=signer.config.name,
                alg=alg,
                created=now,
                origins=origins,
                allow_sign_proof=params.get("allow_sign_proof", False),
                generations=(Generation(1, State.PENDING, ref, created=now, changed=now),),
            )
            await self._write(lambda keys: keys.with_(key), request=("key.create", params))
            await self._make(name, 1)
            return self.keys.named(name)

    async def set(self, params: Mapping[str, Any]) -> Key:
        """`key.set`: what is given is changed, the rest stays.

        Raises:
            KeyUnknown, InvalidParams, RequestIdReused, NotDurable
        """
        name = params["key"]
        async with self._by_name[name]:
            key = self.keys.named(name)
            if self._repeated("key.set", params):
                return key
            changes: dict[str, Any] = {}
            if "origins" in params:
                changes["origins"] = _origins(params)
            if "allow_sign_proof" in params:
                changes["allow_sign_proof"] = params["allow_sign_proof"]
            changed = replace(key, **changes)
            await self._write(lambda keys: keys.with_(changed), request=("key.set", params))
            return changed

    async def destroy(self, params: Mapping[str, Any]) -> Key:
        """`key.destroy`: the generation signs no more, then its object is deleted.

        Raises:
            KeyUnknown, IllegalTransition, RequestIdReused, NotDurable
            StoreUnusable: before anything was changed if the store isn't there; after it if the
                store fails then: the generation stays destroyed, its object is deleted later.
        """
        name, number = params["key"], params["generation"]
        async with self._by_name[name]:
            key = self.keys.named(name)
            generation = key.generation(number)
            if self._repeated("key.destroy", params):
                return key
            if generation.state is State.PENDING:
                await self._settle_pending(name)
                generation = self.keys.named(name).generation(number)
            gone = generation.become(State.DESTROYED, now_text(), object_left=True)
            signer = self.signer_of(key)
            await signer.ask("find", ref=generation.ref, alg=key.alg, self_test=False)
            await self._replace(name, gone, request=("key.destroy", params))
            await self._delete_object(name, gone)
            return self.keys.named(name)

    # Steps

    async def _make(self, name: str, number: int) -> None:
        """Generate the object of a pending generation, and make it active."""
        key = self.keys.named(name)
        ref = key.generation(number).ref
        try:
            info = await self.signer_of(key).ask(
                "generate",
                ref=ref,
                alg=key.alg,
                label=f"dpop-agent {name}@{number}",
                limit_s=GENERATE_TIMEOUT_S,
                again=False,
            )
        except DPoPAgentError as e:
            try:
                made = await self._settle(name, number)
            except DPoPAgentError:
                log.warning("%s@%d stays pending until its store can be asked", name, number)
                made = False
            if not made:
                raise e from None
        else:
            await self._made(name, number, info)

    async def _made(self, name: str, number: int, info: Mapping[str, Any]) -> None:
        generation = self.keys.named(name).generation(number)
        now = now_text()
        staged = generation.become(
            State.STAGED,
            now,
            jkt=info["jkt"],
            jwk=info["jwk"],
            exportable=info["exportable"],
            protection=info["protection"],
            local=info["local"],
        )
        await self._replace(name, staged.become(State.ACTIVE, now))
        log.info("%s@%d is active, jkt %s", name, number, staged.jkt)

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
                        f"{name}@{generation.generation} is half made, and its store can't be "
                        f"asked ({e.message})",
                        hint=e.hint,
                    ) from e

    async def _settle(self, name: str, number: int) -> bool:
        """Finish a pending generation whose object is there; undo one whose object isn't."""
        key = self.keys.named(name)
        found = (
            await self.signer_of(key).ask(
                "find", ref=key.generation(number).ref, alg=key.alg, self_test=True
            )
        )["key"]
        if found is not None:
            await self._made(name, number, found)
            return True
        rest = key.without(number)
        log.info("%s@%d came to nothing and is undone", name, number)
        await self._write(lambda keys: keys.with_(rest) if rest.generations else keys.without(name))
        return False

    async def _delete_object(self, name: str, generation: Generation) -> None:
        key = self.keys.named(name)
        await self.signer_of(key).ask("destroy", ref=generation.ref, jkt=generation.jkt)
        await self._replace(name, replace(generation, object_left=False))
        log.info("%s@%d is destroyed, jkt %s", name, generation.generation, generation.jkt)

    async def recover(self, store: str) -> None:
        """Finish or undo what was half done in a store, and see which objects are missing."""
        for key in list(self.keys.values()):
            if key.store != store:
                continue
            async with self._by_name[key.name]:
                for generation in self.keys.get(key.name, key).generations:
                    try:
                        await self._recover(key, generation)
                    except DPoPAgentError as e:
                        log.warning("%s@%d: %s", key.name, generation.generation, e)

    async def _recover(self, key: Key, generation: Generation) -> None:
        if generation.state is State.PENDING:
            await self._settle(key.name, generation.generation)
        elif generation.object_left:
            await self._delete_object(key.name, generation)
        elif generation.state is not State.DESTROYED:
            answer = await self.signer_of(key).ask(
                "find", ref=generation.ref, alg=key.alg, self_test=False
            )
            found = answer["key"]
            if found is not None and found["jkt"] == generation.jkt:
                self.missing.discard(generation.jkt)
            elif generation.jkt not in self.missing:
                self.missing.add(generation.jkt)
                log.warning(
                    "%s@%d is missing: its store has no such key (jkt %s)",
                    key.name,
                    generation.generation,
                    generation.jkt,
                )

    # The ledger

    def _repeated(self, method: str, params: Mapping[str, Any]) -> bool:
        """Whether this very request was carried out before.

        Raises:
            RequestIdReused: its id was, with other parameters.
        """
        request_id = params.get("request_id")
        known = self._ledger.contents.requests.get(request_id) if request_id else None
        if known is None:
            return False
        if known["method"] != method or known["params"] != _without_id(params):
            raise RequestIdReused(f"the request_id was used for another {known['method']}")
        return True

    async def _replace(
        self,
        name: str,
        *generations: Generation,
        request: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        await self._write(
            lambda keys: keys.with_(keys.named(name).with_(*generations)), request=request
        )

    async def _write(
        self,
        change: Callable[[Keys], Keys],
        *,
        request: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Change the ledger durably, in one atomic replace, the request's id with its effect."""
        async with self._writing:
            old = self._ledger.contents
            oldest = (datetime.now(UTC) - REQUEST_LIFETIME).strftime("%Y-%m-%dT%H:%M:%SZ")
            requests = {i: r for i, r in old.requests.items() if r["at"] > oldest}
            if request is not None and "request_id" in request[1]:
                method, params = request
                requests[params["request_id"]] = {
                    "method": method,
                    "params": _without_id(params),
                    "at": now_text(),
                }
            used = dict(self._used)
            keys = _with_uses(change(old.keys), used)
            await asyncio.to_thread(self._ledger.write, Contents(keys, requests))
            self._used = {jkt: at for jkt, at in self._used.items() if used.get(jkt) != at}

    # Use

    def used(self, jkt: str) -> None:
        """Note that a generation signed; durable with the next `save_uses`."""
        self._used[jkt] = now_text()

    def last_used(self, generation: Generation) -> str | None:
        """When it last signed, as far as is known."""
        return self._used.get(generation.jkt, generation.last_used)

    async def save_uses(self) -> None:
        """Write what `used` noted, if that is anything."""
        if self._used:
            await self._write(lambda keys: keys)


def _with_uses(keys: Keys, used: Mapping[str, str]) -> Keys:
    for jkt, at in used.items():
        if jkt in keys.by_jkt:
            key, generation = keys.by_jkt[jkt]
            keys = keys.with_(key.with_(replace(generation, last_used=at)))
    return keys


def _without_id(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "request_id"}


def _origins(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Each once, in the order given.

    Raises:
        HtuRefused: one isn't an origin.
    """
    return tuple(dict.fromkeys(origin_of(uri) for uri in params.get("origins", ())))
