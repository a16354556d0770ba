"""What a PKCS#11 token is and has, seen by a process of its own: a module may crash or hang, and
some show what changed only to a new process.

Nothing here logs in but `objects` and `delete`, each once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

from dpop_agent import config
from dpop_agent.jose import ALGORITHMS
from tests.processes import ROOT

LOOK_S = 120.0
"""Seconds for one look: a slow card with many objects."""


class Failed(Exception):
    """A look that came to nothing; `pin` says that the PIN was not accepted."""

    def __init__(self, what: str, *, pin: bool = False) -> None:
        super().__init__(what)
        self.pin = pin


class Thing(NamedTuple):
    """An object of the PKCS#11 token; `ref` is its CKA_ID in hex."""

    kind: str
    ref: str
    label: str


@dataclass(frozen=True)
class Place:
    """A PKCS#11 token.

    Attributes:
        env: more variables for whoever loads its module.
    """

    module: str
    module_args: str
    uri: str
    env: dict[str, str]

    def look(self) -> dict[str, Any]:
        """What module and PKCS#11 token say of themselves."""
        found: dict[str, Any] = self._ask("look")
        return found

    def objects(self, pin: str | None) -> list[Thing]:
        """All of its objects."""
        return [Thing(*thing) for thing in self._ask("objects", pin=pin)]

    def delete(self, pin: str | None, things: list[Thing]) -> None:
        """Delete these objects."""
        self._ask("delete", pin=pin, things=things)

    def _ask(self, what: str, **more: Any) -> Any:
        asked = {"module": self.module, "module_args": self.module_args, "uri": self.uri}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.hardware.looking", what],
                cwd=ROOT,
                env=os.environ | self.env,
                input=json.dumps(asked | more),  # the PIN too, which is nobody else's to see
                capture_output=True,
                text=True,
                timeout=LOOK_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"the module didn't answer within {LOOK_S:.0f} s") from None
        if done.returncode:
            told = done.stdout.strip().splitlines()
            said: dict[str, Any] = json.loads(told[-1]) if told else {}
            what = said.get("error", f"the module ended its process ({done.returncode})")
            raise Failed(what, pin=bool(said.get("pin")))
        return json.loads(done.stdout.strip().splitlines()[-1])


def _main(what: str) -> object:
    import pkcs11
    from pkcs11 import Attribute, ObjectClass, TokenFlag

    from dpop_agent.signer.pkcs11 import attributes, discovery, vendors
    from dpop_agent.signer.pkcs11.module import Module

    asked = json.load(sys.stdin)
    module = Module(asked["module"], asked["module_args"])
    token, _ = discovery.find(module, config.parse_token_uri(asked["uri"]))
    if what == "look":
        library, flags = module.library, token.flags
        mechanisms = set(token.slot.get_mechanisms())
        faulty = vendors.faulty_algorithms(
            library.manufacturer_id, library.library_version, token.manufacturer_id
        )
        return {
            "library": f"{library.library_description}, {library.manufacturer_id}".strip(", "),
            "version": ".".join(map(str, library.library_version)),
            "cryptoki": ".".join(map(str, library.cryptoki_version)),
            "manufacturer": discovery.unpadded(token.manufacturer_id),
            "model": discovery.unpadded(token.model),
            "hardware": ".".join(map(str, token.hardware_version)),
            "firmware": ".".join(map(str, token.firmware_version)),
            "label": discovery.unpadded(token.label),
            "serial": discovery.unpadded(token.serial),
            "login": discovery.has_login(flags),
            "pad": bool(flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH),
            "few_tries": bool(
                flags
                & (
                    TokenFlag.USER_PIN_COUNT_LOW
                    | TokenFlag.USER_PIN_FINAL_TRY
                    | TokenFlag.USER_PIN_LOCKED
                )
            ),
            "slots": vendors.slots(library.manufacturer_id, token.manufacturer_id) is not None,
            "protection": vendors.protection(
                discovery.unpadded(token.manufacturer_id),
                hardware_slot=bool(token.slot.flags & pkcs11.constants.SlotFlag.HW_SLOT),
            ),
            "algs": [
                name
                for name, alg in ALGORITHMS.items()
                if name not in faulty
                and attributes.GENERATION_MECHANISMS[alg.kty] in mechanisms
                and attributes.signing_mechanism(name, mechanisms) in mechanisms
            ],
        }

    def value(item: Any, name: Attribute) -> Any:
        try:
            return item[name]
        except pkcs11.PKCS11Error:
            return None

    with token.open(rw=what == "delete", user_pin=asked["pin"]) as session:
        found = []
        # One kind after the other: python-pkcs11 stumbles over a vendor's own kinds.
        for kind in ObjectClass:
            for item in list(session.get_objects({Attribute.CLASS: kind})):
                ref, label = value(item, Attribute.ID) or b"", value(item, Attribute.LABEL)
                found.append((item, [kind.name, ref.hex(), str(label or "")]))
        if what == "delete":
            for item, thing in found:
                if thing in asked["things"]:
                    item.destroy()
        return sorted(thing for _, thing in found)


def _pin_errors() -> tuple[type[Exception], ...]:
    from pkcs11 import exceptions

    # ykcs11 says ARGUMENTS_BAD for a PIN that is too short or too long.
    names = ("PinIncorrect", "PinInvalid", "PinLenRange", "PinLocked", "ArgumentsBad")
    return tuple(getattr(exceptions, name) for name in names)


if __name__ == "__main__":
    try:
        print(json.dumps(_main(sys.argv[1])))
    except Exception as e:
        pin = isinstance(e, _pin_errors())
        print(json.dumps({"error": str(e) or type(e).__name__, "pin": pin}))
        sys.exit(1)
