"""What PC/SC tells of a reader without touching its card, where a module only says: nothing there.

WinSCard's functions as pcsc-lite has them (PC/SC part 5); a machine without it has no readers.
"""

from __future__ import annotations

import ctypes
import os

_SYSTEM_SCOPE = 2
_STATE_PRESENT, _STATE_EXCLUSIVE = 0x20, 0x80
_COUNTER_BITS = 16
_MAX_NAMES = 4096
_IF_LOADED = ctypes.DEFAULT_MODE | os.RTLD_NOLOAD


class _ReaderState(ctypes.Structure):
    _fields_ = (
        ("reader", ctypes.c_char_p),
        ("user_data", ctypes.c_void_p),
        ("current", ctypes.c_ulong),
        ("event", ctypes.c_ulong),
        ("atr_size", ctypes.c_ulong),
        ("atr", ctypes.c_ubyte * 33),
    )


def held_by_another(readers: str) -> bool:
    """Whether a program has a card for itself alone, in a reader whose name begins so."""
    both = _STATE_PRESENT | _STATE_EXCLUSIVE
    return any(event & both == both for name, event in _events() if name.startswith(readers))


def is_used() -> bool:
    """Whether a module in this process talks to PC/SC."""
    try:
        ctypes.CDLL("libpcsclite.so.1", mode=_IF_LOADED)
    except OSError:
        return False
    return True


def insertions() -> frozenset[tuple[str, int]]:
    """Which readers there are, and how many times a card came or went in each.

    None where this process uses no PC/SC anyway: asking would start its daemon.
    """
    return frozenset((name, event >> _COUNTER_BITS) for name, event in _events(_IF_LOADED))


def _events(mode: int = ctypes.DEFAULT_MODE) -> list[tuple[str, int]]:
    """Each reader's name and `dwEventState`, whose upper half counts cards that came or went."""
    try:
        library = ctypes.CDLL("libpcsclite.so.1", mode=mode)
    except OSError:
        return []
    context = ctypes.c_long()
    if library.SCardEstablishContext(_SYSTEM_SCOPE, None, None, ctypes.byref(context)) != 0:
        return []
    try:
        names, size = ctypes.create_string_buffer(_MAX_NAMES), ctypes.c_ulong(_MAX_NAMES)
        if library.SCardListReaders(context, None, names, ctypes.byref(size)) != 0:
            return []
        found = [name for name in names.raw[: size.value].split(b"\0") if name]
        states = (_ReaderState * len(found))(*[_ReaderState(reader=name) for name in found])
        at_once = ctypes.c_ulong(0)
        if library.SCardGetStatusChange(context, at_once, states, ctypes.c_ulong(len(found))) != 0:
            return []
        return [(state.reader.decode("utf-8", "replace"), state.event) for state in states]
    finally:
        library.SCardReleaseContext(context)
