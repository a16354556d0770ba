"""`socket` and its verbs: filtered sockets."""

from __future__ import annotations

import argparse

from dpop_agent import durations
from dpop_agent.cli import arguments, calls, output, rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    Socket = dict[str, Any]

_ANYWHERE = "whatever its keys are for"


def add_socket(parser: arguments.Parser) -> None:
    """`dpop-agent socket` and its verbs."""
    parser.description = (
        "Sockets that give the proofs of some keys for some servers, and nothing else: for "
        "containers, build jobs and AI agents."
    )
    verbs = parser.add_verbs()
    add_add(verbs)
    add_list(verbs)
    add_show(verbs)
    add_remove(verbs)


def add_add(verbs: arguments.Verbs) -> None:
    """`dpop-agent socket add`."""
    sub = arguments.add_verb(
        verbs,
        "add",
        "Add a socket",
        _add,
        "It allows what its keys' own rules allow too, and is still there after a restart of the "
        "agent. Its folder has nothing else in it: mount that into the container, read-only.",
    )
    sub.add_argument("socket", metavar="NAME", type=arguments.socket_name)
    add_what_it_gives(sub, required=True)


def add_what_it_gives(parser: arguments.Parser, *, required: bool) -> None:
    """The options that say what a socket gives."""
    parser.add_argument(
        "--key",
        action="append",
        dest="keys",
        metavar="KEY",
        type=arguments.key_name,
        required=required,
        help="a key that it gives proofs by; may be repeated",
    )
    parser.add_argument(
        "--origin",
        action="append",
        dest="origins",
        metavar="ORIGIN",
        type=arguments.origin,
        help="such as https://api.example.com: proofs for these only; may be repeated; by default "
        "for all that its keys are for",
    )
    rules.add_rules(parser)
    parser.add_argument(
        "--expires",
        metavar="WHEN",
        type=_expiry,
        help="a time from now, such as 8h, or a date, such as 2027-01-31T08:00Z, after which it is "
        "gone; by default it stays until you remove it",
    )


def what_it_gives(args: Namespace) -> dict[str, Any]:
    """The same, as the wire has it."""
    params: dict[str, Any] = {"keys": args.keys} | rules.given(args)
    if args.origins is not None:
        params["origins"] = args.origins
    return params | (args.expires or {})


def _add(args: Namespace) -> int:
    result = calls.admin("socket.add", {"socket": args.socket} | what_it_gives(args))
    (added,) = result["sockets"]
    return calls.answer(args, result, [*_details(added), *_how_to_use(added)])


_VALUE = 14
"""Where the values begin of a socket that is shown whole."""


def add_list(verbs: arguments.Verbs) -> None:
    """`dpop-agent socket list`."""
    arguments.add_verb(verbs, "list", "Show all sockets at a glance", _list)


def _list(args: Namespace) -> int:
    sockets: list[Socket] = []
    params: dict[str, Any] | None = {}
    while params is not None:
        result = calls.admin_call("socket.list", params)
        sockets += result["sockets"]
        params = {"cursor": result["cursor"]} if "cursor" in result else None
    if sockets:
        lines = output.table(
            ("SOCKET", "STATE", "KEYS", "EXPIRES", "PROOFS", "FOR"),
            [
                (
                    found["socket"],
                    output.Painted(found["state"], _colour(found)),
                    ", ".join(found["keys"]),
                    output.minute(found["expires"])
                    or ("with its command" if found["with_connection"] else "never"),
                    found["proofs"],
                    ", ".join(found["origins"]) or _ANYWHERE,
                )
                for found in sockets
            ],
            drop=("PROOFS", "EXPIRES"),
        )
        lines += [line for found in sockets for line in _trouble(found)]
    else:
        lines = [
            "there are no sockets; add one with: dpop-agent socket add NAME --key KEY "
            "--origin https://api.example.com"
        ]
    return calls.answer(args, {"sockets": sockets}, lines)


def add_show(verbs: arguments.Verbs) -> None:
    """`dpop-agent socket show`."""
    sub = arguments.add_verb(verbs, "show", "Show all there is to know about one socket", _show)
    sub.add_argument("socket", metavar="NAME", type=arguments.socket_name)


def _show(args: Namespace) -> int:
    result = calls.admin_call("socket.list", {"socket": args.socket})
    (found,) = result["sockets"]
    return calls.answer(args, result, _details(found))


def add_remove(verbs: arguments.Verbs) -> None:
    """`dpop-agent socket remove`."""
    sub = arguments.add_verb(
        verbs,
        "remove",
        "Remove a socket, at once: its connections are closed, what waits there is dropped",
        _remove,
    )
    sub.add_argument("socket", metavar="NAME", type=arguments.socket_name)


def _remove(args: Namespace) -> int:
    result = calls.admin("socket.remove", {"socket": args.socket})
    return calls.answer(args, result, [f"the socket {args.socket} is gone"])


def _details(found: Socket) -> list[str]:
    """All there is to know of a socket."""
    expires = output.minute(found["expires"])
    state, until = found["state"], f"expires {expires}" if expires else _until(found)
    head, *lines = output.facts(
        (
            f"{found['socket']}: {state}, {until}",
            f"  keys        {', '.join(found['keys'])}",
            f"  signs       {rules.sentence(found, anywhere=_ANYWHERE).removeprefix('signs ')}",
            f"  socket      {found['path']}",
            f"  created     {output.minute(found['created'])}",
            f"  now         {output.many(found['connections'], 'connection')}, "
            f"{output.many(found['proofs'], 'proof')} since it opened",
        ),
        _VALUE,
    )
    painted = output.paint(state, _colour(found))
    return [head.replace(f": {state}", f": {painted}", 1), *lines, *_trouble(found)]


def _until(found: Socket) -> str:
    return "ends with its command" if found["with_connection"] else "until it is removed"


def _colour(found: Socket) -> str:
    return output.GOOD if found["state"] == "open" else output.BAD


def _trouble(found: Socket) -> list[str]:
    """Why it gives nothing, or less than it says."""
    name = found["socket"]
    lines = [f"{name}: {found['reason']}"] if found["reason"] else []
    lines += [f"{name}: gives no proof by {key}: {why}" for key, why in found["unusable"].items()]
    colour = output.NOTICE if found["state"] == "open" else output.BAD
    return [line for text in lines for line in output.sentence(text, colour=colour)]


def _how_to_use(found: Socket) -> list[str]:
    import os

    folder, name = os.path.dirname(found["path"]), found["socket"]
    return [
        "",
        *(
            output.plain(line)
            for line in (
                f"in a container: mount {folder} read-only, and set DPOP_AGENT_SOCK to "
                "agent.sock in there",
                f'here: eval "$(dpop-agent env {name})"; or: dpop-agent exec --socket {name} -- '
                "COMMAND",
            )
        ),
    ]


def _expiry(text: str) -> dict[str, Any]:
    """A duration from now, or a date, as the wire has it."""
    if text[:1].isdigit() and "-" not in text:
        try:
            return {"expires_s": durations.interval(text)}
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e)) from e
    from datetime import UTC, datetime

    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise argparse.ArgumentTypeError(
            "it is a time from now, such as 8h, or a date with its zone, such as 2027-01-31T08:00Z"
        )
    try:
        return {"expires": f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    except OverflowError as e:
        raise argparse.ArgumentTypeError("there is no such date in UTC") from e
