"""`key rotate | activate | suspend | resume | compromise | destroy | adopt`."""

from __future__ import annotations

from dpop_agent.cli import authorizing, calls, output
from dpop_agent.cli.listing import extended, name, used_for
from dpop_agent.errors import ConfigurationError, DPoPAgentError, NotDurable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from dpop_agent.cli.calls import Generation, Key

_LIVE = ("staged", "active", "draining", "retired")
_FITTING = {
    "activate": ("staged", "draining", "retired"),
    "suspend": _LIVE,
    "resume": ("suspended",),
    "destroy": (*_LIVE, "suspended", "compromised"),
}
"""The states of the generations that a bare name can mean."""

MAX_CHOICES = 8
"""Generations named where a bare name could mean several: the newest."""


def rotate(args: Namespace) -> int:
    """A new generation, active or staged."""
    params: dict[str, Any] = {"key": args.key}
    if args.stage:
        params["stage"] = True
    if args.drain_s is not None:
        params["drain_s"] = args.drain_s
    params |= authorizing.slot_params(args)
    result = authorizing.make("key.rotate", params)
    key = _whole(result)
    lines = _staged(key, result["new"]) if args.stage else _swapped(key, result["old"])
    return calls.answer(args, result, lines)


def activate(args: Namespace) -> int:
    """Swap a generation with the active one."""
    params = _chosen("activate", args)
    if args.drain_s is not None:
        params["drain_s"] = args.drain_s
    result = calls.admin("key.activate", params)
    key = _whole(result)
    return calls.answer(args, result, _swapped(key, result["old"]))


def suspend(args: Namespace) -> int:
    """Block a generation until it is resumed."""
    params = _chosen("suspend", args)
    result = calls.admin("key.suspend", params)
    key = _whole(result)
    found = calls.generation(key, params["generation"])
    lines = [_with_jkt(key, found), f"to undo it: dpop-agent key resume {name(key, found)}"]
    return calls.answer(args, result, lines + _nothing_active(key))


def resume(args: Namespace) -> int:
    """End a suspension."""
    params = _chosen("resume", args)
    result = calls.admin("key.resume", params)
    key = _whole(result)
    found = calls.generation(key, params["generation"])
    lines = [_with_jkt(key, found)]
    active = _active(key)
    if found["state"] == "draining":
        if active is not None:
            lines.append(f"{name(key, active)} is the active one, and stays it")
        lines += _ends(key, found)
    return calls.answer(args, result, lines)


def compromise(args: Namespace) -> int:
    """Block one generation, or all of a key, for ever."""
    key_name, number = args.key
    which = key_name if number is None else f"{key_name}@{number}"
    if not args.yes:
        key = calls.the_key(key_name)
        chosen = key["generations"] if number is None else [calls.generation(key, number)]
        calls.confirm(
            f"dpop-agent key compromise {which}",
            f"marking {which} as compromised",
            [
                *(_with_jkt(key, generation) for generation in chosen),
                "Marked as compromised, it never signs again, and this can't be undone.",
                f"Mark {which} as compromised?",
            ],
            "nothing was marked as compromised",
        )
    params = {"key": key_name} | ({} if number is None else {"generation": number})
    try:
        result = calls.admin("key.compromise", params)
    except NotDurable:
        if not args.json:
            _say_what_to_revoke(key_name, number)
        raise
    key = _whole(result)
    marked = _compromised(key, number)
    lines = [f"{name(key, g)} is compromised, and never signs again" for g in marked]
    lines += _to_revoke(key, marked) if marked else [f"{which} has nothing left to be marked"]
    return calls.answer(args, result, lines + _nothing_active(key))


def _say_what_to_revoke(key_name: str, number: int | None) -> None:
    """Blocked, though not durably: what is to be revoked is the same."""
    try:
        key = calls.the_key(key_name)
    except DPoPAgentError:
        return
    marked = _compromised(key, number)
    lines = [f"{name(key, g)} is blocked for as long as this agent runs" for g in marked]
    print("\n".join(lines + _to_revoke(key, marked)), flush=True)


def _compromised(key: Key, number: int | None) -> list[Generation]:
    return [
        g
        for g in key["generations"]
        if g["state"] == "compromised" and number in (None, g["generation"])
    ]


def destroy(args: Namespace) -> int:
    """Destroy a generation's private key."""
    key_name, number = args.key
    if number is None or not args.yes:
        key = calls.the_key(key_name)
        number = number or _the_only_one("destroy", key)
        if not args.yes:
            _confirm_destruction(key, calls.generation(key, number))
    result = calls.admin("key.destroy", {"key": key_name, "generation": number})
    lines = [f"{key_name}@{number} is destroyed"]
    found: Generation = next(
        (g for g in _whole(result)["generations"] if g["generation"] == number), {}
    )
    if found.get("object_left") and found.get("slot"):
        lines = [
            f"{key_name}@{number} is destroyed for the agent, and never signs again",
            f"Its private key stays in slot {found['slot']}, where nothing can delete it, until "
            "another key is made there:",
            f"dpop-agent key rotate {key_name} --slot {found['slot']} --reuse-slot",
        ]
    return calls.answer(args, result, [output.plain(line) for line in lines])


def _confirm_destruction(key: Key, generation: Generation) -> None:
    which = name(key, generation)
    question = [
        _with_jkt(key, generation),
        *used_for(generation),
        "Access tokens bound to it become useless, and this can't be undone.",
    ]
    if generation.get("shared"):
        question.append("It is shared: another agent may use it, and loses it too.")
    question.append(f"Destroy {which} in the store {key['store']}?")
    calls.confirm(
        f"dpop-agent key destroy {which}", f"destroying {which}", question, "nothing was destroyed"
    )


def adopt(args: Namespace) -> int:
    """Take an object that is in a store already into the ledger."""
    params = {"key": args.key, "ref": args.ref}
    for option in ("store", "alg"):
        if getattr(args, option) is not None:
            params[option] = getattr(args, option)
    result = calls.admin("key.adopt", params)
    key = _whole(result)
    adopted = max(key["generations"], key=lambda g: int(g["generation"]))
    lines = [_with_jkt(key, adopted)]
    if adopted["exportable"]:
        lines.append("It is exportable, or was: somebody may have a copy of the private key.")
    if not adopted["local"]:
        lines.append("It wasn't made in this store, or that isn't known.")
    lines += [
        "It is shared: another agent may use it too, so no schedule destroys it.",
        f"to sign with it: dpop-agent key activate {name(key, adopted)}",
    ]
    return calls.answer(args, result, lines)


def _whole(result: dict[str, Any]) -> Key:
    """The key in a result, whose oldest generations are left out where a line would be too long."""
    key: Key = result["keys"][0]
    if key["generations"] and key["generations"][0]["generation"] == 1:
        return key
    return calls.the_key(key["key"], include_destroyed=True)


def _chosen(verb: str, args: Namespace) -> dict[str, Any]:
    key_name, number = args.key
    if number is None:
        number = _the_only_one(verb, calls.the_key(key_name))
    return {"key": key_name, "generation": number}


def _the_only_one(verb: str, key: Key) -> int:
    """The number of the one generation that a bare name can mean.

    Raises:
        ConfigurationError: none or several fit.
    """
    fitting = [g for g in key["generations"] if g["state"] in _FITTING[verb]]
    if len(fitting) == 1:
        return int(fitting[0]["generation"])
    if fitting:
        raise ConfigurationError(
            f"the key {key['key']} has {len(fitting)} generations that could be meant",
            hint="name one: "
            + ", ".join(f"{name(key, g)} ({g['state']})" for g in fitting[-MAX_CHOICES:]),
        )
    raise ConfigurationError(
        f"the key {key['key']} has no generation to {verb}: none is {' or '.join(_FITTING[verb])}",
        hint=f"see: dpop-agent key list {key['key']} --all",
    )


def _with_jkt(key: Key, generation: Generation) -> str:
    return output.plain(
        f"{name(key, generation)} is {generation['state']}, jkt {generation['jkt'] or '-'}"
    )


def _active(key: Key) -> Generation | None:
    return next((g for g in key["generations"] if g["state"] == "active"), None)


def _nothing_active(key: Key) -> list[str]:
    if _active(key) is not None:
        return []
    return [
        "",
        f"Nothing signs by the name {key['key']} now.",
        f"for a new generation: dpop-agent key rotate {key['key']}",
    ]


def _staged(key: Key, new: Generation) -> list[str]:
    lines = [f"new: {_with_jkt(key, new)}"]
    active = _active(key)
    if active is not None:
        lines.append(f"now: {_with_jkt(key, active)}")
    return [
        *lines,
        "",
        "Nothing signs with the new one yet: announce its jkt where it has to be known.",
        f"then: dpop-agent key activate {name(key, new)}",
    ]


def _swapped(key: Key, old: Generation | None) -> list[str]:
    """What is active now, what isn't any more, and whom that touches."""
    new = _active(key)
    lines = [f"new: {_with_jkt(key, new)}"] if new is not None else []
    if old is None:
        return [*lines, f"old: none; no generation of {key['key']} was active"]
    lines += [f"old: {_with_jkt(key, old)}", ""]
    lines += _ends(key, old)
    used = used_for(old)
    if used:
        lines += ["", "This touches access tokens bound to it. It signed for:", *used]
    elif old["last_used"] is None:
        lines.append("It was never used: this touches nobody.")
    return [*lines, "", f"to go back: dpop-agent key activate {name(key, old)}"]


def _ends(key: Key, draining: Generation) -> list[str]:
    which, left = name(key, draining), draining.get("drain_left_s")
    if not left:
        return [f"{which} signs no more: it has no drain."]
    return [
        f"{which} signs for access tokens bound to it until {output.after(left)}",
        f"{extended(key)}.",
        "Time that the agent is off doesn't count.",
    ]


def _to_revoke(key: Key, marked: list[Generation]) -> list[str]:
    lines = ["", "Revoke at the servers whatever is bound to:"]
    for generation in marked:
        used = used_for(generation) or ["never used, as far as the agent saw"]
        lines += ["", f"jkt {generation['jkt']} ({name(key, generation)})", *used]
    return lines
