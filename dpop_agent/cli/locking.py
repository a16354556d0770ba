"""`lock` and `unlock`. A PIN goes from the terminal to the signer, past the agent."""

from __future__ import annotations

import os
import sys

from dpop_agent import paths
from dpop_agent.cli import arguments, calls, output
from dpop_agent.errors import Cancelled, ConfigurationError, SignerFailed, from_wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

LOGIN_TIMEOUT_S = 45.0
"""Seconds for loading a module and logging in; slow cards take 4, PIN pads wait for a person."""

MAX_ANSWER = 8 * 1024


def parser(verb: str) -> arguments.Parser:
    """The parser of one of the two verbs."""
    if verb == "lock":
        found = arguments.verb(verb, "Forget PINs and close stores until they are unlocked.")
        found.set_defaults(run=_lock)
    else:
        found = arguments.verb(verb, "Open stores that are locked, asking for their PINs.")
        found.set_defaults(run=_unlock)
    found.add_argument("store", metavar="STORE", nargs="?", help="one store; else all")
    arguments.add_json(found)
    return found


def _lock(args: Namespace) -> int:
    result = calls.admin_call("lock", {"store": args.store} if args.store else {})
    for store in result["stores"]:
        if store["state"] == "locked" and not args.json:
            print(output.plain(f"the store {store['store']} is locked"))
    if args.json:
        output.print_json(result)
    return 0


def _unlock(args: Namespace) -> int:
    names = [args.store] if args.store else _locked()
    if not names and not args.json:
        print("no store is locked")
    opened = []
    for name in names:
        result = calls.admin_call("unlock", {"store": name})
        if result["pin_socket"] is not None:
            send_secret(result["pin_socket"], f"PIN of the store {name}: ", what="PIN")
        opened.append({"store": name, "state": "ready"})
        if not args.json:
            print(output.plain(f"the store {name} is open"))
    if args.json:
        output.print_json({"stores": opened})
    return 0


def _locked() -> list[str]:
    from dpop_agent.client.sync import AgentClient

    with AgentClient(paths.agent_socket()) as agent:
        return [s["store"] for s in agent.status()["stores"] if s["state"] == "locked"]


def send_secret(path: str, prompt: str, *, what: str, may_be_empty: bool = False) -> bool:
    """Ask for it, send it to the signer at `path`, and raise what that says.

    Returns whether something was typed.
    """
    import json

    from dpop_agent.client.connection import connect

    sock = connect(path)
    if sock is None:
        raise SignerFailed(f"the signer takes no {what} now", hint="try again")
    with sock:
        secret = _ask(prompt, what, may_be_empty=may_be_empty)
        sock.settimeout(LOGIN_TIMEOUT_S)
        answer = bytearray()
        try:
            sock.sendall(secret.encode() + b"\n")
            while not answer.endswith(b"\n") and len(answer) <= MAX_ANSWER:
                data = sock.recv(4096)
                if not data:
                    break
                answer += data
        except OSError as e:
            raise SignerFailed("the signer waits no longer", hint="try again") from e
    if not answer.endswith(b"\n"):
        raise SignerFailed("the signer ended before it answered", hint="see the agent's log")
    said: dict[str, Any] = json.loads(answer)
    if "error" in said:
        raise from_wire(said["error"])
    return secret != ""


def _ask(prompt: str, what: str, *, may_be_empty: bool) -> str:
    """A secret, from the terminal, or from a pinentry where there is a display alone."""
    if sys.stdin.isatty():
        from getpass import getpass

        secret = getpass(prompt)
    elif os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY"):
        from dpop_agent.cli import pinentry

        secret = pinentry.ask(prompt)
    else:
        raise ConfigurationError(
            f"there is neither a terminal nor a display to ask for the {what} at",
            hint="run it in a terminal"
            + (", or choose a file or a credential as pin_source" if what == "PIN" else ""),
        )
    if "\n" in secret or not (secret or may_be_empty):
        raise Cancelled(f"no {what} was given")
    return secret
