"""What changed between two moments of the keys, as lines for the log. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from dpop_agent import durations
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.rules import ANYTHING, Rate
from dpop_agent.protocol import KEY_SETTINGS, RULES


def changes(before: Keys, after: Keys) -> Iterator[str]:
    """A line for each key that came or went, each state and each setting that changed."""
    for key in after.gone_from(before):
        if key.is_destroyed:
            yield f"{key.name} is forgotten, and the name is free"
        else:
            yield from _undone(key, None)
    for key in after.changed_from(before):
        yield from _changed(before.get(key.name), key)


def _changed(old: Key | None, new: Key) -> Iterator[str]:
    if old is None:
        settings = ", ".join(
            f"{_option(name)} {_said(new, name)}"
            for name in KEY_SETTINGS
            if name not in _unset(new)
        )
        yield f"{new.name} is a new key: {new.alg} in the store {new.store}, {settings}"
    else:
        yield from _undone(old, new)
        for name in KEY_SETTINGS:
            if _said(new, name) != _said(old, name):
                is_now, was = _said(new, name), _said(old, name)
                yield f"{new.name}: {_option(name)} is {is_now}, was {was}"
    known = {g.generation: g for g in old.generations} if old else {}
    for generation in new.generations:
        yield from _generation(new, known.get(generation.generation), generation)


def _undone(old: Key, new: Key | None) -> Iterator[str]:
    """Of a generation that wasn't made nothing stays."""
    left = {g.generation for g in new.generations} if new else set()
    for g in old.generations:
        if g.state is State.PENDING and g.generation not in left:
            yield f"{old.name}@{g.generation} wasn't made, and is undone"


def _generation(key: Key, was: Generation | None, now: Generation) -> Iterator[str]:
    which = f"{key.name}@{now.generation}"
    jkt = f"jkt {now.jkt or 'not known yet'}"
    if was is None:
        how = "adopted from" if now.shared else "being made in"
        yield f"{which} is {now.state}, {how} the store {key.store}, {jkt}"
        return
    if now.state is not was.state and now.object_left and now.slot is None:
        yield f"{which} signs no more and is being destroyed, was {was.state}, {jkt}"
    elif now.state is not was.state:
        yield f"{which} is {now.state}, was {was.state}, {jkt}{_more(key, now)}"
    elif now.compromised and not was.compromised:
        yield f"{which} is compromised as soon as it is made, {jkt}"
    if was.object_left and not now.object_left:
        yield f"{which} is destroyed: the store {key.store} has nothing of it any more, {jkt}"


def _more(key: Key, now: Generation) -> str:
    if now.state is State.DRAINING:
        drain_s = key.drain_s if now.drain_s is None else now.drain_s
        return f", until it is unused for {durations.text(drain_s)}"
    if now.object_left and now.slot is not None:
        return f"; its private key stays in slot {now.slot} until another is made there"
    return ""


def _unset(key: Key) -> set[str]:
    """The rules that it doesn't have, of those that a key needn't have."""
    none = ANYTHING.members()
    return {name for name, value in key.rules.members().items() if value == none[name]} - {
        "origins"
    }


def _said(key: Key, setting: str) -> str:
    value = getattr(key.rules if setting in RULES else key, setting)
    if setting == "origins" and key.policy_lost:
        return "lost with the ledger"
    if isinstance(value, Rate):
        return f"{value.per_minute} a minute, {value.burst} at once"
    if isinstance(value, tuple):
        return " ".join(value) or "any"
    if value is None:
        return _NONE[setting]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "each" if setting == "confirm_s" and value == 0 else durations.text(int(value))


_NONE = {"rate": "any", "confirm_s": "never", "rotate_every_s": "never", "touch": "auto"}


def _option(setting: str) -> str:
    """A setting as the command line calls it."""
    return setting.removesuffix("_s").replace("_", "-")
