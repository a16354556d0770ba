"""A card's management key."""

from __future__ import annotations

import socket
import string
import time
from collections.abc import Iterable

from dpop_agent.errors import AuthorizationRefused, AuthorizationRequired, UnsafeSocket
from dpop_agent.peer import peer_of, require_own_uid
from dpop_agent.signer import secret_socket

AUTHORITY_S = 60.0
"""Seconds that a management key is kept, if nothing uses it up before."""

_KEY_DIGITS = (32, 48, 64)  # AES-128, 3DES and AES-192, AES-256


class Authority:
    """A store's management key, for one use within a minute.

    It comes as a PIN does, from the terminal past the agent; but the store is open and signs while
    somebody types, so nothing here waits.
    """

    def __init__(self, *, default: str) -> None:
        """None yet; `default` is the one that an empty line means."""
        self._default = default
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._line = bytearray()
        self._key = bytearray()
        self._ends = 0.0

    def listen(self, folder: str) -> str:
        """Take a management key on one line at a new socket in `folder`; its path."""
        self.forget()
        self._listener, path = secret_socket.listen(folder, "key")
        self._listener.setblocking(False)
        self._ends = time.monotonic() + secret_socket.PROMPT_TIMEOUT_S
        return path

    def waits_for(self) -> list[socket.socket]:
        """What `serve` is to be called for when it is readable."""
        return [sock for sock in (self._listener, self._connection) if sock is not None]

    def left_s(self) -> float | None:
        """Seconds until `serve` is to be called in any case."""
        if not self._key and not self.waits_for():
            return None
        return max(0.0, self._ends - time.monotonic())

    def serve(self, readable: Iterable[object]) -> None:
        """Go on with whoever sends the key; forget what is too old."""
        if self._listener in readable:
            self._accept()
        elif self._connection in readable:
            self._receive()
        if self.left_s() == 0:
            self.forget()

    def require(self) -> None:
        """Let pass who has the key here.

        Raises:
            AuthorizationRequired
        """
        self.serve(())
        if not self._key:
            raise AuthorizationRequired(
                "this store makes keys only with its management key",
                hint="dpop-agent key create and key rotate ask for it in a terminal",
            )

    def take(self) -> str:
        """The key, which is forgotten here.

        Raises:
            AuthorizationRequired
        """
        self.require()
        key = self._key.decode("ascii")
        self.forget()
        return key

    def forget(self) -> None:
        """Have no key, and take none."""
        for sock in self.waits_for():
            sock.close()
        self._close_listener()
        self._connection = None
        for secret in (self._line, self._key):
            secret[:] = bytes(len(secret))
            secret.clear()

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            self._connection, _ = self._listener.accept()
        except OSError:
            return
        self._connection.setblocking(False)
        self._close_listener()
        self._ends = time.monotonic() + secret_socket.PROMPT_TIMEOUT_S
        try:
            require_own_uid(peer_of(self._connection), what="the program that sends a key")
        except UnsafeSocket:
            self.forget()

    def _receive(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            data = connection.recv(secret_socket.MAX_SECRET + 2)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._line += data
        if data and b"\n" not in data and len(self._line) <= secret_socket.MAX_SECRET:
            return
        key = bytearray(self._line.rstrip(b"\r\n"))
        if self._line.endswith(b"\n") and not key:
            key += self._default.encode("ascii")
        is_key = len(key) in _KEY_DIGITS and all(chr(digit) in string.hexdigits for digit in key)
        self._connection = None
        secret_socket.tell(
            connection,
            None
            if is_key
            else AuthorizationRefused(
                "that isn't a management key", hint="it has 48 hex digits, or 32 or 64"
            ),
        )
        self.forget()
        if is_key:
            self._key = key
            self._ends = time.monotonic() + AUTHORITY_S
