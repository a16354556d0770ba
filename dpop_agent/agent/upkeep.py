"""What nobody asks for: reconciling stores, rotations that fall due, drains that end, saves."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from dpop_agent.agent import drains
from dpop_agent.agent.background import Background, gently
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.keys import Key, Keys, State
from dpop_agent.agent.making import Making
from dpop_agent.agent.records import Records, now_text
from dpop_agent.agent.trails import Trails
from dpop_agent.errors import AuthorizationRequired

log = logging.getLogger("dpop_agent.upkeep")

SAVE_S = 60.0
"""Seconds between saves of what was observed."""

MIN_TICK_S = 0.5
"""Seconds between looks at what is due, at the least."""


class Upkeep:
    """What time and stores that come back do to keys."""

    def __init__(
        self,
        records: Records,
        making: Making,
        inventory: Inventory,
        background: Background,
        trails: Trails,
    ) -> None:
        self._records = records
        self._making = making
        self._inventory = inventory
        self._background = background
        self._trails = trails

    async def reconcile(self, store: str, *, anew: bool = False) -> None:
        """A store was opened: finish or undo what was half done, see what is missing or unknown.

        `anew`: it was open all the time.
        """
        async for name, key in gently(self._records.keys.items()):
            if key.store != store:
                continue
            self._making.try_again_to_delete(key)
            async with self._making.alone(name):
                await self._making.finish(name)
        await self._background.quietly(store, self._look(store, anew=anew))
        await self._background.whatever_comes(self.do_what_is_due())

    async def _look(self, store: str, *, anew: bool) -> None:
        for key, generation in await self._inventory.look(store, anew=anew):
            await self._background.quietly(
                key.name, self._inventory.find(key, generation, looking=True)
            )

    async def watch_time(self) -> None:
        """Rotate, retire and destroy what is due, for as long as the agent runs."""
        if not self._records.durable:  # what was compromised before the last end
            self._background.start(self._records.write_blocks(self._background.quietly, None))
        await asyncio.gather(self._watch_drains(), self._watch_the_rest())

    async def _watch_drains(self) -> None:
        """Retire what is due; apart from the rest, which waits for stores as long as they take."""
        loop, pause = asyncio.get_running_loop(), MIN_TICK_S
        while True:
            changed, looked_at = self._records.changed, loop.time()
            left = await self._next_end_s()
            seconds = SAVE_S if left is None else min(SAVE_S, max(pause, left))
            if await _is_set_within(changed, seconds):
                pause = MIN_TICK_S
                await asyncio.sleep(looked_at + MIN_TICK_S - loop.time())
                continue
            await self._background.whatever_comes(self._retire())
            couldnt = left == 0 and not changed.is_set()  # the ledger can't be written
            pause = min(2 * pause, SAVE_S) if couldnt else MIN_TICK_S

    async def _next_end_s(self) -> float | None:
        seen = self._records.seen
        left = [
            end
            async for key in gently(self._records.keys.values())
            if (end := drains.next_end_s(key, seen)) is not None
        ]
        return min(left, default=None)

    async def _watch_the_rest(self) -> None:
        loop = asyncio.get_running_loop()
        save_at, tried = loop.time() + SAVE_S, False
        while True:
            changed, looked_at = self._records.changed, loop.time()
            is_due, left = await self.look()
            seconds = save_at - loop.time()
            if is_due and not tried:  # else again with the next save
                left = 0
            if left is not None:
                seconds = min(seconds, max(MIN_TICK_S, left))
            if await _is_set_within(changed, seconds) and loop.time() < save_at:
                tried = False
                await asyncio.sleep(looked_at + MIN_TICK_S - loop.time())
                continue
            await self._background.whatever_comes(self.do_what_is_due())
            tried = True
            if loop.time() >= save_at:
                save_at, tried = loop.time() + SAVE_S, False
                await self._background.quietly("ledger", self._records.save(clean=False))

    async def look(self) -> tuple[bool, float | None]:
        """Whether something is due that stores are asked for, and seconds until the next will be;
        and note for which keys a rotation is due, and which are destroyed.
        """
        seen, now = self._records.seen, datetime.now(UTC)
        is_due, soonest = False, None
        due: list[str] = []
        destroyed: list[str] = []
        async for key in gently(self._records.keys.values()):
            for left in drains.events_s(key, seen, now):
                if left == 0:
                    is_due = True
                elif soonest is None or left < soonest:
                    soonest = left
            if drains.is_rotation_due(key, seen, now):
                due.append(key.name)
                is_due = is_due or not self._background.is_told(_rotation_of(key.name))
            if key.is_destroyed:
                destroyed.append(key.name)
        self._records.rotations_due, self._records.destroyed = due, destroyed
        return is_due, soonest

    async def do_what_is_due(self) -> None:
        """Finish what is half done, retire, rotate, destroy."""
        await self._retire()
        async for key in gently(self._records.keys.values()):
            if self._making.unfinished(key):
                async with self._making.alone(key.name):
                    await self._making.finish(key.name)
            await self._rotate_if_due(key.name)
            for generation in drains.to_destroy(key, self._records.seen):
                async with self._making.alone(key.name):
                    before = self._records.keys
                    await self._background.quietly(
                        key.name, self._destroy_if_there(key.name, generation.generation)
                    )
                    self._record("key.destroy", key.name, before, State.DESTROYED)

    async def _retire(self) -> None:
        seen, before = self._records.seen, self._records.keys
        over = [
            key.name
            async for key in gently(self._records.keys.values())
            if drains.is_drain_over(key, seen)
        ]
        if over:
            await self._background.quietly(
                "ledger",
                self._records.write(
                    lambda keys: drains.retire(keys, over, self._records.seen, now_text())
                ),
            )
        for name in over:
            self._record("key.retire", name, before, State.RETIRED)

    async def _rotate_if_due(self, name: str) -> None:
        if not self._is_rotation_due(name):
            self._background.over(_rotation_of(name))
            return
        async with self._making.alone(name):
            if not self._is_rotation_due(name):
                return
            key = self._records.keys.named(name)
            if drains.is_rotation_by_hand(key):
                await self._background.quietly(_rotation_of(name), self._rotation_is_due(key))
            else:
                before = self._records.keys
                await self._background.quietly(name, self._rotate_now(name))
                self._record("key.rotate", name, before, State.ACTIVE)

    def _record(self, method: str, name: str, before: Keys, state: State) -> None:
        """Have the audit tell which generations came into a state that nobody asked for."""
        key, was = self._records.keys.get(name), before.get(name)
        known = {g.generation: g.state for g in was.generations} if was else {}
        for g in key.generations if key else ():
            if g.state is state and known.get(g.generation) is not state:
                self._trails.itself(method, key=name, generation=g.generation, jkt=g.jkt)

    def _is_rotation_due(self, name: str) -> bool:
        key = self._records.keys.get(name)
        return key is not None and drains.is_rotation_due(
            key, self._records.seen, datetime.now(UTC)
        )

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

    async def _destroy_if_there(self, name: str, number: int) -> None:
        key = self._records.keys.named(name)
        for g in drains.to_destroy(key, self._records.seen):
            if g.generation == number and await self._inventory.find(key, g):
                await self._making.destroy(key, g)


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _rotation_of(name: str) -> str:
    return f"rotation of {name}"
