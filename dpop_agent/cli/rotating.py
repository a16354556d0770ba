"""`key rotate | activate`."""

from __future__ import annotations

from dpop_agent.cli import authorizing, calls
from dpop_agent.cli.generations import _chosen, _whole
from dpop_agent.cli.listing import _active, _ends, _with_jkt, name, used_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from dpop_agent.cli.calls import Generation, Key


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
