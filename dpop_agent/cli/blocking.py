"""`key suspend | resume | compromise | destroy`."""

from __future__ import annotations

from dpop_agent.cli import calls, output
from dpop_agent.cli.generations import _chosen, _the_only_one, _whole
from dpop_agent.cli.listing import _active, _ends, _with_jkt, name, used_for
from dpop_agent.errors import DPoPAgentError, NotDurable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from dpop_agent.cli.calls import Generation, Key


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


def _nothing_active(key: Key) -> list[str]:
    if _active(key) is not None:
        return []
    return [
        "",
        f"Nothing signs by the name {key['key']} now.",
        f"for a new generation: dpop-agent key rotate {key['key']}",
    ]


def _to_revoke(key: Key, marked: list[Generation]) -> list[str]:
    lines = ["", "Revoke at the servers whatever is bound to:"]
    for generation in marked:
        used = used_for(generation) or ["never used, as far as the agent saw"]
        lines += ["", f"jkt {generation['jkt']} ({name(key, generation)})", *used]
    return lines


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
