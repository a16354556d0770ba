"""Keys whose ledger was lost: their names and generations from the labels of what is in a store.

A label says neither what a key may be used for, nor which generation was active, nor whether one
was destroyed or compromised. So nothing that is found signs before somebody resumes it, and says
for which origins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, NamedTuple

from dpop_agent.agent.background import gently
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.keys import MAX_GENERATIONS, Generation, Key, Keys, State
from dpop_agent.agent.labels import label_of, named_by
from dpop_agent.agent.making import Making, as_staged
from dpop_agent.agent.records import Records, now_text
from dpop_agent.agent.signers import Signers
from dpop_agent.errors import (
    Busy,
    DPoPAgentError,
    InvalidParams,
    LimitReached,
    Locked,
    StoreAbsent,
    Timeout,
)
from dpop_agent.jose import ALGORITHMS

AT_ONCE = 64
"""Generations of one answer: it fits a line, and is given long before a client gives up."""

REF_DIGITS = 32
"""Hex digits of each id that a store gave for a key."""

_Name = tuple[str, int]
_Object = Mapping[str, Any]


class _Left(Exception):
    """Why an object isn't adopted."""


class _Found(NamedTuple):
    """A generation that can be adopted, and its key, should there be none yet."""

    key: Key
    generation: Generation


class Recovery:
    """Adopts what a lost ledger had."""

    def __init__(
        self, records: Records, signers: Signers, inventory: Inventory, making: Making
    ) -> None:
        self._records = records
        self._signers = signers
        self._inventory = inventory
        self._making = making

    async def adopt_all(self, params: Mapping[str, Any], default_store: str) -> dict[str, Any]:
        """`key.adopt_all`: some of the store's private keys that the ledger doesn't have and whose
        labels say that they are a generation's, suspended; `cursor` for the next ones.

        Raises:
            StoreUnusable: it can't be asked; what was adopted before stays so.
            NotDurable: nothing of this answer is adopted.
        """
        store = params.get("store", default_store)
        self._signers[store]
        after = _cursor(params.get("cursor"))
        if after is None:
            await self._inventory.look(store)
        named: defaultdict[_Name, list[_Object]] = defaultdict(list)
        others = 0
        async for item in gently(self._inventory.unknown.get(store, ())):
            name = named_by(item["label"])
            if name is None:
                others += 1
            elif after is None or name > after:
                named[name].append(item)
        chosen = sorted(named)[:AT_ONCE]
        adopted, left = await self._adopt(store, {n: named[n] for n in chosen}, params.get("alg"))
        return {
            "store": store,
            "listed": store in self._inventory.unknown,
            "adopted": [
                {"key": key.name, "generation": g.generation, "jkt": g.jkt} for key, g in adopted
            ],
            "left": [
                {"label": label_of(*name), "ref": named[name][0]["ref"], "reason": reason}
                for name, reason in left.items()
            ],
            "others": others,
        } | ({"cursor": "{}@{}".format(*chosen[-1])} if len(named) > len(chosen) else {})

    async def _adopt(
        self, store: str, named: Mapping[_Name, Sequence[_Object]], alg: str | None
    ) -> tuple[list[_Found], dict[_Name, str]]:
        """What of these is adopted from now on, and why the rest isn't."""
        found: dict[_Name, _Found] = {}
        left: dict[_Name, str] = {}
        async with AsyncExitStack() as alone:
            for key_name in sorted({key_name for key_name, _ in named}):
                await alone.enter_async_context(self._making.alone(key_name))
            for name, items in named.items():
                try:
                    found[name] = await self._find(store, name, items, alg)
                except _Left as e:
                    left[name] = str(e)
            adopted: list[_Found] = []

            def add(keys: Keys) -> Keys:
                adopted.clear()
                before = keys
                for name, (new, generation) in found.items():
                    try:
                        _require_nobodys(before, generation.jkt)
                        _require_nobodys(Keys(key for key, _ in adopted), generation.jkt)
                        key = _taken_by(keys, new, generation.generation) or new
                    except _Left as e:
                        left[name] = str(e)
                        continue
                    key = key.with_(generation)
                    keys = keys.with_(key)
                    adopted.append(_Found(key, generation))
                return keys

            if found:
                await self._records.write(add)
        if adopted:
            self._inventory.forget_unknown(store, *(g.ref for _, g in adopted))
        return adopted, left

    async def _find(
        self, store: str, name: _Name, items: Sequence[_Object], wanted: str | None
    ) -> _Found:
        """What a generation of that name would be.

        Raises:
            _Left: there is none, or it can't be one.
        """
        keys = self._records.keys
        if len(items) > 1:
            raise _Left(f"{len(items)} private keys have this label")
        (item,) = items
        _require_nobodys(keys, item["jkt"])
        alg = _algorithm(item["alg"], wanted)
        if alg is None:
            raise _Left("its public key isn't there, or isn't one that can be used")
        if len(item["ref"]) != REF_DIGITS:
            raise _Left("it isn't one of dpop-agent's: its id has another length")
        new = Key(name[0], store, alg, now_text(), policy_lost=True)
        _taken_by(keys, new, name[1])
        info = await self._info(store, item["ref"], alg)
        if info["exportable"]:  # no word of where it was made: NSS forgets that
            raise _Left("it isn't one of dpop-agent's: it can leave the store, or could once")
        now = now_text()
        pending = Generation(name[1], State.PENDING, item["ref"], created=now, changed=now)
        suspended = as_staged(pending, info).become(State.SUSPENDED, now)
        return _Found(new, replace(suspended, shared=True))

    async def _info(self, store: str, ref: str, alg: str) -> Mapping[str, Any]:
        try:
            answer = await self._signers[store].ask(
                "find", ref=ref, alg=alg, self_test=False, anew=False, looking=True
            )
        except (Locked, StoreAbsent, Busy, Timeout):
            raise
        except DPoPAgentError as e:
            raise _Left(e.message) from e
        info: Mapping[str, Any] | None = answer["key"]
        if info is None:
            raise _Left("it isn't there any more")
        return info


def _algorithm(told: str | None, wanted: str | None) -> str | None:
    """What a key is for: the first algorithm that it can be for, or another such that is wanted.

    Raises:
        InvalidParams
    """
    if wanted is not None and wanted not in ALGORITHMS:
        raise InvalidParams(
            "alg isn't an algorithm that dpop-agent knows",
            hint=f"there are: {', '.join(ALGORITHMS)}",
        )
    if told is None or wanted is None:
        return told
    of, other = ALGORITHMS[told], ALGORITHMS[wanted]
    return wanted if (of.kty, of.crv) == (other.kty, other.crv) else told


def _taken_by(keys: Keys, new: Key, number: int) -> Key | None:
    """The key that a generation goes to; None if it is a new one.

    Raises:
        _Left: the name is another key's, or there is no room.
    """
    key = keys.get(new.name)
    if key is None:
        try:
            keys.require_new(new.name)
        except LimitReached as e:
            raise _Left(e.message) from e
        return None
    if not key.policy_lost:
        raise _Left(
            f"there is a key {key.name} that is in use; to adopt it as another generation of that: "
            f"dpop-agent key adopt {key.name} --ref REF"
        )
    if (key.store, key.alg) != (new.store, new.alg):
        raise _Left(f"the key {key.name} is for {key.alg} in the store {key.store}")
    if any(g.generation == number for g in key.generations):
        raise _Left(f"{key.name}@{number} is another key pair")
    if len(key.generations) >= MAX_GENERATIONS:
        raise _Left(f"the key {key.name} has {MAX_GENERATIONS} generations, as many as one keeps")
    return key


def _require_nobodys(keys: Keys, jkt: str | None) -> None:
    """Let pass what no generation is about; one that is destroyed was so on purpose.

    Raises:
        _Left
    """
    if jkt is not None and jkt in keys.by_jkt:
        key, generation = keys.by_jkt[jkt]
        raise _Left(f"it is {key.name}@{generation.generation}, which is {generation.state}")
    if jkt is not None and jkt in keys.forgotten:
        gone = keys.forgotten[jkt]
        raise _Left(f"it is {gone.key}@{gone.generation}, which is destroyed, its key forgotten")


def _cursor(text: str | None) -> _Name | None:
    if text is None:
        return None
    after = named_by(f"dpop-agent {text}")
    if after is None:
        raise InvalidParams(
            "key.adopt_all: cursor isn't one of an earlier answer", hint="leave it out"
        )
    return after
