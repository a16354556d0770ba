"""The PKCS#11 token of a store: found, logged in to, its PIN's tries, and let go."""

from __future__ import annotations

import time
from typing import Any, Literal

import pkcs11
from pkcs11 import TokenFlag
from pkcs11.constants import SlotFlag
from pkcs11.exceptions import (
    ArgumentsBad,
    DeviceError,
    DeviceRemoved,
    FunctionCancelled,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
    TokenNotPresent,
)

from dpop_agent.config import TokenUri
from dpop_agent.errors import (
    AuthorizationRefused,
    Cancelled,
    Locked,
    PinRefused,
    StoreAbsent,
)
from dpop_agent.signer.pin import UserPin
from dpop_agent.signer.pkcs11 import discovery, vendors
from dpop_agent.signer.pkcs11.module import Module, error_name

FRESH_S = 5.0
"""Seconds after opening in which what is found, or isn't, counts as really so."""

_UNBLOCK = (
    "unblock it by its vendor's tool (a card by its PUK, a TPM by tpm2_dictionarylockout), then: "
    "dpop-agent unlock"
)
_TRIES = {
    None: "",
    0: ", and is locked now",
    1: ", one try is left",
    2: ", two tries are left",
}

PIN_REFUSED = (PinIncorrect, PinInvalid, PinLenRange)
_LOGIN_REFUSED = (*PIN_REFUSED, ArgumentsBad)  # ykcs11: a PIN that is too short or too long
_GONE = (DeviceError, DeviceRemoved, TokenNotPresent)


class Token:
    """One PKCS#11 token, and who is logged in to it.

    Every login is here, with the PIN that was accepted and what a refused one leaves behind.

    Args:
        module: the vendor's.
        uri: names it (RFC 7512).
        pin: where the user PIN comes from; asked once, and an accepted one is kept.

    Attributes:
        session: as who is logged in now; None while nothing is held open.
        accepted_pin: the PIN that it took last.
        mechanisms: what it can do.
        faulty: algorithms that it offers and can't do.
        protection: where it keeps its keys, for people.
    """

    def __init__(self, *, module: Module, uri: TokenUri, pin: UserPin) -> None:
        self.uri = uri
        self.session: Any = None
        self.accepted_pin: str | None = None
        self.mechanisms: set[Any] = set()
        self.faulty: frozenset[str] = frozenset()
        self.protection = ""
        self._module = module
        self._pin = pin
        self._accepted_by: str | None = None
        self._found: Any = None
        self._opened = 0.0

    @property
    def serial(self) -> str | None:
        """Of the PKCS#11 token that `open` found last."""
        return None if self._found is None else discovery.unpadded(self._found.serial)

    def has_pad(self) -> bool:
        """Whether the PIN is typed at the PKCS#11 token itself; nobody logs in.

        Raises:
            StoreAbsent, StoreInUse, PinRefused
        """
        flags = self._find().flags
        self._require_pin(flags)
        return bool(flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH)

    def open(self) -> dict[str, Any]:
        """Find it and log in, with a PIN that is tried once.

        Returns: `label`, `serial`, `model`, for people.

        Raises:
            StoreAbsent, StoreInUse, Locked, PinRefused, Cancelled
        """
        self._found = self._find()
        library = self._module.library
        self.faulty = vendors.faulty_algorithms(library.manufacturer_id, library.library_version)
        self.protection = vendors.protection(
            discovery.unpadded(self._found.manufacturer_id),
            hardware_slot=bool(self._found.slot.flags & SlotFlag.HW_SLOT),
        )
        self.mechanisms = set(self._found.slot.get_mechanisms())
        self.session = self._login()
        self._opened = time.monotonic()
        return {
            "label": discovery.unpadded(self._found.label),
            "serial": self.serial,
            "model": discovery.unpadded(self._found.model),
        }

    def is_view_old(self) -> bool:
        """Whether it may look otherwise by now than its module shows it."""
        return time.monotonic() - self._opened > FRESH_S

    def open_managed(self, key: str) -> None:
        """Log in as whoever manages it, who has to be alone, with its management key.

        Raises:
            AuthorizationRefused, StoreAbsent
        """
        try:
            self.session = self._find().open(rw=True, so_pin=key)
        except _LOGIN_REFUSED as e:
            raise AuthorizationRefused(
                f"the PKCS#11 token {self.uri} refused its management key", hint="try again"
            ) from e

    def release(self) -> None:
        """Log out, and hold nothing open that another program may want."""
        session, self.session = self.session, None
        if session is not None:
            session.close()
        self._module.unload()

    def pin_refused(self) -> PinRefused:
        """What to raise for a wrong PIN, which is never tried again."""
        self.accepted_pin = None
        self._pin.refused()
        left = self._tries_left()
        return PinRefused(
            f"the PKCS#11 token {self.uri} refused its PIN{_TRIES[left]}",
            hint=_UNBLOCK if left == 0 else self._pin.after_refusal,
            details={} if left is None else {"tries_left": left},
        )

    def _find(self) -> Any:
        return discovery.find(self._module, self.uri)

    def _require_pin(self, flags: TokenFlag) -> None:
        """Let pass a PKCS#11 token that takes a PIN now.

        Raises:
            StoreAbsent, PinRefused
        """
        if not discovery.has_pin(flags):
            raise StoreAbsent(
                f"the PKCS#11 token {self.uri} has no user PIN",
                hint="set one with the tool that came with its module, then: dpop-agent reload",
                retry="no",
            )
        if flags & TokenFlag.USER_PIN_LOCKED:
            raise _pin_locked()

    def _login(self) -> Any:
        flags = self._found.flags
        self._require_pin(flags)
        if flags & TokenFlag.USER_PIN_FINAL_TRY and not self._pin.typed:
            raise PinRefused(
                "the PKCS#11 token has one PIN try left, which isn't spent on a stored PIN",
                hint="log in once with its vendor's tool, then: dpop-agent unlock",
            )
        if flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
            self._pin.at_pad()
            return self._login_with(pkcs11.PROTECTED_AUTH)  # PKCS#11 3.0 section 5.6.8
        serial = self.serial
        pin = self.accepted_pin
        if pin is None or serial != self._accepted_by:  # not one card's PIN for another card
            pin = self._pin.get(tries_low=bool(flags & TokenFlag.USER_PIN_COUNT_LOW))
            if self._pin.typed:
                self._require_still_there(serial)
        session = self._login_with(pin)
        self.accepted_pin, self._accepted_by = pin, serial
        self._pin.accepted(pin)
        return session

    def _require_still_there(self, serial: str | None) -> None:
        """Somebody typed for a minute, and may have changed one card for another meanwhile.

        Raises:
            StoreAbsent
        """
        self._found = self._find()
        if self.serial != serial:
            raise StoreAbsent(
                f"another PKCS#11 token came in place of {self.uri} while its PIN was being typed",
                hint="dpop-agent unlock",
            )

    def _login_with(self, pin: Any) -> Any:
        try:
            return self._found.open(rw=True, user_pin=pin)
        except _LOGIN_REFUSED as e:
            raise self.pin_refused() from e
        except PinLocked as e:
            raise _pin_locked() from e
        except _GONE as e:
            raise StoreAbsent(
                f"the PKCS#11 token {self.uri} went away", hint="plug it in again"
            ) from e
        except FunctionCancelled as e:
            raise Cancelled(
                "no PIN was typed at the PKCS#11 token's pad", hint=self._pin.after_refusal
            ) from e
        except PKCS11Error as e:
            raise Locked(f"logging in to the PKCS#11 token failed ({error_name(e)})") from e

    def _tries_left(self) -> Literal[0, 1, 2] | None:
        """How many wrong PINs the PKCS#11 token takes still, where its module tells."""
        try:
            flags = self._found.slot.get_token().flags  # the old object's flags are a snapshot
        except PKCS11Error:
            return None
        if flags & TokenFlag.USER_PIN_LOCKED:
            return 0
        if flags & TokenFlag.USER_PIN_FINAL_TRY:
            return 1
        if flags & TokenFlag.USER_PIN_COUNT_LOW:
            return vendors.low_tries(self._module.library.manufacturer_id)
        return None


def _pin_locked() -> PinRefused:
    return PinRefused("the PKCS#11 token's PIN is locked: too many wrong ones came", hint=_UNBLOCK)
