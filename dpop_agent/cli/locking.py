"""`lock` and `unlock`. A PIN goes from the terminal to the signer, past the agent."""

from __future__ import annotations

import os
import sys

from dpop_agent import paths
from dpop_agent.cli import arguments, calls, output
from dpop_agent.cli.waiting import Waiting
from dpop_agent.errors import (
    AgentUnavailable,
    Cancelled,
    ConfigurationError,
    DPoPAgentError,
    SignerFailed,
    Timeout,
    from_wire,
)
from dpop_agent.hardening import harden

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from argparse import Namespace
    from typing import Any

LOGIN_TIMEOUT_S = 45.0
"""Seconds for logging in; slow cards take 4."""

PAD_TIMEOUT_S = 120.0
"""Seconds for a person to type at a pad, before the agent takes its signer for hanging."""

LOOK_S = 0.05
"""Seconds between looks at stores that start, for 15 s at the most."""

MAX_ANSWER = 8 * 1024

_KEPT = (
    "The PIN will be stored in the operating system's keychain, where any program of yours can "
    "read it."
)


def add_lock(parser: arguments.Parser) -> None:
    """`dpop-agent lock`."""
    parser.description = "Forget PINs and close stores until they are unlocked."
    _add_store(parser)
    parser.set_defaults(run=_lock)


def add_unlock(parser: arguments.Parser) -> None:
    """`dpop-agent unlock`."""
    parser.description = "Open closed stores, asking for their PINs."
    _add_store(parser)
    parser.set_defaults(run=_unlock)


def _add_store(parser: arguments.Parser) -> None:
    parser.add_argument("store", metavar="STORE", nargs="?", help="one store; by default all")
    arguments.add_json(parser)


def _lock(args: Namespace) -> int:
    result = calls.admin_call("lock", {"store": args.store} if args.store else {})
    for store in result["stores"]:
        meant = args.store in (None, store["store"])
        if store["state"] == "locked" and meant and not args.json:
            print(output.plain(f"the store {store['store']} is locked"))
    if args.json:
        output.print_json(result)
    return 0


def _unlock(args: Namespace) -> int:
    names = [args.store] if args.store else _closed()
    opened = []
    for name in names:
        try:
            _open(name, args)
        except AgentUnavailable:
            raise
        except DPoPAgentError as e:  # which keeps no other store closed
            output.report(e, as_json=args.json)
        else:
            opened.append({"store": name, "state": "ready"})
    if args.json:
        output.print_json({"stores": opened})
    elif not names:
        print("all stores are open")
    return 0 if len(opened) == len(names) else 1


def _open(name: str, args: Namespace) -> None:
    asked = calls.admin_call("unlock", {"store": name})
    if asked["pin_pad"]:
        _wait_for_pad(name, asked["pin_socket"])
    elif asked["pin_socket"] is not None:
        kept = f"{_KEPT}\n" if asked.get("pin_kept") else ""
        send_secret(asked["pin_socket"], f"{kept}PIN of the store {name}: ", what="PIN")
    if not args.json:
        print(output.plain(f"the store {name} is open"))


def _wait_for_pad(name: str, path: str) -> None:
    """Say where the PIN is typed, and wait for the outcome; an end of the wait ends the asking."""
    with _connected(path, "PIN") as sock:
        print(output.plain(f"type the PIN of the store {name} on its own pad"), file=sys.stderr)
        try:
            with Waiting("waiting for the PIN to be typed there"):
                _outcome(sock, PAD_TIMEOUT_S)
        except (Timeout, KeyboardInterrupt):
            calls.admin_call("lock", {"store": name})
            raise


def _closed() -> list[str]:
    """The stores that are locked, absent or failed; what still starts is waited for."""
    import time

    from dpop_agent.client.sync import AgentClient

    with AgentClient(paths.agent_socket()) as agent, Waiting("waiting for stores that start"):
        while True:
            states = {s["store"]: s["state"] for s in agent.status()["stores"]}
            if "starting" not in states.values():
                return [name for name, state in states.items() if state != "ready"]
            time.sleep(LOOK_S)


def send_secret(path: str, prompt: str, *, what: str, may_be_empty: bool = False) -> bool:
    """Ask for it, send it to the signer at `path`, and raise what that says.

    This process closes itself to the user's other programs before it asks.

    Returns whether something was typed.

    Raises:
        Traced: a debugger is attached.
    """
    harden()
    with _connected(path, what) as sock:
        secret = _ask(prompt, what, may_be_empty=may_be_empty)
        try:
            sock.sendall(secret.encode() + b"\n")
        except OSError as e:
            raise SignerFailed(
                f"the signer is no longer waiting for the {what}",
                hint="try again: it waits a minute, unless a lock ends that",
            ) from e
        with Waiting(f"trying the {what}"):
            _outcome(sock, LOGIN_TIMEOUT_S)
    return secret != ""


def _connected(path: str, what: str) -> socket.socket:
    from dpop_agent.client.connection import connect

    try:
        sock = connect(path)
    except AgentUnavailable:
        sock = None
    if sock is None:
        raise SignerFailed(f"the signer isn't waiting for a {what} now", hint="try again")
    return sock


def _outcome(sock: socket.socket, seconds: float) -> None:
    """Raise what the signer says, if it isn't that all is well.

    Raises:
        Timeout: it says nothing.
    """
    import json

    sock.settimeout(seconds)
    answer = bytearray()
    try:
        while not answer.endswith(b"\n") and len(answer) <= MAX_ANSWER:
            data = sock.recv(4096)
            if not data:
                break
            answer += data
    except TimeoutError as e:
        raise Timeout(f"the store didn't open within {seconds:g} s", hint="try again") from e
    except OSError as e:
        raise SignerFailed("the signer is no longer waiting", hint="try again") from e
    if not answer.endswith(b"\n"):
        raise SignerFailed("the signer ended before it answered", hint="see: dpop-agent status")
    said: dict[str, Any] = json.loads(answer)
    if "error" in said:
        raise from_wire(said["error"])


def _ask(prompt: str, what: str, *, may_be_empty: bool) -> str:
    """A secret, from the terminal, or from a pinentry where there is a display alone."""
    if _has_terminal():
        from getpass import getpass

        secret: str | None
        try:
            secret = getpass(prompt)
            secret.encode()
        except EOFError:
            print(file=sys.stderr)  # their Ctrl-D left the prompt's line unended
            secret = ""
            may_be_empty = False
        except UnicodeError:
            secret = None
        if secret is None:  # not in the handler, whose exception has what was typed
            raise Cancelled(f"the {what} isn't UTF-8", hint="type it again")
    elif os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY"):
        from dpop_agent import pinentry

        secret = pinentry.ask(prompt, what)
    else:
        raise ConfigurationError(
            f"there is neither a terminal nor a display to ask for the {what} on",
            hint="run this in a terminal"
            + (", or choose a file or a credential as pin_source" if what == "PIN" else ""),
        )
    if "\n" in secret or not (secret or may_be_empty):
        raise Cancelled(f"no {what} was given")
    return secret


def _has_terminal() -> bool:
    """Whether `getpass` can ask at one, whatever standard input is."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin.isatty()
    return True
