"""Which signatures a signer checks before they leave it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from pkcs11 import Mechanism

from dpop_agent.errors import SignerFailed
from dpop_agent.jose import ALGORITHMS, ec_jwk, thumbprint
from dpop_agent.signer.pkcs11.keys import Key
from dpop_agent.signer.pkcs11.token import Token
from dpop_agent.signer.store import KeyInfo


class Module:
    """A vendor's private key, which begins to sign with another one."""

    session = SimpleNamespace(handle=1)

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())

    def sign(self, digest: bytes, **_how: Any) -> bytes:
        r, s = decode_dss_signature(self.key.sign(digest, ec.ECDSA(Prehashed(SHA256()))))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def held(module: Module, *, checks_each: bool) -> Key:
    public = module.key.public_key().public_numbers()
    jwk = ec_jwk("P-256", public.x.to_bytes(32, "big"), public.y.to_bytes(32, "big"))
    info = KeyInfo("00", jwk, thumbprint(jwk), False, "hardware", True)
    # As behind p11-kit, where python-pkcs11 alone has the session.
    functions = SimpleNamespace(C_GetSessionInfo=lambda *_: 0xB3)
    token = SimpleNamespace(
        mechanisms={Mechanism.ECDSA},
        accepted_pin=None,
        module=SimpleNamespace(functions=functions),
    )
    return Key(cast("Token", token), module, info, asks_pin=False, checks_each=checks_each)


def test_the_first_signature_by_each_key_is_checked() -> None:
    module = Module()
    key = held(module, checks_each=False)
    module.key = Module().key
    with pytest.raises(SignerFailed, match="isn't its public key's"):
        key.sign(ALGORITHMS["ES256"], b"what is signed")


def test_with_verify_always_a_later_wrong_signature_doesnt_leave_either() -> None:
    module = Module()
    key = held(module, checks_each=True)
    for _ in range(3):
        key.sign(ALGORITHMS["ES256"], b"what is signed")
    module.key = Module().key
    with pytest.raises(SignerFailed, match="isn't its public key's"):
        key.sign(ALGORITHMS["ES256"], b"what is signed")
