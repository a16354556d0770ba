"""What people have done to stores: locked, unlocked, authorized, looked at; and what a store says
of a key.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from dpop_agent.agent.background import Background
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.records import Records
from dpop_agent.agent.signers import Signers
from dpop_agent.agent.views import Views
from dpop_agent.channel import require_secret_socket
from dpop_agent.errors import DPoPAgentError

LOOK_S = 3.0
"""Seconds that somebody waits for what stores have now; what takes longer is seen the next time."""

PAUSE = 10
"""Times that a look took, before the next: who asks all the time costs a store a tenth of its."""


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
        answer = await self._signers.named(key.store).ask(
            "attestation", ref=generation.ref, jkt=generation.jkt
        )
        return {
            "key": key.name,
            "generation": generation.generation,
            "jkt": generation.jkt,
            "certificates": answer["certificates"],
        }

    async def authorize(self, params: dict[str, Any]) -> dict[str, Any]:
        signer = self._signers.named(params["store"])
        answer = await signer.ask("authorize", folder=self._socket_folder, again=False)
        if answer["path"] is not None:
            require_secret_socket(answer["path"], folder=self._socket_folder)
        return {"store": params["store"], "socket": answer["path"]}

    async def lock(self, params: dict[str, Any]) -> dict[str, Any]:
        names = [params["store"]] if "store" in params else list(self._signers)
        chosen = [self._signers.named(name) for name in names]
        await asyncio.gather(*(signer.lock() for signer in chosen))  # none waits for another's end
        return {"stores": self._views.stores()}

    async def unlock(self, params: dict[str, Any]) -> dict[str, Any]:
        signer = self._signers.named(params["store"])
        entry = await signer.unlock(self._socket_folder)
        return {
            "store": params["store"],
            "state": signer.state,
            "pin_socket": entry.socket,
            "pin_pad": entry.pad,
            "pin_kept": entry.socket is not None and signer.keeps_pin,
        }
