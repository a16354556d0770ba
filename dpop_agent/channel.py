"""Frames between the agent and a signer, over their socketpair.

    length   four bytes, big-endian: how many follow
    JSON     agent → signer   {"id": 8, "op": "find", "ref": …}
             signer → agent   {"id": 8, "ok": {…}}
                              {"id": 8, "error": {…as on the wire…}}
    or       "S", id in four bytes, and
             agent → signer   "REF JKT ALG", a newline, the signing input
             signer → agent   the signature

A signature is what everybody waits for; all else is JSON, and so is the error where there is none.
The signer answers in order. It trusts the agent's frames; the agent takes a signer's frames for
what a vendor module made of it, and a malformed one for a dead signer. Secrets don't pass here: a
signer takes each at a socket of its own, in the agent's folder.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import struct
from collections.abc import Iterator
from typing import Any

from dpop_agent.errors import SignerFailed

MAX_FRAME = 4 * 1024 * 1024
"""Bytes: a listing of every object on a large HSM partition."""

_SECRET_SOCKET = re.compile("(pin|key)-[0-9a-f]{6}")

_NUMBER = struct.Struct(">I")
_SIGNED = struct.Struct(">IcI")  # what stands before the content

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
    """A JSON frame's bytes."""
    text = _COMPACT(members).encode("ascii")
    return len(text).to_bytes(4, "big") + text


def sign_frame(number: int, content: bytes) -> bytes:
    """The bytes of a frame that asks for a signature, or has one."""
    return _SIGNED.pack(_SIGNED.size - _NUMBER.size + len(content), b"S", number) + content


def asked_of(ref: str, jkt: str, alg: str) -> bytes:
    """What stands before the signing input: which key, and how it signs."""
    return f"{ref} {jkt} {alg}\n".encode("ascii")


def parse_asked(asked: bytes) -> tuple[str, str, str]:
    """ref, jkt and alg, of what stands before the newline."""
    ref, jkt, alg = asked.decode("ascii").split(" ")
    return ref, jkt, alg


Signed = tuple[int, bytes]
"""What a frame that isn't JSON has: its id, and what was asked for or answered."""


class Frames:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any] | Signed]:
        """The frames that `data` completes.

        Raises:
            Malformed: neither form, or longer than MAX_FRAME.
        """
        data, self._rest = self._rest + data, b""
        at = 0
        while len(data) - at >= 4:
            end = at + 4 + _NUMBER.unpack_from(data, at)[0]
            if end - at > MAX_FRAME:
                raise Malformed("a frame is too long")
            if end > len(data):
                break
            if data[at + 4 : at + 5] == b"S":
                if end - at < _SIGNED.size:
                    raise Malformed("a frame has no id")
                yield _NUMBER.unpack_from(data, at + 5)[0], data[at + _SIGNED.size : end]
            else:
                yield _json(data[at + 4 : end])
            at = end
        self._rest = data[at:]


def _json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Malformed("a frame isn't JSON") from e
    if not isinstance(value, dict):
        raise Malformed("a frame isn't an object")
    return value
