"""Makes a private SoftHSM2 token and a configuration of dpop-agent that names it.

python3 new_token.py FOLDER [LABEL]

What is there already stays: the PKCS#11 token, its PINs. softhsm2.conf and config.toml are written
anew, so the folder may be moved. The PINs are random, lie in files of mode 0600, and appear in no
argument or variable, which is why softhsm2-util isn't used. Standard library only.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import secrets
import sys
from collections.abc import Callable
from urllib.parse import quote

SECURITY_OFFICER = 0
READ_WRITE_SESSION = 0x2 | 0x4  # CKF_RW_SESSION, CKF_SERIAL_SESSION
PIN_INITIALIZED, TOKEN_INITIALIZED = 0x8, 0x400

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib*/*/libsofthsm2.so")


class TokenInfo(ctypes.Structure):
    """CK_TOKEN_INFO: its first members, and room for the others."""

    _fields_ = [
        ("label", ctypes.c_char * 32),
        ("manufacturer", ctypes.c_char * 32),
        ("model", ctypes.c_char * 16),
        ("serial", ctypes.c_char * 16),
        ("flags", ctypes.c_ulong),
        ("rest", ctypes.c_char * 160),
    ]


class Module:
    """SoftHSM's library: each function by name, its result checked."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)

    def __getattr__(self, name: str) -> Callable[..., None]:
        function = getattr(self._library, name)

        def call(*args: object) -> None:
            if result := function(*args):
                sys.exit(f"{name}: PKCS#11 error 0x{result:x}")

        return call


def find_module() -> str:
    """The path of SoftHSM2's library."""
    for pattern in MODULES:
        for path in sorted(glob.glob(pattern)):
            return path
    sys.exit("SoftHSM2 isn't installed: apt-get install softhsm2")


def main() -> None:
    """Make the token in the folder that the arguments name."""
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("usage: new_token.py FOLDER [LABEL]")
    folder = os.path.abspath(sys.argv[1])
    label = sys.argv[2] if len(sys.argv) > 2 else "dpop-agent"
    module = find_module()

    os.umask(0o077)
    tokens = os.path.join(folder, "tokens")
    os.makedirs(tokens, exist_ok=True)
    conf = os.path.join(folder, "softhsm2.conf")
    write(
        conf,
        f"directories.tokendir = {tokens}\n"
        "objectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
    )
    os.environ["SOFTHSM2_CONF"] = conf
    pin_file = os.path.join(folder, "pin")
    new_token(
        Module(module), label, pin=secret(pin_file), so_pin=secret(os.path.join(folder, "so-pin"))
    )
    # JSON's strings are TOML's.
    write(
        os.path.join(folder, "config.toml"),
        f"""\
[agent]
default_store = "softhsm"

[stores.softhsm]
type = "pkcs11"
module = {json.dumps(module)}
uri = {json.dumps("pkcs11:token=" + quote(label, safe=""))}
pin_source = {json.dumps("file:" + pin_file)}
env = {{ SOFTHSM2_CONF = {json.dumps(conf)} }}
""",
    )


def new_token(p11: Module, label: str, *, pin: bytes, so_pin: bytes) -> None:
    """Make the token of that name, or finish it, unless it is there."""
    p11.C_Initialize(None)
    count = ctypes.c_ulong()
    p11.C_GetSlotList(1, None, ctypes.byref(count))
    slots = (ctypes.c_ulong * count.value)()
    p11.C_GetSlotList(1, slots, ctypes.byref(count))
    for slot in map(ctypes.c_ulong, slots):
        info = TokenInfo()
        p11.C_GetTokenInfo(slot, ctypes.byref(info))
        if not info.flags & TOKEN_INITIALIZED:  # SoftHSM has one such slot, the last
            p11.C_InitToken(slot, so_pin, ctypes.c_ulong(len(so_pin)), label.encode().ljust(32))
        elif bytes(info.label).rstrip() != label.encode():
            continue
        if not info.flags & PIN_INITIALIZED:
            set_user_pin(p11, slot, pin, so_pin)
        break
    p11.C_Finalize(None)


def set_user_pin(p11: Module, slot: ctypes.c_ulong, pin: bytes, so_pin: bytes) -> None:
    """Give the token its user PIN."""
    session = ctypes.c_ulong()
    p11.C_OpenSession(slot, ctypes.c_ulong(READ_WRITE_SESSION), None, None, ctypes.byref(session))
    officer = ctypes.c_ulong(SECURITY_OFFICER)
    p11.C_Login(session, officer, so_pin, ctypes.c_ulong(len(so_pin)))
    p11.C_InitPIN(session, pin, ctypes.c_ulong(len(pin)))


def secret(path: str) -> bytes:
    """What is in the file; a new random PIN is put into it first where it isn't there."""
    if not os.path.exists(path):
        write(path, secrets.token_hex(16) + "\n")
    with open(path, "rb") as file:
        return file.read().strip()


def write(path: str, text: str) -> None:
    """Replace the file as a whole, so that whoever reads it sees the old one or the new one."""
    new = path + ".new"
    with open(new, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(new, path)


if __name__ == "__main__":
    main()
