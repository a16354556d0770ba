"""The sockets for one secret each, from a terminal to the signer past the agent."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from typing import Any

from dpop_agent import channel, paths
from dpop_agent.errors import DPoPAgentError

MAX_SECRET = 255
"""Bytes: no PKCS#11 token takes a longer PIN, and management keys are shorter."""

PROMPT_TIMEOUT_S = 60.0
"""Seconds in which whoever asked for the socket has to connect, and then to type the secret."""


class _Listener(socket.socket):
    """One that leaves no file when it is closed, and whatever took its place."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path
        self._bound: paths.File | None = None
        umask = os.umask(0o177)
        try:
            self.bind(path)
        finally:
            os.umask(umask)
        self._bound = paths.socket_at(path)
        self.listen(1)

    def close(self) -> None:
        """Unlink first: the system may give its inode to the next file then."""
        if self._bound is not None and paths.socket_at(self._path) == self._bound:
            with suppress(FileNotFoundError):  # whoever tidies up the folder was first
                os.unlink(self._path)
        self._bound = None
        super().close()


def listen(folder: str, what: str) -> tuple[socket.socket, str]:
    """A socket for one secret in a folder that is the user's alone, and its path."""
    path = channel.secret_socket(folder, what)
    return _Listener(path), path


def tell(connection: socket.socket, error: DPoPAgentError | None) -> None:
    """The outcome, to whoever sent the secret."""
    answer: dict[str, Any] = {"ok": True} if error is None else {"error": error.to_wire()}
    try:
        connection.sendall(json.dumps(answer).encode("ascii") + b"\n")
    except OSError:
        pass
    connection.close()
