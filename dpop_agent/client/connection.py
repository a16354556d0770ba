"""Connecting to the agent's socket; nothing is sent before the listener is known to be ours."""

from __future__ import annotations

import socket

from dpop_agent.errors import AgentUnavailable
from dpop_agent.paths import check_socket_folder, check_socket_path
from dpop_agent.peer import peer_of, require_own_uid

RETRY_CONNECT_S = 0.005
"""Pause while the listener's backlog is full: connect(2) doesn't wait without blocking."""


def connect(path: str) -> socket.socket | None:
    """A connected socket, non-blocking; None while the listener's backlog is full: try again.

    Raises:
        AgentUnavailable: nobody listens there.
        UnsafeSocket: the folder or the listener is somebody else's, or there is no runtime folder.
        ConfigurationError: no path that a socket can have.
    """
    check_socket_path(path)
    sock = None
    try:
        check_socket_folder(path, client=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect(path)
        require_own_uid(peer_of(sock), what=f"the program that listens at {path}")
    except (FileNotFoundError, ConnectionRefusedError) as e:
        _close(sock)
        raise AgentUnavailable(f"no agent listens at {path}") from e
    except BlockingIOError:
        _close(sock)
        return None
    except OSError as e:
        _close(sock)
        raise AgentUnavailable(f"the agent's socket {path} can't be reached: {e.strerror}") from e
    except BaseException:
        _close(sock)
        raise
    return sock


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()
