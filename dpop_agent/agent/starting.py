"""How a store comes to be open in a process: the frames of its beginning, and a PIN's entry."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dpop_agent.agent.frames import Outcome
from dpop_agent.agent.hosts import Host
from dpop_agent.agent.opening import PinEntry, Unlocking, at_most, open_frame
from dpop_agent.agent.process import Spawn
from dpop_agent.channel import require_secret_socket
from dpop_agent.config import StoreConfig
from dpop_agent.errors import DPoPAgentError

START_TIMEOUT_S = 15.0
"""Seconds for loading a module, finding its token and logging in; slow cards take 4."""

APART_S = 5.0
"""Seconds in which no other store of the same module is started, and that a store waits for others
at the most: half of what a signature may take, so that what waits behind stuck ones is served."""

UNLOCK_TIMEOUT_S = 150.0
"""Seconds for opening while a person types the PIN: the signer waits 60, twice at the most."""


class Starting:
    """Opens a store in new processes.

    Attributes:
        types_pin: somebody is asked for the PIN now.
    """

    def __init__(
        self,
        config: StoreConfig,
        *,
        lock_file: str,
        starting: asyncio.Lock,
        spawn: Spawn,
        on_sent: Callable[[], None],
    ) -> None:
        """Nothing is started yet.

        Args:
            config: the store.
            lock_file: keeps it apart from an earlier agent's signers of the store.
            starting: shared by the stores of one module.
            spawn: how processes come into being.
            on_sent: called whenever an answer is waited for.
        """
        self._config = config
        self._lock_file = lock_file
        self._starting = starting
        self._spawn = spawn
        self._on_sent = on_sent
        self._pin_path: str | None = None

    @property
    def types_pin(self) -> bool:
        return self._pin_path is not None

    async def first(
        self, host: Host, unlocking: Unlocking | None, *, attended: bool
    ) -> dict[str, Any]:
        """Open it in the first process; what the signer says of the place.

        Args:
            host: it, which isn't started yet.
            unlocking: somebody may have to type, and is told where.
            attended: somebody asked for it.

        Raises:
            DPoPAgentError, OSError: it isn't open.
        """
        opens = open_frame(self._config, lock_file=self._lock_file, attended=attended)
        listen = {} if unlocking is None else {"op": "listen", "folder": unlocking.folder}
        found = result(await self._first_answer(host, opens | listen))
        if unlocking is None:
            return found
        if found["path"] is not None:
            require_secret_socket(found["path"], folder=unlocking.folder)
        self._pin_path = found["path"]
        unlocking.entry.set_result(PinEntry(found["path"], found["pad"]))
        if self._pin_path is None:
            return result(await self._asked(host, START_TIMEOUT_S, opens))
        try:
            return result(await self._asked(host, UNLOCK_TIMEOUT_S, opens))
        finally:
            self.unlink_pin_socket()

    async def beside(self, host: Host, giver: Host) -> dict[str, Any]:
        """Open it in one more process, which another hands its PIN.

        Args:
            host: it, which isn't started yet.
            giver: one that has the store open.

        Raises:
            DPoPAgentError, OSError: it isn't open.
        """
        opens = open_frame(self._config, lock_file=self._lock_file, attended=False, heir=True)
        return result(await self._first_answer(host, opens, giver=giver))

    async def _first_answer(
        self, host: Host, first: dict[str, Any], *, giver: Host | None = None
    ) -> Outcome:
        """Start a process, apart from others of the same module; what it says to its first frame.

        `giver` hands it what opens the store.
        """
        async with at_most(APART_S, self._starting):
            heir_of = None if giver is None else giver.pid
            await host.start(self._spawn, self._config.env, heir_of=heir_of)
            if giver is not None:
                giver.require_there()
                giver.pass_on("hand_on")
            answered = self._asked(host, START_TIMEOUT_S, first)
            await asyncio.wait([answered], timeout=APART_S)
        return await answered

    def _asked(
        self, host: Host, limit_s: float, members: dict[str, Any]
    ) -> asyncio.Future[Outcome]:
        answered = host.asked(limit_s, members)
        self._on_sent()
        return answered

    def unlink_pin_socket(self) -> None:
        """The signer does so itself, if it lives to."""
        path, self._pin_path = self._pin_path, None
        if path is not None:
            with suppress(OSError):
                os.unlink(path)


def result(what: Outcome) -> dict[str, Any]:
    """What a job got.

    Raises:
        DPoPAgentError: that, where it is one.
    """
    if isinstance(what, DPoPAgentError):
        raise what
    assert isinstance(what, dict)
    return what
