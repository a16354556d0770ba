"""`--origin` and `--any-origin`."""

from __future__ import annotations

from dpop_agent.cli import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any


def add_origins(group: Any) -> None:
    """Both, in a group where one excludes the other."""
    group.add_argument(
        "--origin",
        action="append",
        dest="origins",
        metavar="ORIGIN",
        type=arguments.origin,
        help="such as https://api.example.com: proofs for these only; may be repeated",
    )
    group.add_argument(
        "--any-origin",
        dest="origins",
        action="store_const",
        const=[],
        help="proofs for every https server, and for http on this machine",
    )


def given(args: Namespace) -> dict[str, Any]:
    """The origins that were given; none of them means any."""
    return {} if args.origins is None else {"origins": args.origins}
