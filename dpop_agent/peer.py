"""Who is at the other end of a Unix socket, as the kernel tells it; both ends ask.

Only the uid is a boundary. A pid names whoever connected; the socket may have been handed on since.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

from dpop_agent import users
from dpop_agent.errors import UnsafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Sock(Protocol):
        def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


class Peer:
    """The process that connected (or that listens), at the time when it did."""

    __slots__ = ("gid", "pid", "uid")

    def __init__(self, pid: int, uid: int, gid: int) -> None:
        self.pid = pid
        self.uid = uid
        self.gid = gid

    def __str__(self) -> str:
        """Who it is, for the log; no pid where there is none that means anything here."""
        return f"pid {self.pid}, uid {self.uid}" if self.pid else f"uid {self.uid}"


_UCRED = struct.Struct("3i")  # struct ucred of unix(7)
_XUCRED = struct.Struct("IIh16I")  # struct xucred of macOS' unix(4)
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1


def peer_of(sock: Sock) -> Peer:
    """The peer of a connected Unix socket (SO_PEERCRED; LOCAL_PEERCRED on macOS)."""
    if sys.platform == "darwin":
        _, uid, _, gid, *_ = _XUCRED.unpack(
            sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED.size)
        )
        return Peer(0, uid, gid)
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def require_own_uid(peer: Peer, *, what: str) -> None:
    """Let our own uid pass.

    Raises:
        UnsafeSocket: anybody else, root included: who was expected and who came. In a user
            namespace that doesn't map us nobody passes.
    """
    if not users.is_own(peer.uid):
        raise UnsafeSocket(
            f"{what} runs as uid {peer.uid}, not as uid {os.getuid()}"
            if peer.uid != os.getuid()
            else f"{what} runs as uid {peer.uid}, who is anybody in this user namespace",
            hint="use your own agent, started by yourself: dpop-agent serve",
        )
