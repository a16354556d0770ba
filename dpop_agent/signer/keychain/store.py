"""Keys as items of the operating system's keychain, through one named backend of `keyring`.

Every program of the same user can read such an item without being asked: the keys are exportable,
and say so. They are read when they are first needed and stay in this process, which can't be
looked into; a keychain that is locked or stuck later doesn't keep them from signing.
"""

from __future__ import annotations

import binascii
import secrets
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from dpop_agent.errors import (
    AlgorithmUnsupported,
    InvalidProof,
    KeyMissing,
    SignerFailed,
)
from dpop_agent.jose import ALGORITHMS, RSA_BITS, Algorithm, signature_size, thumbprint
from dpop_agent.signer.jwk import CURVES, PrivateKey, jwk_of
from dpop_agent.signer.keychain.access import PROGRAMS, Keychain
from dpop_agent.signer.store import SIGNED, KeyInfo, Store, self_test_input
from dpop_agent.verify import check_signature

REF_BYTES = 16
"""Random bytes of a ref: no two agents of one user meet."""

MAX_ITEM = 8192
"""Characters of an item: four times the longest, an RSA key's."""

PROTECTION = "keychain"

_VERSION = "v1."
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


@dataclass(slots=True, repr=False)
class _Loaded:
    """A key pair that was read."""

    private: PrivateKey
    info: KeyInfo
    verified: bool = False


class KeychainStore(Store):
    """Keys in the operating system's keychain.

    A key's item has the service `dpop-agent/REF` and the user name `REF`, since the keychain can't
    be listed: a key that was cut short in its making has no jkt yet, and is found by what the
    ledger noted before. The value is `v1.` and base64 of PKCS#8 (RFC 5958); it is written once.

    It is never `broken`: what it has loaded signs without the keychain.

    Args:
        backend: one of `config.BACKENDS`.
    """

    def __init__(self, *, backend: str) -> None:
        self._name = backend
        self._keychain = Keychain(backend)
        self._label: str | None = None
        self._keys: dict[str, _Loaded] = {}

    def open(self) -> dict[str, Any]:
        """Look whether the keychain is there and unlocked; nothing is read yet."""
        if self._label is None:  # nothing was held in between that could have gone
            self._label = self._keychain.look()
        return {"label": self._label, "serial": None, "model": self._name.split(".")[-2]}

    def release(self) -> None:
        """Nothing: what it has loaded keeps nobody from the keychain."""

    def reserve(self, alg: str) -> str:
        """A new ref, if the keychain answers now: else nothing needs to be noted of it."""
        if alg not in ALGORITHMS:
            raise AlgorithmUnsupported(f"{alg[:80]!r} isn't an algorithm that dpop-agent knows")
        self._keychain.look()
        return secrets.token_hex(REF_BYTES)

    def generate(self, ref: str, alg: str, label: str) -> KeyInfo:  # noqa: ARG002
        """Make a key and write it once; `label` has no place in a keyring's item."""
        if self._keychain.get(_service(ref), ref) is not None:
            raise SignerFailed(f"the keychain has an item with the ref {ref} already")
        private = _make(ALGORITHMS[alg])
        made = _info(ref, private)
        self._keychain.put(_service(ref), ref, _encoded(private))
        info = self.find(ref, alg, self_test=True)
        if info is None or info.jkt != made.jkt:
            raise SignerFailed("the keychain doesn't give back the key that was just written")
        return info

    def find(self, ref: str, alg: str, *, self_test: bool, anew: bool = False) -> KeyInfo | None:  # noqa: ARG002
        read = self._read(ref)
        if read is None:
            self._keys.pop(ref, None)
            return None
        loaded = self._keys[ref] = _require_alg(alg, read)
        if self_test:
            _signature(loaded, ALGORITHMS[alg], self_test_input())
        return loaded.info

    def sign(self, ref: str, jkt: str, alg: str, signing_input: bytes) -> bytes:
        return _signature(self._the_key(ref, jkt, alg), ALGORITHMS[alg], signing_input)

    def self_test(self, ref: str, jkt: str, alg: str) -> str:
        loaded = self._the_key(ref, jkt, alg)
        loaded.verified = False
        _signature(loaded, ALGORITHMS[alg], self_test_input())
        return SIGNED

    def _the_key(self, ref: str, jkt: str, alg: str) -> _Loaded:
        """Exactly the key with that thumbprint.

        Raises:
            KeyMissing, SignerFailed
        """
        if ref not in self._keys:
            self.find(ref, alg, self_test=False)
        loaded = self._keys.get(ref)
        if loaded is None or loaded.info.jkt != jkt:
            raise KeyMissing(
                f"the keychain has no item with the ref {ref}"
                if loaded is None
                else f"the key with the ref {ref} in the keychain isn't the one it was"
            )
        return _require_alg(alg, loaded)

    def destroy(self, ref: str, jkt: str) -> None:
        read = self._read(ref)
        if read is not None and read.info.jkt != jkt:
            raise KeyMissing(
                f"what has the ref {ref} in the keychain isn't the agent's key any more",
                hint=f"it is left alone; you find it in {PROGRAMS}",
            )
        self._keys.pop(ref, None)
        if read is not None:
            self._keychain.delete(_service(ref), ref)

    def _read(self, ref: str) -> _Loaded | None:
        text = self._keychain.get(_service(ref), ref)
        if text is None:
            return None
        private = _decoded(ref, text)
        return _Loaded(private, _info(ref, private))


def _service(ref: str) -> str:
    return f"dpop-agent/{ref}"


def _make(alg: Algorithm) -> PrivateKey:
    if alg.kty == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
    if alg.kty == "OKP":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(CURVES[str(alg.crv)])


def _encoded(private: PrivateKey) -> str:
    der = private.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return _VERSION + binascii.b2a_base64(der, newline=False).decode("ascii")


def _decoded(ref: str, text: str) -> PrivateKey:
    """The private key of an item; what can be wiped of its copies is.

    Raises:
        SignerFailed: there is something else in it.
    """
    private: Any = None
    if text.startswith(_VERSION) and len(text) <= MAX_ITEM:
        der = bytearray()
        try:
            der += binascii.a2b_base64(text.removeprefix(_VERSION), strict_mode=True)
            private = serialization.load_der_private_key(der, password=None)
        except Exception:  # noqa: S110  (ValueError and more; its text may have a part of the key)
            pass
        finally:
            der[:] = bytes(len(der))
    if not isinstance(private, PrivateKey):
        raise SignerFailed(
            f"the keychain's item with the ref {ref} isn't one that this version wrote",
            hint=f"it is left alone; you find it in {PROGRAMS}",
        )
    return private


def _info(ref: str, private: PrivateKey) -> KeyInfo:
    jwk = jwk_of(private.public_key())
    return KeyInfo(
        ref=ref,
        jwk=jwk,
        jkt=thumbprint(jwk),
        exportable=True,
        protection=PROTECTION,
        local=None,
    )


def _require_alg(alg: str, loaded: _Loaded) -> _Loaded:
    row = ALGORITHMS[alg]
    jwk = loaded.info.jwk
    if (jwk["kty"], jwk.get("crv")) != (row.kty, row.crv):
        raise SignerFailed(f"the key with the ref {loaded.info.ref} isn't one for {alg}")
    return loaded


def _signature(key: _Loaded, alg: Algorithm, data: bytes) -> bytes:
    signature = _raw_signature(key.private, alg, data)
    if len(signature) != signature_size(alg, key.info.jwk):
        raise SignerFailed(f"the key's signature has {len(signature)} bytes")
    if not key.verified:
        # Once for each key and process, as in every store.
        try:
            check_signature(alg.name, key.info.jwk, data, signature)
        except InvalidProof as e:
            raise SignerFailed("the signature isn't the public key's") from e
        key.verified = True
    return signature


def _raw_signature(private: PrivateKey, alg: Algorithm, data: bytes) -> bytes:
    """As JWS has it (RFC 7518 section 3, RFC 8037 section 3.1)."""
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.sign(data)
    digest = _HASHES[alg.digest]
    if isinstance(private, rsa.RSAPrivateKey):
        pad: padding.AsymmetricPadding = padding.PKCS1v15()
        if alg.name == "PS256":
            pad = padding.PSS(padding.MGF1(digest), salt_length=digest.digest_size)
        return private.sign(data, pad, digest)
    r, s = decode_dss_signature(private.sign(data, ec.ECDSA(digest)))
    return r.to_bytes(alg.coordinate_size, "big") + s.to_bytes(alg.coordinate_size, "big")
