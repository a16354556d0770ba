"""What people have done to stores: locked, unlocked, authorized, looked at; and what a store says
of a key.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from dpop_agent.agent.background import Background, gently
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.keys import Generation, Key, State
from dpop_agent.agent.records import Records
from dpop_agent.agent.signers import Signer, Signers
from dpop_agent.agent.views import Views
from dpop_agent.channel import require_secret_socket
from dpop_agent.errors import DPoPAgentError, KeyMissing, Timeout

LOOK_S = 3.0
"""Seconds that somebody waits for what stores have now; what takes longer is seen the next time."""

PAUSE = 10
"""Times that a look took, before the next: who asks all the time costs a store a tenth of its."""

SELF_TEST_S = 15.0
"""Seconds for a self-test: a signature's own, and some until the store is idle."""

IDLE_S = 0.01
"""Seconds between looks for a moment in which a store is idle."""

TESTED = (State.ACTIVE, State.DRAINING, State.STAGED)
"""States of generations that a self-test may sign with, the most telling first."""

MAX_TESTED = 4
"""Keys that a self-test tries: which one wants its PIN for each signature only shows then."""


class Stores:
    """The verbs of stores; each takes the wire's parameters and gives its result."""

    def __init__(
        self,
        records: Records,
        signers: Signers,
        inventory: Inventory,
        views: Views,
        background: Background,
        *,
        socket_folder: str,
    ) -> None:
        """`socket_folder` is the folder of the agent's sockets, which is the user's alone."""
        self._records = records
        self._signers = signers
        self._inventory = inventory
        self._views = views
        self._background = background
        self._socket_folder = socket_folder
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._look_again_at: dict[str, float] = {}
        self._loop = asyncio.get_running_loop()

    async def look(self) -> None:
        """See what stores have now, as far as that takes nothing from anybody.

        However many ask, a store is looked at once at a time, and yields to who signs.
        """
        for name, signer in self._signers.items():
            if signer.may_be_looked_at and self._may_look(name):
                self._looks[name] = self._background.start(self._look(name))
        looks = [look for look in self._looks.values() if not look.done()]
        if looks:
            await asyncio.wait(looks, timeout=LOOK_S)

    def _may_look(self, store: str) -> bool:
        if store in self._looks and not self._looks[store].done():
            return False
        return self._loop.time() >= self._look_again_at.get(store, 0.0)

    async def _look(self, store: str) -> None:
        began = self._loop.time()
        try:
            with suppress(DPoPAgentError):  # the store's state tells
                await self._inventory.look(store)
        finally:
            took_s = self._loop.time() - began
            self._look_again_at[store] = self._loop.time() + PAUSE * took_s

    async def attestation(self, params: dict[str, Any]) -> dict[str, Any]:
        key = self._records.keys.named(params["key"])
        generation = key.generation(params["generation"])
        answer = await self._signers[key.store].ask(
            "attestation", ref=generation.ref, jkt=generation.jkt
        )
        return {
            "key": key.name,
            "generation": generation.generation,
            "jkt": generation.jkt,
            "certificates": answer["certificates"],
        }

    async def self_test(self, params: dict[str, Any]) -> dict[str, Any]:
        """Have a store sign what is no proof, by a key that asks nobody for anything, and its
        signer check that. It is no use of the key, and is asked for when nobody waits for a proof.

        Raises:
            StoreUnusable, KeyMissing, Timeout
        """
        store = params["store"]
        signer = self._signers[store]
        keys, why = await self._testable(store)
        try:
            async with asyncio.timeout(SELF_TEST_S):
                for key, generation in keys:
                    if not await self._is_idle(signer):
                        why = "busy"
                        break
                    if not signer.is_held_open:  # a frame would have it opened
                        break
                    outcome = await self._tested(signer, key, generation)
                    if outcome == "signed":
                        tested = {"generation": generation.generation, "jkt": generation.jkt}
                        return {"store": store, "key": key.name, **tested, "reason": None}
                    why = outcome
        except TimeoutError as e:
            raise Timeout(
                f"the store {store} had no time for a self-test within {SELF_TEST_S:g} s",
                hint="others have it sign; try again later",
                retry="later",
            ) from e
        if not signer.is_held_open:
            why = "not_open"
        return {"store": store, "key": None, "generation": None, "jkt": None, "reason": why}

    async def _is_idle(self, signer: Signer) -> bool:
        """Whether a moment comes soon in which nobody wants anything of a store."""
        until = self._loop.time() + LOOK_S
        while signer.is_wanted and self._loop.time() < until:
            await asyncio.sleep(IDLE_S)
        return not signer.is_wanted

    async def _tested(self, signer: Signer, key: Key, generation: Generation) -> str:
        try:
            answer = await signer.ask(
                "self_test",
                ref=generation.ref,
                jkt=generation.jkt,
                alg=key.alg,
                again=False,
                looking=True,
            )
        except KeyMissing:
            self._inventory.missing.add(generation.jkt)
            raise
        return str(answer["outcome"])

    async def _testable(self, store: str) -> tuple[list[tuple[Key, Generation]], str]:
        """Some generations in a store that sign for nobody's asking, the active ones first; and
        why there are none, if there are none.
        """
        why = "no_key"
        found: list[tuple[Key, Generation]] = []
        async for key in gently(self._records.keys.values()):
            if key.store != store:
                continue
            for generation in key.generations:
                if generation.state not in TESTED or generation.jkt in self._inventory.missing:
                    continue
                if key.may_want_touch(generation) or key.rules.confirm_s is not None:
                    why = "attended"
                else:
                    found.append((key, generation))
        found.sort(key=lambda one: TESTED.index(one[1].state))
        return found[:MAX_TESTED], why

    async def authorize(self, params: dict[str, Any]) -> dict[str, Any]:
        signer = self._signers[params["store"]]
        answer = await signer.ask("authorize", folder=self._socket_folder, again=False)
        if answer["path"] is not None:
            require_secret_socket(answer["path"], folder=self._socket_folder)
        return {"store": params["store"], "socket": answer["path"]}

    async def lock(self, params: dict[str, Any]) -> dict[str, Any]:
        names = [params["store"]] if "store" in params else list(self._signers)
        chosen = [self._signers[name] for name in names]
        await asyncio.gather(*(signer.lock() for signer in chosen))  # none waits for another's end
        return {"stores": self._views.stores()}

    async def unlock(self, params: dict[str, Any]) -> dict[str, Any]:
        signer = self._signers[params["store"]]
        entry = await signer.unlock(self._socket_folder)
        return {
            "store": params["store"],
            "state": signer.state,
            "pin_socket": entry.socket,
            "pin_pad": entry.pad,
            "pin_kept": entry.socket is not None and signer.keeps_pin,
        }
