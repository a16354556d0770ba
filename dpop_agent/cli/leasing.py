"""`lease`: a command that runs as the only one of its name, such as a shell's refresh."""

from __future__ import annotations

import os
import signal
import sys

from dpop_agent import paths
from dpop_agent.cli import arguments, running
from dpop_agent.client.answers import SEND_BEFORE_S
from dpop_agent.errors import LeaseLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from dpop_agent.client.answers import Lease

WAIT_S = 10.0

COMMAND = "the command"
"""Who gets the words after `--`."""


def add_lease(parser: arguments.Parser) -> None:
    """`dpop-agent lease`."""
    parser.description = (
        "Run a command while nobody else on the agent's socket has that name, such as one that "
        "refreshes an access token and stores it: it first has to read again what is stored, for "
        "another may have refreshed it meanwhile. A lease lasts a minute; a command that isn't "
        "done by then is ended. One that fails leaves the lease as abandoned, which the next one "
        "is told. Exit status: the command's; 126 if it can't be run, 127 if there is none, 128 "
        "and a signal's number if that ended it."
    )
    parser.add_argument("name", metavar="NAME", help="what it is for, such as an account")
    parser.add_argument(
        "--wait",
        metavar="TIME",
        type=arguments.duration,
        default=WAIT_S,
        help="how long to wait for whoever has it, such as 30s; a minute at the most (10s)",
    )
    parser.passes_on_to = COMMAND
    parser.usage = "%(prog)s NAME [--wait TIME] -- COMMAND …"
    parser.set_defaults(run=_lease, usage=parser.error)


class _Failed(Exception):
    """The command's exit status, where that isn't 0: the lease isn't released then."""

    def __init__(self, status: int) -> None:
        self.status = status


def _lease(args: Namespace) -> int:
    if not args.passed_on:
        args.usage("there is no command; give it after --")
    from dpop_agent.client.sync import AgentClient

    try:
        with (
            AgentClient(paths.agent_socket()) as agent,
            agent.lease(args.name, wait=args.wait) as held,
        ):
            if held.previous == "abandoned":
                _say("whoever had it before didn't end in order: what it was to store may be lost")
            _run(args.passed_on, held)
    except _Failed as e:
        return e.status
    return 0


def _run(command: list[str], held: Lease) -> None:
    """Run the command for as long as it may.

    Raises:
        _Failed: it did.
        LeaseLost: it took longer, and was ended.
    """
    ends_by = [signal.SIGKILL, signal.SIGTERM]

    def end(pid: int) -> None:
        os.kill(pid, ends_by.pop())
        if ends_by:
            signal.setitimer(signal.ITIMER_REAL, SEND_BEFORE_S / 2)

    with running.beneath() as beneath:
        status = beneath.run(command, os.environ, within_s=held.left_s, too_long=end)
    if len(ends_by) < 2:
        raise LeaseLost(
            f"the command wasn't done when the time of the lease {held.name!r} was over, and was "
            "ended"
        )
    if status:
        raise _Failed(status)


def _say(text: str) -> None:
    print(f"dpop-agent: {text}", file=sys.stderr)
