"""How keys and generations look to people."""

from __future__ import annotations

from dpop_agent.cli import output, rules
from dpop_agent.jose import THUMBPRINT_LENGTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Key = dict[str, Any]
    Generation = dict[str, Any]

_HEAD = ("KEY", "STATE", "NOTES", "LAST USED", "PROTECTION", "ALG", "STORE", "CREATED", "JKT")
_BELOW = "  jkt "
_DROP = ("CREATED", "STORE", "ALG", "PROTECTION", "LAST USED", "NOTES", "STATE")

_COLOURS = {
    "active": output.GOOD,
    **dict.fromkeys(("pending", "staged", "draining", "suspended"), output.NOTICE),
    "compromised": output.BAD,
}
"""Of states."""

_VALUE = 14
"""Where the values begin of a key that is shown whole."""

_DATE_FROM_S = 2 * 24 * 3600
"""A drain that ends sooner is shown with the minute."""


def table(keys: list[Key]) -> list[str]:
    """A line for each generation, and its jkt below it where the terminal is too narrow for both,
    so that it can be copied whole.
    """
    rows = [
        (
            name(key, generation),
            output.Painted(generation["state"], _COLOURS.get(generation["state"], "")),
            _painted_notes(key, generation),
            output.since(generation.get("last_used")) or _unused(generation),
            generation.get("protection") or None,
            key["alg"],
            key["store"],
            output.day(generation.get("created")),
            generation["jkt"],
        )
        for key in keys
        for generation in key["generations"]
    ]
    width = output.width()
    if width is None or width < len(_BELOW) + THUMBPRINT_LENGTH:
        return output.table(_HEAD, rows, drop=_DROP)
    if output.fits(_HEAD, rows):
        return output.table(_HEAD, rows)
    # Neither the jkt nor the time of creation, which would be cut where it is the last one.
    head, *lines = output.table(_HEAD[:-2], [row[:-2] for row in rows], drop=_DROP)
    below = [f"{_BELOW}{row[-1] or '-'}" for row in rows]
    return [head, *(line for both in zip(lines, below, strict=True) for line in both)]


def _unused(generation: Generation) -> str:
    """Of one that somebody else had before, nobody knows."""
    return "unknown" if generation.get("shared") else "never"


def name(key: Key, generation: Generation) -> str:
    """`default@2`."""
    return f"{key['key']}@{generation['generation']}"


def active_number(key: Key) -> int:
    """The active generation's number; the newest one's where none is active."""
    active = [g for g in key["generations"] if g["state"] == "active"]
    return int((active or key["generations"])[-1]["generation"])


def _in_slot(generation: Generation) -> str | None:
    """What is to be said of its slot."""
    slot = generation.get("slot")
    if not slot:
        return None
    if generation["state"] == "retired" or generation.get("object_left"):
        return f"key still in slot {slot}"
    return None if generation["state"] == "destroyed" else f"slot {slot}"


def _notes(key: Key, generation: Generation) -> list[str]:
    left, notes = generation.get("drain_left_s"), []
    if generation["state"] != "destroyed" and (store := _store_trouble(key)):
        notes.append(f"store {store}")
    if key.get("rotation_due") and generation["state"] == "active":
        notes.append("rotation due")
    if slot := _in_slot(generation):
        notes.append(slot)
    if left is not None:
        until = output.after(left)
        notes.append(f"until {until if left < _DATE_FROM_S else output.day(until)}")
    if generation.get("missing"):
        notes.append("missing")
    if generation.get("exportable") and generation["jkt"]:  # nothing is known of a pending one
        notes.append("exportable")
    if generation.get("shared"):
        notes.append("shared")
    return notes


def _painted_notes(key: Key, generation: Generation) -> output.Painted:
    is_usable = _store_trouble(key) is None and not generation.get("missing")
    signs = generation["state"] in ("active", "draining")
    colour = output.BAD if signs and not is_usable else ""
    return output.Painted(", ".join(_notes(key, generation)), colour)


def _store_trouble(key: Key) -> str | None:
    """Why its store signs nothing now, if that is so."""
    state = key.get("store_state", "ready")
    return None if state == "ready" else state or "not in the configuration"


def policy(key: Key) -> list[str]:
    """What a key may be used for, and when it rotates."""
    every = key.get("rotate_every_s")
    rotation = "only by command" if every is None else f"every {output.duration(every)}"
    drain, at_most = map(output.duration, (key.get("drain_s"), key.get("max_drain_s")))
    trouble, touch = _store_trouble(key), key.get("touch")
    lines = [
        f"{key['key']}: {key['alg']} in the store {key['store']}"
        + (f", which is {trouble}" if trouble else ""),
        f"  signs       {_signs(key)}",
        f"  sign-proof  {'allowed' if key['allow_sign_proof'] else 'not allowed'}",
        f"  rotation    {rotation}{', due now' if key.get('rotation_due') else ''}",
        f"  drain       {drain} without use, {at_most} at most",
        *([] if touch is None else [f"  touch       {'yes' if touch else 'no'}, as set"]),
    ]
    return output.facts(lines, _VALUE)


def _signs(key: Key) -> str:
    if key.get("policy_lost"):
        resumes = active_generation(key) is None and any(
            g["state"] == "suspended" for g in key["generations"]
        )
        verb = "resume" if resumes else "set"
        again = f"dpop-agent key {verb} {key['key']} --origin ORIGIN"
        return f"nothing: what it is for was lost with the ledger; {again}"
    return rules.sentence(key).removeprefix("signs ")


def is_destroyed(key: Key) -> bool:
    """Whether all generations of a key are, of which its listing has some then."""
    return all(g["state"] == "destroyed" for g in key["generations"])


def taken(keys: list[Key]) -> list[str]:
    """What to do about keys whose generations are all destroyed."""
    lines: list[str] = []
    for key in keys:
        if is_destroyed(key):
            lines += [
                "",
                f"All generations of {key['key']} are destroyed, and its name is taken still.",
                *way_on(key),
            ]
    return lines


def way_on(key: Key) -> list[str]:
    """What people can do where nothing signs under a key's name, in lines."""
    if any(g["state"] == "pending" for g in key["generations"]):
        return ["One is being made, or is finished or undone once its store is open."]
    anew = f"for a new generation: dpop-agent key rotate {key['key']}"
    if not is_destroyed(key):
        return [anew]
    for g in key["generations"]:
        if g.get("object_left") and g.get("slot"):
            return [
                f"{name(key, g)}'s private key is still in slot {g['slot']}",
                f"{anew} --slot {g['slot']} --reuse-slot",
            ]
    return [anew, f"to free the name: dpop-agent key forget {key['key']}"]


def details(key: Key) -> list[str]:
    """All there is to know of a key."""
    lines = policy(key)
    for generation in key["generations"]:
        lines += ["", *_generation(key, generation)]
    return lines


def _generation(key: Key, generation: Generation) -> list[str]:
    import json

    jwk, changed = generation.get("jwk"), output.minute(generation.get("changed"))
    state = str(generation["state"])
    separators = (",", ":") if output.width() is None else (", ", ":")  # a line may end there
    lines = [
        f"{name(key, generation)}: {state}{f' since {changed}' if changed else ''}",
        f"  jkt         {generation['jkt'] or '-'}",
        f"  jwk         {json.dumps(jwk, separators=separators) if jwk else '-'}",
    ]
    if generation["jkt"]:
        lines.append(f"  protection  {', '.join(_protection(generation))}")
    if slot := _in_slot(generation):
        lines.append(f"  slot        {slot.removeprefix('slot ')}")
    if generation.get("touch"):
        lines.append(f"  touch       {generation['touch']}")
    if generation.get("missing"):
        lines.append("  missing     its store doesn't have it now")
    if generation.get("shared"):
        lines.append("  shared      another agent may use it: no schedule destroys it")
    if generation.get("drain_left_s") is not None:
        lines.append(f"  ends        {output.after(generation['drain_left_s'])}, {extended(key)}")
    lines += [
        f"  created     {output.minute(generation.get('created')) or '-'}",
        f"  last used   {output.minute(generation.get('last_used')) or 'never'}",
    ]
    for i, (origin, when) in enumerate(_latest_first(generation)):
        lines.append(f"  {'' if i else 'used for':10}  {origin}, {output.minute(when)}")
    head, *rest = output.facts(lines, _VALUE)
    return [
        head.replace(f": {state}", f": {output.paint(state, _COLOURS.get(state, ''))}", 1),
        *rest,
    ]


def _protection(generation: Generation) -> list[str]:
    places = {
        True: "made there",
        False: "not made there, says the store",
        None: "not known whether it was made there",
    }
    made = places[generation.get("local")]
    exportable = "exportable" if generation.get("exportable") else "never exportable"
    return [generation.get("protection") or "unknown", exportable, made]


def extended(key: Key) -> str:
    """What a drain's end depends on."""
    at_most = output.duration(key.get("max_drain_s"))
    if key["drain_s"] >= key["max_drain_s"]:
        return "however much it is used"
    return f"unless it is used before then; use extends that, to {at_most} at most"


def used_for(generation: Generation) -> list[str]:
    """The origins that a generation signed for, the latest first."""
    rows = [(output.since(when), origin) for origin, when in _latest_first(generation)]
    if not rows:
        return []
    left_out = generation.get("origins_left_out") or 0
    more = (
        [f"and up to {left_out} more that weren't kept: the list isn't complete"]
        if left_out
        else []
    )
    return output.table(("LAST USED", "ORIGIN"), rows) + more


def _latest_first(generation: Generation) -> list[tuple[str, str]]:
    used: dict[str, str] = generation.get("origins_used") or {}
    return sorted(used.items(), key=lambda item: item[1], reverse=True)


def with_jkt(key: Key, generation: Generation) -> str:
    """A generation's name, state and jkt."""
    return output.plain(
        f"{name(key, generation)} is {generation['state']}, jkt {generation['jkt'] or '-'}"
    )


def active_generation(key: Key) -> Generation | None:
    """The one that signs by the key's name, if any does."""
    return next((g for g in key["generations"] if g["state"] == "active"), None)


def ends(key: Key, draining: Generation) -> list[str]:
    """When a drain ends, in lines."""
    which, left = name(key, draining), draining.get("drain_left_s")
    if not left:
        return [f"{which} no longer signs: it has no drain."]
    return [
        f"{which} signs for access tokens bound to it until {output.after(left)}",
        f"{extended(key)}.",
        "Time when the agent isn't running doesn't count.",
    ]
