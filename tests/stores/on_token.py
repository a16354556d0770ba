"""A PKCS#11 token seen and changed without the agent: by python-pkcs11, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
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
    token: Token,
    *,
    key_id: str,
    label: str = "somebody else's",
    kind: str = "secp256r1",
    was_extractable: bool = False,
) -> None:
    """A key pair that isn't the agent's; it isn't extractable, or not any more.

    Args:
        token: where.
        key_id: its CKA_ID in hex; none where that is empty.
        label: its CKA_LABEL.
        kind: a curve, or the bits of an RSA key.
        was_extractable: it could leave the PKCS#11 token.
    """
    _run(token, "make", key_id, label, kind, *["was extractable"] * was_extractable)


def certify(token: Token, *, key_id: str, wrongly: bool = False, times: int = 1) -> None:
    """Put certificates in the place of a public key; `wrongly` they are another key's."""
    _run(token, "certify wrongly" if wrongly else "certify", key_id, str(times))


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
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
    from cryptography.x509.oid import NameOID
    from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
    from pkcs11.constants import DEFAULT, CertificateType
    from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters

    from dpop_agent.signer.pkcs11.module import Module

    def certificate(key: Any, serial: int) -> bytes:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key)
            .serial_number(serial)
            .not_valid_before(datetime(2026, 1, 1))
            .not_valid_after(datetime(2036, 1, 1))
            .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        )
        return made.public_bytes(Encoding.DER)

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

    wanted: dict[Any, Any]
    token = Module(module, module_args).library.get_token(token_label=token_label)
    pin = Path(pin_file).read_text().strip()
    with token.open(rw=True, user_pin=pin) as session:
        if what == "serial":
            print(token.serial.decode().strip())
        elif what == "list":
            print(json.dumps([described(item) for item in every(session)]))
        elif what == "make":
            key_id, label, kind, *was_extractable = words
            settings: dict[str, Any] = {
                "id": bytes.fromhex(key_id) or None,
                "label": label,
                "store": True,
                "capabilities": MechanismFlag.SIGN,
                "public_template": {Attribute.VERIFY: DEFAULT, Attribute.ENCRYPT: DEFAULT},
                "private_template": {Attribute.EXTRACTABLE: bool(was_extractable)},
            }
            if kind.isdigit():
                session.generate_keypair(KeyType.RSA, int(kind), **settings)
                return
            _, private = session.create_domain_parameters(
                KeyType.EC,
                {Attribute.EC_PARAMS: encode_named_curve_parameters(kind)},
                local=True,
            ).generate_keypair(mechanism=Mechanism.EC_KEY_PAIR_GEN, **settings)
            if was_extractable:
                private[Attribute.EXTRACTABLE] = False
        elif what.startswith("certify"):
            key_id, times = words
            wanted = {Attribute.ID: bytes.fromhex(key_id), Attribute.CLASS: ObjectClass.PUBLIC_KEY}
            (public,) = session.get_objects(wanted)
            if what == "certify":
                key = load_der_public_key(encode_ec_public_key(public))
            else:
                key = ec.generate_private_key(ec.SECP256R1()).public_key()
            for serial in range(1, int(times) + 1):
                session.create_object(
                    {
                        Attribute.CLASS: ObjectClass.CERTIFICATE,
                        Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
                        Attribute.TOKEN: True,
                        Attribute.ID: bytes.fromhex(key_id),
                        Attribute.LABEL: public[Attribute.LABEL],
                        Attribute.SUBJECT: b"somebody",
                        Attribute.VALUE: certificate(key, serial),
                    }
                )
            public.destroy()
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
            wanted = {Attribute.ID: bytes.fromhex(words[0])}
            if what == "delete public":
                wanted[Attribute.CLASS] = ObjectClass.PUBLIC_KEY
            if len(words) > 1:
                wanted[Attribute.LABEL] = words[1]
            for item in list(session.get_objects(wanted)):
                item.destroy()


if __name__ == "__main__":
    _main(*sys.argv[1:])
