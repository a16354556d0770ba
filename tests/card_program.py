"""Another program at a card, with PCSCLITE_CSOCK_NAME set: python -m tests.card_program WHAT.

hold     has it for itself alone, as GnuPG's scdaemon does, until its input ends; says `held`
reset    shares it and resets it when it goes
log-out  shares it and takes back what the PIN gave (NIST SP 800-73-4 part 2 section 3.2.1)
select   shares it and selects its application anew, as any tool does at first
"""

from __future__ import annotations

import ctypes
import sys
import time

SYSTEM_SCOPE, ANY_PROTOCOL = 2, 3
EXCLUSIVE, SHARED = 1, 2
LEAVE_CARD, RESET_CARD = 0, 1
SHARING_VIOLATION = 0x8010000B
COMMANDS = {"log-out": "0020ff80", "select": "00a4040005a000000308"}


class IoRequest(ctypes.Structure):
    """SCARD_IO_REQUEST."""

    _fields_ = (("protocol", ctypes.c_ulong), ("size", ctypes.c_ulong))


def main(what: str) -> None:
    """Do it."""
    pcsc = ctypes.CDLL("libpcsclite.so.1")
    context, card, size = ctypes.c_long(), ctypes.c_long(), ctypes.c_ulong(1024)
    protocol, readers = ctypes.c_ulong(), ctypes.create_string_buffer(1024)
    assert pcsc.SCardEstablishContext(SYSTEM_SCOPE, None, None, ctypes.byref(context)) == 0
    assert pcsc.SCardListReaders(context, None, readers, ctypes.byref(size)) == 0
    share = EXCLUSIVE if what == "hold" else SHARED
    while True:
        found = pcsc.SCardConnect(
            *(context, ctypes.c_char_p(readers.value), share, ANY_PROTOCOL),
            *(ctypes.byref(card), ctypes.byref(protocol)),
        )
        if found & 0xFFFFFFFF != SHARING_VIOLATION:
            break
        time.sleep(0.05)
    assert found == 0, hex(found & 0xFFFFFFFF)
    if what in COMMANDS:
        command, answer = bytes.fromhex(COMMANDS[what]), ctypes.create_string_buffer(300)
        header, size = IoRequest(protocol.value, ctypes.sizeof(IoRequest)), ctypes.c_ulong(300)
        sent = pcsc.SCardTransmit(
            *(card, ctypes.byref(header), command, ctypes.c_ulong(len(command))),
            *(None, answer, ctypes.byref(size)),
        )
        assert sent == 0, hex(sent & 0xFFFFFFFF)
        assert answer.raw[size.value - 2 : size.value] == b"\x90\x00", answer.raw[: size.value]
    elif what == "hold":
        print("held", flush=True)
        sys.stdin.read()
    pcsc.SCardDisconnect(card, RESET_CARD if what == "reset" else LEAVE_CARD)


if __name__ == "__main__":
    main(sys.argv[1])
