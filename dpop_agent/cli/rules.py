"""The options for what a key, or a socket, gives proofs for; and how they read as a sentence."""

from __future__ import annotations

import argparse
import re

from dpop_agent import durations
from dpop_agent.cli import arguments
from dpop_agent.protocol import MAX_RATE, RULES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping, Sequence
    from typing import Any

_RATE = re.compile(r"([0-9]{1,9})/min")
_ANY = "every https server, and http on this machine"


def add_rules(parser: arguments.Parser, *, others: bool = False) -> None:
    """All of them but the origins; where there are `others` already, how to take each off too."""
    otherwise = f"by default {'it stays as it is' if others else 'any'}"
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--method",
        action="append",
        dest="methods",
        metavar="METHOD",
        type=arguments.htm,
        help=f"such as GET: proofs for these HTTP methods only; may be repeated; {otherwise}",
    )
    if others:
        _add_off(group, "--any-method", "methods", [], "for all methods again")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--path",
        action="append",
        dest="paths",
        metavar="PATH",
        type=arguments.path,
        help="such as /api/v1: proofs for it and what is below it only; may be repeated; "
        f"{otherwise}",
    )
    if others:
        _add_off(group, "--any-path", "paths", [], "for all paths again")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--require-ath",
        action="store_true",
        default=None,
        help="only proofs that go with an access token, and so none for getting one",
    )
    if others:
        _add_off(group, "--no-require-ath", "require_ath", False, "without access tokens too")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--rate",
        metavar="N/min",
        type=_rate,
        default=argparse.SUPPRESS,
        help=f"such as 60/min: at most so many proofs a minute; {otherwise}",
    )
    if others:
        _add_off(group, "--any-rate", "rate", None, "as often as anybody asks")
    parser.add_argument(
        "--burst",
        metavar="N",
        type=_burst,
        help="with --rate: so many at once after a pause; by default 10, or the rate's number if "
        "that is less",
    )
    parser.add_argument(
        "--confirm",
        dest="confirm_s",
        metavar="WHEN",
        type=_confirm,
        default=argparse.SUPPRESS,
        help="never, each, or a time such as 15m: ask you before each proof, or once in that time "
        "for each origin; where nobody can be asked there is no proof; by default "
        f"{'it stays as it is' if others else 'never'}",
    )
    parser.set_defaults(usage=parser.error)


def _add_off(group: Any, option: str, dest: str, const: object, what: str) -> None:
    """How to take a rule off again."""
    group.add_argument(
        option,
        dest=dest,
        action="store_const",
        const=const,
        default=argparse.SUPPRESS,
        help=f"proofs {what}",
    )


def given(args: Namespace) -> dict[str, Any]:
    """Those that were given, as the wire has them."""
    found = {
        name: getattr(args, name)
        for name in ("methods", "paths", "require_ath")
        if getattr(args, name) is not None
    }
    found |= {name: getattr(args, name) for name in ("rate", "confirm_s") if name in args}
    if args.burst is not None:
        if not found.get("rate"):
            args.usage("--burst goes with --rate, as in --rate 60/min --burst 20")
        found["rate"] = found["rate"] | {"burst": args.burst}
    return found


def sentence(rules: Mapping[str, Any], *, anywhere: str = _ANY) -> str:
    """What rules allow, as in "signs GET for https://api.example.com below /v1, and asks first".

    `anywhere` is said for origins where there are none.

    Rules that an older agent doesn't tell aren't there.
    """
    methods, paths = rules.get("methods"), rules.get("paths")
    said = "signs"
    if methods:
        said += f" {_listed(methods, 'and')}"
    said += f" for {_listed(rules['origins'], 'and') or anywhere}"
    if paths:
        said += f"{'' if rules['origins'] else ','} below {_listed(paths, 'or')}"
    if rules.get("require_ath"):
        said += ", with an access token"
    if rate := rules.get("rate"):
        said += f", at most {rate['per_minute']} a minute and {rate['burst']} at once"
    if (confirm_s := rules.get("confirm_s")) is not None:
        said += ", and asks first"
        if confirm_s:
            said += f" (a yes holds for {durations.text(confirm_s)})"
    return said


def _listed(values: Sequence[str], last: str) -> str:
    *others, one = values or ("",)
    return f"{', '.join(others)} {last} {one}" if others else one


def _rate(text: str) -> dict[str, int]:
    found = _RATE.fullmatch(text)
    if found is None or not RULES["rate"].check(rate := {"per_minute": int(found[1])}):
        raise argparse.ArgumentTypeError(
            f"a rate is a number of proofs a minute, 1 to {MAX_RATE}, as in 60/min"
        )
    return rate


def _burst(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 < int(text[:9]) <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"it has to be a number from 1 to {MAX_RATE}")
    return int(text)


def _confirm(text: str) -> int | None:
    if text in ("never", "each"):
        return None if text == "never" else 0
    try:
        return durations.interval(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(
            f"it has to be never, each, or the time that one consent holds, such as 15m: {e}"
        ) from e
