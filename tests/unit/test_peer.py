from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from dpop_agent.errors import UnsafeSocket
from dpop_agent.peer import Peer, peer_of, require_own_uid

if TYPE_CHECKING:
    from pathlib import Path


def test_the_kernel_names_this_process_at_both_ends_of_a_pair() -> None:
    left, right = socket.socketpair()
    with left, right:
        for end in (left, right):
            peer = peer_of(end)
            assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.getuid(), os.getgid())


def test_the_kernel_names_the_process_that_listens_and_the_one_that_connected(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with socket.socket(socket.AF_UNIX) as connected:
                    connected.connect(path)
                    status = int(peer_of(connected).pid != os.getppid())
            finally:
                os._exit(status)
        accepted, _ = listener.accept()
        with accepted:
            assert peer_of(accepted).pid == child
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def test_our_own_uid_passes() -> None:
    left, right = socket.socketpair()
    with left, right:
        require_own_uid(peer_of(left), what="the peer")


@pytest.mark.parametrize(("ours", "theirs"), [(1000, 1001), (1000, 0), (0, 1000)])
def test_another_uid_is_refused_and_both_are_named(
    monkeypatch: pytest.MonkeyPatch, ours: int, theirs: int
) -> None:
    monkeypatch.setattr("os.getuid", lambda: ours)
    with pytest.raises(UnsafeSocket) as refused:
        require_own_uid(Peer(1, theirs, theirs), what="the agent at the socket")
    assert f"the agent at the socket runs as uid {theirs}, not as uid {ours}" in str(refused.value)
