"""What systemd gives a service, and is told by it: sd_listen_fds(3) and sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import ExitStack

from dpop_agent import users
from dpop_agent.errors import ConfigurationError, UnsafeSocket
from dpop_agent.peer import peer_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("dpop_agent.systemd")

FIRST = 3
"""The first descriptor that is handed over (SD_LISTEN_FDS_START)."""

TELL_S = 1.0
"""Seconds that systemd has to take what it is told."""

_VARIABLES = ("LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")
"""Names, or their beginnings, that systemd gives one process alone."""

_BY_UNITS = "see its socket unit, or start the agent without it: dpop-agent serve"


class Service:
    """What systemd gave this process: nothing, where somebody else started it."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """`take` makes one."""
        self._variables = variables
        self._address = variables.get("NOTIFY_SOCKET", "")

    def sockets(self, expected: Mapping[str, str]) -> dict[str, socket.socket]:
        """The listening sockets that were handed over, by their paths.

        Args:
            expected: which are served here: their names, by their paths.

        Raises:
            ConfigurationError: one of them isn't a listening Unix stream socket, or is at another
                path than the agent's, or has the name of another one.
            UnsafeSocket: another user listens there, so that no client would use it.
        """
        found: dict[str, socket.socket] = {}
        with ExitStack() as refused:
            for descriptor in range(FIRST, FIRST + self._many):
                what = f"descriptor {descriptor} ({self._name(descriptor)!r}), which systemd gave,"
                sock = refused.enter_context(_socket(descriptor, what))
                _require_listening(sock, what)
                path = sock.getsockname()
                self._require_expected(self._name(descriptor), path, expected, what)
                if path in found:
                    raise ConfigurationError(f"{what} listens at {path} again", hint=_BY_UNITS)
                found[path] = sock
            refused.pop_all()
        return found

    def _name(self, descriptor: int) -> str:
        """What its unit calls it: that is the unit's own name where the unit says nothing."""
        names = self._variables.get("LISTEN_FDNAMES", "").split(":")
        return names[descriptor - FIRST][:80] if descriptor - FIRST < len(names) else ""

    @staticmethod
    def _require_expected(name: str, path: str, expected: Mapping[str, str], what: str) -> None:
        if path not in expected:
            raise ConfigurationError(
                f"{what} listens at {path!r}, where this agent serves nothing",
                hint=f"its sockets are {', '.join(expected)}: {_BY_UNITS}",
            )
        if name in expected.values() and name != expected[path]:
            raise ConfigurationError(
                f"{what} is the socket {expected[path]!r}: it listens at {path}",
                hint="correct FileDescriptorName= in its socket unit",
            )

    @property
    def _many(self) -> int:
        if self._variables.get("LISTEN_PID") != str(os.getpid()):
            return 0  # they are for whoever started us
        many = self._variables.get("LISTEN_FDS", "0")
        if not (many.isascii() and many.isdigit()):
            raise ConfigurationError(f"LISTEN_FDS is {many[:80]!r}, not a number", hint=_BY_UNITS)
        return int(many[:9])

    def tell(self, *lines: str) -> None:
        """Tell systemd, if it wants to know, in one datagram; else tell the log."""
        if not self._address:
            return
        abstract = self._address.startswith("@")  # unix(7)
        address = "\0" + self._address[1:] if abstract else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(TELL_S)
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as e:
            log.warning("systemd can't be told %s: %s", lines[0].partition("=")[0], e)


def take() -> Service:
    """Take what systemd gave out of the environment, so that nobody who is started from here takes
    it for his own.
    """
    names = [name for name in os.environ if name.startswith(_VARIABLES)]
    return Service({name: os.environ.pop(name) for name in names})


def _socket(descriptor: int, what: str) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        return socket.socket(fileno=descriptor)
    except OSError as e:
        raise ConfigurationError(f"{what} isn't a socket ({e.strerror})", hint=_BY_UNITS) from e


def _require_listening(sock: socket.socket, what: str) -> None:
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not listens:
        raise ConfigurationError(
            f"{what} isn't a Unix stream socket that listens",
            hint="its socket unit needs ListenStream= and Accept=no",
        )
    if not users.is_own(uid := peer_of(sock).uid):  # whoever called listen(2), as clients see him
        raise UnsafeSocket(
            f"{what} is one of uid {uid}, not of uid {os.getuid()}: no client would use it",
            hint="have your own systemd activate it, not the system's",
        )
