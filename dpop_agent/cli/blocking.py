"""`key suspend | resume | compromise | destroy | forget`."""

from __future__ import annotations

from dpop_agent.cli import arguments, calls, origins, output
from dpop_agent.cli.generations import MAX_CHOICES, add_generation, chosen, the_only_one, whole
from dpop_agent.cli.listing import (
    active_generation,
    ends,
    name,
    used_for,
    way_on,
    with_jkt,
)
from dpop_agent.errors import DPoPAgentError, NotDurable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from dpop_agent.cli.calls import Generation, Key


def add_suspend(verbs: arguments.Verbs) -> None:
    """`dpop-agent key suspend`."""
    sub = arguments.add_verb(
        verbs, "suspend", "Stop a generation from signing until it is resumed", _suspend
    )
    add_generation(sub)


def _suspend(args: Namespace) -> int:
    params = chosen("suspend", args)
    result = calls.admin("key.suspend", params)
    key = whole(result)
    found = calls.generation(key, params["generation"])
    lines = [with_jkt(key, found), f"to undo it: dpop-agent key resume {name(key, found)}"]
    return calls.answer(args, result, lines + _nothing_active(key))


def add_resume(verbs: arguments.Verbs) -> None:
    """`dpop-agent key resume`."""
    sub = arguments.add_verb(
        verbs,
        "resume",
        "Let a suspended generation sign again",
        _resume,
        "It becomes active again if no other is; otherwise it drains. A key that came from key "
        "adopt --all wants --origin or --any-origin, but only the first time; a bare NAME "
        "means its newest generation then.",
    )
    add_generation(sub)
    origins.add_origins(sub.add_mutually_exclusive_group())


def _resume(args: Namespace) -> int:
    params = chosen("resume", args) | origins.given(args)
    result = calls.admin("key.resume", params)
    key = whole(result)
    found = calls.generation(key, params["generation"])
    lines = [with_jkt(key, found)]
    active = active_generation(key)
    if found["state"] == "draining":
        if active is not None:
            lines.append(f"{name(key, active)} is the active one, and stays active")
        lines += ends(key, found)
    elif rest := [name(key, g) for g in key["generations"] if g["state"] == "suspended"]:
        more = len(rest) - MAX_CHOICES
        older = f"{more} older ones, and " if more > 0 else ""
        lines.append(f"still suspended: {older}{', '.join(rest[-MAX_CHOICES:])}")
    return calls.answer(args, result, lines)


def add_compromise(verbs: arguments.Verbs) -> None:
    """`dpop-agent key compromise`."""
    sub = arguments.add_verb(
        verbs,
        "compromise",
        "Stop a generation from ever signing again",
        _compromise,
        "Signatures under way are dropped. Says what to revoke at which servers. This can't be "
        "undone.",
    )
    sub.add_argument(
        "key",
        metavar="NAME[@N]",
        type=arguments.generation,
        help="a bare NAME means all its generations",
    )
    _add_yes(sub)


def _compromise(args: Namespace) -> int:
    key_name, number = args.key
    which = key_name if number is None else f"{key_name}@{number}"
    if not args.yes:
        key = calls.the_key(key_name)
        meant = key["generations"] if number is None else [calls.generation(key, number)]
        calls.confirm(
            f"dpop-agent key compromise {which}",
            f"marking {which} as compromised",
            [
                *(with_jkt(key, generation) for generation in meant),
                "Once marked as compromised it never signs again, and this can't be undone.",
                f"Mark {which} as compromised?",
            ],
            "nothing was marked as compromised",
        )
    params = {"key": key_name} | ({} if number is None else {"generation": number})
    try:
        result = calls.admin("key.compromise", params)
    except NotDurable as e:
        if not args.json:
            _say_what_to_revoke(
                key_name, number, survives_restart=e.details.get("survives_restart") is True
            )
        raise
    key = whole(result)
    marked = _compromised(key, number)
    lines = [f"{name(key, g)} is compromised, and never signs again" for g in marked]
    lines += _to_revoke(key, marked) if marked else [f"{which} has nothing left to mark"]
    return calls.answer(args, result, lines + _nothing_active(key))


def _say_what_to_revoke(key_name: str, number: int | None, *, survives_restart: bool) -> None:
    """Blocked, though the ledger doesn't have it: what is to be revoked is the same."""
    try:
        key = calls.the_key(key_name)
    except DPoPAgentError:
        return
    marked = _compromised(key, number)
    how_long = "for ever" if survives_restart else "for as long as this agent runs"
    lines = [f"{name(key, g)} is blocked {how_long}" for g in marked]
    print("\n".join(lines + _to_revoke(key, marked)), flush=True)


def _compromised(key: Key, number: int | None) -> list[Generation]:
    return [
        g
        for g in key["generations"]
        if g["state"] == "compromised" and number in (None, g["generation"])
    ]


def _nothing_active(key: Key) -> list[str]:
    if active_generation(key) is not None:
        return []
    return [
        "",
        f"{key['key']} has no active generation now.",
        *way_on(key),
    ]


def _to_revoke(key: Key, marked: list[Generation]) -> list[str]:
    lines = ["", "Revoke at the servers whatever is bound to:"]
    for generation in marked:
        used = used_for(generation) or ["never used, as far as the agent knows"]
        lines += ["", f"jkt {generation['jkt']} ({name(key, generation)})", *used]
    return lines


def add_destroy(verbs: arguments.Verbs) -> None:
    """`dpop-agent key destroy`."""
    sub = arguments.add_verb(
        verbs,
        "destroy",
        "Destroy one generation's private key",
        _destroy,
        "This can't be undone.",
    )
    add_generation(sub)
    _add_yes(sub)


def _destroy(args: Namespace) -> int:
    key_name, number = args.key
    if number is None or not args.yes:
        key = calls.the_key(key_name)
        number = number or the_only_one("destroy", key)
        if not args.yes:
            _confirm_destruction(key, calls.generation(key, number))
    result = calls.admin("key.destroy", {"key": key_name, "generation": number})
    lines = [f"{key_name}@{number} is destroyed"]
    left = whole(result)
    found: Generation = next((g for g in left["generations"] if g["generation"] == number), {})
    if found.get("object_left") and found.get("slot"):
        lines = [
            f"{key_name}@{number} is destroyed as far as the agent goes, and never signs again",
            f"Its private key stays in slot {found['slot']}, where nothing can delete it, until "
            "another key is made there:",
            f"dpop-agent key rotate {key_name} --slot {found['slot']} --reuse-slot",
        ]
    else:
        lines += _nothing_active(left)
    return calls.answer(args, result, [output.plain(line) for line in lines])


def add_forget(verbs: arguments.Verbs) -> None:
    """`dpop-agent key forget`."""
    sub = arguments.add_verb(
        verbs,
        "forget",
        "Free the name of a key whose generations are all destroyed",
        _forget,
        "What the store still has of them is deleted first. Their jkts stay known as destroyed.",
    )
    sub.add_argument("key", metavar="NAME", type=arguments.key_name)


def _forget(args: Namespace) -> int:
    result = calls.admin("key.forget", {"key": args.key})
    return calls.answer(args, result, [f"{args.key} is forgotten, and the name is free"])


def _confirm_destruction(key: Key, generation: Generation) -> None:
    which = name(key, generation)
    question = [
        with_jkt(key, generation),
        *used_for(generation),
        "Access tokens bound to it become useless, and this can't be undone.",
    ]
    if generation.get("shared"):
        question.append("It is shared: another agent may use it, and would lose it too.")
    question.append(f"Destroy {which} in the store {key['store']}?")
    calls.confirm(
        f"dpop-agent key destroy {which}", f"destroying {which}", question, "nothing was destroyed"
    )


def _add_yes(parser: arguments.Parser) -> None:
    parser.add_argument("--yes", action="store_true", help="don't ask")
