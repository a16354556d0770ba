"""Frames between the agent and a signer: one JSON object per line over their socketpair.

    agent → signer   {"id": 7, "op": "sign", "ref": …, "jkt": …, "alg": …, "input": …}
    signer → agent   {"id": 7, "ok": {"signature": …}}
                     {"id": 7, "error": {…as on the wire…}}

The signer answers in order, one frame at a time. It trusts the agent's frames; the agent takes a
signer's frames for what a vendor module made of it, and a malformed one for a dead signer.
Secrets don't pass here: a signer takes each at a socket of its own, in the agent's folder.
"""

from __future__ import annotations

import json
import os
import re
import secrets

from dpop_agent.errors import SignerFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_FRAME = 4 * 1024 * 1024
"""Bytes: a listing of every object on a large HSM partition."""

_SECRET_SOCKET = re.compile("(pin|key)-[0-9a-f]{6}")

_COMPACT = json.JSONEncoder(separators=(",", ":")).encode


def secret_socket(folder: str, what: str) -> str:
    """The path of a signer's new socket for one secret, a `pin` or a management `key`."""
    # No longer than admin.sock, which fits a socket's path.
    return os.path.join(folder, f"{what}-{secrets.token_hex(3)}")


def is_secret_socket(name: str) -> bool:
    """Whether a file in the agent's folder is such a socket, by its name."""
    return _SECRET_SOCKET.fullmatch(name) is not None


class Malformed(Exception):
    """Bytes that aren't a frame."""


def require_secret_socket(path: str, *, folder: str) -> None:
    """Let pass what a signer may name as such a socket: one in the agent's folder.

    Raises:
        SignerFailed
    """
    if os.path.dirname(path) != folder or not is_secret_socket(os.path.basename(path)):
        raise SignerFailed("a signer named a socket for a secret that isn't one of its own")


def frame(**members: Any) -> bytes:
    """A frame's bytes."""
    return _COMPACT(members).encode("ascii") + b"\n"


class Frames:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The frames that `data` completes.

        Raises:
            Malformed: not a JSON object, or longer than MAX_FRAME.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_FRAME:
            raise Malformed("a frame is too long")
        for line in lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise Malformed("a frame isn't JSON") from e
            if not isinstance(value, dict):
                raise Malformed("a frame isn't an object")
            yield value
