"""`key rotate | activate`."""

from __future__ import annotations

from dpop_agent.cli import arguments, authorizing, calls
from dpop_agent.cli.generations import add_generation, chosen, whole
from dpop_agent.cli.listing import active_generation, ends, name, used_for, with_jkt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from dpop_agent.cli.calls import Generation, Key


def add_rotate(verbs: arguments.Verbs) -> None:
    """`dpop-agent key rotate`."""
    sub = arguments.add_verb(
        verbs,
        "rotate",
        "Sign with a new generation from now on",
        _rotate,
        "The old one drains: it goes on signing for access tokens that are bound to it, until it "
        "hasn't been used for a while.",
    )
    sub.add_argument("key", metavar="NAME", type=arguments.key_name)
    sub.add_argument(
        "--stage", action="store_true", help="only make it, so that its jkt can be announced first"
    )
    arguments.add_drain(sub, "of the old one, this time only; by default what is set for the key")
    authorizing.add_slot(sub)


def _rotate(args: Namespace) -> int:
    params: dict[str, Any] = {"key": args.key}
    if args.stage:
        params["stage"] = True
    if args.drain_s is not None:
        params["drain_s"] = args.drain_s
    params |= authorizing.slot_params(args)
    result = authorizing.make("key.rotate", params)
    key = whole(result)
    lines = _staged(key, result["new"]) if args.stage else _swapped(key, result["old"])
    return calls.answer(args, result, lines)


def add_activate(verbs: arguments.Verbs) -> None:
    """`dpop-agent key activate`."""
    sub = arguments.add_verb(
        verbs,
        "activate",
        "Sign with this generation from now on",
        _activate,
        "It is staged, draining or retired; the one that was active drains. This is also the way "
        "back from a rotation.",
    )
    add_generation(sub)
    arguments.add_drain(
        sub, "of the one that was active, this time only; by default what is set for the key"
    )


def _activate(args: Namespace) -> int:
    params = chosen("activate", args)
    if args.drain_s is not None:
        params["drain_s"] = args.drain_s
    result = calls.admin("key.activate", params)
    key = whole(result)
    return calls.answer(args, result, _swapped(key, result["old"]))


def _staged(key: Key, new: Generation) -> list[str]:
    lines = [f"new: {with_jkt(key, new)}"]
    active = active_generation(key)
    if active is not None:
        lines.append(f"now: {with_jkt(key, active)}")
    return [
        *lines,
        "",
        "Nothing signs with the new one yet: announce its jkt where it has to be known.",
        f"then: dpop-agent key activate {name(key, new)}",
    ]


def _swapped(key: Key, old: Generation | None) -> list[str]:
    """What is active now, what isn't any more, and whom that touches."""
    new = active_generation(key)
    lines = [f"new: {with_jkt(key, new)}"] if new is not None else []
    if old is None:
        return [*lines, f"old: none; no generation of {key['key']} was active"]
    lines += [f"old: {with_jkt(key, old)}", ""]
    lines += ends(key, old)
    used = used_for(old)
    if used:
        lines += ["", "This affects access tokens bound to it. It has signed for:", *used]
    elif old["last_used"] is None and old["shared"]:
        lines.append("When it was used isn't known here: access tokens may be bound to it.")
    elif old["last_used"] is None:
        lines.append("The agent knows of no use of it.")
    if old.get("missing"):
        return [*lines, "", f"{name(key, old)} is missing: there is no way back to it now."]
    return [*lines, "", f"to go back: dpop-agent key activate {name(key, old)}"]
