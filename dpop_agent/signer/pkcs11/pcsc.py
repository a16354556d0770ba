"""What PC/SC tells of a reader without touching its card, where a module only says: nothing there.

WinSCard's functions as pcsc-lite has them (PC/SC part 5); a machine without it has no readers.
"""

from __future__ import annotations

import ctypes

_SYSTEM_SCOPE = 2
_STATE_PRESENT, _STATE_EXCLUSIVE = 0x20, 0x80
_MAX_NAMES = 4096


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
    try:
        library = ctypes.CDLL("libpcsclite.so.1")
    except OSError:
        return False
    context = ctypes.c_long()
    if library.SCardEstablishContext(_SYSTEM_SCOPE, None, None, ctypes.byref(context)) != 0:
        return False
    try:
        names, size = ctypes.create_string_buffer(_MAX_NAMES), ctypes.c_ulong(_MAX_NAMES)
        if library.SCardListReaders(context, None, names, ctypes.byref(size)) != 0:
            return False
        wanted = [
            name
            for name in names.raw[: size.value].split(b"\0")
            if name.startswith(readers.encode())
        ]
        states = (_ReaderState * len(wanted))(*[_ReaderState(reader=name) for name in wanted])
        at_once = ctypes.c_ulong(0)
        if library.SCardGetStatusChange(context, at_once, states, ctypes.c_ulong(len(wanted))) != 0:
            return False
        both = _STATE_PRESENT | _STATE_EXCLUSIVE
        return any(state.event & both == both for state in states)
    finally:
        library.SCardReleaseContext(context)
