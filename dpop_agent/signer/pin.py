"""Where a PIN comes from. It lives in the signer alone and is never shown, logged or passed on."""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
from typing import Any

from dpop_agent.config import default_backend
from dpop_agent.errors import DPoPAgentError, Locked, PinRefused, StoreUnusable, UnsafeSocket
from dpop_agent.peer import peer_of, require_own_uid

MAX_PIN = 255
"""Bytes; no PKCS#11 token takes more."""

PROMPT_TIMEOUT_S = 60.0
"""Seconds in which whoever asked for the socket has to connect, and then to type the PIN."""

KEYCHAIN_SERVICE = "dpop-agent/pin"


class PinSource:
    """One store's PIN.

    A PIN from a file that was refused once is not tried again while the file is what it was, by
    this process or a later one: three tries lock a card.
    """

    after_refusal = "dpop-agent unlock"
    typed = False
    """Somebody types it now, and answers for it."""

    def get(self) -> str:
        """The PIN; asked once.

        Raises:
            Locked: there is none now.
            PinRefused: it was refused before.
        """
        raise Locked("the store wants its PIN", hint="dpop-agent unlock")

    def accepted(self, pin: str) -> None:
        """It was right."""

    def refused(self) -> None:
        """It was wrong."""


class PinFile(PinSource):
    """A file of mode 0600, or a systemd credential.

    Args:
        path: the file.
        memory: where the refused file's identity is remembered.
    """

    after_refusal = "correct the PIN in its file, then: dpop-agent reload"

    def __init__(self, path: str, *, memory: str) -> None:
        self._path = path
        self._memory = memory
        self._identity = ""

    def get(self) -> str:
        pin, self._identity = _read(self._path)
        if self._identity == _remembered(self._memory):
            raise PinRefused(
                f"the PIN in {self._path} was refused before, and isn't tried again",
                hint="write the right one to the file, then: dpop-agent reload",
            )
        return pin

    def accepted(self, pin: str) -> None:  # noqa: ARG002
        if os.path.exists(self._memory):
            os.unlink(self._memory)

    def refused(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            with open(os.open(self._memory, flags, 0o600), "w", encoding="ascii") as file:
                file.write(self._identity)
        except OSError:
            pass  # the agent remembers it too, as long as it runs


class PinKeychain(PinSource):
    """The OS keychain, by choice: any program of the same user can read it there.

    Where it has none yet, the PIN comes over a `PinSocket`, and stays there once it was accepted.
    """

    def __init__(self, store: str, *, asked: PinSocket | None) -> None:
        from dpop_agent.signer.keychain import Keychain

        self._keychain = Keychain(default_backend())
        self._store = store
        self._asked = asked
        self.typed = asked is not None

    def get(self) -> str:
        if self._asked is not None:
            return self._asked.get()
        pin = self._keychain.get(KEYCHAIN_SERVICE, self._store)
        if pin is None:
            raise Locked(
                f"the keychain has no PIN for the store {self._store} yet",
                hint=f"dpop-agent unlock {self._store} puts it there",
            )
        return pin

    def accepted(self, pin: str) -> None:
        if self._asked is not None:
            self._keychain.put(KEYCHAIN_SERVICE, self._store, pin)

    def refused(self) -> None:
        if self._asked is None:
            try:
                self._keychain.delete(KEYCHAIN_SERVICE, self._store)
            except StoreUnusable:
                pass  # the agent remembers it, as long as it runs


class PinSocket(PinSource):
    """A socket for one PIN, from the terminal to the signer, past the agent.

    `path` is in a folder that is the user's alone. Whoever connects has to have his uid, sends the
    PIN on one line, and is told the outcome on one line: `{"ok": true}` or `{"error": …}`.
    """

    def __init__(self, folder: str) -> None:
        self.typed = True
        self.path = os.path.join(folder, f"pin-{secrets.token_hex(3)}")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection: socket.socket | None = None
        umask = os.umask(0o177)
        try:
            self._listener.bind(self.path)
        finally:
            os.umask(umask)
        self._listener.listen(1)
        self._listener.settimeout(PROMPT_TIMEOUT_S)

    def get(self) -> str:
        try:
            self._connection, _ = self._listener.accept()
            self._connection.settimeout(PROMPT_TIMEOUT_S)
            require_own_uid(peer_of(self._connection), what="the program that sends a PIN")
            line = bytearray()
            while not line.endswith(b"\n") and len(line) <= MAX_PIN + 1:
                data = self._connection.recv(MAX_PIN + 2)
                if not data:
                    break
                line += data
        except TimeoutError as e:
            raise Locked("no PIN came", hint="dpop-agent unlock") from e
        except UnsafeSocket as e:
            raise Locked(e.message, hint=e.hint) from e
        finally:
            self._listener.close()
            os.unlink(self.path)
        if not line.rstrip(b"\r\n"):
            raise Locked("the store wants its PIN", hint="dpop-agent unlock")
        return _text(bytes(line), "what was typed")

    def tell(self, error: DPoPAgentError | None) -> None:
        """The outcome, to whoever sent the PIN."""
        if self._connection is None:  # nobody asked for the PIN: a PIN pad did
            try:
                self._connection, _ = self._listener.accept()
            except OSError:
                return
        answer: dict[str, Any] = {"ok": True} if error is None else {"error": error.to_wire()}
        try:
            self._connection.sendall(json.dumps(answer).encode("ascii") + b"\n")
        except OSError:
            pass
        self._connection.close()


def credential(name: str) -> str:
    """The path of a systemd credential (LoadCredential=).

    Raises:
        Locked: the agent wasn't started with credentials.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise Locked(
            f"there is no systemd credential {name}: the agent wasn't given any",
            hint="add LoadCredential= to its unit, or choose another pin_source",
        )
    return os.path.join(folder, name)


def _read(path: str) -> tuple[str, str]:
    """The PIN in a file that nobody else can read, and what tells this file from a later one."""
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
        if info.st_uid not in (0, os.getuid()) or info.st_mode & 0o077:
            raise Locked(
                f"others can read the PIN file {path} (uid {info.st_uid}, mode "
                f"{stat.S_IMODE(info.st_mode):04o})",
                hint=f"chmod 600 {path}",
            )
        pin = _text(file.read(MAX_PIN + 3), f"the PIN file {path}")
    return pin, f"{info.st_dev}:{info.st_ino}:{info.st_mtime_ns}:{info.st_size}"


def _text(line: bytes, where: str) -> str:
    pin = line.rstrip(b"\r\n")
    if not 0 < len(pin) <= MAX_PIN or b"\n" in pin:
        raise Locked(f"{where} has no PIN on its first line", hint="see pin_source")
    try:
        return pin.decode("utf-8")
    except UnicodeDecodeError as e:
        raise Locked(f"{where} isn't UTF-8", hint="see pin_source") from e


def _remembered(memory: str) -> str | None:
    try:
        with open(memory, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return None
