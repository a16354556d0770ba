"""What opens a store goes from one of its signers to another, with the lock, and nowhere else."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest

from dpop_agent import forking
from dpop_agent.errors import SignerFailed
from dpop_agent.signer import heritage
from dpop_agent.signer.heritage import Accepted


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def order(giver: socket.socket, heir: socket.socket | None) -> None:
    """As the forking process does: an end each, and none is kept."""
    given, inherited = pair()
    with given, inherited:
        forking.send(giver, {}, given.fileno())
        if heir is not None:
            forking.send(heir, {}, inherited.fileno())


@pytest.mark.parametrize("accepted", [Accepted("12€45", "0123"), Accepted()])
def test_an_heir_gets_the_pin_and_holds_the_lock_when_its_giver_has_gone(
    tmp_path: Path, accepted: Accepted
) -> None:
    path = tmp_path / "lock"
    path.touch()
    lock = os.open(path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (to_giver, giver), (to_heir, heir) = pair(), pair()
    with to_giver, giver, to_heir, heir:
        order(to_giver, None)  # one that ended before it was its turn
        order(to_giver, to_heir)
        heritage.hand_on(giver, accepted, lock)
        os.close(lock)
        found, held = heritage.inherit(heir)
        assert found == accepted
        again = os.open(path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(held)
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(again)


def test_nobody_gets_it_for_whom_no_pair_was_made() -> None:
    to_giver, giver = pair()
    with to_giver, giver, open(os.devnull) as lock:
        heritage.hand_on(giver, Accepted("123456", "0123"), lock.fileno())
        to_giver.setblocking(False)
        with pytest.raises(BlockingIOError):
            to_giver.recv(100)


def test_an_heir_whose_giver_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heritage, "WAIT_S", 0.1)
    (to_giver, giver), (to_heir, heir) = pair(), pair()
    with to_heir, heir:
        with pytest.raises(SignerFailed):  # nor was there one
            heritage.inherit(heir)
        order(to_giver, to_heir)
        giver.close()
        to_giver.close()
        with pytest.raises(SignerFailed, match="was to hand on the store's PIN ended"):
            heritage.inherit(heir)
