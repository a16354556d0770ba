"""A lock that another signer may hold for a while; it is let go of when its holder ends."""

from __future__ import annotations

import fcntl
import time

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
