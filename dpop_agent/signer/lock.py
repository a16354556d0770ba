"""A lock that another signer may hold for a while; it is let go of when its holder ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LOOK_S = 0.02


def take_lock(descriptor: int, *, within_s: float) -> bool:
    """Hold the lock of an open file until it is closed.

    Returns False where somebody else held it for so long.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)
        else:
            return True


@contextmanager
def one_at_a_time(descriptor: int, *, within_s: float) -> Iterator[None]:
    """Do something while nobody else does who asks for the same lock; after so long, anyway."""
    take_lock(descriptor, within_s=within_s)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
