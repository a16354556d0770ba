"""One agent at one place: a lock that the kernel lets go of when its holder ends."""

from __future__ import annotations

import fcntl
import os
import re

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


def holder_of(path: str) -> str:
    """What another agent is told that wants what this one has."""
    return _holder(str(os.getpid()), path)


def _holder(pid: str, path: str) -> str:
    return f"process {pid}, which serves {path}"


def served_with(lock_path: str) -> tuple[int, str] | None:
    """The process and the socket of the agent that has, or had last, what that lock is for; None
    where nobody did.
    """
    try:
        found = re.fullmatch(_holder("([0-9]{1,9})", "(.+)"), holder(lock_path))
    except OSError:
        return None
    return None if found is None else (int(found[1]), found[2])


def is_held(lock_path: str) -> bool:
    """Whether the process that took that lock for a socket holds it still, as Linux tells it.

    To find out by taking it could keep an agent from starting that comes at this very moment.
    """
    served = served_with(lock_path)
    if served is None:
        return False
    try:
        inode = os.stat(lock_path).st_ino
        with open("/proc/locks") as file:
            held = [line.split() for line in file]
    except OSError:
        return False
    # proc_locks(5): number, kind, mode, access, pid, device and inode; of a file system with
    # volumes the device is another than stat(2)'s.
    return any(
        fields[1] == "FLOCK" and fields[4] == str(served[0]) and fields[5].endswith(f":{inode}")
        for fields in held
    )


def _told(descriptor: int) -> str:
    return os.read(descriptor, _MAX_HOLDER).decode("utf-8", "replace").strip()
