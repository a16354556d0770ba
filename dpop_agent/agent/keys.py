"""Keys, their generations and what may become of them. Pure: values in, values out.

    pending → staged → active → draining → retired → destroyed

NIST SP 800-57 part 1's words for a key's states; draining is what DPoP adds: an access token
carries its key's thumbprint (`cnf.jkt`) until it dies, so a key outlives its successor's start.
"""

from __future__ import annotations

from collections.abc import (
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from dpop_agent.agent.rules import ANYTHING, Rules
from dpop_agent.errors import (
    IllegalTransition,
    JktRequired,
    KeyCompromised,
    KeyDestroyed,
    KeyExists,
    KeyMismatch,
    KeyPending,
    KeyRetired,
    KeyStaged,
    KeySuspended,
    KeyUnknown,
    KeyUnusable,
    LimitReached,
    NoActive,
)

DEFAULT_KEY = "default"
"""The key that signs when a request names neither `key` nor `jkt`."""


class State(StrEnum):
    """A generation's state."""

    PENDING = "pending"
    STAGED = "staged"
    ACTIVE = "active"
    DRAINING = "draining"
    RETIRED = "retired"
    SUSPENDED = "suspended"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    # Undoing a pending generation leaves no state: it is taken out of the ledger.
    State.PENDING: frozenset({State.STAGED}),
    State.STAGED: frozenset({State.ACTIVE, State.SUSPENDED, State.COMPROMISED, State.DESTROYED}),
    State.ACTIVE: frozenset({State.DRAINING, State.SUSPENDED, State.COMPROMISED, State.DESTROYED}),
    State.DRAINING: frozenset(
        {State.ACTIVE, State.RETIRED, State.SUSPENDED, State.COMPROMISED, State.DESTROYED}
    ),
    State.RETIRED: frozenset({State.ACTIVE, State.SUSPENDED, State.COMPROMISED, State.DESTROYED}),
    State.SUSPENDED: frozenset({State.ACTIVE, State.DRAINING, State.COMPROMISED, State.DESTROYED}),
    State.COMPROMISED: frozenset({State.DESTROYED}),
    State.DESTROYED: frozenset(),
}

PROTECTIONS = ("hardware", "software-token", "keychain")
TOUCHES = ("never", "always", "cached")

SIGNING = frozenset({State.ACTIVE, State.DRAINING})

DAY_S = 24 * 3600
DRAIN_S = 7 * DAY_S
"""Seconds without use after which a draining generation is retired, where a key says nothing."""

MAX_DRAIN_S = 90 * DAY_S
"""Seconds after which it is retired however much it is used."""

RETIRED_S = 7 * DAY_S
"""Seconds that a retired generation's object is kept, should somebody need it after all."""

MAX_CHOICES = 64
"""Thumbprints that an error lists, the newest."""

MAX_KEYS = 65_536
"""Keys of one agent. A name is taken until it is forgotten, its generations destroyed."""

MAX_GENERATIONS = 2048
"""Generations of one key, the ones that are destroyed among them: what is written as one line."""

MAX_TOMBSTONES = 256
"""Destroyed generations that a key keeps, the newest; whoever asks for an older one is told that it
is unknown. One that was compromised is kept for ever, so that it never comes back by adoption."""

MAX_FORGOTTEN = 4096
"""Generations kept of keys that were forgotten: the newest, and as many more that were compromised,
none of which is ever given up for another."""

_REFUSALS: Mapping[State, tuple[type[KeyUnusable], str]] = {
    State.PENDING: (KeyPending, "is still being made"),
    State.STAGED: (KeyStaged, "is staged and not active yet"),
    State.RETIRED: (KeyRetired, "is retired: its drain is over"),
    State.SUSPENDED: (KeySuspended, "is suspended"),
    State.COMPROMISED: (KeyCompromised, "is marked as compromised"),
    State.DESTROYED: (KeyDestroyed, "is destroyed"),
}


@dataclass(frozen=True, slots=True)
class Generation:
    """One key pair.

    Attributes:
        generation: its number, 1 for a key's first.
        ref: what its store finds the object by.
        jkt, jwk: known from `staged` on (RFC 7638, RFC 7517).
        created, changed: RFC 3339 UTC; `changed` is when it came into its state.
        shared: another agent may use it too: no schedule destroys it.
        object_left: destroyed here, but its object is still to be deleted from the store; or stays
            in its slot until another key is made there.
        compromised: it was, whatever became of it since; a pending one will be, once it is made.
        since_s: when it came into its state, in seconds that the agent was there to see; no wall
            clock counts here.
        drain_s: what `rotate` was told instead of the key's own.
        slot: its place, where its store has places for keys; nothing but another key removes it.
        touch: `never`, `always` or `cached`, when it wants a touch; None if unknown.
    """

    generation: int
    state: State
    ref: str
    created: str
    changed: str
    jkt: str = ""
    jwk: Mapping[str, str] = field(default_factory=dict)
    exportable: bool = True
    protection: str = ""
    local: bool | None = None
    shared: bool = False
    object_left: bool = False
    slot: str | None = None
    touch: str | None = None
    compromised: bool = False
    since_s: int = 0
    drain_s: int | None = None

    def become(self, state: State, now: str, **changes: Any) -> Generation:
        """This generation in another state.

        Raises:
            IllegalTransition: the table doesn't have it.
        """
        if state not in TRANSITIONS[self.state]:
            how = "already" if state is self.state else f"and can't become {state}"
            raise IllegalTransition(f"generation {self.generation} is {self.state} {how}")
        if state is State.COMPROMISED:
            changes["compromised"] = True
        return replace(self, state=state, changed=now, **changes)

    def buried(self) -> Generation:
        """What stays of a destroyed generation: its jkt and dates."""
        return replace(self, jwk={})

    @property
    def is_tombstone(self) -> bool:
        """Whether it is destroyed with nothing left of it that anybody has to know about."""
        return self.state is State.DESTROYED and not (self.object_left or self.compromised)

    @property
    def is_there(self) -> bool:
        """Whether its object is in its store, as far as the ledger knows."""
        return self.state is not State.DESTROYED or self.object_left

    def require_signing(self, key: str, *, hint: str | None = None) -> None:
        """Let an active or draining generation pass; else raise what its state says."""
        if self.state not in SIGNING:
            refusal, says = _REFUSALS[self.state]
            raise refusal(f"{key}@{self.generation} {says}", hint=hint)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What stays of a destroyed generation when its key is forgotten: whose proofs it made.

    `at` is when it was destroyed, RFC 3339 UTC.
    """

    jkt: str
    key: str
    generation: int
    at: str
    compromised: bool

    def refusal(self) -> KeyUnusable:
        """What is said to whoever wants a proof by it."""
        return KeyDestroyed(
            f"{self.key}@{self.generation}, which had that jkt, is destroyed, and its key was "
            "forgotten",
            hint="get a new access token, bound to another key",
        )


@dataclass(frozen=True, slots=True)
class Key:
    """A stable name, what it may be used for, and its generations, oldest first.

    `touch` says whether its generations want a touch, where their store can't tell; `policy_lost`
    that nobody knows any more what it may be used for, so that it signs nothing.
    """

    name: str
    store: str
    alg: str
    created: str
    rules: Rules = ANYTHING
    allow_sign_proof: bool = False
    rotate_every_s: int | None = None
    drain_s: int = DRAIN_S
    max_drain_s: int = MAX_DRAIN_S
    touch: bool | None = None
    generations: tuple[Generation, ...] = ()
    policy_lost: bool = False

    def __post_init__(self) -> None:
        active = [g.generation for g in self.generations if g.state is State.ACTIVE]
        if len(active) > 1:
            raise IllegalTransition(f"{self.name} would have the active generations {active}")

    @property
    def active(self) -> Generation | None:
        """The one generation that signs by name."""
        return next((g for g in self.generations if g.state is State.ACTIVE), None)

    @property
    def signing(self) -> list[Generation]:
        """Those that sign: the active one, and the draining ones by `jkt`."""
        return [g for g in self.generations if g.state in SIGNING]

    @property
    def is_destroyed(self) -> bool:
        """Whether all its generations are; its name is taken still."""
        return all(g.state is State.DESTROYED for g in reversed(self.generations))

    def to_resume(self, generation: Generation) -> str:
        """How people let a suspended generation sign again, as a hint."""
        origins = " --origin ORIGIN" if self.policy_lost else ""
        return f"resume it: dpop-agent key resume {self.name}@{generation.generation}{origins}"

    @property
    def way_on(self) -> str:
        """What people can do where none of its generations is active, as a hint."""
        if self.staged is not None:
            return f"activate it: dpop-agent key activate {self.name}@{self.staged.generation}"
        if any(g.state is State.PENDING for g in self.generations):
            return "it is finished or undone once its store is open; see: dpop-agent status"
        for g in reversed(self.generations):
            if g.state is State.SUSPENDED:
                return self.to_resume(g)
        anew = f"for a new generation: dpop-agent key rotate {self.name}"
        if not self.is_destroyed:
            return anew
        for g in self.generations:
            if g.object_left and g.slot is not None:
                return (
                    f"{anew} --slot {g.slot} --reuse-slot (its slot still has {self.name}@"
                    f"{g.generation}'s private key)"
                )
        return f"{anew}; to free the name: dpop-agent key forget {self.name}"

    @property
    def staged(self) -> Generation | None:
        """The one that is made and waits for its turn, the newest if there are several."""
        return next((g for g in reversed(self.generations) if g.state is State.STAGED), None)

    def may_want_touch(self, generation: Generation) -> bool:
        """Whether a signature may wait for a person."""
        if self.touch is not None:
            return self.touch
        if generation.touch is None:
            return generation.slot is not None
        return generation.touch != "never"

    @property
    def next_number(self) -> int:
        """The number of the next generation."""
        return self.generations[-1].generation + 1 if self.generations else 1

    def activate(self, number: int, now: str, *, drain_s: int | None = None) -> Key:
        """One generation active, the one that was draining from now on: a single step.

        Raises:
            KeyUnknown, IllegalTransition
        """
        new = self.generation(number).become(State.ACTIVE, now)
        old = self.active
        if old is None:
            return self.with_(new)
        return self.with_(new, old.become(State.DRAINING, now, drain_s=drain_s))

    def generation(self, number: int) -> Generation:
        """One generation by its number.

        Raises:
            KeyUnknown
        """
        for found in self.generations:
            if found.generation == number:
                return found
        raise KeyUnknown(f"the key {self.name} has no generation {number}")

    def with_(self, *changed: Generation) -> Key:
        """This key with these generations replaced or added, all in one step."""
        by_number = {g.generation: g for g in self.generations} | {g.generation: g for g in changed}
        ordered = [by_number[n] for n in sorted(by_number)]
        graves = [g for g in ordered[:-1] if g.is_tombstone]
        forgotten = {g.generation for g in graves[: max(0, len(graves) - MAX_TOMBSTONES)]}
        return replace(self, generations=tuple(g for g in ordered if g.generation not in forgotten))

    def without(self, number: int) -> Key:
        """This key less a pending generation that came to nothing."""
        return replace(
            self, generations=tuple(g for g in self.generations if g.generation != number)
        )


class Keys(Mapping[str, Key]):
    """Every key at one moment; never changed, replaced as a whole.

    What is looked up in it is indexed once and handed on to its successors: there may be thousands
    of keys, and a change is about one.

    Attributes:
        forgotten: by jkt, what stays of generations whose keys aren't here any more.
    """

    def __init__(self, keys: Iterable[Key] = (), forgotten: Iterable[Forgotten] = ()) -> None:
        self._by_name = {key.name: key for key in keys}
        self.forgotten: Mapping[str, Forgotten] = {f.jkt: f for f in forgotten}
        # Keys whose thumbprints are indexed, and which names differ from theirs.
        self._base: Keys | None = None
        self._changed: set[str] = set()

    def __getitem__(self, name: str) -> Key:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def keys(self) -> KeysView[str]:
        return self._by_name.keys()

    def values(self) -> ValuesView[Key]:
        return self._by_name.values()

    def items(self) -> ItemsView[str, Key]:
        return self._by_name.items()

    @cached_property
    def names(self) -> Sequence[str]:
        """All names, sorted."""
        return sorted(self._by_name)

    @cached_property
    def by_jkt(self) -> Mapping[str, tuple[Key, Generation]]:
        """Where each thumbprint belongs."""
        if self._base is None:
            found: dict[str, tuple[Key, Generation]] = {}
            for key in self._by_name.values():
                _index(found, key)
            return found
        base, self._base = self._base, None
        return self._changed_index(base)

    def _changed_index(self, base: Keys) -> dict[str, tuple[Key, Generation]]:
        found, lost = dict(base.by_jkt), set[str]()
        for name in self._changed:
            for g in base.generations(name):
                if g.jkt in found and found[g.jkt][0].name == name:
                    del found[g.jkt]
                    lost.add(g.jkt)
            if name in self._by_name:
                _index(found, self._by_name[name])
        lost.difference_update(found)
        if lost:  # a tombstone was forgotten; another key may have one of that object too
            for key in self._by_name.values():
                if any(g.jkt in lost for g in key.generations):
                    _index(found, key)
        return found

    @cached_property
    def _with_slots(self) -> frozenset[str]:
        return frozenset(name for name, key in self._by_name.items() if _has_slot(key))

    def with_(self, *changed: Key) -> Keys:
        """These keys with some replaced or added."""
        if not changed:
            return self
        names = {key.name for key in changed}
        keys = self._successor(self._by_name | {key.name: key for key in changed}, names)
        added = [name for name in names if name not in self._by_name]
        if "names" in vars(self):
            keys.names = sorted([*self.names, *added]) if added else self.names
        if "_with_slots" in vars(self):
            keys._with_slots = self._with_slots | {k.name for k in changed if _has_slot(k)}
        return keys

    def _successor(self, by_name: dict[str, Key], changed: set[str]) -> Keys:
        keys = Keys()
        keys._by_name, keys.forgotten = by_name, self.forgotten
        if "by_jkt" in vars(self):
            keys._base, keys._changed = self, changed
        elif self._base is not None:
            keys._base, keys._changed = self._base, self._changed | changed
        return keys

    def without(self, name: str) -> Keys:
        """These keys less one: of one that was never made nothing stays."""
        rest = dict(self._by_name)
        del rest[name]
        return self._successor(rest, {name})

    def forget(self, name: str) -> Keys:
        """These keys less one that is destroyed: its name is free, its thumbprints stay known.

        Raises:
            LimitReached: too many that were compromised would have to stay known.
        """
        keys = self.without(name)
        forgotten = dict(self.forgotten)
        for g in self._by_name[name].generations:
            before = forgotten.pop(g.jkt, None)  # the same object, under another name perhaps
            compromised = g.compromised or (before is not None and before.compromised)
            forgotten[g.jkt] = Forgotten(g.jkt, name, g.generation, g.changed, compromised)
        if sum(f.compromised for f in forgotten.values()) > MAX_FORGOTTEN:
            raise LimitReached(
                f"{MAX_FORGOTTEN} generations of forgotten keys were compromised, as many as one "
                "agent keeps",
                hint="leave the name as it is, and use another",
            )
        others = [f.jkt for f in forgotten.values() if not f.compromised]
        for jkt in others[: max(0, len(others) - MAX_FORGOTTEN)]:
            del forgotten[jkt]
        keys.forgotten = forgotten
        return keys

    def in_slots(self, store: str) -> Iterator[tuple[Key, Generation]]:
        """Every generation that is in a slot of a store, as far as the ledger knows."""
        for name in self._with_slots:
            key = self._by_name[name]
            for g in key.generations:
                if key.store == store and g.slot is not None and g.is_there:
                    yield key, g

    def overwritten(self, store: str, ref: str, jkt: str, now: str) -> Keys:
        """These keys after one with that `jkt` was made in a slot: what it had before is gone."""
        keys = self
        for key, g in self.in_slots(store):
            if g.ref != ref or g.jkt == jkt:
                continue
            if g.state is State.RETIRED:
                gone = g.become(State.DESTROYED, now).buried()
                keys = keys.with_(keys[key.name].with_(gone))
            elif g.state is State.DESTROYED:
                keys = keys.with_(keys[key.name].with_(replace(g, object_left=False)))
        return keys

    def generations(self, name: str) -> tuple[Generation, ...]:
        """A key's generations; none if there is no such key, or not any more."""
        key = self._by_name.get(name)
        return key.generations if key else ()

    def changed_from(self, old: Keys) -> list[Key]:
        """The keys that were replaced or added since."""
        before, now = old._by_name, self._by_name
        return [
            now[name]
            for name in self._touched_since(old)
            if name in now and before.get(name) is not now[name]
        ]

    def gone_from(self, old: Keys) -> list[Key]:
        """The keys that were there, and aren't any more."""
        before, now = old._by_name, self._by_name
        touched = self._touched_since(old)
        return [
            before[n]
            for n in (before if touched is now else touched)
            if n in before and n not in now
        ]

    def _touched_since(self, old: Keys) -> Iterable[str]:
        """The names that may differ from an earlier moment's."""
        if self._base is old:
            return self._changed
        if self._base is not None and self._base is old._base:
            return self._changed | old._changed
        return self._by_name

    def named(self, name: str) -> Key:
        """The key of that name.

        Raises:
            KeyUnknown
        """
        key = self._by_name.get(name)
        if key is None:
            usable = [n for n in self.names if not self._by_name[n].is_destroyed]
            there_are = f"there are: {', '.join(usable[:8])}"
            hint = there_are if usable else self.way_to_one(name)
            raise KeyUnknown(f"there is no key {name}", hint=hint)
        return key

    def way_to_one(self, name: str) -> str:
        """What to do where there is no key yet, as a hint."""
        return (
            f"make it with: dpop-agent key create {name} --origin https://api.example.com "
            "(your server's), or --any-origin"
        )

    def require_new(self, name: str) -> None:
        """Refuse a name that is taken, and one more than there may be.

        Raises:
            KeyExists, LimitReached
        """
        key = self._by_name.get(name)
        if key is not None and key.is_destroyed:
            raise KeyExists(
                f"all generations of the key {name} are destroyed, and its name is taken still",
                hint=key.way_on,
            )
        if key is not None:
            raise KeyExists(
                f"there is a key {name} already", hint=f"see: dpop-agent key show {name}"
            )
        if len(self._by_name) >= MAX_KEYS:
            raise LimitReached(
                f"there are {MAX_KEYS} keys already, as many as one agent keeps",
                hint="use a key that there is, or an agent with another state folder; key forget "
                "makes room where all generations of a key are destroyed",
            )

    def signer(
        self, key: str | None, jkt: str | None, *, presents_access_token: bool
    ) -> tuple[Key, Generation]:
        """The one generation that signs a proof: the one asked for, or an error, never another.

        Args:
            key: a key's name, or None.
            jkt: a generation's thumbprint, or None.
            presents_access_token: the proof gets an `ath`.

        Raises:
            KeyUnusable: whichever kind fits.
            JktRequired: an access token is bound to one of several; which one isn't guessed.
        """
        if jkt is not None:
            if jkt not in self.by_jkt:
                if jkt in self.forgotten:
                    raise self.forgotten[jkt].refusal()
                raise KeyUnknown(f"no generation here has the jkt {jkt}")
            owner, generation = self.by_jkt[jkt]
            if key is not None and owner.name != key:
                raise KeyMismatch(f"the key {key} has no generation with the jkt {jkt}")
            generation.require_signing(owner.name, hint=_way_to_a_proof(owner, generation))
            return owner, generation
        owner = self.named(key or DEFAULT_KEY)
        active = owner.active
        if active is None:
            raise self._no_active(owner)
        if presents_access_token and len(owner.signing) > 1:
            raise JktRequired(
                f"several generations of {owner.name} sign, and the access token is bound to one",
                details={"choices": [g.jkt for g in owner.signing[-MAX_CHOICES:]]},
            )
        return owner, active

    @staticmethod
    def _no_active(key: Key) -> KeyUnusable:
        live = [g for g in key.generations if g.state is not State.DESTROYED]
        states = ", ".join(f"{key.name}@{g.generation} is {g.state}" for g in live[-4:])
        return NoActive(
            f"the key {key.name} has no active generation ({states or 'all are destroyed'})",
            hint=key.way_on,
        )


def _way_to_a_proof(key: Key, generation: Generation) -> str | None:
    """A hint for who wants a proof by a generation that gives none; None for its state's own."""
    which = f"{key.name}@{generation.generation}"
    if generation.state is State.PENDING:
        return "it is finished or undone once its store is open; see: dpop-agent status"
    if generation.state is State.STAGED:
        return f"activate it: dpop-agent key activate {which}"
    if generation.state is State.SUSPENDED:
        return key.to_resume(generation)
    if key.active is None:
        return f"{key.way_on}; then get a new access token"
    return None


def _index(found: dict[str, tuple[Key, Generation]], key: Key) -> None:
    """Note where a key's thumbprints belong."""
    own: dict[str, Generation] = {}
    for g in key.generations:
        # An object that was adopted again is another generation than its tombstone.
        if g.jkt and (g.jkt not in own or g.state is not State.DESTROYED):
            own[g.jkt] = g
    for jkt, g in own.items():
        there = found.get(jkt)
        if there is None or g.state is not State.DESTROYED or there[1].state is State.DESTROYED:
            found[jkt] = (key, g)


def _has_slot(key: Key) -> bool:
    return any(g.slot is not None for g in key.generations)
