"""Which uids are ours and root's, in user namespaces too (user_namespaces(7)).

A user namespace shows everybody whom it doesn't map as one uid, the overflow uid: root, and any
other user of the machine.
"""

from __future__ import annotations

import functools
import os

_EVERYBODY = 2**32 - 1  # uids that the machine's own namespace maps


def is_own(uid: int) -> bool:
    """Whether that uid is ours; the overflow uid never is, since it is anybody's."""
    return uid == os.getuid() and uid != _unmapped()[0]


def may_be_root(uid: int) -> bool:
    """Whether that uid is the overflow uid, and root one of those whom it stands for."""
    overflow, with_root = _unmapped()
    return with_root and uid == overflow


@functools.cache
def _unmapped() -> tuple[int | None, bool]:
    """The overflow uid, None where nobody is shown by it; whether it stands for root."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            mapped = sum(int(line.split()[2]) for line in file)
        if mapped >= _EVERYBODY:
            return None, False
        with open("/proc/sys/kernel/overflowuid", encoding="ascii") as file:
            overflow = int(file.read())
            # The kernel's settings are root's. The map itself names uids of the namespace above,
            # which may not map root either.
            return overflow, os.fstat(file.fileno()).st_uid == overflow
    except (OSError, ValueError, IndexError):  # no Linux, or no /proc
        return None, False
