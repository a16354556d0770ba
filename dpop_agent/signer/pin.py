"""Where a PIN comes from. It lives in the signer alone and is never shown, logged or passed on."""

from __future__ import annotations

import os
import stat

from dpop_agent.errors import Locked

MAX_PIN = 255


def from_file(path: str) -> str:
    """The PIN in a file that nobody else can read, its line end left out.

    Raises:
        Locked: no such file, others can read it, or there is no PIN in it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise Locked(
            f"the PIN file {path} can't be opened ({e.strerror})", hint="see pin_source"
        ) from e
    with open(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise Locked(f"the PIN file {path} isn't a file", hint="see pin_source")
        if info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise Locked(
                f"others can read the PIN file {path} (uid {info.st_uid}, mode "
                f"{stat.S_IMODE(info.st_mode):04o})",
                hint=f"chmod 600 {path}",
            )
        text = file.read(MAX_PIN + 3)
    pin = text.rstrip(b"\r\n")
    if not 0 < len(pin) <= MAX_PIN or b"\n" in pin:
        raise Locked(f"the PIN file {path} has no PIN on its first line", hint="see pin_source")
    try:
        return pin.decode("utf-8")
    except UnicodeDecodeError as e:
        raise Locked(f"the PIN file {path} isn't UTF-8", hint="see pin_source") from e
