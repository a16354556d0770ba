"""A listening socket at a path that is this agent's alone."""

from __future__ import annotations

import fcntl
import os
import socket
import stat

from dpop_agent import paths
from dpop_agent.errors import ConfigurationError


class Listener:
    """A listening socket at a path that is this agent's alone.

    Raises, when entered:
        ConfigurationError: another agent listens there, or something that isn't a socket is there.
        UnsafeSocket: others can change the folder.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> socket.socket:
        paths.check_socket_path(self._path)
        folder = os.path.dirname(self._path)
        try:
            paths.make_private_folder(
                folder,
                "the socket",
                instead=paths.ANOTHER_SOCKET,
            )
            paths.check_socket_folder(self._path)
            self._lock = os.open(
                self._path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as e:
            raise ConfigurationError(
                f"the socket's folder {folder} can't be used ({e.strerror})",
                hint="set DPOP_AGENT_SOCK to a path in a folder of your own",
            ) from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ConfigurationError(
                f"another agent serves {self._path}",
                hint="use that one, or set DPOP_AGENT_SOCK to another path",
            ) from e
        self._unlink_stale()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o177)
        try:
            sock.bind(self._path)
        except OSError as e:
            raise ConfigurationError(
                f"the socket {self._path} can't be made ({e.strerror})",
                hint="set DPOP_AGENT_SOCK to another path",
            ) from e
        finally:
            os.umask(umask)
        return sock

    def __exit__(self, *exc: object) -> None:
        # Under the lock nobody else's socket can be at the path.
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        os.close(self._lock)

    def _unlink_stale(self) -> None:
        """Remove a socket that nobody listens at; anything else stays."""
        try:
            info = os.lstat(self._path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(info.st_mode):
            raise ConfigurationError(
                f"{self._path} is there and isn't a socket", hint="move it away"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self._path)
            except ConnectionRefusedError:
                os.unlink(self._path)
                return
            except OSError:
                pass
        raise ConfigurationError(
            f"some other program listens at {self._path}", hint="end it, or use another path"
        )
