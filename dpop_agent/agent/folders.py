"""Folders whose entries matter, watched by the kernel (inotify(7)): nobody has to look again and
again. Linux alone has it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import PurePath

_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x40, 0x80, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_ONLYDIR = 0x400, 0x800, 0x1000000
_ENTRIES = _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_ITSELF = _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR


class Folders:
    """Tells that something may have changed in some folders, or to them.

    Args:
        paths: theirs, absolute.
        changed: is set then; others may set it too.
    """

    def __init__(self, paths: Iterable[str], changed: asyncio.Event) -> None:
        self._masks: dict[str, int] = {}
        for path in paths:
            for above in PurePath(path).parents:
                self._masks.setdefault(str(above), _ITSELF)
            self._masks[path] = _ITSELF | _ENTRIES
        self._changed = changed
        self._watched: list[int] = []
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._descriptor = -1
        if self._libc is not None:
            self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor >= 0:
            asyncio.get_running_loop().add_reader(self._descriptor, self._hear)

    def watch(self) -> bool:
        """Watch those that are there now; whether no change was missed since the last call, as
        where the same were there then.
        """
        if self._libc is None or self._descriptor < 0:
            return False
        before = self._watched
        self._watched = [
            self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask)
            for path, mask in self._masks.items()
        ]
        return self._watched == before and min(self._watched) >= 0

    def close(self) -> None:
        """Watch no more."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._descriptor, 65536)
        self._changed.set()
