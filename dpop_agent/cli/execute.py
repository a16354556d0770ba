"""`exec`: a command with a filtered socket, made for it alone where none is named."""

from __future__ import annotations

import argparse
import os

from dpop_agent import paths
from dpop_agent.cli import arguments, calls, running, sockets
from dpop_agent.errors import AgentUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from typing import Any


def add_exec(parser: arguments.Parser) -> None:
    """`dpop-agent exec`."""
    parser.description = (
        "Run a command with DPOP_AGENT_SOCK set to a filtered socket: to the one of --socket, or "
        "to one that is made for it alone and is gone with it. Without a sandbox this guards "
        "against accidents only: a program of yours can find the agent's other sockets by itself. "
        "Exit status: the command's; 126 if it can't be run, 127 if there is none, 128 and a "
        "signal's number if that ended it."
    )
    parser.add_argument(
        "--socket",
        metavar="NAME",
        type=arguments.socket_name,
        help="a socket of dpop-agent socket add; else --key says what one gives that is made now",
    )
    sockets.add_what_it_gives(parser, required=False)
    parser.add_argument(
        "command", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="and its arguments"
    )
    parser.set_defaults(run=_exec)


def _exec(args: Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        args.usage("there is no command; give it after --")
    given = sockets.what_it_gives(args)
    if args.socket is None and args.keys is None:
        args.usage("give --socket NAME, or --key KEY for a socket that is made for the command")
    if args.socket is None:
        return _with_one_of_its_own(given, command)
    if given != {"keys": None}:
        args.usage("a socket that is there has its own rules: give --socket alone")
    return _with(args.socket, command)


def _with(socket: str, command: list[str]) -> int:
    """Become the command."""
    path = calls.filtered_socket(socket)
    if paths.socket_at(path) is None:
        raise AgentUnavailable(f"no agent listens at {path}")
    running.hear_of_pipes()
    try:
        os.execvpe(command[0], command, _environment(path))  # noqa: S606  (that is what it is for)
    except OSError as e:
        return running.not_run(command[0], e)


def _with_one_of_its_own(given: Mapping[str, Any], command: list[str]) -> int:
    """Run the command; its socket lasts as long as this process's connection to the agent."""
    import secrets

    from dpop_agent.client.sync import AgentClient

    with (
        running.beneath() as beneath,
        AgentClient(calls.admin_socket(), timeout=calls.ADMIN_TIMEOUT_S) as agent,
    ):
        params = {"socket": f"exec-{secrets.token_hex(6)}", "with_connection": True, **given}
        (added,) = agent.call("socket.add", params)["sockets"]
        return beneath.run(command, _environment(added["path"]))


def _environment(path: str) -> dict[str, str]:
    return {**os.environ, "DPOP_AGENT_SOCK": path}
