"""Where a store's user PIN comes from.

It lives in the signer alone and is never shown, logged or passed on.
"""

from __future__ import annotations

import os
import socket
import stat
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from contextlib import suppress
from shlex import quote
from unicodedata import category

from dpop_agent import paths
from dpop_agent.config import default_backend
from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    Locked,
    StoreUnusable,
    UnsafeSocket,
)
from dpop_agent.hardening import text_of
from dpop_agent.peer import peer_of, require_own_uid
from dpop_agent.signer import secret_socket
from dpop_agent.signer.keychain.access import Keychain
from dpop_agent.signer.secret_socket import MAX_SECRET

KEYCHAIN_SERVICE = "dpop-agent/pin"

_CORRECT = "correct that, then: dpop-agent unlock"

_UNSEEN = ("Cc", "Cf", "Zl", "Zp")
"""Unicode's control and format characters and its ends of lines."""


class UserPin(ABC):
    """One store's PIN.

    Attributes:
        after_refusal: what to do once it was wrong.
        needs_login: the PKCS#11 token is one that wants a PIN.
        typed: somebody types it now, and answers for it.
        attended: somebody asked for the next login, which has one try.
    """

    needs_login = True
    typed = False
    attended = False

    def __init__(self, store: str) -> None:
        self.after_refusal = f"dpop-agent unlock {store}"

    @abstractmethod
    def get(self) -> str:
        """The PIN.

        Raises:
            Locked: there is none now.
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
        store: the store's name.
        path: the file.
    """

    def __init__(self, store: str, path: str) -> None:
        super().__init__(store)
        self.after_refusal = f"correct the PIN in {path}, then: {self.after_refusal}"
        self._path = path
        self._by_systemd = False

    def get(self) -> str:
        return _read_pin(self._path, by_systemd=self._by_systemd)

    def accepted(self, pin: str) -> None:
        """Nothing changes: it is in its file."""

    def refused(self) -> None:
        """Nothing changes: the brake knows."""


class PinCredential(PinFile):
    """A systemd credential, which systemd reads when it starts the unit.

    Args:
        store: the store's name.
        name: its name (LoadCredential=).
    """

    def __init__(self, store: str, name: str) -> None:
        super().__init__(store, credential(name))
        self.after_refusal = (
            f"correct the credential, start the agent's unit anew, then: dpop-agent unlock {store}"
        )
        self._by_systemd = _is_in_credentials(self._path)


class NoPin(UserPin):
    """For a PKCS#11 token without login."""

    needs_login = False

    def get(self) -> str:
        raise Locked("no source of its PIN is configured", hint="set pin_source")

    def accepted(self, pin: str) -> None:
        """There is none."""

    def refused(self) -> None:
        """There is none."""


class PinPrompt(UserPin):
    """A socket for one PIN, from the terminal to the signer, past the agent.

    Whoever connects has to have the user's uid, sends the PIN on one line, and is told the outcome
    on one line: `{"ok": true}` or `{"error": …}`. Where the PKCS#11 token has a pad he sends
    nothing.
    """

    def __init__(self, store: str) -> None:
        """Nobody is asked yet."""
        super().__init__(store)
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None

    def listen(self, folder: str, *, pad: bool, anew: bool) -> str | None:  # noqa: ARG002
        """The path of a socket for whoever types the PIN, None if nobody has to.

        Args:
            folder: the user's alone.
            pad: the PIN is typed at the PKCS#11 token itself; the socket tells the outcome alone.
            anew: one that is stored isn't to be tried again.
        """
        self.typed = True
        self._listener, path = secret_socket.listen(folder, "pin")
        return path

    def listen_no_more(self) -> None:
        """Remove the socket that nobody came to."""
        if self._listener is not None:
            self._listener.close()

    def get(self) -> str:
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
            listener.close()
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

    Where it has none, or one that isn't to be tried again, the PIN is typed, and stays there once
    it was accepted.

    Args:
        store: the store's name, for people.
        uri: the PKCS#11 token's, which the item has: not one card's PIN for another card.
    """

    def __init__(self, store: str, uri: str) -> None:
        super().__init__(store)
        self._keychain = Keychain(default_backend())
        self._store, self._uri = store, uri

    def listen(self, folder: str, *, pad: bool, anew: bool) -> str | None:
        if pad:
            return None  # `at_pad` says what is wrong
        # Read in any case: one that can't be read now can't be written either.
        if self._stored() is not None and not anew:
            return None
        return super().listen(folder, pad=pad, anew=anew)

    def get(self) -> str:
        if self.typed:
            return super().get()
        pin = self._stored()
        if pin is None:
            raise Locked(
                f"the keychain has no PIN for the store {self._store} yet",
                hint=f"dpop-agent unlock {self._store} puts it there",
            )
        return _pin_of(pin.encode("utf-8", "surrogatepass"), "the keychain's item")

    def at_pad(self) -> None:
        UserPin.at_pad(self)

    def accepted(self, pin: str) -> None:
        if self.typed:
            self._keychain.put(KEYCHAIN_SERVICE, self._uri, pin)
        super().accepted(pin)

    def refused(self) -> None:
        if self.typed:
            return
        with suppress(StoreUnusable):
            self._keychain.delete(KEYCHAIN_SERVICE, self._uri)

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


def _is_in_credentials(path: str) -> bool:
    """Whether it is a file of systemd's folder itself: not one below it, nor one linked to."""
    folder = os.path.realpath(os.environ["CREDENTIALS_DIRECTORY"])
    return os.path.dirname(os.path.realpath(path)) == folder


def _read_pin(path: str, *, by_systemd: bool) -> str:
    """The PIN in a file that nobody else can read.

    Args:
        path: the file.
        by_systemd: systemd put it there. For a unit with User= it stays root's, and an access
            control list lets that user read it, whose mask shows as the group's bits: mode 0440.
    """
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
        mode = stat.S_IMODE(info.st_mode)
        is_credential = by_systemd and info.st_uid == 0 and mode == 0o440
        if not is_credential and (info.st_uid not in (0, os.getuid()) or mode & 0o077):
            raise Locked(
                f"others can read the PIN file {path} (uid {info.st_uid}, mode {mode:04o})",
                hint=f"chmod 600 {quote(path)}; then: dpop-agent unlock",
            )
        longest = len(BOM_UTF8) + MAX_SECRET + len(b"\r\n")
        return _pin_of(file.read(longest + 1), f"the PIN file {path}")


def _pin_of(line: bytes, where: str) -> str:
    """The PIN on a line, without what editors and other systems put around it.

    Raises:
        Locked: there is none, or something that nobody sees and that would cost a try.
    """
    pin = line.removeprefix(BOM_UTF8).rstrip(b"\r\n")
    if not 0 < len(pin) <= MAX_SECRET or b"\n" in pin:
        raise Locked(f"{where} has no PIN on its first line", hint=_CORRECT)
    text = text_of(pin)
    if text is None:
        raise Locked(f"{where} isn't UTF-8", hint=_CORRECT)
    if any(category(character) in _UNSEEN for character in text):
        raise Locked(
            f"{where} has a zero byte, a control character or one that can't be seen: no try was "
            "spent on it",
            hint=_CORRECT,
        )
    return text
