"""One agent at one place: a lock that the kernel lets go of when its holder ends."""

from __future__ import annotations

import fcntl
import os

_MAX_HOLDER = 300


class Held(Exception):
    """Somebody else holds it; the text is what he said of himself."""


def holder(path: str) -> str:
    """Who holds or held the lock at `path`, as `take` was told.

    Raises:
        OSError: there is none.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return _told(descriptor)
    finally:
        os.close(descriptor)


def take(path: str, *, holder: str) -> int:
    """Hold the lock at `path` until the descriptor that is returned is closed.

    Args:
        path: a file, made where it isn't there.
        holder: what others are told of who holds it.

    Raises:
        Held: another process does.
        OSError
    """
    flags = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, os.O_RDONLY | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        told = _told(descriptor)
        os.close(descriptor)
        raise Held(told or "a process") from e
    except BaseException:
        os.close(descriptor)
        raise
    try:
        with open(os.open(path, os.O_WRONLY | os.O_TRUNC | flags, 0o600), "w") as file:
            file.write(holder + "\n")
    except OSError:
        pass  # it is held, on a full or read-only disk too
    return descriptor


def _told(descriptor: int) -> str:
    return os.read(descriptor, _MAX_HOLDER).decode("utf-8", "replace").strip()
