"""Keys and generations: which becomes what, and which signs."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from dpop_agent.agent.keys import (
    MAX_KEYS,
    MAX_TOMBSTONES,
    SIGNING,
    Generation,
    Key,
    Keys,
    State,
)
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

BEFORE, NOW = "2026-11-20T19:05:00Z", "2026-11-21T00:00:00Z"

# The lifecycle's own words, written anew: what may become what.
LEGAL = {
    "pending": "staged",
    "staged": "active suspended compromised destroyed",
    "active": "draining suspended compromised destroyed",
    "draining": "active retired suspended compromised destroyed",
    "retired": "active suspended compromised destroyed",
    "suspended": "active draining compromised destroyed",
    "compromised": "destroyed",
    "destroyed": "",
}
PAIRS = list(itertools.product(State, State))

REFUSALS: dict[State, type[KeyUnusable]] = {
    State.PENDING: KeyPending,
    State.STAGED: KeyStaged,
    State.RETIRED: KeyRetired,
    State.SUSPENDED: KeySuspended,
    State.COMPROMISED: KeyCompromised,
    State.DESTROYED: KeyDestroyed,
}


def jkt(key: str, number: int) -> str:
    return f"{key}-{number}".ljust(43, "A")


def generation(number: int, state: State, key: str = "shop") -> Generation:
    known = {} if state is State.PENDING else {"jkt": jkt(key, number), "jwk": {"kty": "EC"}}
    return Generation(number, state, f"{number:032x}", BEFORE, BEFORE, **known)  # type: ignore[arg-type]


def key(*states: State, name: str = "shop") -> Key:
    return Key(
        name,
        "soft",
        "ES256",
        BEFORE,
        generations=tuple(generation(n, s, name) for n, s in enumerate(states, 1)),
    )


# Transitions


@pytest.mark.parametrize(("old", "new"), [p for p in PAIRS if p[1] in LEGAL[p[0]].split()])
def test_a_legal_transition_changes_state_and_time_and_nothing_else(old: State, new: State) -> None:
    before = generation(1, old)
    after = before.become(new, NOW)
    assert (after.state, after.changed) == (new, NOW)
    assert after.compromised is (new is State.COMPROMISED)
    assert dataclasses.replace(after, state=old, changed=BEFORE, compromised=False) == before


@pytest.mark.parametrize(("old", "new"), [p for p in PAIRS if p[1] not in LEGAL[p[0]].split()])
def test_an_illegal_transition_raises_and_changes_nothing(old: State, new: State) -> None:
    before = generation(1, old)
    copy = dataclasses.replace(before)
    with pytest.raises(IllegalTransition) as refused:
        before.become(new, NOW)
    how = "already" if old is new else f"and can't become {new}"
    assert refused.value.message == f"generation 1 is {old} {how}"
    assert before == copy


def test_every_state_has_its_row() -> None:
    assert LEGAL.keys() == {str(state) for state in State}
    assert {str(s) for s in SIGNING} == {"active", "draining"}


def test_a_transition_takes_what_becomes_known_with_it() -> None:
    made = generation(1, State.PENDING).become(State.STAGED, NOW, jkt=jkt("shop", 1), local=True)
    assert (made.state, made.jkt, made.local) == (State.STAGED, jkt("shop", 1), True)


def test_a_key_with_two_active_generations_cant_be() -> None:
    with pytest.raises(IllegalTransition, match=r"active generations \[1, 2\]"):
        key(State.ACTIVE, State.ACTIVE)
    one = key(State.ACTIVE, State.STAGED)
    with pytest.raises(IllegalTransition):
        one.with_(one.generation(2).become(State.ACTIVE, NOW))
    assert [g.state for g in one.generations] == [State.ACTIVE, State.STAGED]


def test_a_swap_is_one_step() -> None:
    before = key(State.ACTIVE, State.STAGED)
    after = before.with_(
        before.generation(1).become(State.DRAINING, NOW),
        before.generation(2).become(State.ACTIVE, NOW),
    )
    assert [g.state for g in after.generations] == [State.DRAINING, State.ACTIVE]


def test_generations_stay_in_order_and_are_found_by_number() -> None:
    built = key().with_(generation(3, State.STAGED), generation(1, State.ACTIVE))
    assert [g.generation for g in built.generations] == [1, 3]
    assert built.generation(3).state is State.STAGED
    with pytest.raises(KeyUnknown, match="the key shop has no generation 2"):
        built.generation(2)
    assert [g.generation for g in built.without(1).generations] == [3]


# Which signs


@pytest.mark.parametrize("state", sorted(SIGNING))
def test_what_signs_passes(state: State) -> None:
    generation(1, state).require_signing("shop")


@pytest.mark.parametrize("state", REFUSALS)
def test_what_doesnt_sign_is_refused_by_its_state(state: State) -> None:
    with pytest.raises(REFUSALS[state], match=r"^shop@1 is "):
        generation(1, state).require_signing("shop")


def test_every_state_signs_or_has_its_refusal() -> None:
    assert set(REFUSALS) | SIGNING == set(State)


def test_by_name_the_active_generation_signs() -> None:
    keys = Keys([key(State.DRAINING, State.ACTIVE, State.STAGED), key(State.ACTIVE, name="other")])
    for ath in (False, True):
        owner, chosen = keys.signer("other", None, presents_access_token=ath)
        assert (owner.name, chosen.generation) == ("other", 1)
    owner, chosen = keys.signer("shop", None, presents_access_token=False)
    assert (owner.name, chosen.generation) == ("shop", 2)


def test_without_a_name_the_key_default_signs_and_no_other() -> None:
    keys = Keys([key(State.ACTIVE), key(State.ACTIVE, name="default")])
    owner, _ = keys.signer(None, None, presents_access_token=False)
    assert owner.name == "default"
    with pytest.raises(KeyUnknown, match="there is no key default"):
        Keys([key(State.ACTIVE)]).signer(None, None, presents_access_token=False)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", [None, "shop"])
@pytest.mark.parametrize("ath", [False, True])
def test_by_jkt_exactly_that_generation_signs(number: int, name: str | None, ath: bool) -> None:
    keys = Keys([key(State.DRAINING, State.ACTIVE), key(State.ACTIVE, name="default")])
    owner, chosen = keys.signer(name, jkt("shop", number), presents_access_token=ath)
    assert (owner.name, chosen.generation) == ("shop", number)


def test_an_access_token_is_never_presented_with_a_guessed_key() -> None:
    keys = Keys([key(State.DRAINING, State.ACTIVE, State.RETIRED)])
    with pytest.raises(JktRequired) as required:
        keys.signer("shop", None, presents_access_token=True)
    assert required.value.details == {"choices": [jkt("shop", 1), jkt("shop", 2)]}


@pytest.mark.parametrize("state", sorted(set(State) - SIGNING - {State.PENDING}))
def test_generations_that_dont_sign_leave_no_choice(state: State) -> None:
    keys = Keys([key(state, State.ACTIVE)])
    _, chosen = keys.signer("shop", None, presents_access_token=True)
    assert chosen.generation == 2


@pytest.mark.parametrize("state", sorted(set(REFUSALS) - {State.PENDING}))
def test_by_jkt_a_generation_that_doesnt_sign_says_why_though_another_would(state: State) -> None:
    keys = Keys([key(state, State.ACTIVE)])
    with pytest.raises(REFUSALS[state]):
        keys.signer("shop", jkt("shop", 1), presents_access_token=True)


@pytest.mark.parametrize("state", sorted(set(State) - {State.ACTIVE}))
def test_by_name_nothing_but_an_active_generation_signs(state: State) -> None:
    keys = Keys([key(state)])
    with pytest.raises(NoActive, match="the key shop has no active generation"):
        keys.signer("shop", None, presents_access_token=False)


def test_an_unknown_jkt_is_unknown_whatever_the_name() -> None:
    keys = Keys([key(State.ACTIVE)])
    for name in (None, "shop", "nobody"):
        with pytest.raises(KeyUnknown):
            keys.signer(name, jkt("nobody", 1), presents_access_token=False)


def test_a_key_that_doesnt_own_the_jkt_is_a_mismatch() -> None:
    keys = Keys([key(State.ACTIVE), key(State.ACTIVE, name="other")])
    for name in ("other", "nobody"):
        with pytest.raises(KeyMismatch):
            keys.signer(name, jkt("shop", 1), presents_access_token=False)


def test_a_pending_generation_is_found_by_no_jkt() -> None:
    keys = Keys([key(State.PENDING)])
    assert keys.by_jkt == {}
    with pytest.raises(KeyUnknown):
        keys.signer(None, "", presents_access_token=False)


# The keys together


def test_an_unknown_name_is_told_how_to_make_it_or_which_there_are() -> None:
    with pytest.raises(KeyUnknown) as none:
        Keys().named("shop")
    assert none.value.hint.startswith("make it with: dpop-agent key create shop --origin ")
    with pytest.raises(KeyUnknown) as others:
        Keys([key(State.ACTIVE, name="b"), key(State.ACTIVE, name="a")]).named("shop")
    assert others.value.hint == "there are: a, b"


def test_a_name_is_taken_until_it_is_forgotten() -> None:
    keys = Keys([key(State.DESTROYED)])
    keys.require_new("other")
    with pytest.raises(KeyExists):
        keys.require_new("shop")
    keys.forget("shop").require_new("shop")


def test_keys_are_replaced_and_never_changed() -> None:
    before = Keys([key(State.STAGED)])
    after = before.with_(key(State.ACTIVE)).with_(key(State.ACTIVE, name="other"))
    assert [g.state for g in before["shop"].generations] == [State.STAGED]
    assert list(before) == ["shop"]
    assert sorted(after) == ["other", "shop"]
    assert list(after.without("shop")) == ["other"]


def test_what_is_looked_up_is_the_same_after_changes_as_in_keys_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Indexes are handed on from one moment's keys to the next, and may not drift."""
    monkeypatch.setattr("dpop_agent.agent.keys.MAX_TOMBSTONES", 2)
    chance = random.Random(7638)
    keys = Keys()
    for _ in range(400):
        name = f"k{chance.randrange(6)}"
        old = keys.get(name) or Key(name, "soft", "ES256", BEFORE)
        if old.generations and chance.random() < 0.6:
            made = chance.choice(old.generations)
        else:  # the same few thumbprints again and again: objects that are adopted anew
            slot = chance.choice([None, "82", "83"])
            made = generation(old.next_number, State.STAGED)
            made = dataclasses.replace(made, slot=slot, jkt=f"jkt-{chance.randrange(12)}")
        there = keys.by_jkt.get(made.jkt)
        if there is not None and there[1].state is not State.DESTROYED and there[1] != made:
            state = State.DESTROYED
        else:
            state = chance.choice([State.STAGED, State.RETIRED, State.DESTROYED, State.SUSPENDED])
        keys = keys.with_(old.with_(dataclasses.replace(made, state=state)))
        if keys[name].is_destroyed and chance.random() < 0.5:
            before, keys = keys, keys.forget(name)
            assert [gone.name for gone in keys.gone_from(before)] == [name]
            assert keys.changed_from(before) == []
        fresh = Keys(keys.values(), keys.forgotten.values())
        assert list(keys.names) == fresh.names
        assert sorted(map(str, keys.in_slots("soft"))) == sorted(map(str, fresh.in_slots("soft")))
        assert keys.by_jkt.keys() == fresh.by_jkt.keys()
        for jkt, (owner, found) in keys.by_jkt.items():
            assert found in keys[owner.name].generations
            live = found.state is not State.DESTROYED
            assert live == (fresh.by_jkt[jkt][1].state is not State.DESTROYED)


def test_a_change_of_one_key_copies_that_one_alone() -> None:
    keys = Keys(key(State.ACTIVE, name=f"k{n}") for n in range(100))
    after = keys.with_(key(State.SUSPENDED, name="k7"))
    assert [k.name for k in after.changed_from(keys)] == ["k7"]
    assert all(after[name] is keys[name] for name in keys if name != "k7")


def test_of_destroyed_generations_the_newest_are_kept_and_each_that_was_compromised() -> None:
    marked = dataclasses.replace(generation(1, State.DESTROYED), compromised=True)
    left = dataclasses.replace(generation(2, State.DESTROYED), object_left=True)
    built = key().with_(marked, left)
    many = range(3, MAX_TOMBSTONES + 13)
    for number in many:
        built = built.with_(generation(number, State.DESTROYED))
    kept = [g.generation for g in built.generations]
    assert kept[:2] == [1, 2]
    assert kept[2:] == list(many)[-MAX_TOMBSTONES - 1 :]
    assert built.next_number == many[-1] + 1


def test_a_key_more_than_there_may_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpop_agent.agent.keys.MAX_KEYS", 2)
    assert MAX_KEYS > 10_000
    one = Keys([key(State.ACTIVE)])
    one.require_new("b")
    with pytest.raises(LimitReached):
        one.with_(key(State.DESTROYED, name="b")).require_new("c")


def test_a_thumbprint_that_was_compromised_under_one_name_stays_so_whichever_is_forgotten() -> None:
    gone = generation(1, State.DESTROYED)
    bad = dataclasses.replace(gone, compromised=True)
    for first, second in (("a", "b"), ("b", "a")):
        keys = Keys()
        for name, one in (("a", gone), ("b", bad)):
            keys = keys.with_(Key(name, "soft", "ES256", BEFORE).with_(one))
        keys = keys.forget(first).forget(second)
        assert keys.forgotten[gone.jkt].compromised
