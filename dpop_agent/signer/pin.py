"""Where a store's user PIN comes from.

It lives in the signer alone and is never shown, logged or passed on.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from abc import ABC, abstractmethod

from dpop_agent import paths
from dpop_agent.config import default_backend
from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    Locked,
    PinRefused,
    StoreUnusable,
    UnsafeSocket,
)
from dpop_agent.hardening import text_of
from dpop_agent.peer import peer_of, require_own_uid
from dpop_agent.signer import secret_socket
from dpop_agent.signer.keychain.access import Keychain
from dpop_agent.signer.secret_socket import MAX_SECRET

KEYCHAIN_SERVICE = "dpop-agent/pin"

_IN_KEYCHAIN = "the one in the keychain"
_UNDER_WAY = "tried: "

_CORRECT = "correct that, then: dpop-agent unlock"


class UserPin(ABC):
    """One store's PIN.

    A stored PIN that was refused once is not tried again while it is what it was, by this process
    or a later one: three tries lock a card. Of a try that was cut short nobody knows whether it was
    refused: it counts as refused where the PKCS#11 token says that its tries are low.
    """

    after_refusal = "dpop-agent unlock"
    typed = False
    """Somebody types it now, and answers for it."""

    @abstractmethod
    def get(self, *, tries_low: bool) -> str:
        """The PIN; asked once.

        Args:
            tries_low: a wrong PIN was tried since the last right one (CKF_USER_PIN_COUNT_LOW).

        Raises:
            Locked: there is none now.
            PinRefused: it was refused before.
        """

    def at_pad(self) -> None:
        """Let pass who is there to type the PIN at the PKCS#11 token itself.

        Raises:
            Locked: nobody is. A pad doesn't ask by itself.
        """
        raise Locked(
            "the PKCS#11 token takes its PIN only at its own pad",
            hint='set pin_source = "prompt", then: dpop-agent reload',
        )

    @abstractmethod
    def accepted(self, pin: str) -> None:
        """It was right."""

    @abstractmethod
    def refused(self) -> None:
        """It was wrong."""


class PinFile(UserPin):
    """A file of mode 0600.

    Args:
        path: the file.
        memory: where it is remembered which file was refused.
    """

    after_refusal = "correct the PIN in its file, then: dpop-agent reload"
    _again = "write the right one to the file, then: dpop-agent reload"

    def __init__(self, path: str, *, memory: str) -> None:
        self._path = path
        self._last_try = _LastTry(memory)
        self._identity = ""

    def get(self, *, tries_low: bool) -> str:
        pin, self._identity = self._find()
        if self._last_try.was_refused(self._identity, tries_low=tries_low):
            raise PinRefused(
                f"the PIN in {self._path} was refused before, and isn't tried again",
                hint=self._again,
            )
        self._last_try.begins(self._identity)
        return pin

    def accepted(self, pin: str) -> None:  # noqa: ARG002
        self._last_try.forget()

    def refused(self) -> None:
        self._last_try.refused(self._identity)

    def _find(self) -> tuple[str, str]:
        """The PIN, and what tells it from a later one."""
        pin, info = _read_pin(self._path)
        return pin, f"{info.st_ino}:{info.st_mtime_ns}:{info.st_size}"


class PinCredential(PinFile):
    """A systemd credential: a new file at each start of the agent, whatever is in it.

    Args:
        name: its name (LoadCredential=).
        memory: where it is remembered which PIN was refused.
    """

    after_refusal = "correct the credential, then start the agent's unit anew"

    def __init__(self, name: str, *, memory: str) -> None:
        super().__init__(credential(name), memory=memory)
        self._again = f"{self.after_refusal}; if it is right now, remove {memory}"

    def _find(self) -> tuple[str, str]:
        pin, _ = _read_pin(self._path)
        # One byte: enough to know it again mostly, and too little to find it by.
        return pin, hashlib.sha256(pin.encode()).hexdigest()[:2]


class PinPrompt(UserPin):
    """A socket for one PIN, from the terminal to the signer, past the agent.

    Whoever connects has to have the user's uid, sends the PIN on one line, and is told the outcome
    on one line: `{"ok": true}` or `{"error": …}`. Where the PKCS#11 token has a pad he sends
    nothing.
    """

    def __init__(self) -> None:
        """Nobody is asked yet."""
        self._path = ""
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None

    def listen(self, folder: str, *, pad: bool) -> str | None:  # noqa: ARG002
        """The path of a socket for whoever types the PIN, None if nobody has to.

        `folder` is the user's alone. With a `pad` the PIN is typed at the PKCS#11 token itself, and
        the socket tells the outcome alone.
        """
        self.typed = True
        self._listener, self._path = secret_socket.listen(folder, "pin")
        return self._path

    def listen_no_more(self) -> None:
        """Remove the socket that nobody came to."""
        if self._listener is not None:
            secret_socket.close(self._listener, self._path)

    def get(self, *, tries_low: bool) -> str:  # noqa: ARG002
        connection = self._accepted_connection()
        line = bytearray()
        try:
            while not line.endswith(b"\n") and len(line) <= MAX_SECRET + 1:
                data = connection.recv(MAX_SECRET + 2)
                if not data:
                    break
                line += data
        except TimeoutError as e:
            raise Locked("no PIN was typed in time", hint=self.after_refusal) from e
        except OSError:
            pass  # he went
        if not line.endswith(b"\n") or not line.rstrip(b"\r\n"):
            raise Locked("the store wants its PIN", hint=self.after_refusal)
        return _pin_of(bytes(line), "what was typed")

    def at_pad(self) -> None:
        self._accepted_connection()

    def accepted(self, pin: str) -> None:  # noqa: ARG002
        self.typed = False  # whoever typed it answers for no later use of it

    def refused(self) -> None:
        """Nothing is remembered: whoever typed it is told."""

    def tell(self, error: DPoPAgentError | None) -> None:
        """The outcome, to whoever typed it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            secret_socket.tell(connection, error)

    def _accepted_connection(self) -> socket.socket:
        """Whoever comes; once.

        Raises:
            Locked: nobody does.
        """
        listener, self._listener = self._listener, None
        if listener is None:
            raise Locked("the store wants its PIN again", hint=self.after_refusal)
        listener.settimeout(secret_socket.PROMPT_TIMEOUT_S)
        try:
            connection, _ = listener.accept()
        except TimeoutError as e:
            raise Locked("no PIN was typed in time", hint=self.after_refusal) from e
        finally:
            secret_socket.close(listener, self._path)
        connection.settimeout(secret_socket.PROMPT_TIMEOUT_S)
        try:
            require_own_uid(peer_of(connection), what="the program that sends a PIN")
        except UnsafeSocket as e:
            connection.close()
            raise Locked(e.message, hint=e.hint) from e
        self._connection = connection
        return connection


class PinKeychain(PinPrompt):
    """The OS keychain, by choice: any program of the same user can read it there.

    Where it has none, or one that was refused, the PIN is typed, and stays there once it was
    accepted.

    Args:
        store: the store's name, for people.
        uri: the PKCS#11 token's, which the item has: not one card's PIN for another card.
        memory: where it is remembered that the one there was refused, should it stay there.
    """

    def __init__(self, store: str, uri: str, *, memory: str) -> None:
        super().__init__()
        self._keychain = Keychain(default_backend())
        self._store, self._uri = store, uri
        self._last_try = _LastTry(memory)

    def listen(self, folder: str, *, pad: bool) -> str | None:
        if pad:
            return None  # `at_pad` says what is wrong
        # Read in any case: one that can't be read now can't be written either.
        if self._stored() is not None and not self._last_try.was_refused(_IN_KEYCHAIN):
            return None
        return super().listen(folder, pad=pad)

    def get(self, *, tries_low: bool) -> str:
        if self.typed:
            return super().get(tries_low=tries_low)
        if self._last_try.was_refused(_IN_KEYCHAIN, tries_low=tries_low):
            raise PinRefused(
                "the PIN in the keychain was refused before, and isn't tried again",
                hint=f"dpop-agent unlock {self._store} asks for the right one",
            )
        pin = self._stored()
        if pin is None:
            raise Locked(
                f"the keychain has no PIN for the store {self._store} yet",
                hint=f"dpop-agent unlock {self._store} puts it there",
            )
        self._last_try.begins(_IN_KEYCHAIN)
        return pin

    def at_pad(self) -> None:
        UserPin.at_pad(self)

    def accepted(self, pin: str) -> None:
        if self.typed:
            self._keychain.put(KEYCHAIN_SERVICE, self._uri, pin)
        self._last_try.forget()
        super().accepted(pin)

    def refused(self) -> None:
        if self.typed:
            return
        self._last_try.refused(_IN_KEYCHAIN)
        try:
            self._keychain.delete(KEYCHAIN_SERVICE, self._uri)
        except StoreUnusable:
            return
        self._last_try.forget()

    def _stored(self) -> str | None:
        return self._keychain.get(KEYCHAIN_SERVICE, self._uri)


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


def _read_pin(path: str) -> tuple[str, os.stat_result]:
    """The PIN in a file that nobody else can read, and what the system says of that file."""
    try:
        descriptor = paths.open_only_ours(path, "the PIN file", instead="name another")
    except ConfigurationError as e:
        raise Locked(e.message, hint=f"{e.hint}; then: dpop-agent unlock") from None
    except OSError as e:
        raise Locked(
            f"the PIN file {path} can't be opened ({e.strerror})",
            hint=_CORRECT,
        ) from e
    with open(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise Locked(f"the PIN file {path} isn't a file", hint=_CORRECT)
        if info.st_uid not in (0, os.getuid()) or info.st_mode & 0o077:
            raise Locked(
                f"others can read the PIN file {path} (uid {info.st_uid}, mode "
                f"{stat.S_IMODE(info.st_mode):04o})",
                hint=f"chmod 600 {path}, then: dpop-agent unlock",
            )
        pin = _pin_of(file.read(MAX_SECRET + 3), f"the PIN file {path}")
    return pin, info


def _pin_of(line: bytes, where: str) -> str:
    pin = line.rstrip(b"\r\n")
    if not 0 < len(pin) <= MAX_SECRET or b"\n" in pin:
        raise Locked(f"{where} has no PIN on its first line", hint=_CORRECT)
    text = text_of(pin)
    if text is None:
        raise Locked(f"{where} isn't UTF-8", hint=_CORRECT)
    return text


class _LastTry:
    """What is remembered of the last try with a stored PIN, for later processes too.

    `which` tells a PIN from the one that comes after it, and can't be used in its place.

    Args:
        path: the file that has it.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def was_refused(self, which: str, *, tries_low: bool = False) -> bool:
        """Whether that PIN isn't tried again.

        With `tries_low` a try that was cut short counts as refused, from now on.
        """
        remembered = self._remembered()
        if tries_low and remembered == _UNDER_WAY + which:
            self._remember(which)
            return True
        return remembered == which

    def begins(self, which: str) -> None:
        """It is tried now."""
        self._remember(_UNDER_WAY + which)

    def refused(self, which: str) -> None:
        """It was wrong."""
        self._remember(which)

    def forget(self) -> None:
        """It was right, or is there no more."""
        if os.path.exists(self._path):
            os.unlink(self._path)

    def _remembered(self) -> str | None:
        try:
            with open(self._path, encoding="ascii") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _remember(self, text: str) -> None:
        try:
            with open(paths.create(self._path), "w", encoding="ascii") as file:
                file.write(text)
        except OSError:
            pass  # the agent remembers it too, as long as it runs
