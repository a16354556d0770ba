"""Keys in a PKCS#11 token, through a vendor's module (PKCS#11 3.0; python-pkcs11).

The mechanisms are named each time: python-pkcs11's defaults aren't JOSE's. Digests are made here
and signed with the bare mechanism, since few modules have the combined ones. After an error in
the middle of an operation the session can't be trusted, and handles outlive what they named: the
store is `broken` then, its process ends, and a new one looks again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, TokenFlag
from pkcs11.constants import DEFAULT, SlotFlag
from pkcs11.exceptions import (
    AttributeReadOnly,
    AttributeTypeInvalid,
    AttributeValueInvalid,
    FunctionRejected,
    MechanismInvalid,
    PinIncorrect,
    PinLenRange,
    PinLocked,
    PKCS11Error,
    TemplateInconsistent,
)

from dpop_agent.config import TokenUri
from dpop_agent.errors import (
    AlgorithmUnsupported,
    InvalidProof,
    KeyMissing,
    Locked,
    PinRefused,
    SignerFailed,
    StoreAbsent,
)
from dpop_agent.jose import ALGORITHMS, RSA_BITS, Algorithm, ec_jwk, okp_jwk, rsa_jwk, thumbprint
from dpop_agent.signer import vendors
from dpop_agent.signer.pin import PinSource
from dpop_agent.signer.store import KeyInfo, Store
from dpop_agent.verify import check_signature

ID_BYTES = 16
"""Random bytes of a CKA_ID: no two agents on one HSM partition meet."""

MAX_LABEL = 64
"""Characters shown of an object's label."""

FRESH_S = 5.0
"""Seconds after opening in which what is found, or isn't, counts as really so."""

# ECParameters (RFC 5480 section 2.1.1; Ed25519: PKCS#11 3.0 section 2.3.10, a PrintableString).
_EC_PARAMS = {
    "P-256": bytes.fromhex("06082a8648ce3d030107"),
    "P-384": bytes.fromhex("06052b81040022"),
    "P-521": bytes.fromhex("06052b81040023"),
    "Ed25519": bytes.fromhex("130c656477617264733235353139"),
}

# DigestInfo of SHA-256 for EMSA-PKCS1-v1_5 (RFC 8017 section 9.2, note 1).
_SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")

_KEY_TYPES = {"EC": KeyType.EC, "RSA": KeyType.RSA, "OKP": KeyType.EC_EDWARDS}
_GENERATE = {
    "EC": Mechanism.EC_KEY_PAIR_GEN,
    "RSA": Mechanism.RSA_PKCS_KEY_PAIR_GEN,
    "OKP": Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
}
_SIGN = {
    "ES256": Mechanism.ECDSA,
    "ES384": Mechanism.ECDSA,
    "ES512": Mechanism.ECDSA,
    "RS256": Mechanism.RSA_PKCS,
    "PS256": Mechanism.RSA_PKCS_PSS,
    "EdDSA": Mechanism.EDDSA,
    "Ed25519": Mechanism.EDDSA,
}
_PSS = (Mechanism.SHA256, pkcs11.MGF.SHA256, 32)  # RFC 7518 section 3.5: salt as long as the hash

_PUBLIC_TEMPLATE = dict.fromkeys(
    (Attribute.VERIFY, Attribute.ENCRYPT, Attribute.WRAP), DEFAULT
)  # left out: tpm2-pkcs11 fails with them
_PRIVATE_TEMPLATE = {
    Attribute.SIGN: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.DECRYPT: DEFAULT,
    Attribute.UNWRAP: DEFAULT,
    Attribute.DERIVE: DEFAULT,
}
# From the strictest on: some modules refuse a `false`, ykcs11 refuses EXTRACTABLE itself. What was
# accepted proves nothing; the attributes are read back.
_PRIVATE_TEMPLATES = (
    _PRIVATE_TEMPLATE
    | dict.fromkeys(
        (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE, Attribute.SIGN_RECOVER), False
    ),
    _PRIVATE_TEMPLATE,
    _PRIVATE_TEMPLATE | {Attribute.EXTRACTABLE: DEFAULT},
)
_TEMPLATE_REFUSED = (
    AttributeTypeInvalid,
    AttributeValueInvalid,
    AttributeReadOnly,
    TemplateInconsistent,
    FunctionRejected,
)


class _OddKey(SignerFailed):
    """The object isn't what the agent put there. Another process would see the same."""


@dataclass(slots=True)
class _Open:
    """A key pair whose handle is held."""

    private: Any
    info: KeyInfo
    verified: bool = False


def tokens(module: str) -> list[dict[str, Any]]:
    """The PKCS#11 tokens of a module, for `init`; nobody logs in.

    Raises:
        StoreAbsent: the module can't be loaded.
    """
    return [
        {
            "label": _text(token.label),
            "serial": _text(token.serial),
            "manufacturer": _text(token.manufacturer_id),
            "model": _text(token.model),
            "initialized": bool(token.flags & TokenFlag.TOKEN_INITIALIZED),
            "pin_initialized": bool(token.flags & TokenFlag.USER_PIN_INITIALIZED),
        }
        for token in _present(module)
    ]


def _text(value: bytes | str) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value).strip("\0 ")


def _present(module: str) -> list[Any]:
    if not os.path.exists(module):
        raise StoreAbsent(
            f"there is no PKCS#11 module {module}", hint="correct module in the configuration"
        )
    try:
        slots = pkcs11.lib(module).get_slots(token_present=True)
    except PKCS11Error as e:
        raise StoreAbsent(
            f"the PKCS#11 module {module} doesn't work ({_said(e)})",
            hint="see what its vendor asks for, such as pcscd or a setting in env",
        ) from e
    found = []
    for slot in slots:
        try:
            found.append(slot.get_token())
        except PKCS11Error:  # pulled since, or nothing that this module knows
            continue
    return found


def _said(error: PKCS11Error) -> str:
    name = type(error).__name__
    return f"{name}: {error}" if name == "PKCS11Error" else name


class Pkcs11Store(Store):
    """One PKCS#11 token.

    Args:
        module: full path of the vendor's shared object.
        uri: names it (RFC 7512).
        pin: where the user PIN comes from; asked once, and an accepted one is kept.
    """

    def __init__(self, *, module: str, uri: TokenUri, pin: PinSource) -> None:
        self._module = module
        self._uri = uri
        self._pin = pin
        self._accepted: str | None = None
        self._keys: dict[str, _Open] = {}

    def open(self) -> dict[str, Any]:
        self._token = self._find_token()
        self._protection = vendors.protection(
            _text(self._token.manufacturer_id),
            hardware_slot=bool(self._token.slot.flags & SlotFlag.HW_SLOT),
        )
        self._mechanisms = set(self._token.slot.get_mechanisms())
        library = pkcs11.lib(self._module)
        self._faulty = vendors.faulty_algorithms(library.manufacturer_id, library.library_version)
        self._session = self._login()
        self._opened = time.monotonic()
        return {
            "label": _text(self._token.label),
            "serial": _text(self._token.serial),
            "model": _text(self._token.model),
        }

    def _find_token(self) -> Any:
        found = [
            token
            for token in _present(self._module)
            if token.flags & TokenFlag.TOKEN_INITIALIZED  # SoftHSM always has one that isn't
            and self._uri.matches(
                label=_text(token.label),
                serial=_text(token.serial),
                manufacturer=_text(token.manufacturer_id),
                model=_text(token.model),
            )
        ]
        if not found:
            raise StoreAbsent(
                f"no PKCS#11 token {self._uri} is there",
                hint="plug it in, or correct uri in the configuration",
            )
        if len(found) > 1:
            serials = ", ".join(_text(token.serial) for token in found)
            raise StoreAbsent(
                f"{len(found)} PKCS#11 tokens fit {self._uri}: serials {serials}",
                hint="give the serial in uri",
                retry="no",
            )
        return found[0]

    def _login(self) -> Any:
        flags = self._token.flags
        if flags & TokenFlag.USER_PIN_LOCKED:
            raise PinRefused("the PKCS#11 token's PIN is locked", hint="unblock it with its PUK")
        if flags & TokenFlag.USER_PIN_FINAL_TRY and not self._pin.typed:
            raise PinRefused(
                "the PKCS#11 token has one PIN try left, which isn't spent on a stored PIN",
                hint="log in once with its vendor's tool",
            )
        if flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
            return self._login_with(pkcs11.PROTECTED_AUTH)  # PKCS#11 3.0 section 5.6.8
        pin = self._pin.get() if self._accepted is None else self._accepted
        session = self._login_with(pin)
        self._accepted = pin
        self._pin.accepted(pin)
        return session

    def _login_with(self, pin: Any) -> Any:
        try:
            return self._token.open(rw=True, user_pin=pin)
        except (PinIncorrect, PinLenRange) as e:
            self._accepted = None
            self._pin.refused()
            raise PinRefused(
                f"the PKCS#11 token {self._uri} refused its PIN{self._tries_left()}",
                hint=self._pin.after_refusal,
            ) from e
        except PinLocked as e:
            raise PinRefused(
                "the PKCS#11 token's PIN is locked", hint="unblock it with its PUK"
            ) from e
        except PKCS11Error as e:
            raise Locked(f"logging in to the PKCS#11 token failed ({_said(e)})") from e

    def release(self) -> None:
        self._keys.clear()
        with self._guard("releasing the PKCS#11 token"):
            self._session.close()
            pkcs11.unload(self._module)

    def _tries_left(self) -> str:
        try:
            flags = self._token.slot.get_token().flags  # the old object's flags are a snapshot
        except PKCS11Error:
            return ""
        if flags & TokenFlag.USER_PIN_LOCKED:
            return ", and is locked now"
        if flags & TokenFlag.USER_PIN_FINAL_TRY:
            return ", one try is left"
        return ""

    def reserve(self, alg: str) -> str:
        needed = {_GENERATE[ALGORITHMS[alg].kty], self._mechanism(alg)}
        if alg in self._faulty or not needed <= self._mechanisms:
            raise AlgorithmUnsupported(
                f"the PKCS#11 token {self._uri} can't make keys for {alg}",
                hint="ES256 is the one that every server accepts",
            )
        return secrets.token_hex(ID_BYTES)

    def generate(self, ref: str, alg: str, label: str) -> KeyInfo:
        with self._guard("generating a key"):
            if self._objects_with(ref, ObjectClass.PRIVATE_KEY):
                raise SignerFailed(f"the PKCS#11 token has a key with the id {ref} already")
            pair = self._generate_pair(bytes.fromhex(ref), ALGORITHMS[alg], label)
        try:
            info = self.find(ref, alg, self_test=True)
        except SignerFailed:
            self._undo(pair)
            raise
        if info is None:
            raise SignerFailed("the key that was just made isn't on the PKCS#11 token")
        if info.exportable:
            self.destroy(ref, info.jkt)
            raise SignerFailed(
                "the PKCS#11 token made a key that could leave it, which was destroyed again",
                hint="use another PKCS#11 token",
            )
        return info

    @staticmethod
    def _undo(pair: Iterable[Any]) -> None:
        """Destroy what was just made and is of no use; nobody would find it by its jkt."""
        try:
            for key in pair:
                key.destroy()
        except PKCS11Error:
            pass  # it stays pending, and is looked for again

    def _generate_pair(self, key_id: bytes, alg: Algorithm, label: str) -> tuple[Any, Any]:
        refused: PKCS11Error | None = None
        for template in _PRIVATE_TEMPLATES:
            arguments: dict[str, Any] = {
                "id": key_id,
                "label": label,
                "store": True,
                "mechanism": _GENERATE[alg.kty],
                "public_template": _PUBLIC_TEMPLATE,
                "private_template": template,
            }
            try:
                if alg.crv is None:
                    public, private = self._session.generate_keypair(
                        KeyType.RSA, RSA_BITS, **arguments
                    )
                else:
                    public, private = self._session.create_domain_parameters(
                        _KEY_TYPES[alg.kty], {Attribute.EC_PARAMS: _EC_PARAMS[alg.crv]}, local=True
                    ).generate_keypair(**arguments)
            except _TEMPLATE_REFUSED as e:
                refused = e
            except MechanismInvalid as e:
                raise AlgorithmUnsupported(
                    f"the PKCS#11 token can't make keys for {alg.name}"
                ) from e
            else:
                return private, public
        raise SignerFailed(f"the PKCS#11 token refused every key template ({refused})")

    def find(self, ref: str, alg: str, *, self_test: bool) -> KeyInfo | None:
        self._keys.pop(ref, None)
        with self._guard("looking for a key"):
            opened = self._load(ref, ALGORITHMS[alg])
            if opened is not None and self_test:
                self._signature(opened, ALGORITHMS[alg], secrets.token_bytes(32))
        return None if opened is None else opened.info

    def half_made(self, ref: str) -> str | None:
        with self._guard("looking for a key"):
            private = self._objects_with(ref, ObjectClass.PRIVATE_KEY)
            public = self._objects_with(ref, ObjectClass.PUBLIC_KEY)
            return thumbprint(_public_jwk(public[0])) if public and not private else None

    def sign(self, ref: str, jkt: str, alg: str, signing_input: bytes) -> bytes:
        with self._guard("signing"):
            opened = self._the_key(ref, jkt, ALGORITHMS[alg])
            return self._signature(opened, ALGORITHMS[alg], signing_input)

    def _the_key(self, ref: str, jkt: str, alg: Algorithm) -> _Open:
        """Exactly the key with that thumbprint.

        Raises:
            KeyMissing
        """
        opened = self._keys.get(ref) or self._load(ref, alg)
        if (opened is None or opened.info.jkt != jkt) and (
            time.monotonic() - self._opened > FRESH_S
        ):
            # Modules show an object list from before a card was pulled: look anew.
            self.release()
            self.open()
            opened = self._load(ref, alg)
        if opened is None:
            raise KeyMissing(f"the PKCS#11 token {self._uri} has no key with the id {ref}")
        if opened.info.jkt != jkt:
            raise KeyMissing(f"the key with the id {ref} on the PKCS#11 token isn't the one it was")
        return opened

    def destroy(self, ref: str, jkt: str) -> None:
        self._keys.pop(ref, None)
        with self._guard("destroying a key"):
            private = self._objects_with(ref, ObjectClass.PRIVATE_KEY)
            public = self._objects_with(ref, ObjectClass.PUBLIC_KEY)
            if any(thumbprint(_public_jwk(key)) != jkt for key in public) or (
                private and not public
            ):
                raise KeyMissing(
                    f"what has the id {ref} on the PKCS#11 token isn't the agent's key any more",
                    hint="delete it with the vendor's tool if it is nobody's",
                )
            # The private key first: as long as one is there, its public key tells whose it is.
            for key in private + public:
                key.destroy()

    def objects(self) -> list[dict[str, Any]]:
        with self._guard("listing keys"):
            found = list(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
            return [
                {"ref": (_read(key, Attribute.ID) or b"").hex(), "label": _label(key)}
                for key in found
            ]

    def _objects_with(self, ref: str, kind: ObjectClass) -> list[Any]:
        return list(
            self._session.get_objects({Attribute.CLASS: kind, Attribute.ID: bytes.fromhex(ref)})
        )

    def _load(self, ref: str, alg: Algorithm | None) -> _Open | None:
        """Find exactly one key pair and read it back; `alg` None takes any."""
        private = self._objects_with(ref, ObjectClass.PRIVATE_KEY)
        public = self._objects_with(ref, ObjectClass.PUBLIC_KEY)
        if not private:
            return None
        if len(private) > 1 or len(public) != 1:
            raise _OddKey(
                f"the PKCS#11 token has {len(private)} private and {len(public)} public keys with "
                f"the id {ref}, where one of each belongs",
                hint="delete what isn't the agent's with the vendor's tool",
            )
        jwk = _public_jwk(public[0])
        if alg is not None and (jwk["kty"], jwk.get("crv")) != (alg.kty, alg.crv):
            raise _OddKey(f"the key with the id {ref} isn't one for {alg.name}")
        info = KeyInfo(
            ref=ref,
            jwk=jwk,
            jkt=thumbprint(jwk),
            exportable=not _never_left(private[0]),
            protection=self._protection,
            local=_read(private[0], Attribute.LOCAL),
        )
        opened = self._keys[ref] = _Open(private[0], info)
        return opened

    def _mechanism(self, alg: str) -> Mechanism:
        # With the bare one tpm2-pkcs11 signs by decrypting, which these keys mustn't do.
        if alg == "RS256" and Mechanism.SHA256_RSA_PKCS in self._mechanisms:
            return Mechanism.SHA256_RSA_PKCS
        return _SIGN[alg]

    def _signature(self, key: _Open, alg: Algorithm, data: bytes) -> bytes:
        mechanism = self._mechanism(alg.name)
        if alg.name == "PS256":
            signature = key.private.sign(
                hashlib.sha256(data).digest(), mechanism=mechanism, mechanism_param=_PSS
            )
        elif mechanism == Mechanism.RSA_PKCS:
            signature = key.private.sign(
                _SHA256_DIGEST_INFO + hashlib.sha256(data).digest(), mechanism=mechanism
            )
        elif alg.kty == "EC":
            signature = key.private.sign(
                hashlib.new(alg.digest, data).digest(), mechanism=mechanism
            )
        else:
            signature = key.private.sign(data, mechanism=mechanism)
        if len(signature) != alg.signature_size:
            raise SignerFailed(f"the PKCS#11 token's signature has {len(signature)} bytes")
        if not key.verified:
            # Once for each key and process: a module that signs with another key is found out.
            try:
                check_signature(alg.name, key.info.jwk, data, signature)
            except InvalidProof as e:
                raise SignerFailed("the PKCS#11 token's signature isn't its public key's") from e
            key.verified = True
        return bytes(signature)

    def _view_is_old(self) -> bool:
        return time.monotonic() - self._opened > FRESH_S

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        """Turn the module's errors into ours; after one, nothing that is held open is trusted."""
        try:
            yield
        except PKCS11Error as e:
            self.broken = True
            raise SignerFailed(
                f"{doing} failed in the PKCS#11 module ({_said(e)})", hint="see: dpop-agent status"
            ) from e
        except _OddKey:
            self.broken = self._view_is_old()
            raise
        except SignerFailed:
            self.broken = True
            raise


def _read(key: Any, attribute: Attribute) -> Any:
    """An attribute's value; None where the module doesn't have it."""
    try:
        return key[attribute]
    except (AttributeTypeInvalid, pkcs11.exceptions.AttributeSensitive):
        return None


def _label(key: Any) -> str:
    return str(_read(key, Attribute.LABEL) or "")[:MAX_LABEL]


def _never_left(private: Any) -> bool:
    """PKCS#11 3.0 section 4.9: it can't leave the token, and never could."""
    return (
        _read(private, Attribute.SENSITIVE) is True
        and _read(private, Attribute.EXTRACTABLE) is False
        and _read(private, Attribute.ALWAYS_SENSITIVE) is True
        and _read(private, Attribute.NEVER_EXTRACTABLE) is True
    )


def _public_jwk(public: Any) -> dict[str, str]:
    try:
        return _read_jwk(public)
    except PKCS11Error as e:  # such as an object that its module was killed over
        raise _OddKey(f"a public key on the PKCS#11 token can't be read ({_said(e)})") from e


def _read_jwk(public: Any) -> dict[str, str]:
    kind = _read(public, Attribute.KEY_TYPE)
    if kind == KeyType.RSA:
        return rsa_jwk(
            int.from_bytes(public[Attribute.MODULUS], "big"),
            int.from_bytes(public[Attribute.PUBLIC_EXPONENT], "big"),
        )
    point = bytes(public[Attribute.EC_POINT])
    if kind == KeyType.EC_EDWARDS:
        return okp_jwk("Ed25519", _octets(point, 32))
    params = bytes(public[Attribute.EC_PARAMS])
    for row in ALGORITHMS.values():
        if row.kty == "EC" and row.crv is not None and _EC_PARAMS[row.crv] == params:
            size = row.coordinate_size
            octets = _octets(point, 1 + 2 * size)
            if octets[0] != 4:  # SEC 1 section 2.3.3: uncompressed
                break
            return ec_jwk(row.crv, octets[1 : 1 + size], octets[1 + size :])
    raise _OddKey("the PKCS#11 token's public key has a form that isn't known here")


def _octets(point: bytes, size: int) -> bytes:
    """CKA_EC_POINT's content: a DER OCTET STRING, on some modules without its wrapping."""
    if len(point) == size:
        return point
    head = bytes([4, size]) if size < 128 else bytes([4, 0x81, size])
    if len(point) == len(head) + size and point.startswith(head):
        return point[len(head) :]
    raise _OddKey("the PKCS#11 token's CKA_EC_POINT isn't a point")
