"""A listening socket at a path that is this agent's alone."""

from __future__ import annotations

import logging
import os
import socket
import stat
from typing import Self

from dpop_agent import paths
from dpop_agent.agent import lock
from dpop_agent.errors import ConfigurationError
from dpop_agent.peer import peer_of

log = logging.getLogger("dpop_agent.listener")

_Socket = socket.socket

_MODE = 0o600

BACKLOG = 128
"""Connections that wait to be taken in."""


class Listener:
    """A listening socket at a path that is this agent's alone, while it is entered.

    Attributes:
        path: where it is.
        name: what its socket is called.
        socket: it; another one after `listen_again`.
    """

    socket: _Socket

    def __init__(
        self,
        path: str,
        *,
        name: str = paths.AGENT,
        lock_path: str | None = None,
        given: _Socket | None = None,
    ) -> None:
        """`lock_path` is where its lock goes, beside the socket if it isn't there; `given` listens
        at the path already, for a service manager, which owns the file there.
        """
        self.path, self.name = path, name
        self._given = given
        self._lock_path = lock_path or paths.socket_lock(path)
        self._lock = -1
        self._bound: paths.File | None = None

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            ConfigurationError: another agent listens there, or something that isn't a socket is
                there.
            UnsafeSocket: others can change the folder.
        """
        try:
            self._listen()
        except BaseException:
            self._give_back()
            self._let_go()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.hide()
        self.socket.close()
        self._give_back()
        self._let_go()

    def hide(self) -> None:
        """Unlink the socket, and nothing that took its place; to be called while it is open, since
        the system may give its inode to the next file then. One that was given stays: whoever gave
        it listens on.
        """
        at_its_path = self._bound is not None and paths.socket_at(self.path) == self._bound
        if at_its_path and self._given is None:
            os.unlink(self.path)
        self._bound = None

    @property
    def lost(self) -> bool:
        """Whether the socket or its lock isn't at its path any more."""
        return paths.socket_at(self.path) != self._bound or not self._is_locked()

    def listen_again(self) -> None:
        """Listen at the path anew, with a socket of our own; whoever is connected stays so.

        Raises:
            ConfigurationError, UnsafeSocket: as at first; the old socket is kept.
        """
        self._listen()

    def _listen(self) -> None:
        paths.check_socket_path(self.path)
        folder = os.path.dirname(self.path)
        try:
            for needed in (os.path.dirname(self._lock_path), folder):
                paths.make_private_folder(needed, "the socket", instead=paths.ANOTHER_SOCKET)
            paths.check_socket_folder(self.path)
            if not self._is_locked():
                held = lock.take(self._lock_path, holder=lock.holder_of(self.path))
                self._let_go()
                self._lock = held
        except lock.Held as e:
            raise ConfigurationError(
                f"another agent serves {self.path}: {e}",
                hint="use that one, or set DPOP_AGENT_SOCK to another path",
            ) from e
        except OSError as e:
            raise ConfigurationError(
                f"the socket's folder {folder} can't be used ({e.strerror})",
                hint=paths.ANOTHER_SOCKET,
            ) from e
        if self._given is not None:
            if self._given_is_here(self._given):
                self.socket, self._bound = self._given.dup(), paths.socket_at(self.path)
                os.chmod(self.path, _MODE)  # that of a unit which says none is 0666
                self.socket.setblocking(False)
                return
            log.warning(
                "the socket that systemd holds for %s has gone from there, so that it starts no "
                "agent once this one has ended; to mend it: dpop-agent service stop, then start",
                self.path,
            )
            self._give_back()
        self._unlink_stale()
        new = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        umask = os.umask(0o777 & ~_MODE)
        try:
            new.bind(self.path)
            new.listen(BACKLOG)
            self._bound = paths.socket_at(self.path)
        except OSError as e:
            new.close()
            raise ConfigurationError(
                f"the socket {self.path} can't be made ({e.strerror})",
                hint="set DPOP_AGENT_SOCK to another path",
            ) from e
        finally:
            os.umask(umask)
        self.socket = new

    def _given_is_here(self, given: _Socket) -> bool:
        if self._bound is None:
            return _is_at(given, self.path)
        return paths.socket_at(self.path) == self._bound

    def _give_back(self) -> None:
        if self._given is not None:
            self._given.close()
            self._given = None

    def _is_locked(self) -> bool:
        try:
            info, ours = os.lstat(self._lock_path), os.fstat(self._lock)
        except OSError:
            return False
        return os.path.samestat(info, ours)

    def _let_go(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _unlink_stale(self) -> None:
        """Remove a socket that nobody listens at; anything else stays."""
        try:
            info = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(info.st_mode):
            raise ConfigurationError(
                f"{self.path} is there and isn't a socket", hint="move it away"
            )
        if (info.st_dev, info.st_ino) != self._bound and not is_dead(self.path):
            raise ConfigurationError(
                f"some other program listens at {self.path}",
                hint="end it, or use another path; if it is the service: dpop-agent service stop",
            )
        os.unlink(self.path)


def was_held_for(lock_path: str, path: str) -> bool:
    """Whether a lock is one that an agent took for the socket at that path, ended or not."""
    held = lock.served_with(lock_path)
    return held is not None and held[1] == path


def _is_at(given: _Socket, path: str) -> bool:
    """Whether who listens at that path is who gave that socket; another may be there by now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:  # clients wait there already, as many as fit
            return True
        except OSError:
            return False
        return peer_of(probe).pid == peer_of(given).pid


def is_dead(path: str) -> bool:
    """Whether nobody listens at that socket; one whose backlog is full has somebody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False
