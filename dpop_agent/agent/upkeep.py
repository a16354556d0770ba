"""What nobody asks for: reconciling stores, rotations that fall due, drains that end, saves."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from dpop_agent.agent import drains
from dpop_agent.agent.background import Background
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.making import Making
from dpop_agent.agent.records import Records, now_text
from dpop_agent.errors import AuthorizationRequired

log = logging.getLogger("dpop_agent.upkeep")

SAVE_S = 60.0
"""Seconds between saves of what was observed."""

MIN_TICK_S = 0.5
"""Seconds between looks at what is due, at the least."""


class Upkeep:
    """What time and stores that come back do to keys."""

    def __init__(
        self, records: Records, making: Making, inventory: Inventory, background: Background
    ) -> None:
        self._records = records
        self._making = making
        self._inventory = inventory
        self._background = background

    async def reconcile(self, store: str) -> None:
        """A store was opened: finish or undo what was half done, see what is missing or unknown."""
        for name, key in list(self._records.keys.items()):
            if key.store != store:
                continue
            self._making.try_again_to_delete(key)
            async with self._making.alone(name):
                await self._making.finish(name)
                for generation in self._records.keys.generations(name):
                    if generation.state not in (State.PENDING, State.DESTROYED):
                        await self._background.quietly(name, self._inventory.find(key, generation))
        await self._background.quietly(store, self._inventory.list_unknown(store))
        await self._background.whatever_comes(self.do_what_is_due())

    async def watch_time(self) -> None:
        """Rotate, retire and destroy what is due, for as long as the agent runs."""
        loop = asyncio.get_running_loop()
        save_at, tried = loop.time() + SAVE_S, False
        while True:
            left = drains.next_event_s(self._records.keys, datetime.now(UTC))
            seconds = save_at - loop.time()
            if left is not None and not (left == 0 and tried):  # else again with the next save
                seconds = min(seconds, max(MIN_TICK_S, left))
            if await self._changed_within(seconds) and loop.time() < save_at:
                tried = False
                continue
            await self._background.whatever_comes(self.do_what_is_due())
            tried = True
            if loop.time() >= save_at:
                save_at, tried = loop.time() + SAVE_S, False
                await self._background.quietly("ledger", self._records.save(clean=False))

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
        if drains.retire(self._records.keys, "").changed_from(self._records.keys):
            await self._background.quietly(
                "ledger", self._records.write(lambda keys: drains.retire(keys, now_text()))
            )
        for name in list(self._records.keys):
            async with self._making.alone(name):
                await self._making.finish(name)
                key = self._records.keys.get(name)
                if key is None or not drains.is_rotation_due(key, datetime.now(UTC)):
                    self._background.over(f"rotation of {name}")
                elif drains.is_rotation_by_hand(key):
                    await self._background.quietly(
                        f"rotation of {name}", self._rotation_is_due(key)
                    )
                else:
                    await self._background.quietly(name, self._rotate_now(name))
        for key, generation in list(drains.to_destroy(self._records.keys)):
            async with self._making.alone(key.name):
                await self._background.quietly(key.name, self._destroy_if_there(key, generation))

    @staticmethod
    async def _rotation_is_due(key: Key) -> None:
        raise AuthorizationRequired(
            f"the rotation of {key.name} is due, and its store makes keys only for who has its "
            "management key",
            hint=f"dpop-agent key rotate {key.name}",
        )

    async def _rotate_now(self, name: str) -> None:
        key = self._records.keys.named(name)
        log.info("the rotation of %s is due", name)
        if key.staged is None:
            await self._making.generate(key, command=("key.rotate", {}))
        else:
            await self._making.activate(name, key.staged.generation, None)

    async def _destroy_if_there(self, key: Key, generation: Generation) -> None:
        current = self._records.keys.named(key.name)
        due = [g for _, g in drains.to_destroy(Keys([current]))]
        for g in due:
            if g.generation == generation.generation and await self._inventory.find(current, g):
                await self._making.destroy(current, g)
