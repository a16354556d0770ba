"""Random operations and crashes against a model of the invariants.

The real lifecycle, records and ledger on a real file; the store is a dictionary that survives
crashes, and a crash comes before or after any durable step.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from dpop_agent.agent import records
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.ledger import Contents, Ledger, Times
from dpop_agent.agent.records import Records
from dpop_agent.channel import parse_asked
from dpop_agent.errors import DPoPAgentError, SignerFailed
from dpop_agent.jose import ec_jwk, thumbprint
from tests.faults.around_records import AroundRecords

DAY = 24 * 3600


class Crash(BaseException):
    """The agent is gone, from here on."""


class Fate:
    """Decides at which step the agent dies, if it does."""

    def __init__(self) -> None:
        self.left: int | None = None

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.left = None
                raise Crash


def no_touch(_key: Key, _generation: Generation) -> None:
    """A store that nobody touches."""


def public_of(ref: str) -> dict[str, str]:
    """An ES256 key that nobody keeps, the same for the same ref."""
    secret = int.from_bytes(hashlib.sha256(ref.encode()).digest()) >> 1  # less than the order
    point = ec.derive_private_key(secret, ec.SECP256R1()).public_key().public_numbers()
    return ec_jwk("P-256", point.x.to_bytes(32), point.y.to_bytes(32))


class DictStore:
    """A store as the agent's side sees it: objects by ref."""

    def __init__(self, fate: Fate) -> None:
        self.config = SimpleNamespace(name="dict")
        self.state = "ready"
        self.objects: dict[str, str] = {}
        self.fails = self.keeps = False
        self._fate = fate
        self._refs = itertools.count(1)

    async def ask(self, op: str | bytes, **members: Any) -> dict[str, Any]:
        if isinstance(op, bytes):
            ref, jkt, _ = parse_asked(op.partition(b"\n")[0])
            op, members = "sign", members | {"ref": ref, "jkt": jkt}
        self._fate.step()
        await asyncio.sleep(0)
        if self.fails or (self.keeps and op == "destroy"):
            raise SignerFailed("the store fails")
        answer: dict[str, Any] = getattr(self, f"_{op}")(**members)
        self._fate.step()
        return answer

    def _reserve(self, alg: str, **_rest: Any) -> dict[str, Any]:
        return {"ref": f"{next(self._refs):032x}", "slot": None}

    def _generate(self, ref: str, **_rest: Any) -> dict[str, Any]:
        assert ref not in self.objects
        self.objects[ref] = thumbprint(public_of(ref))
        return self._info(ref)

    def _info(self, ref: str) -> dict[str, Any]:
        return {
            "ref": ref,
            "jkt": self.objects[ref],
            "jwk": public_of(ref),
            "exportable": False,
            "protection": "software-token",
            "local": True,
            "slot": None,
            "touch": None,
        }

    def _find(self, ref: str, **_rest: Any) -> dict[str, Any]:
        return {"key": self._info(ref) if ref in self.objects else None, "half": None}

    def _sign(self, ref: str, jkt: str, **_rest: Any) -> dict[str, Any]:
        assert self.objects[ref] == jkt
        return {}

    def _destroy(self, ref: str, jkt: str, **_rest: Any) -> dict[str, Any]:
        assert self.objects.get(ref, jkt) == jkt
        self.objects.pop(ref, None)
        return {}

    def _objects(self, **_rest: Any) -> dict[str, Any]:
        listed = [
            {"ref": ref, "label": "", "jkt": jkt, "alg": "ES256"}
            for ref, jkt in self.objects.items()
        ]
        return {"objects": listed, "more": False, "slots": None}


class FatefulLedger(Ledger):
    """A ledger at whose writes an agent may die; or that can't be written at all."""

    fate: Fate
    full = False

    def write(self, contents: Contents) -> None:
        self.fate.step()
        if self.full:
            self.path, path = self.path + "/no/such/folder", self.path
            try:
                super().write(contents)
            finally:
                self.path = path
        super().write(contents)
        self.fate.step()

    def save(self, times: Times, *, clean: bool) -> None:
        self.fate.step()
        super().save(times, clean=clean)
        self.fate.step()


class Machine(RuleBasedStateMachine):
    names = Bundle("names")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="dpop-machine-")
        self.fate = Fate()
        self.store = DictStore(self.fate)
        self.boot = 0.0
        self.real_boottime = records.boottime
        records.boottime = lambda: self.boot
        self.strangers = 0
        self.active_before: dict[str, bool] = {}
        self.ended_by_command: set[str] = set()
        self.seen: dict[str, set[State]] = {}
        self.idle_days: dict[str, int] = {}
        self.drained_days: dict[str, int] = {}
        self.ledger: FatefulLedger | None = None
        self.start()

    def teardown(self) -> None:
        if self.ledger is not None:
            self.ledger.close()
            records.boottime = self.real_boottime
            self.folder.cleanup()

    def start(self) -> None:
        """A new agent over what the last one left."""
        self.fate.left = None
        if self.ledger is not None:
            self.follow(self.ledger.contents.keys)  # what the last one did before it died
            self.ledger.close()
        self.idle_days.clear()  # an unclean stop counts as use; a clean one saved what was seen
        self.ledger = FatefulLedger(self.folder.name)
        self.ledger.fate = self.fate
        self.run(self.reopen(self.ledger))

    async def reopen(self, ledger: Ledger) -> None:
        self.records = Records(ledger)
        around = AroundRecords(self.records, dict=self.store)
        self.lifecycle, self.making, self.upkeep = around.lifecycle, around.making, around.upkeep
        self.trails = around.trails
        await self.records.save(clean=False)
        await self.upkeep.reconcile("dict")

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)

    def attempt(self, work: Callable[[], Coroutine[Any, Any, Any]], dies_at: int | None) -> None:
        """An operation that may be refused, and may be the agent's last."""

        async def fresh() -> None:
            # Locks and timers belong to an event loop, and each operation here has its own.
            self.records._writing = asyncio.Lock()
            self.trails._trails.clear()
            self.making._by_name.clear()
            await work()

        self.fate.left = dies_at
        try:
            self.run(fresh())
        except DPoPAgentError:
            pass
        except Crash:
            self.start()
        self.fate.left = None

    @property
    def keys(self) -> Keys:
        return self.records.keys

    deaths = st.one_of(st.none(), st.integers(1, 12))

    @rule(target=names, name=st.sampled_from(["a", "b"]), dies_at=deaths)
    def create(self, name: str, dies_at: int | None) -> str:
        self.attempt(lambda: self.lifecycle.create({"key": name, "origins": []}, "dict"), dies_at)
        return name

    @rule(name=names, stage=st.booleans(), dies_at=deaths)
    def rotate(self, name: str, stage: bool, dies_at: int | None) -> None:
        before = [g.jkt for g in self.keys[name].signing] if name in self.keys else []
        params = {"key": name, "stage": stage}
        self.attempt(lambda: self.lifecycle.rotate(params), dies_at)
        signing = [g.jkt for g in self.keys[name].signing] if name in self.keys else []
        assert set(before) <= set(signing), "a rotation strands what was signing"

    @rule(
        name=names,
        which=st.integers(0, 20),
        verb=st.sampled_from(["activate", "suspend", "resume", "compromise", "destroy", "destroy"]),
        dies_at=deaths,
    )
    def one_generation(self, name: str, which: int, verb: str, dies_at: int | None) -> None:
        if name not in self.keys:
            return
        if verb in ("suspend", "compromise", "destroy"):
            self.ended_by_command.add(name)
        generations = [g for g in self.keys[name].generations if g.state is not State.DESTROYED]
        number = generations[which % len(generations)].generation if generations else 1
        params = {"key": name, "generation": number}
        self.attempt(lambda: getattr(self.lifecycle, verb)(params), dies_at)

    @rule(name=names, dies_at=deaths)
    def forget(self, name: str, dies_at: int | None) -> None:
        key = self.keys.get(name)
        self.attempt(lambda: self.lifecycle.forget({"key": name}), dies_at)
        if key is not None and not key.is_destroyed:
            assert name in self.keys, "what lives is forgotten"

    @rule(name=names, dies_at=deaths)
    def adopt(self, name: str, dies_at: int | None) -> None:
        self.strangers += 1
        ref = f"ff{self.strangers:030x}"
        self.store._generate(ref)
        params: dict[str, Any] = {"key": name, "ref": ref}
        if name not in self.keys:
            params["origins"] = []
        self.attempt(lambda: self.lifecycle.adopt(params, "dict", on_touch=no_touch), dies_at)

    @rule(name=names)
    def use(self, name: str) -> None:
        key = self.keys.get(name)
        for generation in key.signing if key else ():
            self.records.used(generation.jkt, "https://api.example.com")
            self.idle_days[generation.jkt] = 0

    @rule(days=st.integers(0, 10), dies_at=deaths)
    def time_goes_by(self, days: int, dies_at: int | None) -> None:
        self.boot += days * DAY
        for jkt in self.keys.by_jkt:
            for counted in (self.idle_days, self.drained_days):
                counted[jkt] = counted.get(jkt, 0) + days
        self.attempt(self.upkeep.do_what_is_due, dies_at)

    @rule(days=st.integers(1, 100))
    def off_for_a_while(self, days: int) -> None:
        before = {g.jkt: g.state for key in self.keys.values() for g in key.generations}
        self.run(self.records.save(clean=True))
        self.boot += days * DAY
        idle = dict(self.idle_days)
        self.start()
        self.idle_days = idle
        for jkt, state in before.items():
            now = self.keys.by_jkt[jkt][1].state
            assert now == state or state is State.RETIRED, "being off changes nothing"

    @rule(what=st.sampled_from(["store", "ledger"]), name=names)
    def a_rotation_in_trouble_changes_nothing_that_signs(self, what: str, name: str) -> None:
        before = [g.jkt for key in self.keys.values() for g in key.signing]
        assert self.ledger is not None
        self.store.fails, self.ledger.full = what == "store", what == "ledger"
        self.attempt(lambda: self.lifecycle.rotate({"key": name}), None)
        self.store.fails = self.ledger.full = False
        assert [g.jkt for key in self.keys.values() for g in key.signing] == before

    @rule()
    def crash(self) -> None:
        self.start()

    @invariant()
    def at_most_one_active_and_one_where_one_was(self) -> None:
        for name, key in self.keys.items():
            active = [g for g in key.generations if g.state is State.ACTIVE]
            assert len(active) <= 1
            if self.active_before.get(name) and name not in self.ended_by_command:
                assert active, f"{name} lost its active generation"
        self.active_before = {n: key.active is not None for n, key in self.keys.items()}
        self.ended_by_command.clear()

    @invariant()
    def generations_are_contiguous_and_their_jkts_stay_known(self) -> None:
        for name, key in self.keys.items():
            numbers = [g.generation for g in key.generations]
            assert numbers == list(range(1, len(numbers) + 1)), (name, numbers)
        for jkt in self.seen:
            kept = jkt in self.keys.by_jkt or jkt in self.keys.forgotten
            assert kept, "a generation isn't known any more"
            if jkt in self.keys.forgotten:
                marked = State.COMPROMISED in self.seen[jkt]
                assert marked <= self.keys.forgotten[jkt].compromised

    @invariant()
    def every_object_is_listed_and_every_live_generation_has_one(self) -> None:
        live = {
            g.ref
            for key in self.keys.values()
            for g in key.generations
            if g.state is not State.DESTROYED or g.object_left
        }
        ours = {ref for ref in self.store.objects if not ref.startswith("ff")}
        assert ours <= live
        made = {
            g.ref
            for key in self.keys.values()
            for g in key.generations
            if g.state not in (State.DESTROYED, State.PENDING)
        }
        assert made <= self.store.objects.keys()

    @invariant()
    def terminal_states_are_terminal(self) -> None:
        self.follow(self.keys)

    def follow(self, keys: Keys) -> None:
        """Hold states against those that were seen before."""
        for key in keys.values():
            for g in key.generations:
                if not g.jkt:
                    continue
                states = self.seen.setdefault(g.jkt, set())
                if g.state is State.RETIRED and State.RETIRED not in states:
                    idle, drained = self.idle_days[g.jkt], self.drained_days[g.jkt]
                    assert idle >= 7 or drained >= 90, "retired without having been seen idle"
                if State.DESTROYED in states:
                    assert g.state is State.DESTROYED
                elif State.COMPROMISED in states and self.durable(g.jkt):
                    assert g.state in (State.COMPROMISED, State.DESTROYED)
                states.add(g.state)

    def durable(self, jkt: str) -> bool:
        assert self.ledger is not None
        kept = self.ledger.contents.keys.by_jkt[jkt][1].state
        return kept in (State.COMPROMISED, State.DESTROYED)

    @invariant()
    def the_ledger_on_disk_is_what_memory_has_but_for_time_and_uses(self) -> None:
        assert self.ledger is not None

        def bare(keys: Keys) -> dict[str, Any]:
            return {n: [(g.jkt, g.state) for g in k.generations] for n, k in keys.items()}

        assert bare(self.ledger.contents.keys) == bare(self.keys)
        assert self.ledger.contents.keys.forgotten == self.keys.forgotten


SETTINGS = settings(
    max_examples=120,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_random_operations_and_crashes_keep_the_invariants() -> None:
    run_state_machine_as_test(Machine, settings=SETTINGS)


@pytest.mark.long
def test_many_random_operations_and_crashes_keep_the_invariants() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(SETTINGS, max_examples=1500, derandomize=False)
    )
