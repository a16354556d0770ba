"""What people have done to stores: locked, unlocked, authorized; and what a store says of a key."""

from __future__ import annotations

import asyncio
from typing import Any

from dpop_agent.agent.records import Records
from dpop_agent.agent.signers import Signers
from dpop_agent.agent.views import Views
from dpop_agent.channel import require_secret_socket


class Stores:
    """The verbs of stores; each takes the wire's parameters and gives its result."""

    def __init__(
        self, records: Records, signers: Signers, views: Views, *, socket_folder: str
    ) -> None:
        """`socket_folder` is the folder of the agent's sockets, which is the user's alone."""
        self._records = records
        self._signers = signers
        self._views = views
        self._socket_folder = socket_folder

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
        }
