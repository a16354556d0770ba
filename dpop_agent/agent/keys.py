"""Keys, their generations and what may become of them. Pure: values in, values out.

    pending → staged → active → draining → retired → destroyed

NIST SP 800-57 part 1's words for a key's states; draining is what DPoP adds: an access token
carries its key's thumbprint (`cnf.jkt`) until it dies, so a key outlives its successor's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

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

MAX_ORIGINS_USED = 32
"""Origins remembered of one generation: the ones used last."""

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
        last_used: when it last signed, to about a minute; None for never.
        origins_used: the origins that it signed for, and when last.
        shared: another agent may use it too: no schedule destroys it.
        object_left: destroyed here, but its object is still to be deleted from the store; or stays
            in its slot until another key is made there.
        compromised: it was, whatever became of it since; a pending one will be, once it is made.
        observed_s: seconds in its state that the agent was there to see; no wall clock counts here.
        idle_s: those since it last signed.
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
    last_used: str | None = None
    origins_used: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False
    object_left: bool = False
    slot: str | None = None
    touch: str | None = None
    compromised: bool = False
    observed_s: int = 0
    idle_s: int = 0
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
        return replace(self, state=state, changed=now, observed_s=0, idle_s=0, **changes)

    def used(self, at: str, origins: Iterable[str]) -> Generation:
        """This generation having signed for these origins; whatever drains begins again."""
        recent = {o: t for o, t in self.origins_used.items() if o not in origins}
        recent |= dict.fromkeys(origins, at)
        kept = dict(list(recent.items())[-MAX_ORIGINS_USED:])
        return replace(self, last_used=at, origins_used=kept, idle_s=0)

    def buried(self) -> Generation:
        """What stays of a destroyed generation: its jkt and dates."""
        return replace(self, jwk={}, origins_used={})

    def require_signing(self, key: str) -> None:
        """Let an active or draining generation pass; else raise what its state says."""
        if self.state not in SIGNING:
            refusal, says = _REFUSALS[self.state]
            raise refusal(f"{key}@{self.generation} {says}")


@dataclass(frozen=True, slots=True)
class Key:
    """A stable name, what it may be used for, and its generations, oldest first.

    `touch` says whether its generations want a touch, where their store can't tell.
    """

    name: str
    store: str
    alg: str
    created: str
    origins: tuple[str, ...] = ()
    allow_sign_proof: bool = False
    rotate_every_s: int | None = None
    drain_s: int = DRAIN_S
    max_drain_s: int = MAX_DRAIN_S
    touch: bool | None = None
    generations: tuple[Generation, ...] = ()

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

    def drain_left_s(self, generation: Generation) -> int:
        """Observed seconds until a draining generation is retired, if it isn't used meanwhile."""
        drain_s = self.drain_s if generation.drain_s is None else generation.drain_s
        until_idle = drain_s - generation.idle_s
        return max(0, min(until_idle, self.max_drain_s - generation.observed_s))

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
        return replace(self, generations=tuple(by_number[n] for n in sorted(by_number)))

    def without(self, number: int) -> Key:
        """This key less a pending generation that came to nothing."""
        return replace(
            self, generations=tuple(g for g in self.generations if g.generation != number)
        )


class Keys(Mapping[str, Key]):
    """Every key at one moment; never changed, replaced as a whole."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._by_name = {key.name: key for key in keys}

    def __getitem__(self, name: str) -> Key:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    @cached_property
    def by_jkt(self) -> Mapping[str, tuple[Key, Generation]]:
        """Where each thumbprint belongs."""
        found: dict[str, tuple[Key, Generation]] = {}
        for key in self._by_name.values():
            for g in key.generations:
                # An object that was adopted again is another generation than its tombstone.
                if g.jkt and (g.jkt not in found or g.state is not State.DESTROYED):
                    found[g.jkt] = (key, g)
        return found

    def with_(self, key: Key) -> Keys:
        """These keys with one replaced or added."""
        return Keys((self._by_name | {key.name: key}).values())

    def without(self, name: str) -> Keys:
        """These keys less one that was never made."""
        return Keys(key for key in self._by_name.values() if key.name != name)

    def in_store(self, store: str) -> Iterator[tuple[Key, Generation]]:
        """Every generation of a store whose object is there, as far as the ledger knows."""
        for key in self._by_name.values():
            for g in key.generations:
                if key.store == store and (g.state is not State.DESTROYED or g.object_left):
                    yield key, g

    def overwritten(self, store: str, ref: str, jkt: str, now: str) -> Keys:
        """These keys after one with that `jkt` was made in a slot: what it had before is gone."""
        keys = self
        for key, g in self.in_store(store):
            if g.slot is None or g.ref != ref or g.jkt == jkt:
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

    def changed_from(self, old: Keys) -> bool:
        """Whether any key differs."""
        return self._by_name != old._by_name

    def named(self, name: str) -> Key:
        """The key of that name.

        Raises:
            KeyUnknown
        """
        key = self._by_name.get(name)
        if key is None:
            if not self._by_name:
                hint = f"make it with: dpop-agent key create {name}"
            else:
                hint = f"there are: {', '.join(sorted(self._by_name)[:8])}"
            raise KeyUnknown(f"there is no key {name}", hint=hint)
        return key

    def require_new(self, name: str) -> None:
        """Refuse a name that is taken.

        Raises:
            KeyExists
        """
        if name in self._by_name:
            raise KeyExists(
                f"there is a key {name} already", hint=f"see: dpop-agent key show {name}"
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
                raise KeyUnknown(f"no generation with the jkt {jkt} was ever here")
            owner, generation = self.by_jkt[jkt]
            if key is not None and owner.name != key:
                raise KeyMismatch(f"the key {key} has no generation with the jkt {jkt}")
            generation.require_signing(owner.name)
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
            f"the key {key.name} has no active generation ({states or 'all are destroyed'})"
        )


def to_json(key: Key) -> dict[str, Any]:
    """A key as the ledger has it."""
    return {f.name: getattr(key, f.name) for f in fields(key)} | {
        "origins": list(key.origins),
        "generations": [{f.name: getattr(g, f.name) for f in fields(g)} for g in key.generations],
    }


def from_json(value: Mapping[str, Any]) -> Key:
    """A key from the ledger.

    Raises:
        KeyError, TypeError, ValueError: it isn't one.
    """
    generations = tuple(
        Generation(**{**g, "state": State(g["state"])}) for g in value["generations"]
    )
    return Key(**{**value, "origins": tuple(value["origins"]), "generations": generations})
