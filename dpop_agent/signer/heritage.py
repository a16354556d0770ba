"""What opens a store, from one of its signers to another that is to host it too.

It goes over a pair of sockets whose ends these two alone have (`dpop_agent.forking`): neither the
agent nor the forking process could read it there.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from dpop_agent import forking
from dpop_agent.errors import SignerFailed

WAIT_S = 12.0
"""Seconds for it to come: its giver may be in the middle of a signature, which has 10."""


class Accepted(NamedTuple):
    """A PIN that a PKCS#11 token took, and that one's serial; both None where it wants none."""

    pin: str | None = None
    serial: str | None = None


def hand_on(line: socket.socket, accepted: Accepted, lock: int) -> None:
    """Let each signer have it whose end of a pair has come over the line, and the store's lock."""
    line.setblocking(False)
    while True:
        try:
            came = forking.receive(line)
        except BlockingIOError:
            return
        if came is None or not came[1]:
            return
        with socket.socket(fileno=came[1][0]) as pair:
            try:
                forking.send(pair, accepted._asdict(), lock)
            except OSError:
                continue  # it has gone


def inherit(line: socket.socket) -> tuple[Accepted, int]:
    """It, and a descriptor that holds the store's lock with the other signers of the store.

    Raises:
        SignerFailed: nobody hands it on.
    """
    line.settimeout(WAIT_S)
    try:
        came = forking.receive(line)
        if came is not None and came[1]:
            with socket.socket(fileno=came[1][0]) as pair:
                pair.settimeout(WAIT_S)
                handed = forking.receive(pair)
                if handed is not None and handed[1]:
                    return Accepted(**handed[0]), handed[1][0]
    except OSError:
        pass
    raise SignerFailed("the signer that was to hand on the store's PIN ended, or doesn't answer")
