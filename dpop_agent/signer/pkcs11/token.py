"""The PKCS#11 token of a store."""

from __future__ import annotations

import time
from dataclasses import dataclass
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
from dpop_agent.signer.authority import Authority
from dpop_agent.signer.pin import UserPin
from dpop_agent.signer.pkcs11 import discovery, vendors
from dpop_agent.signer.pkcs11.discovery import Finding
from dpop_agent.signer.pkcs11.module import Module, error_name
from dpop_agent.signer.store import KeyInfo

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

_PIN_REFUSED = (PinIncorrect, PinInvalid, PinLenRange)
_LOGIN_REFUSED = (*_PIN_REFUSED, ArgumentsBad)  # ykcs11: a PIN that is too short or too long
_GONE = (DeviceError, DeviceRemoved, TokenNotPresent)


@dataclass(slots=True)
class _Open:
    """A key pair whose handle is held."""

    private: Any
    info: KeyInfo
    asks_pin: bool  # for each signature: PKCS#11 3.0 section 4.9, CKA_ALWAYS_AUTHENTICATE
    verified: bool = False


def _pin_locked() -> PinRefused:
    return PinRefused("the PKCS#11 token's PIN is locked: too many wrong ones came", hint=_UNBLOCK)


class Login(Finding):
    """One PKCS#11 token.

    Args:
        module: the vendor's.
        uri: names it (RFC 7512).
        pin: where the user PIN comes from; asked once, and an accepted one is kept.
    """

    def __init__(self, *, module: Module, uri: TokenUri, pin: UserPin) -> None:
        self._module = module
        self._uri = uri
        self._pin = pin
        self._accepted: str | None = None
        self._serial: str | None = None
        self._token: Any = None
        self._slots: vendors.Slots | None = None
        self._session: Any = None
        self._keys: dict[str, _Open] = {}

    def has_pad(self) -> bool:
        flags = self._find_token().flags
        self._require_pin(flags)
        return bool(flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH)

    def _require_pin(self, flags: TokenFlag) -> None:
        """Let pass a PKCS#11 token that takes a PIN now.

        Raises:
            StoreAbsent, PinRefused
        """
        if not discovery.has_pin(flags):
            raise StoreAbsent(
                f"the PKCS#11 token {self._uri} has no user PIN",
                hint="set one with the tool that came with its module, then: dpop-agent reload",
                retry="no",
            )
        if flags & TokenFlag.USER_PIN_LOCKED:
            raise _pin_locked()

    def open(self) -> dict[str, Any]:
        token = self._find_token()
        if self.authority is not None and token.serial != self._token.serial:
            self.authority.forget()  # it was typed for another card
        self._token = token
        self._protection = vendors.protection(
            discovery.unpadded(self._token.manufacturer_id),
            hardware_slot=bool(self._token.slot.flags & SlotFlag.HW_SLOT),
        )
        self._mechanisms = set(self._token.slot.get_mechanisms())
        library = self._module.library
        self._slots = vendors.slots(library.manufacturer_id)
        if self._slots is not None and self.authority is None:
            self.authority = Authority(default=self._slots.default_authority)
        self._faulty = vendors.faulty_algorithms(library.manufacturer_id, library.library_version)
        self._session = self._login()
        self._opened = time.monotonic()
        return {
            "label": discovery.unpadded(self._token.label),
            "serial": discovery.unpadded(self._token.serial),
            "model": discovery.unpadded(self._token.model),
        }

    def _login(self) -> Any:
        flags = self._token.flags
        self._require_pin(flags)
        if flags & TokenFlag.USER_PIN_FINAL_TRY and not self._pin.typed:
            raise PinRefused(
                "the PKCS#11 token has one PIN try left, which isn't spent on a stored PIN",
                hint="log in once with its vendor's tool, then: dpop-agent unlock",
            )
        if flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
            self._pin.at_pad()
            return self._login_with(pkcs11.PROTECTED_AUTH)  # PKCS#11 3.0 section 5.6.8
        serial = discovery.unpadded(self._token.serial)
        pin = self._accepted
        if pin is None or serial != self._serial:  # not one card's PIN for another card
            pin = self._pin.get(tries_low=bool(flags & TokenFlag.USER_PIN_COUNT_LOW))
            if self._pin.typed:
                self._require_still_there(serial)
        session = self._login_with(pin)
        self._accepted, self._serial = pin, serial
        self._pin.accepted(pin)
        return session

    def _require_still_there(self, serial: str) -> None:
        """Somebody typed for a minute, and may have changed one card for another meanwhile.

        Raises:
            StoreAbsent
        """
        self._token = self._find_token()
        if discovery.unpadded(self._token.serial) != serial:
            raise StoreAbsent(
                f"another PKCS#11 token came in the place of {self._uri} while its PIN was typed",
                hint="dpop-agent unlock",
            )

    def _login_with(self, pin: Any) -> Any:
        try:
            return self._token.open(rw=True, user_pin=pin)
        except _LOGIN_REFUSED as e:
            raise self._pin_refused() from e
        except PinLocked as e:
            raise _pin_locked() from e
        except _GONE as e:
            raise StoreAbsent(
                f"the PKCS#11 token {self._uri} went away", hint="plug it in again"
            ) from e
        except FunctionCancelled as e:
            raise Cancelled(
                "no PIN was typed at the PKCS#11 token's pad", hint=self._pin.after_refusal
            ) from e
        except PKCS11Error as e:
            raise Locked(f"logging in to the PKCS#11 token failed ({error_name(e)})") from e

    def _pin_refused(self) -> PinRefused:
        self._accepted = None
        self._pin.refused()
        left = self._tries_left()
        return PinRefused(
            f"the PKCS#11 token {self._uri} refused its PIN{_TRIES[left]}",
            hint=_UNBLOCK if left == 0 else self._pin.after_refusal,
            details={} if left is None else {"tries_left": left},
        )

    def _tries_left(self) -> Literal[0, 1, 2] | None:
        """How many wrong PINs the PKCS#11 token takes still, where its module tells."""
        try:
            flags = self._token.slot.get_token().flags  # the old object's flags are a snapshot
        except PKCS11Error:
            return None
        if flags & TokenFlag.USER_PIN_LOCKED:
            return 0
        if flags & TokenFlag.USER_PIN_FINAL_TRY:
            return 1
        if flags & TokenFlag.USER_PIN_COUNT_LOW:
            return vendors.low_tries(self._module.library.manufacturer_id)
        return None

    def _managed(self, key: str) -> Any:
        """A session of whoever manages the token.

        Raises:
            AuthorizationRefused
        """
        try:
            return self._find_token().open(rw=True, so_pin=key)
        except _LOGIN_REFUSED as e:
            raise AuthorizationRefused(
                f"the PKCS#11 token {self._uri} refused its management key", hint="try again"
            ) from e
