"""Asking the agent about keys, and telling it what to do with them."""

from __future__ import annotations

import os
import sys

from dpop_agent import paths
from dpop_agent.cli import output
from dpop_agent.errors import (
    Cancelled,
    ConfigurationError,
    DPoPAgentError,
    KeyUnknown,
    SocketUnknown,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    Key = dict[str, Any]
    Generation = dict[str, Any]

ADMIN_TIMEOUT_S = 60.0
"""A token may take half a minute to find the primes of an RSA key."""


_SLOW_RSA = " takes a card or a TPM up to half a minute"


def admin(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The result of a method that changes a key, and does so once."""
    import secrets

    return admin_call(method, params | {"request_id": secrets.token_hex(16)})


def admin_call(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The result of a method of `admin.sock`."""
    from dpop_agent.cli.waiting import Waiting
    from dpop_agent.client.sync import AgentClient

    with (
        Waiting(_what_takes_long(method, params)) as waiting,
        AgentClient(admin_socket(), timeout=ADMIN_TIMEOUT_S, on_touch=waiting.touch) as agent,
    ):
        return agent.call(method, params)


def _what_takes_long(method: str, params: dict[str, Any]) -> str:
    if method == "key.create":
        is_rsa = params.get("alg") in ("RS256", "PS256")
        return f"making an RSA key, which{_SLOW_RSA}" if is_rsa else "making a key"
    if method == "key.rotate":
        return f"making a key; an RSA one{_SLOW_RSA}"
    return {
        "key.adopt": "looking at the key",
        "key.destroy": "destroying the key",
        "reload": "looking at the stores again",
        "unlock": f"starting the store {params.get('store')}",
    }.get(method, "waiting for the agent")


def admin_socket() -> str:
    """The path of `admin.sock`.

    Raises:
        ConfigurationError: where `agent.sock` is there is none, and never was.
    """
    agent = paths.agent_socket()
    path = paths.admin_socket(agent)
    if paths.socket_at(path) is None and paths.socket_at(agent) is not None:
        raise ConfigurationError(
            f"the socket {agent} gives proofs and nothing else",
            hint="unset DPOP_AGENT_SOCK, or set it to the agent's own socket",
        )
    return path


def filtered_socket(name: str) -> str:
    """The path of the filtered socket of that name.

    Raises:
        SocketUnknown
    """
    path = paths.filtered_socket(paths.agent_socket(), name)
    if not os.path.isdir(os.path.dirname(path)):
        raise SocketUnknown(f"there is no socket {name}")
    return path


def state_folder() -> str:
    """The state folder: the one that is set, else that of the agent that runs, else the usual."""
    if "DPOP_AGENT_STATE_DIR" not in os.environ:
        from dpop_agent.client.sync import AgentClient

        try:
            with AgentClient(paths.agent_socket()) as agent:
                ledger = agent.status().get("ledger")
        except DPoPAgentError:
            ledger = None
        if ledger is not None:  # a filtered socket doesn't tell
            return os.path.dirname(str(ledger))
    return paths.state_folder()


def keys(name: str | None, *, include_destroyed: bool = False) -> list[Key]:
    """All keys, or the one of that name."""
    from dpop_agent.client.sync import AgentClient

    with AgentClient(paths.agent_socket()) as agent:
        return agent.keys(name, include_destroyed=include_destroyed)


def the_key(name: str, *, include_destroyed: bool = False) -> Key:
    """The key of that name.

    Raises:
        KeyUnknown
    """
    found = keys(name, include_destroyed=include_destroyed)
    if not found:
        raise KeyUnknown(f"there is no key {name}", hint="see: dpop-agent key list --all")
    return found[0]


def generation(key: Key, number: int) -> Generation:
    """One generation of a key.

    Raises:
        KeyUnknown
    """
    for found in key["generations"]:
        if found["generation"] == number:
            return dict(found)
    raise KeyUnknown(
        f"the key {key['key']} has no generation {number}",
        hint=f"see: dpop-agent key list {key['key']} --all",
    )


def confirm(command: str, doing: str, question: list[str], refused: str) -> None:
    """Ask before what can't be undone.

    Args:
        command: what to type where nobody can be asked.
        doing: what would be done, as the subject of a sentence.
        question: what is asked, in lines.
        refused: what to say after anything but yes.

    Raises:
        ConfigurationError: nobody can be asked.
        Cancelled: the answer wasn't yes.
    """
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"{doing} can't be undone, and there is nobody to ask",
            hint=f"if you mean it: {command} --yes",
        )
    print("\n".join(map(output.plain, question)), end=" Type yes: ", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        print(file=sys.stderr)  # their Ctrl-D left the question's line unended
    if answer.strip().lower() != "yes":
        raise Cancelled(refused)


def answer(args: Namespace, result: dict[str, Any], lines: list[str]) -> int:
    """Print what the wire returned, or `lines` for people."""
    if args.json:
        output.print_json(result)
    else:
        output.show(lines)
    return 0
