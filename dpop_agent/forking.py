"""The process that forks signers: how it comes into being, and what it and the agent tell each
other.

A program that was just executed is open to its user's other programs until it has hardened itself:
they can change its code or take its descriptors before it holds a secret. So signers don't come by
exec. The agent hardens itself, and before it reads any input it forks the process that later forks
each signer on order: what was closed once stays closed over a fork.

One datagram each over a pair of sockets (SOCK_SEQPACKET), with one descriptor (SCM_RIGHTS):

    agent → forking process   {"env": {…}, "heir_of": null}   and the signer's end of its channel
    forking process → agent   {"pid": 123}        and a pidfd of the new signer
                              {"errno": 11}       none could be made

With `heir_of`, the pid of another signer of the same store, that one and the new one get an end
each of a pair of sockets that nobody else has, over the lines that the forking process has to them:

    forking process → signer  {}                  and one end of the pair
    signer → its heir         {"pin": …, …}       and the lock of the store, over the pair
"""

from __future__ import annotations

import json
import os
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

MAX_DATAGRAM = 128 * 1024
"""Bytes of an order; a store's environment is most of it."""


def is_possible() -> bool:
    """Whether this system has what it takes; else signers come by exec."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


def fork(serve: Callable[[socket.socket], NoReturn]) -> tuple[int, socket.socket]:
    """Fork the process that will fork signers; call it in a hardened process that has one thread.

    Args:
        serve: what that process does, with its end of the channel.

    Returns its pid and the agent's end of the channel.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    ours.close()
    try:
        serve(theirs)
    except Exception as e:  # noqa: BLE001, RUF100  (this process has no other end than this)
        what = e.name if isinstance(e, ImportError) else ""
        print(
            f"dpop-agent: the process that starts signers failed ({type(e).__name__} {what})",
            file=sys.stderr,
            flush=True,
        )
    finally:
        os._exit(1)


def send(channel: socket.socket, message: Mapping[str, Any], *descriptors: int) -> None:
    """Send an order or an answer.

    Raises:
        OSError: the other end has gone, or the message is too long.
    """
    socket.send_fds(channel, [json.dumps(message).encode("ascii")], list(descriptors))


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next order or answer and its descriptors; None when the other end has gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, MAX_DATAGRAM, 1)
    except ConnectionError:
        return None
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    if not data:
        return None
    message: dict[str, Any] = json.loads(data)
    return message, descriptors
