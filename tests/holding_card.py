"""Another program that holds a card exclusively, as GnuPG's scdaemon does: until its input ends.

python -m tests.holding_card, with PCSCLITE_CSOCK_NAME set; says `held` when it has the card.
"""

from __future__ import annotations

import ctypes
import sys
import time

SYSTEM_SCOPE, EXCLUSIVE, ANY_PROTOCOL, LEAVE_CARD = 2, 1, 3, 0
SHARING_VIOLATION = 0x8010000B


def main() -> None:
    pcsc = ctypes.CDLL("libpcsclite.so.1")
    context, card, size = ctypes.c_long(), ctypes.c_long(), ctypes.c_ulong(1024)
    protocol, readers = ctypes.c_ulong(), ctypes.create_string_buffer(1024)
    assert pcsc.SCardEstablishContext(SYSTEM_SCOPE, None, None, ctypes.byref(context)) == 0
    assert pcsc.SCardListReaders(context, None, readers, ctypes.byref(size)) == 0
    while True:
        found = pcsc.SCardConnect(
            *(context, ctypes.c_char_p(readers.value), EXCLUSIVE, ANY_PROTOCOL),
            *(ctypes.byref(card), ctypes.byref(protocol)),
        )
        if found & 0xFFFFFFFF != SHARING_VIOLATION:
            break
        time.sleep(0.05)
    assert found == 0, hex(found & 0xFFFFFFFF)
    print("held", flush=True)
    sys.stdin.read()
    pcsc.SCardDisconnect(card, LEAVE_CARD)


if __name__ == "__main__":
    main()
