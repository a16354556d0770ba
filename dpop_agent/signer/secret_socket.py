"""The sockets for one secret each, from a terminal to the signer past the agent."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from dpop_agent import channel
from dpop_agent.errors import DPoPAgentError

MAX_SECRET = 255
"""Bytes: no PKCS#11 token takes a longer PIN, and management keys are shorter."""

PROMPT_TIMEOUT_S = 60.0
"""Seconds in which whoever asked for the socket has to connect, and then to type the secret."""


def listen(folder: str, what: str) -> tuple[socket.socket, str]:
    """A socket for one secret in a folder that is the user's alone, and its path."""
    path = channel.secret_socket(folder, what)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(umask)
    listener.listen(1)
    return listener, path


def close(listener: socket.socket, path: str) -> None:
    """Listen no more, and leave no file."""
    listener.close()
    try:
        os.unlink(path)
    except FileNotFoundError:  # whoever tidies up the folder was first
        pass


def tell(connection: socket.socket, error: DPoPAgentError | None) -> None:
    """The outcome, to whoever sent the secret."""
    answer: dict[str, Any] = {"ok": True} if error is None else {"error": error.to_wire()}
    try:
        connection.sendall(json.dumps(answer).encode("ascii") + b"\n")
    except OSError:
        pass
    connection.close()
