"""The PKCS#11 token of a store: found, logged in to, its PIN's tries, and let go."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pkcs11
from pkcs11 import TokenFlag
from pkcs11.constants import SlotFlag
from pkcs11.exceptions import (
    AnotherUserAlreadyLoggedIn,
    ArgumentsBad,
    DeviceError,
    DeviceRemoved,
    FunctionCancelled,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
    SessionCount,
    SessionHandleInvalid,
    SlotIDInvalid,
    TokenNotPresent,
    TokenNotRecognised,
    TokenWriteProtected,
    UserAlreadyLoggedIn,
    UserPinNotInitialized,
    UserTooManyTypes,
)

from dpop_agent.config import TokenUri
from dpop_agent.errors import (
    AuthorizationRefused,
    Cancelled,
    DPoPAgentError,
    Locked,
    PinRefused,
    StoreAbsent,
)
from dpop_agent.signer.brake import LOCKED, REFUSED, Brake, TokenName
from dpop_agent.signer.heritage import Accepted
from dpop_agent.signer.pin import UserPin
from dpop_agent.signer.pkcs11 import discovery, pcsc, vendors
from dpop_agent.signer.pkcs11.module import Module, error_name

FRESH_S = 5.0
"""Seconds after opening in which what is found, or isn't, counts as really so."""

_TRIES = {
    None: "",
    0: ", and is locked now",
    1: ", one try is left",
    2: ", two tries are left",
}

# ykcs11 says ARGUMENTS_BAD for a PIN that is too short or too long.
_LOGIN_REFUSED = (PinIncorrect, PinInvalid, PinLenRange, ArgumentsBad)
_GONE = (DeviceError, DeviceRemoved, TokenNotPresent)

# What C_OpenSession and C_Login say before anything looks at the PIN (PKCS#11 3.0 sections 5.1 and
# 5.6). All else may have cost a try: DEVICE_REMOVED and SESSION_CLOSED come "during the execution",
# DEVICE_ERROR, FUNCTION_FAILED and GENERAL_ERROR say nothing of when, ARGUMENTS_BAD is a PIN's
# length on some modules, and what is unknown is unknown.
_NOT_JUDGED = (
    SessionCount,  # no session, so no login
    SessionHandleInvalid,  # "at the time that the function was invoked"
    SlotIDInvalid,  # no such slot
    TokenNotPresent,  # "at the time that the function was invoked"
    TokenNotRecognised,  # no session with it
    TokenWriteProtected,  # no session that writes
    UserAlreadyLoggedIn,  # refused whatever the PIN is
    AnotherUserAlreadyLoggedIn,  # refused whatever the PIN is
    UserTooManyTypes,  # refused whatever the PIN is
    UserPinNotInitialized,  # there is no PIN to compare with
)


class Token:
    """One PKCS#11 token, and who is logged in to it.

    Every login is here, with the PIN that was accepted and what a refused one leaves behind.

    Args:
        module: the vendor's.
        uri: names it (RFC 7512).
        pin: where the user PIN comes from; asked once, and an accepted one is kept.
        brake: whether a login that nobody asked for is tried.

    Attributes:
        module: the vendor's.
        session: as who is logged in now; None while nothing is held open.
        accepted_pin: the PIN that it took last.
        mechanisms: what it can do.
        faulty: algorithms that it offers and can't do.
        protection: where it keeps its keys, for people.
    """

    def __init__(self, *, module: Module, uri: TokenUri, pin: UserPin, brake: Brake) -> None:
        self.uri = uri
        self.session: Any = None
        self.accepted_pin: str | None = None
        self.mechanisms: set[Any] = set()
        self.faulty: frozenset[str] = frozenset()
        self.protection = ""
        self.module = module
        self._pin = pin
        self._brake = brake
        self._accepted_by: str | None = None
        self._found: Any = None
        self._name: TokenName
        self._opened = 0.0
        self._insertions: frozenset[tuple[str, int]] = frozenset()

    @property
    def serial(self) -> str | None:
        """Of the PKCS#11 token that `open` found last."""
        return None if self._found is None else discovery.unpadded(self._found.serial)

    def has_pad(self) -> bool:
        """Whether the PIN is typed at the PKCS#11 token itself; nobody logs in.

        Raises:
            StoreAbsent, StoreInUse, PinRefused
        """
        self._find()
        flags = self._found.flags
        if not self._wants_login(flags):
            return False
        self._require_not_locked(flags)
        return bool(flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH)

    def is_braked(self) -> bool:
        """Whether a person has to ask for the next login to the one that was found last."""
        return self._brake.stands(self._name)

    def open(self) -> dict[str, Any]:
        """Find it and log in, with a PIN that is tried once.

        Returns: `label`, `serial`, `model`, for people.

        Raises:
            StoreAbsent, StoreInUse, Locked, PinRefused, Cancelled
        """
        self._find()
        library = self.module.library
        self.faulty = vendors.faulty_algorithms(
            library.manufacturer_id, library.library_version, self._found.manufacturer_id
        )
        self.protection = vendors.protection(
            discovery.unpadded(self._found.manufacturer_id),
            hardware_slot=bool(self._found.slot.flags & SlotFlag.HW_SLOT),
        )
        self.mechanisms = set(self._found.slot.get_mechanisms())
        self._insertions = pcsc.insertions()
        self.session = self._login()
        self._opened = time.monotonic()
        return {
            "label": discovery.unpadded(self._found.label),
            "serial": self.serial,
            "model": discovery.unpadded(self._found.model),
        }

    @property
    def accepted(self) -> Accepted:
        """The PIN that it took last, and from which PKCS#11 token."""
        return Accepted(self.accepted_pin, self._accepted_by)

    @accepted.setter
    def accepted(self, accepted: Accepted) -> None:
        self.accepted_pin, self._accepted_by = accepted

    def outdate_view(self) -> None:
        """What its module shows may not be what is there."""
        self._opened = -math.inf

    def is_view_old(self) -> bool:
        """Whether it may look otherwise by now than its module shows it."""
        return time.monotonic() - self._opened > FRESH_S or not self._is_still_there()

    def _is_still_there(self) -> bool:
        """Whether no other PKCS#11 token came in its place, as far as its module tells."""
        try:
            _, name = discovery.find(self.module, self.uri)
        except DPoPAgentError:
            return False
        return name == self._name

    def opens_anew(self) -> bool:
        """Whether it can be opened again now by itself: nobody types, and no last try is spent."""
        if not discovery.has_login(self._found.flags):
            return True
        if self.accepted_pin is None:
            return False
        try:
            self.require_tries()
        except PinRefused:
            return False
        except PKCS11Error:  # it went away, which opening it tells
            pass
        return True

    def may_have_been_pulled(self) -> bool:
        """Whether a card came or went since it was opened: a login may have nobody to judge it."""
        return pcsc.insertions() != self._insertions

    def open_managed(self, key: str) -> None:
        """Log in as whoever manages it, who has to be alone, with its management key.

        Raises:
            AuthorizationRefused, StoreAbsent
        """
        try:
            self._find()
            self.session = self._found.open(rw=True, so_pin=key)
        except _LOGIN_REFUSED as e:
            raise AuthorizationRefused(
                f"the PKCS#11 token {self.uri} refused its management key", hint="try again"
            ) from e

    def release(self) -> None:
        """Log out, and hold nothing open that another program may want."""
        session, self.session = self.session, None
        if session is not None:
            session.close()
        self.module.unload()

    @contextmanager
    def logging_in(
        self,
        *,
        attended: bool,
        stored: bool,
        others: tuple[type[PKCS11Error], ...] = (),
    ) -> Iterator[None]:
        """One C_Login: the brake around it, and its errors as ours.

        Args:
            attended: a person asked for it.
            stored: its PIN was read from somewhere, and not accepted from this process before.
            others: errors that are another call's, before it or after it was accepted.

        Raises:
            PinRefused, StoreAbsent, Locked, Cancelled; and `others`, as they are
        """
        hint = self._pin.after_refusal
        try:
            with self._brake.login(self._name, attended=attended, stored=stored, hint=hint) as it:
                try:
                    yield
                except PKCS11Error as e:
                    it.judged = not isinstance(e, _NOT_JUDGED + others)
                    it.how = _ended(e)
                    raise
                it.accepted = True
        except others:
            raise
        except PKCS11Error as e:
            if not isinstance(e, _NOT_JUDGED):
                self.accepted_pin = None
            raise self._login_failed(e, attended=attended) from e

    def require_tries(self) -> None:
        """Let pass a PKCS#11 token that can't be locked by the PIN that a signature wants.

        Raises:
            StoreAbsent, PinRefused, PKCS11Error
        """
        self._require_tries(self._flags_now())

    def _login_failed(self, error: PKCS11Error, *, attended: bool) -> DPoPAgentError:
        """What to tell of a login, which the brake knows of already."""
        if isinstance(error, PinLocked):
            return _pin_locked(self._brake.unlock)
        if isinstance(error, _LOGIN_REFUSED):
            self._pin.refused()
            left = self._tries_left()
            return self._refused(
                f"the PKCS#11 token {self.uri} refused its PIN{_TRIES[left]}",
                hint=_unblock(self._brake.unlock) if left == 0 else self._pin.after_refusal,
                details={} if left is None else {"tries_left": left},
            )
        if isinstance(error, TokenNotPresent) or (attended and isinstance(error, _GONE)):
            return StoreAbsent(f"the PKCS#11 token {self.uri} went away", hint="plug it in again")
        if isinstance(error, UserPinNotInitialized):
            return self._has_no_pin()
        if isinstance(error, FunctionCancelled) and attended:
            return Cancelled(
                "no PIN was typed at the PKCS#11 token's pad", hint=self._pin.after_refusal
            )
        failed = f"logging in to the PKCS#11 token {self.uri} failed ({error_name(error)})"
        if attended or isinstance(error, _NOT_JUDGED):
            return Locked(failed, hint=self._brake.unlock)
        return self._refused(f"{failed}, which may have cost a PIN try", hint=self._brake.unlock)

    def _refused(self, message: str, *, hint: str, details: dict[str, Any] | None = None) -> Locked:
        """What to raise for a PIN that isn't tried again, or by `login_retries` alone."""
        pause_s = self._brake.next_try_s(self._name)
        if pause_s is None:
            return PinRefused(message, hint=hint, details=details)
        return Locked(
            f"{message}; it is tried again after a pause",
            hint=f"wait, or {hint}",
            retry_after_ms=int(pause_s * 1000) + 1,
            details=details,
        )

    def _has_no_pin(self) -> StoreAbsent:
        return StoreAbsent(
            f"the PKCS#11 token {self.uri} has no user PIN",
            hint="set one with the tool that came with its module, then: dpop-agent reload",
            retry="no",
        )

    def _find(self) -> None:
        self._found, self._name = discovery.find(self.module, self.uri)

    def _wants_login(self, flags: TokenFlag) -> bool:
        """Whether somebody has to log in.

        Raises:
            StoreAbsent: the configuration says otherwise.
        """
        wants = discovery.has_login(flags)
        if wants and not self._pin.needs_login:
            raise StoreAbsent(
                f'the PKCS#11 token {self.uri} wants a login, and its pin_source is "none"',
                hint='set pin_source to "prompt" or another source of its PIN, then: '
                "dpop-agent reload",
                retry="no",
            )
        if not wants and self._pin.needs_login:
            raise StoreAbsent(
                f"the PKCS#11 token {self.uri} has no login: it wants no PIN",
                hint='set pin_source = "none", or set a PIN with the tool that came with its '
                "module; then: dpop-agent reload",
                retry="no",
            )
        return wants

    def _require_not_locked(self, flags: TokenFlag) -> None:
        """Let pass a PKCS#11 token that takes a PIN now.

        Raises:
            PinRefused
        """
        if flags & TokenFlag.USER_PIN_LOCKED:
            raise _pin_locked(self._brake.unlock)

    def _require_tries(self, flags: TokenFlag) -> None:
        """Let pass a PKCS#11 token that the next PIN can't lock, or one whose PIN is typed now.

        Raises:
            PinRefused
        """
        self._require_not_locked(flags)
        if flags & TokenFlag.USER_PIN_FINAL_TRY and not self._pin.typed:
            raise PinRefused(
                "the PKCS#11 token has one PIN try left, which isn't spent on a stored PIN",
                hint=f"log in once with its vendor's tool, then: {self._brake.unlock}",
            )

    def _login(self) -> Any:
        flags = self._found.flags
        if not self._wants_login(flags):
            return self._session()
        self._require_tries(flags)
        attended, self._pin.attended = self._pin.attended, False
        if flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
            self._pin.at_pad()
            return self._login_with(pkcs11.PROTECTED_AUTH, attended=True, stored=False)
        serial = self.serial
        pin, stored = self.accepted_pin, False
        if pin is None or serial != self._accepted_by:  # not one card's PIN for another card
            pin, stored = self._pin.get(), not self._pin.typed
            if self._pin.typed:
                self._require_still_there(serial)
        session = self._login_with(pin, attended=attended, stored=stored)
        self.accepted_pin, self._accepted_by = pin, serial
        self._pin.accepted(pin)
        return session

    def _require_still_there(self, serial: str | None) -> None:
        """Somebody typed for a minute, and may have changed one card for another meanwhile.

        Raises:
            StoreAbsent
        """
        self._find()
        if self.serial != serial:
            raise StoreAbsent(
                f"another PKCS#11 token came in place of {self.uri} while its PIN was being typed",
                hint="dpop-agent unlock",
            )

    def _session(self) -> Any:
        try:
            return self._found.open(rw=True)
        except PKCS11Error as e:
            raise StoreAbsent(
                f"the PKCS#11 token {self.uri} can't be used now ({error_name(e)})",
                hint="check that it is plugged in, and that no other program holds it",
            ) from e

    def _login_with(self, pin: Any, *, attended: bool, stored: bool) -> Any:
        self._session().close()  # what refuses a session judges no PIN
        with self.logging_in(attended=attended, stored=stored):
            # PKCS#11 3.0 section 5.6.8, for a pad too
            return self._found.open(rw=True, user_pin=pin)

    def _flags_now(self) -> TokenFlag:
        flags: TokenFlag = self._found.slot.get_token().flags  # the old object's are a snapshot
        return flags

    def _tries_left(self) -> Literal[0, 1, 2] | None:
        """How many wrong PINs the PKCS#11 token takes still, where its module tells."""
        try:
            flags = self._flags_now()
        except PKCS11Error:
            return None
        return discovery.tries_left(
            flags, self.module.library.manufacturer_id, self._found.manufacturer_id
        )


def _ended(error: PKCS11Error) -> str:
    """How the brake remembers a login that ended so."""
    if isinstance(error, _LOGIN_REFUSED):
        return REFUSED
    return LOCKED if isinstance(error, PinLocked) else error_name(error)


def _pin_locked(unlock: str) -> PinRefused:
    return PinRefused(
        "the PKCS#11 token's PIN is locked: too many wrong ones came", hint=_unblock(unlock)
    )


def _unblock(unlock: str) -> str:
    return (
        "unblock it by its vendor's tool (a card by its PUK, a TPM by tpm2_dictionarylockout), "
        f"then: {unlock}"
    )
