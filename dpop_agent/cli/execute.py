"""`exec`: a command with a filtered socket, made for it alone where none is named."""

from __future__ import annotations

import argparse
import os
import signal

from dpop_agent import paths
from dpop_agent.cli import arguments, calls, output, sockets
from dpop_agent.errors import AgentUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from typing import Any

NOT_RUN, NOT_FOUND, SIGNALLED = 126, 127, 128
"""Exit statuses as shells have them: it can't be run, there is none, and a signal's number more."""

_PASSED_ON = {
    *(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
}
_FROM_THE_TERMINAL = 0x80  # SI_KERNEL: the command's process group has it already


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
    try:
        os.execvpe(command[0], command, _environment(path))  # noqa: S606  (that is what it is for)
    except OSError as e:
        return _not_run(command[0], e)


def _with_one_of_its_own(given: Mapping[str, Any], command: list[str]) -> int:
    """Run the command; its socket lasts as long as this process's connection to the agent."""
    import secrets

    from dpop_agent.client.sync import AgentClient

    # From before the command is there, so that no signal ends this process and leaves it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON | {signal.SIGCHLD})
    try:
        with AgentClient(calls.admin_socket(), timeout=calls.ADMIN_TIMEOUT_S) as agent:
            params = {"socket": f"exec-{secrets.token_hex(6)}", "with_connection": True, **given}
            (added,) = agent.call("socket.add", params)["sockets"]
            try:
                pid = os.posix_spawnp(
                    command[0],
                    command,
                    _environment(added["path"]),
                    setsigmask=before,
                    setsigdef=[signal.SIGPIPE],  # which Python ignores
                )
            except OSError as e:
                return _not_run(command[0], e)
            return _wait_for(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment(path: str) -> dict[str, str]:
    return {**os.environ, "DPOP_AGENT_SOCK": path}


def _not_run(program: str, error: OSError) -> int:
    import sys

    print(output.plain(f"dpop-agent: {program} can't be run: {error.strerror}"), file=sys.stderr)
    return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUN


def _wait_for(pid: int) -> int:
    """The command's exit status, as shells have it; until then it gets the signals that come."""
    while True:
        number, from_the_terminal = _next_signal()
        if number != signal.SIGCHLD:
            if not from_the_terminal:
                os.kill(pid, number)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else SIGNALLED - code


def _next_signal() -> tuple[int, bool]:
    """The next signal, and whether the terminal sent it, to the command too."""
    numbers = _PASSED_ON | {signal.SIGCHLD}
    if hasattr(signal, "sigwaitinfo"):
        info = signal.sigwaitinfo(numbers)
        return info.si_signo, info.si_code == _FROM_THE_TERMINAL
    number = signal.sigwait(numbers)
    return number, number in (signal.SIGINT, signal.SIGQUIT)
