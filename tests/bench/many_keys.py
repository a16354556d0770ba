"""How long the agent's event loop stands still for one step, with thousands of keys.

    python -m tests.bench.many_keys [KEYS]

The real records, ledger, verbs and upkeep; the store is a dictionary. It judges nothing.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from dpop_agent.agent import records as records_module
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.ledger import Contents, Ledger
from dpop_agent.agent.nonces import Nonces
from dpop_agent.agent.records import Records
from dpop_agent.agent.signers import Signers
from dpop_agent.agent.views import Views
from tests.faults.around_records import AroundRecords
from tests.faults.test_machine import DictStore, Fate
from tests.state_folder import new_public_key

AT = "2026-11-20T19:05:00Z"
ROUNDS = 5


class Steps:
    """The longest step that an event loop took, milliseconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        run = asyncio.events.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            before = time.thread_time()
            run(handle)
            self.longest = max(self.longest, (time.thread_time() - before) * 1e3)

        asyncio.events.Handle._run = timed  # type: ignore[method-assign, assignment]

    async def measure(self, name: str, work: Callable[[], Any]) -> None:
        longest, took = [], []
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
            self.longest = 0.0
            began = time.perf_counter()
            done = work()
            if isinstance(done, Awaitable):
                await done
            took.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(0)
            longest.append(self.longest)
        longest.sort()
        print(f"{name:34} {longest[ROUNDS // 2]:9.2f} {longest[-1]:9.2f} {sorted(took)[2]:9.1f}")


def key(number: int) -> Key:
    old, new = (
        Generation(n, state, f"{number:031x}{n}", AT, AT, **new_public_key())
        for n, state in ((1, State.DRAINING), (2, State.ACTIVE))
    )
    return Key(f"key-{number}", "dict", "ES256", AT, rotate_every_s=10**8, generations=(old, new))


async def measure(folder: str, count: int, steps: Steps) -> None:
    ledger = Ledger(folder)
    records = Records(ledger)
    store = DictStore(Fate())
    around = AroundRecords(records, dict=store)
    views = Views(records, Signers(), around.inventory, Nonces())
    jkts = list(records.keys.by_jkt)
    numbers = iter(range(10**6))

    def create() -> Coroutine[Any, Any, Key]:
        asked = {"key": f"new-{next(numbers)}", "origins": []}
        asked["request_id"] = f"request-{next(numbers)}"
        return around.lifecycle.create(asked, "dict")

    print(f"{count} keys; milliseconds of the loop's thread, median and worst of {ROUNDS}; of all")
    await steps.measure("one use", lambda: records.used(jkts[7], "https://api.example.com"))
    await steps.measure("a save", lambda: records.save(clean=False))
    await steps.measure("key.create", create)
    await steps.measure("key.rotate", lambda: around.lifecycle.rotate({"key": "key-5"}))
    await steps.measure(
        "key.set", lambda: around.lifecycle.set({"key": "key-6", "allow_sign_proof": True})
    )
    await steps.measure(
        "key.compromise", lambda: around.lifecycle.compromise({"key": f"key-{next(numbers)}"})
    )
    await steps.measure("what is due", around.upkeep.do_what_is_due)
    await steps.measure("a look at what will be", around.upkeep.look)
    await steps.measure("a page in the middle", lambda: views.page({"cursor": "0:key-5@1"}))
    await steps.measure("status", lambda: views.status(agent={}, proofs=0))
    await steps.measure("unknown objects", lambda: around.inventory.look("dict"))
    ledger.close()


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    logging.disable()  # a line for each missing generation
    with tempfile.TemporaryDirectory(prefix="dpop-bench-") as folder:
        ledger = Ledger(folder)
        ledger.write(Contents(Keys(key(n) for n in range(count))))
        ledger.close()
        records_module.MAX_REQUESTS = 10**6
        asyncio.run(measure(folder, count, Steps()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
