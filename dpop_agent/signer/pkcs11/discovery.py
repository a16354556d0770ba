"""Which PKCS#11 tokens a module has, and which one a URI names; nobody logs in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from typing import Any, Literal

from pkcs11 import TokenFlag
from pkcs11.exceptions import ArgumentsBad, PKCS11Error

from dpop_agent import paths
from dpop_agent.config import TokenUri, is_plain, telling_apart, uri_of
from dpop_agent.errors import ConfigurationError, StoreAbsent, StoreInUse
from dpop_agent.signer.brake import TokenName, standing
from dpop_agent.signer.pkcs11 import pcsc, vendors
from dpop_agent.signer.pkcs11.module import Module, error_name


def tokens(module: Module, state_folder: str) -> list[dict[str, Any]]:
    """The PKCS#11 tokens of a module, for people; nobody logs in.

    `state_folder` is the agent's, which may have marks of logins that didn't succeed.

    Raises:
        StoreAbsent: the module can't be loaded, or refuses its arguments.
        StoreInUse: another program holds the card.
    """
    found = _present(module)
    if not found:
        _refuse_held(module)
    library = module.library
    by, version = library.manufacturer_id, library.library_version
    return [
        {
            **_texts(token),
            "initialized": bool(token.flags & TokenFlag.TOKEN_INITIALIZED),
            "has_login": has_login(token.flags),
            "has_pin": bool(token.flags & TokenFlag.USER_PIN_INITIALIZED),
            "tries_left": tries_left(token.flags, by, token.manufacturer_id),
            "mark": mark and mark._asdict(),
            "library": f"{unpadded(by)} {version[0]}.{version[1]}",
            "troubles": vendors.known_troubles(by, version, token.manufacturer_id),
        }
        for token in found
        for mark in (standing(state_folder, _name_among(token, found)),)
    ]


def tries_left(flags: TokenFlag, *manufacturers: str) -> Literal[0, 1, 2] | None:
    """How many wrong PINs a PKCS#11 token takes still, where its module tells (PKCS#11 3.0 section
    3.2).
    """
    if flags & TokenFlag.USER_PIN_LOCKED:
        return 0
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        return 1
    if flags & TokenFlag.USER_PIN_COUNT_LOW:
        return vendors.low_tries(*manufacturers)
    return None


def manufacturers(module: Module, uri: TokenUri) -> tuple[str, ...]:
    """Who made a module and the PKCS#11 token that `uri` names: that tells what is particular to
    them (PKCS#11 3.0 sections 3.1 and 3.2).

    Behind p11-kit's proxy CK_INFO is p11-kit's own, and the PKCS#11 token alone tells.

    Raises:
        StoreAbsent: the module can't be loaded, or refuses its arguments; or the PKCS#11 token has
            to tell, and isn't there.
        StoreInUse: another program holds the card.
    """
    with _working(module):
        of_module = str(module.library.manufacturer_id)
    if vendors.slots(of_module) is not None:
        return (of_module,)
    token, _ = find(module, uri)
    return of_module, token.manufacturer_id


def unpadded(value: bytes | str) -> str:
    """A text of CK_TOKEN_INFO (PKCS#11 3.0 section 3.2)."""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value).rstrip("\0 ")


def has_login(flags: TokenFlag) -> bool:
    """CKF_LOGIN_REQUIRED decides (PKCS#11 3.0 section 3.2).

    CKF_USER_PIN_INITIALIZED doesn't: some modules never set it. C_Login tells.
    """
    return bool(flags & TokenFlag.LOGIN_REQUIRED)


def find(module: Module, uri: TokenUri) -> tuple[Any, TokenName]:
    """Exactly the PKCS#11 token that `uri` names, and what tells it from others.

    Raises:
        StoreAbsent: there is none, or several.
        StoreInUse: another program holds the card.
    """
    present = _present(module)
    found = [
        token
        for token in present
        if token.flags & TokenFlag.TOKEN_INITIALIZED  # SoftHSM always has one that isn't
        and uri.matches(**_texts(token))
    ]
    if not found:
        _refuse_held(module)
        raise StoreAbsent(
            f"there is no PKCS#11 token {uri}",
            hint="plug it in, or correct uri in the configuration",
        )
    if len(found) > 1:
        raise _several(uri, [uri_of(**_texts(token)) for token in found])
    return found[0], _name_among(found[0], present)


def _several(uri: TokenUri, found: list[TokenUri]) -> StoreAbsent:
    apart = telling_apart(found)
    if not apart:
        return StoreAbsent(
            f"{len(found)} PKCS#11 tokens fit {uri}, and no URI tells them apart",
            hint="have the module show one of them alone: unplug the others, or see its settings",
            retry="no",
        )
    choices = [TokenUri(**{name: getattr(one, name) for name in apart}) for one in found]
    return StoreAbsent(
        f"{len(found)} PKCS#11 tokens fit {uri}: {', '.join(map(str, choices))}",
        hint=f"give {' and '.join(apart)} in uri",
        retry="no",
    )


def _texts(token: Any) -> dict[str, str]:
    return {
        "label": unpadded(token.label),
        "serial": unpadded(token.serial),
        "manufacturer": unpadded(token.manufacturer_id),
        "model": unpadded(token.model),
    }


def _name(token: Any) -> TokenName:
    return TokenName(
        manufacturer=unpadded(token.manufacturer_id),
        model=unpadded(token.model),
        serial=unpadded(token.serial),
        # Behind its end some modules leave whatever was in memory, another thing each time.
        label="".join(takewhile(is_plain, unpadded(token.label))),
    )


def _refuse_held(module: Module) -> None:
    """Let pass where no other program has a card for itself alone.

    Raises:
        StoreInUse
    """
    slots = vendors.slots(module.library.manufacturer_id)
    if slots is not None and pcsc.held_by_another(slots.readers):
        raise StoreInUse(
            "another program holds the card for itself alone (a sharing violation)",
            hint="end it; if it is GnuPG's: gpgconf --kill scdaemon",
        )


def _present(module: Module) -> list[Any]:
    """What `get_token` gives for each slot that has a PKCS#11 token.

    Raises:
        StoreAbsent: the module can't be loaded, or refuses its arguments.
    """
    with _working(module):
        slots = module.library.get_slots(token_present=True)
    found = []
    for slot in slots:
        try:
            found.append(slot.get_token())
        except PKCS11Error:  # pulled since, or nothing that this module knows
            continue
    return found


def _name_among(token: Any, present: list[Any]) -> TokenName:
    """What tells it from the others that are there."""
    name = _name(token)
    alike = [other for other in present if replace(_name(other), label=name.label) == name]
    return replace(name, shared=len(alike) > 1)


@contextmanager
def _working(module: Module) -> Iterator[None]:
    """Turn the errors of a module that doesn't work at all into ours."""
    if not os.path.exists(module.path):
        raise StoreAbsent(
            f"there is no PKCS#11 module {module.path}", hint="correct module in the configuration"
        )
    try:
        paths.check_only_ours(module.path, "the PKCS#11 module", instead="name another in module")
    except ConfigurationError as e:
        raise StoreAbsent(e.message, hint=e.hint) from None
    try:
        yield
    except ArgumentsBad as e:
        raise StoreAbsent(
            f"the PKCS#11 module {module.path} wants arguments (CKR_ARGUMENTS_BAD)",
            hint="give them as module_args in the configuration, or as init's --module-args",
        ) from e
    except PKCS11Error as e:
        raise StoreAbsent(
            f"the PKCS#11 module {module.path} doesn't work ({error_name(e)})",
            hint="see what its vendor requires, such as pcscd or a setting in env",
        ) from e
