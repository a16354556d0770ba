"""`status`, `reload` and `env`."""

from __future__ import annotations

import argparse
import sys

from dpop_agent import paths
from dpop_agent.cli import arguments, calls, output
from dpop_agent.errors import InvalidParams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable
    from typing import Any

    from dpop_agent.client import AgentClient


WATCH_S, MAX_WATCH_S = 2, 3600
"""Seconds between two looks, where nobody says how many; and how many at the most."""

_VALUE = 11
"""Where the values begin of what is told of the agent."""


def add_status(parser: arguments.Parser) -> None:
    """`dpop-agent status`."""
    parser.description = "Show the agent, its stores and the servers' nonces."
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=_seconds,
        const=WATCH_S,
        help=f"again every so many seconds, by default {WATCH_S}, and what changed, until Ctrl-C; "
        "with --json a line at first and for each change",
    )
    arguments.add_json(parser)
    parser.set_defaults(run=_status, usage=parser.error)


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 < int(text[:9]) <= MAX_WATCH_S:
        raise argparse.ArgumentTypeError(f"it is a number of seconds, 1 to {MAX_WATCH_S}")
    return int(text)


def add_reload(parser: arguments.Parser) -> None:
    """`dpop-agent reload`."""
    parser.description = "Have the agent reread its configuration and check its stores again."
    arguments.add_json(parser)
    parser.set_defaults(run=_reload)


def add_env(parser: arguments.Parser) -> None:
    """`dpop-agent env`."""
    parser.description = 'Print the line that sets DPOP_AGENT_SOCK, for eval "$(dpop-agent env)".'
    parser.add_argument(
        "socket",
        metavar="NAME",
        nargs="?",
        type=arguments.socket_name,
        help="of a filtered socket (dpop-agent socket); by default the agent's own, with all keys",
    )
    arguments.add_json(parser)
    parser.set_defaults(run=_env)


def _env(args: Namespace) -> int:
    from shlex import quote

    path = paths.agent_socket() if args.socket is None else calls.filtered_socket(args.socket)
    if args.json:
        output.print_json({"DPOP_AGENT_SOCK": path})
    else:
        print(f"export DPOP_AGENT_SOCK={quote(path)}")
    return 0


def _status(args: Namespace) -> int:
    from dpop_agent.cli.waiting import Waiting
    from dpop_agent.client.sync import AgentClient

    path = paths.agent_socket()
    with AgentClient(path) as agent:
        if args.watch is not None:
            return _watch(args, agent)
        with Waiting("looking what the stores have"):
            status = _seen_now(agent)
    if args.json:
        output.print_json(status)
    else:
        output.show(lines(status, path))
    return 0


def _watch(args: Namespace, agent: AgentClient) -> int:
    from dpop_agent.cli import watching

    if args.json:
        watching.lines_of_json(agent, args.watch)
    elif not output.takes_escapes(sys.stdout):
        args.usage("--watch wants a terminal that it can write over; elsewhere add --json")
    else:
        watching.watch(agent, args.watch, lines)
    return 0


def _seen_now(agent: AgentClient) -> dict[str, Any]:
    """What is there now, rather than when the agent looked last."""
    try:
        return agent.call("status", {"look": True})
    except InvalidParams:  # an agent that was started before it could look
        return agent.status()


def _reload(args: Namespace) -> int:
    from dpop_agent.cli import calls

    result = calls.admin_call("reload", {})
    if args.json:
        output.print_json(result)
    else:
        output.show(_store_lines(result["stores"]))
    return 0


def lines(status: dict[str, Any], path: str) -> list[str]:
    """What there is to know of the agent."""
    get = status.get
    shown = _about(status, path)
    if sockets := get("sockets"):
        names = f"  filtered {_first(sockets, get('sockets_count'))} (see: dpop-agent socket list)"
        shown += output.facts([names], _VALUE)
    if leases := get("leases"):
        names = f"  leases   {_first([*map(_lease, leases)], get('leases_count'))}"
        shown += output.facts([names], _VALUE)
    if status.get("forking_pid", 0) is None:
        shown += output.sentence("the process that starts signers has ended: restart the agent")
    if stores := get("stores"):
        shown += ["", *_store_lines(stores), *_to_do(status)]
        shown += [line for store in stores for line in _unknown(store)]
    if origins := get("origins"):
        shown += ["", *output.table(("NONCE", "CLOCK", "ORIGIN"), [*map(_origin, origins)])]
        shown += _notices(text for origin in origins for text in clock_trouble(origin))
    return shown


def _about(status: dict[str, Any], path: str) -> list[str]:
    get = status.get
    head = (
        f"dpop-agent {get('agent')}, pid {get('pid')}, started {output.since(get('started'))}, "
        f"{output.many(get('proofs'), 'proof')}"
    )
    if "ledger" not in status:
        lines = [head, f"  socket   {path}, which gives some keys' proofs alone"]
        return output.facts(lines, _VALUE)
    lines = [
        f"{head}, {output.many(get('connections'), 'connection')}",
        f"  socket   {path}",
        f"  admin    {paths.admin_socket(path)}",
        f"  config   {get('config') or '-'}",
        f"  ledger   {get('ledger')}",
    ]
    return output.facts(lines, _VALUE) + _audit(get("audit"))


def _first(names: list[str], count: int | None) -> str:
    """The names that the agent tells, and how many there are beside."""
    more = (count or 0) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def _to_do(status: dict[str, Any]) -> list[str]:
    due = status.get("rotations_due") or []
    destroyed = status.get("destroyed") or []
    return _notices(
        [
            *(f"rotation due: {name}; dpop-agent key rotate {name}" for name in due),
            *(
                f"destroyed, its name taken still: {name}; dpop-agent key show {name}"
                for name in destroyed
            ),
        ]
    )


def _notices(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in output.sentence(text, colour=output.NOTICE)]


def _lease(lease: dict[str, Any]) -> str:
    waiting = f", {lease['waiting']} waiting" if lease["waiting"] else ""
    return f"{lease['name']} ({lease['left_s']} s left{waiting})"


def _audit(audit: dict[str, Any] | None) -> list[str]:
    """Where the audit is, and what is wrong with it; an older agent has none."""
    if audit is None:
        return []
    if audit["mode"] == "off":
        return ["  audit    off"]
    lines = output.facts([f"  audit    {audit['folder']}"], _VALUE)
    if audit["failing"] is not None:
        refused = "; no proof is given until it can" if audit["mode"] == "required" else ""
        lines += output.sentence(
            f"the audit can't be written: {audit['failing']}{refused}", colour=output.BAD
        )
    if audit["lost"]:
        lines += output.sentence(
            f"{output.many(audit['lost'], 'line')} of the audit couldn't be written, and went"
        )
    return lines


def _store_lines(stores: list[dict[str, Any]]) -> list[str]:
    return [
        *output.table(("STORE", "STATE", "PLACE"), [*map(_store, stores)]),
        *(line for store in stores for line in _trouble(store)),
    ]


def _store(store: dict[str, Any]) -> tuple[object, ...]:
    serial = store.get("serial")
    slots = store.get("slots")
    # What is at the end is cut where the terminal is narrow.
    free = slots and f"{slots['free']} of {slots['total']} slots free"
    signers = store.get("signers", 1) > 1 and f"{_signing(store)} signers"
    known = [store.get("label"), signers, free, serial and f"serial {serial}", store.get("model")]
    place = ", ".join(filter(None, known)) or store.get("module")
    return store["store"], output.Painted(store["state"], _colour(store)), place


def _colour(store: dict[str, Any]) -> str:
    """Of a store's state: what a person does about, and what is wrong."""
    known = {"ready": output.GOOD, "starting": output.NOTICE, "locked": output.NOTICE}
    return known.get(store["state"], output.BAD)


def _signing(store: dict[str, Any]) -> str:
    there, wanted = len(store.get("signer_pids", [])), store["signers"]
    return str(wanted) if there == wanted else f"{there} of {wanted}"


def _trouble(store: dict[str, Any]) -> list[str]:
    """Why a store isn't open, or has fewer signers than it is to have."""
    reason, hint = store.get("reason"), store.get("hint")
    if not reason and store.get("signers_reason"):
        reason = f"{_signing(store)} signers: {store['signers_reason']}"
        hint = store.get("signers_hint")
    if not reason:
        return []
    return output.sentence(
        f"{store['store']}: {reason}" + (f"; {hint}" if hint else ""),
        colour=output.NOTICE if store["state"] == "ready" else _colour(store),
    )


def _unknown(store: dict[str, Any]) -> list[str]:
    """The private keys in a store that aren't the agent's."""
    unknown, name = store.get("unknown") or [], store["store"]
    if not unknown:
        return []
    many = store.get("unknown_count", len(unknown))
    refs = [found["ref"] for found in unknown]
    rows = [(_id(found["ref"]), found["label"] or None) for found in unknown]
    ways = ["--ref REF"] * any(map(_id, refs))
    ways += ["--label LABEL"] * any(ref and not _id(ref) for ref in refs)
    return [
        "",
        output.plain(
            f"{name}: {many} private key{'s' if many != 1 else ''} that the ledger doesn't list, "
            "left alone"
        ),
        *output.table(("REF", "LABEL"), rows),
        *(
            output.plain(
                f"to adopt one: dpop-agent key adopt NAME {way} --store {name} "
                "--origin https://api.example.com"
            )
            for way in ways
        ),
        output.plain(f"after a lost ledger: dpop-agent key adopt --all --store {name}"),
    ]


def _id(ref: str) -> str | None:
    """An object's id; None for one that goes by its label, or by nothing."""
    from dpop_agent.protocol import LABEL_REF

    return None if ref.startswith(LABEL_REF) else ref or None


def _origin(origin: dict[str, Any]) -> tuple[object, ...]:
    age, offset = output.span(origin.get("nonce_age_s")), origin.get("clock_offset_s")
    clock = None if offset is None else f"{offset:+g} s"
    return age and f"{age} old", clock, origin["origin"]


BEHIND_S = 5
"""Seconds behind a server from which on its refusals may come from the clock."""

MAX_BACKDATING_S = 300
"""Seconds that proofs are dated back for a server that is behind (PROTOCOL.md)."""


def clock_trouble(origin: dict[str, Any]) -> list[str]:
    """Why that server may refuse proofs for their time."""
    name, offset, age = (
        origin.get(member) for member in ("origin", "clock_offset_s", "iat_refused_age_s")
    )
    if offset is None:
        if age is None:
            return []
        return [
            f"{name}: refused a proof {output.span(age)} ago, perhaps for its time, and sent no "
            "Date to compare with; check this machine's clock"
        ]
    if offset >= BEHIND_S:
        return [
            f"{name}: this machine's clock is {offset:g} s behind the server's, and proofs are "
            "never dated ahead; set the clock"
        ]
    if offset < -MAX_BACKDATING_S:
        return [
            f"{name}: this machine's clock is {-offset:g} s ahead of the server's, and proofs are "
            f"dated back by {MAX_BACKDATING_S} s at most; set the clock"
        ]
    return []
