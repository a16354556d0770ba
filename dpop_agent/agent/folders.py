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
_IN_DELETE_SELF, _IN_MOVE_SELF = 0x400, 0x800
_IN_ONLYDIR, _IN_DONT_FOLLOW = 0x1000000, 0x2000000
_ENTRIES = _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_ITSELF = _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR | _IN_DONT_FOLLOW


class Folders:
    """Tells that something may have changed in some folders, to them, or to those above them.

    It doesn't tell of what is mounted over them or unmounted, and watches none to which a symbolic
    link leads: that could lead elsewhere.

    Args:
        paths: theirs, absolute.
        changed: is set then; others may set it too.
    """

    def __init__(self, paths: Iterable[str], changed: asyncio.Event) -> None:
        self._masks: dict[str, int] = {}
        for path in map(os.path.normpath, paths):
            for above in PurePath(path).parents:
                self._masks.setdefault(str(above), _ITSELF)
            self._masks[path] = _ITSELF | _ENTRIES
        self._changed = changed
        self._watched: list[int] = []
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._descriptor = -1
        if self._libc is not None:
            self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self) -> bool:
        """Watch those that are there now; whether each change from the last call on will be told,
        as where the same were there then, and nothing has happened since.
        """
        if self._libc is None or self._descriptor < 0:
            return False
        is_quiet, before = not self._drain(), self._watched
        self._watched = [
            self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask)
            for path, mask in self._masks.items()
        ]
        for gone in {*before} - {*self._watched, -1}:  # renamed, perhaps, and still there
            self._libc.inotify_rm_watch(self._descriptor, gone)
        asyncio.get_running_loop().add_reader(self._descriptor, self._hear)
        return is_quiet and self._watched == before and min(self._watched) >= 0

    def _drain(self) -> bool:
        """Take in what was told; whether there was anything."""
        found = False
        with suppress(BlockingIOError):
            while os.read(self._descriptor, 65536):
                found = True
        return found

    def close(self) -> None:
        """Watch no more."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _hear(self) -> None:
        # Once, whatever follows: whoever changes things all the time keeps nobody busy.
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self._changed.set()
