"""`serve`."""

from __future__ import annotations

import argparse

from dpop_agent.cli import arguments
from dpop_agent.cli.output import plain
from dpop_agent.errors import DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from socket import socket
    from typing import NoReturn

    from dpop_agent.systemd import Service


def add_serve(parser: arguments.Parser) -> None:
    """`dpop-agent serve`."""
    parser.description = "Run the agent in the foreground until it is interrupted."
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="log each request, and each proof's key, origin and who asked for it; never a secret",
    )
    _add_idle(parser, "--lock-after", "lock stores that nobody has used for this long, such as 15m")
    _add_idle(
        parser,
        "--release-after",
        "let other programs have a PKCS#11 token that nobody has used for this long, such as 30s",
    )
    parser.set_defaults(run=_serve)


def _add_idle(parser: arguments.Parser, option: str, what: str) -> None:
    setting = option.removeprefix("--").replace("-", "_")
    parser.add_argument(
        option,
        dest=f"{setting}_s",
        type=arguments.interval,
        default=argparse.SUPPRESS,  # never is another thing than nothing
        metavar="TIME",
        help=f"{what}; or never; by default as {setting} in the configuration says, else never",
    )


def _serve(args: Namespace) -> int:
    import signal

    from dpop_agent import forking, systemd
    from dpop_agent.hardening import harden

    # Whoever started the agent may have blocked what it handles, or had its children reaped.
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    )
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # First of all: what comes later is forked from what nobody could have opened.
    harden()
    service = systemd.take()
    forked = forking.fork(_fork_signers) if forking.is_possible() else None
    try:
        return _run_agent(args, forked, service)
    except DPoPAgentError as e:
        service.tell(f"STATUS={plain(e)}")  # it is asked why the service doesn't start
        raise
    finally:
        if forked is not None:
            forked[1].close()  # it ends then


def _run_agent(args: Namespace, forked: tuple[int, socket] | None, service: Service) -> int:
    import logging

    from dpop_agent import config, paths
    from dpop_agent.cli.log import Log

    found = config.load()
    from dpop_agent.agent import server  # the one place that does

    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.INFO, handlers=[Log()])
    server.run(
        found,
        agent_socket=paths.agent_socket(),
        state_folder=paths.state_folder(),
        forked=forked,
        service=service,
        options={name: value for name, value in vars(args).items() if name in config.IDLE},
    )
    return 0


def _fork_signers(channel: socket) -> NoReturn:
    """The forking process, which has nothing of the agent's but what `serve` took to come here."""
    from dpop_agent.signer import forking

    forking.serve(channel)
