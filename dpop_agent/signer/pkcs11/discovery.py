"""Which PKCS#11 tokens a module has; nobody logs in."""

from __future__ import annotations

import os
from typing import Any

from pkcs11 import TokenFlag
from pkcs11.exceptions import ArgumentsBad, PKCS11Error

from dpop_agent.errors import StoreAbsent, StoreInUse
from dpop_agent.signer.pkcs11 import pcsc, vendors
from dpop_agent.signer.pkcs11.module import Module, _said


def tokens(module: Module) -> list[dict[str, Any]]:
    """The PKCS#11 tokens of a module, for `init`; nobody logs in.

    Raises:
        StoreAbsent: the module can't be loaded, or refuses its arguments.
        StoreInUse: another program holds the card.
    """
    present = _present(module)
    if not present:
        _refuse_held(module)
    return [
        {
            "label": _text(token.label),
            "serial": _text(token.serial),
            "manufacturer": _text(token.manufacturer_id),
            "model": _text(token.model),
            "initialized": bool(token.flags & TokenFlag.TOKEN_INITIALIZED),
            "has_pin": _has_pin(token.flags),
        }
        for token in present
    ]


def _refuse_held(module: Module) -> None:
    slots = vendors.slots(module.library.manufacturer_id)
    if slots is not None and pcsc.held_by_another(slots.readers):
        raise StoreInUse(
            "another program holds the card for itself alone (a sharing violation)",
            hint="end it; if it is GnuPG's: gpgconf --kill scdaemon",
        )


def _text(value: bytes | str) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value).strip("\0 ")


def _has_pin(flags: TokenFlag) -> bool:
    """Without one there is nothing to log in with: NSS refuses any (PKCS#11 3.0 section 3.2)."""
    return bool(flags & TokenFlag.USER_PIN_INITIALIZED and flags & TokenFlag.LOGIN_REQUIRED)


def _present(module: Module) -> list[Any]:
    if not os.path.exists(module.path):
        raise StoreAbsent(
            f"there is no PKCS#11 module {module.path}", hint="correct module in the configuration"
        )
    try:
        slots = module.library.get_slots(token_present=True)
    except ArgumentsBad as e:
        raise StoreAbsent(
            f"the PKCS#11 module {module.path} wants arguments (CKR_ARGUMENTS_BAD)",
            hint="give them as module_args in the configuration, or as init's --module-args",
        ) from e
    except PKCS11Error as e:
        raise StoreAbsent(
            f"the PKCS#11 module {module.path} doesn't work ({_said(e)})",
            hint="see what its vendor asks for, such as pcscd or a setting in env",
        ) from e
    found = []
    for slot in slots:
        try:
            found.append(slot.get_token())
        except PKCS11Error:  # pulled since, or nothing that this module knows
            continue
    return found
