"""A PKCS#11 token seen and changed without the agent: by python-pkcs11, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.processes import ROOT, Token

MODULE = "/usr/lib/softhsm/libsofthsm2.so"

_USES = ("SIGN", "SIGN_RECOVER", "DECRYPT", "UNWRAP", "DERIVE", "VERIFY", "ENCRYPT", "WRAP")
_OTHERS = ("SENSITIVE", "EXTRACTABLE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE", "LOCAL", "TOKEN")


def objects(token: Token) -> list[dict[str, Any]]:
    """Every object: `class`, `id` in hex, `label`, `uses`, and the attributes by their names."""
    found: list[dict[str, Any]] = json.loads(_run(token, "list"))
    return found


def serial(token: Token) -> str:
    """The PKCS#11 token's own."""
    return _run(token, "serial").strip()


def private_ids(token: Token) -> list[str]:
    """The ids of all private keys, in hex, sorted."""
    return sorted(o["id"] for o in objects(token) if o["class"] == "PRIVATE_KEY")


def make_stranger(
    token: Token, *, key_id: str, label: str = "somebody else's", was_extractable: bool = False
) -> None:
    """A key pair that isn't the agent's; it isn't extractable, or not any more."""
    _run(token, "make", key_id, label, *["was extractable"] * was_extractable)


def make_others(token: Token, *, label: str) -> None:
    """Objects that are no key pairs: data, a secret key and a certificate that is none."""
    _run(token, "others", label)


def delete(
    token: Token, key_id: str, *, label: str | None = None, public_alone: bool = False
) -> None:
    """Delete every object with that id, and that label where one is given."""
    words = ["delete public" if public_alone else "delete", key_id]
    _run(token, *words, *([] if label is None else [label]))


def _run(token: Token, *words: str) -> str:
    place = [token.module, token.module_args, str(token.pin_file), token.label]
    return subprocess.run(
        [sys.executable, "-m", "tests.stores.on_token", *place, *words],
        cwd=ROOT,
        env={**os.environ, **token.env},
        check=True,
        timeout=30,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def _main(
    module: str, module_args: str, pin_file: str, token_label: str, what: str, *words: str
) -> None:
    import pkcs11
    from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
    from pkcs11.constants import DEFAULT, CertificateType
    from pkcs11.util.ec import encode_named_curve_parameters

    from dpop_agent.signer.pkcs11.module import Module

    def value(item: Any, name: str) -> Any:
        try:
            return item[Attribute[name]]
        except pkcs11.PKCS11Error:
            return None

    def described(item: Any) -> dict[str, Any]:
        return {
            "class": ObjectClass(value(item, "CLASS")).name,
            "id": (value(item, "ID") or b"").hex(),
            "label": str(value(item, "LABEL")),
            "uses": [name for name in _USES if value(item, name) is True],
            **{name: value(item, name) for name in _OTHERS},
        }

    def every(session: Any) -> list[Any]:
        # One kind after the other: python-pkcs11 stumbles over a vendor's own kinds.
        return [o for k in ObjectClass for o in list(session.get_objects({Attribute.CLASS: k}))]

    token = Module(module, module_args).library.get_token(token_label=token_label)
    pin = Path(pin_file).read_text().strip()
    with token.open(rw=True, user_pin=pin) as session:
        if what == "serial":
            print(token.serial.decode().strip())
        elif what == "list":
            print(json.dumps([described(item) for item in every(session)]))
        elif what == "make":
            key_id, label, *was_extractable = words
            _, private = session.create_domain_parameters(
                KeyType.EC,
                {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
                local=True,
            ).generate_keypair(
                id=bytes.fromhex(key_id),
                label=label,
                store=True,
                mechanism=Mechanism.EC_KEY_PAIR_GEN,
                capabilities=MechanismFlag.SIGN,
                public_template={Attribute.VERIFY: DEFAULT, Attribute.ENCRYPT: DEFAULT},
                private_template={Attribute.EXTRACTABLE: bool(was_extractable)},
            )
            if was_extractable:
                private[Attribute.EXTRACTABLE] = False
        elif what == "others":
            common = {Attribute.LABEL: words[0], Attribute.TOKEN: True}
            session.create_object(
                common | {Attribute.CLASS: ObjectClass.DATA, Attribute.VALUE: b"data"}
            )
            session.generate_key(KeyType.AES, 128, label=words[0], store=True)
            session.create_object(
                common
                | {
                    Attribute.CLASS: ObjectClass.CERTIFICATE,
                    Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
                    Attribute.SUBJECT: b"nobody",
                    Attribute.VALUE: b"none",
                }
            )
        else:
            wanted: dict[Any, Any] = {Attribute.ID: bytes.fromhex(words[0])}
            if what == "delete public":
                wanted[Attribute.CLASS] = ObjectClass.PUBLIC_KEY
            if len(words) > 1:
                wanted[Attribute.LABEL] = words[1]
            for item in list(session.get_objects(wanted)):
                item.destroy()


if __name__ == "__main__":
    _main(*sys.argv[1:])
