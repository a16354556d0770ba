"""Where a PIN or a management key comes from.

It lives in the signer alone and is never shown, logged or passed on.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
import string
import time
from collections.abc import Iterable
from typing import Any

from dpop_agent.config import default_backend
from dpop_agent.errors import (
    AuthorizationRefused,
    AuthorizationRequired,
    DPoPAgentError,
    Locked,
    PinRefused,
    StoreUnusable,
    UnsafeSocket,
)
from dpop_agent.peer import peer_of, require_own_uid

MAX_PIN = 255
"""Bytes; no PKCS#11 token takes more."""

PROMPT_TIMEOUT_S = 60.0
"""Seconds in which whoever asked for the socket has to connect, and then to type the PIN."""

AUTHORITY_S = 60.0
"""Seconds that a management key is kept, if nothing uses it up before."""

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
        self._listener, self.path = _listen(folder, "pin")
        self._listener.settimeout(PROMPT_TIMEOUT_S)
        self._connection: socket.socket | None = None

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
        _tell(self._connection, error)


class Authority:
    """A store's management key, for one use within a minute.

    It comes as a PIN does, from the terminal past the agent; but the store is open and signs while
    somebody types, so nothing here waits.
    """

    def __init__(self, *, default: str) -> None:
        """None yet; `default` is the one that an empty line means."""
        self._default = default
        self._path = ""
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._line = bytearray()
        self._key = bytearray()
        self._ends = 0.0

    def listen(self, folder: str) -> str:
        """Take a management key on one line at a new socket in `folder`; its path."""
        self.forget()
        self._listener, self._path = _listen(folder, "key")
        self._listener.setblocking(False)
        self._ends = time.monotonic() + PROMPT_TIMEOUT_S
        return self._path

    def waits_for(self) -> list[socket.socket]:
        """What `serve` is to be called for when it is readable."""
        return [sock for sock in (self._listener, self._connection) if sock is not None]

    def left_s(self) -> float | None:
        """Seconds until `serve` is to be called in any case."""
        if not self._key and not self.waits_for():
            return None
        return max(0.0, self._ends - time.monotonic())

    def serve(self, readable: Iterable[object]) -> None:
        """Go on with whoever sends the key; forget what is too old."""
        if self._listener in readable:
            self._accept()
        elif self._connection in readable:
            self._receive()
        if self.left_s() == 0:
            self.forget()

    def require(self) -> None:
        """Let pass who has the key here.

        Raises:
            AuthorizationRequired
        """
        self.serve(())
        if not self._key:
            raise AuthorizationRequired(
                "this store makes keys only for who has its management key",
                hint="dpop-agent key create and key rotate ask for it in a terminal",
            )

    def take(self) -> str:
        """The key, which is forgotten here.

        Raises:
            AuthorizationRequired
        """
        self.require()
        key = self._key.decode("ascii")
        self.forget()
        return key

    def forget(self) -> None:
        """Have no key, and take none."""
        for sock in self.waits_for():
            sock.close()
        self._close_listener()
        self._connection = None
        for secret in (self._line, self._key):
            secret[:] = bytes(len(secret))
            secret.clear()

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            os.unlink(self._path)
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            self._connection, _ = self._listener.accept()
        except OSError:
            return
        self._connection.setblocking(False)
        self._close_listener()
        self._ends = time.monotonic() + PROMPT_TIMEOUT_S
        try:
            require_own_uid(peer_of(self._connection), what="the program that sends a key")
        except UnsafeSocket:
            self.forget()

    def _receive(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            data = connection.recv(MAX_PIN + 2)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._line += data
        if data and b"\n" not in data and len(self._line) <= MAX_PIN:
            return
        key = bytearray(self._line.rstrip(b"\r\n"))
        if self._line.endswith(b"\n") and not key:
            key += self._default.encode("ascii")
        good = len(key) in _KEY_DIGITS and all(chr(digit) in string.hexdigits for digit in key)
        self._connection = None
        _tell(
            connection,
            None
            if good
            else AuthorizationRefused(
                "that isn't a management key", hint="it has 48 hex digits, or 32 or 64"
            ),
        )
        self.forget()
        if good:
            self._key = key
            self._ends = time.monotonic() + AUTHORITY_S


_KEY_DIGITS = (32, 48, 64)  # AES-128, 3DES and AES-192, AES-256


def _listen(folder: str, name: str) -> tuple[socket.socket, str]:
    """A socket for one secret in a folder that is the user's alone, and its path."""
    # No longer than admin.sock, which fits a socket's path.
    path = os.path.join(folder, f"{name}-{secrets.token_hex(3)}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(umask)
    listener.listen(1)
    return listener, path


def _tell(connection: socket.socket, error: DPoPAgentError | None) -> None:
    """The outcome, to whoever sent the secret."""
    answer: dict[str, Any] = {"ok": True} if error is None else {"error": error.to_wire()}
    try:
        connection.sendall(json.dumps(answer).encode("ascii") + b"\n")
    except OSError:
        pass
    connection.close()


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
