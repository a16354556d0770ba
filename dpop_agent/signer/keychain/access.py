"""The operating system's keychain, through one named backend of `keyring`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import Any

from dpop_agent.alarm import limited
from dpop_agent.config import BACKENDS
from dpop_agent.errors import DPoPAgentError, Locked, SignerFailed, StoreAbsent

CALL_TIMEOUT_S = 5.0
"""Seconds for one call of the keychain, which takes 50 ms: half of what a signature may take, so
that what waits behind a stuck one is still served."""

PROGRAMS = "Passwords and Keys (seahorse) or the like"
_LOCKED_HINT = f"unlock it, as the login does, or in {PROGRAMS}"
_DBUS_HINT = (
    "install the package dbus-python (Debian: python3-dbus) where dpop-agent's Python finds it, or "
    "leave out backend: KWallet is a Secret Service too"
)
_ABSENT_HINT = "it needs the D-Bus session of a login, and a keyring daemon there"


class _Stuck(Exception):
    """The keychain didn't answer in time."""


class Keychain:
    """The operating system's keychain, as it can be used by what must not wait for it.

    Each call is bounded in time, provokes no prompt where that can be known, and raises nothing
    but Locked, StoreAbsent and SignerFailed.

    Args:
        backend: one of `config.BACKENDS`.
    """

    def __init__(self, backend: str) -> None:
        if backend not in BACKENDS:
            raise SignerFailed(f"{backend[:80]!r} isn't a keychain that is known here")
        self._name = backend
        self._backend: Any = None
        # The configuration says where secrets live; by these, keyring would go elsewhere.
        for name in [name for name in os.environ if name.startswith("KEYRING_PROPERTY_")]:
            del os.environ[name]

    def look(self) -> str:
        """Whether it is there and unlocked; its label, for people."""
        with self._guard("looking for it") as label:
            return label

    def get(self, service: str, user: str) -> str | None:
        """An item's value. None alone means that there is no such item."""
        with self._guard("reading an item"):
            found = self._backend.get_password(service, user)
        return None if found is None else str(found)

    def put(self, service: str, user: str, value: str) -> None:
        """Write an item, over one that is there."""
        with self._guard("writing an item"):
            self._backend.set_password(service, user, value)

    def delete(self, service: str, user: str) -> None:
        """Delete an item that is there."""
        with self._guard("deleting an item"):
            self._backend.delete_password(service, user)
            if self._backend.get_password(service, user) is not None:
                raise SignerFailed(f"the keychain still has the item {service}")

    @contextmanager
    def _guard(self, doing: str) -> Iterator[str]:
        """Bound a call's time and turn the errors of all that is below into ours.

        Only the backend is made anew after an error, since it may hold a connection that is no
        more; the process can stay.
        """
        try:
            # What can't be interrupted, the agent ends.
            with limited(CALL_TIMEOUT_S, _Stuck):
                yield self._usable()
        except DPoPAgentError:
            raise
        except _Stuck as e:
            self._backend = None
            raise SignerFailed(
                f"the keychain didn't answer for {CALL_TIMEOUT_S:g} s ({doing})",
                hint="check whether its daemon hangs, or waits for you to answer a prompt",
            ) from e
        except Exception as e:
            from keyring.errors import KeyringLocked

            if isinstance(e, KeyringLocked):
                raise Locked("the keychain is locked", hint=_LOCKED_HINT) from e
            # Its text may have the item in it; whatever it is, it says nothing of what is there.
            self._backend = None
            raise SignerFailed(
                f"the keychain failed ({doing}: {type(e).__name__})",
                hint="check that its daemon runs; once it does, the next request works",
            ) from e

    def _usable(self) -> str:
        if self._backend is None:
            try:
                from keyring.core import load_keyring

                self._backend = load_keyring(self._name)
            except (RuntimeError, ImportError, AttributeError, OSError) as e:
                # Nothing secret was touched yet: what it says may be shown.
                said = str(e).splitlines()
                raise StoreAbsent(
                    f"there is no keychain here ({said[0][:200] if said else type(e).__name__})",
                    hint=_DBUS_HINT if self._lacks_dbus() else _ABSENT_HINT,
                ) from e
        if self._name == "keyring.backends.SecretService.Keyring":
            return _unlocked_collection()
        return str(self._backend.name)

    def _lacks_dbus(self) -> bool:
        return self._name.startswith("keyring.backends.kwallet.") and find_spec("dbus") is None


def _unlocked_collection() -> str:
    """The Secret Service's default collection; asked here, since `keyring` would prompt for it.

    A prompt that nobody expects, or sees, blocks whoever waits for it, and comes back with each
    request.
    """
    import secretstorage
    from secretstorage.exceptions import (
        ItemNotFoundException,
        SecretServiceNotAvailableException,
    )

    try:
        with closing(secretstorage.dbus_init()) as connection:
            collection = secretstorage.Collection(connection)
            if collection.is_locked():
                raise Locked("the keychain is locked", hint=_LOCKED_HINT)
            return collection.get_label()
    except ItemNotFoundException as e:
        raise StoreAbsent(
            "the keychain has no default collection",
            hint=f"make one in {PROGRAMS}, or log in to a desktop once",
        ) from e
    except (SecretServiceNotAvailableException, OSError) as e:
        raise StoreAbsent("the keychain's daemon isn't there", hint=_ABSENT_HINT) from e
