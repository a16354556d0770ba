"""What making a key can take on a card: a slot, and the management key, which is asked for."""

from __future__ import annotations

import sys

from dpop_agent.cli import arguments, calls
from dpop_agent.errors import AuthorizationRefused, AuthorizationRequired

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any


def add_slot(parser: arguments.Parser) -> None:
    """`--slot` and `--reuse-slot`."""
    parser.add_argument(
        "--slot",
        metavar="SLOT",
        type=arguments.slot,
        help="the YubiKey's slot, such as 9a; by default the first free one from 82 to 95",
    )
    parser.add_argument(
        "--reuse-slot",
        action="store_true",
        help="overwrite the retired or destroyed generation in that slot; can't be undone",
    )


def slot_params(args: Namespace) -> dict[str, Any]:
    """What was said of the slot."""
    params: dict[str, Any] = {} if args.slot is None else {"slot": args.slot}
    return params | ({"reuse_slot": True} if args.reuse_slot else {})


def make(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The result of `key.create` or `key.rotate`; asks for a management key where one is wanted."""
    try:
        return calls.admin(method, params)
    except AuthorizationRequired as e:
        if isinstance(e, AuthorizationRefused):
            raise
        store = e.details.get("store", "")
    _authorize(str(store))
    return calls.admin(method, params)


def _authorize(store: str) -> None:
    from dpop_agent.cli import locking

    path = calls.admin_call("store.authorize", {"store": store})["socket"]
    if path is None:
        return
    prompt = f"Management key of the store {store} (hex; empty for the factory default): "
    if not locking.send_secret(path, prompt, what="management key", may_be_empty=True):
        print("trying the factory default management key", file=sys.stderr)
