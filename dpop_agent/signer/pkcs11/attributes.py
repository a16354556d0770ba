"""What a key's attributes are to be, what they are, and which mechanism an algorithm has."""

from __future__ import annotations

from collections.abc import Container
from contextlib import suppress
from struct import error as StructError  # noqa: N812  (an exception's name)
from typing import Any

import pkcs11
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11.constants import DEFAULT
from pkcs11.exceptions import (
    AttributeReadOnly,
    AttributeTypeInvalid,
    AttributeValueInvalid,
    FunctionRejected,
    PKCS11Error,
    TemplateInconsistent,
)

from dpop_agent.errors import SignerFailed
from dpop_agent.jose import ALGORITHMS, ec_jwk, okp_jwk, rsa_jwk
from dpop_agent.protocol import LABEL_REF, MAX_LABEL, REF
from dpop_agent.signer.jwk import NoJwk, jwk_of
from dpop_agent.signer.pkcs11.module import error_name

# ECParameters (RFC 5480 section 2.1.1; Ed25519: PKCS#11 3.0 section 2.3.10, a PrintableString, or
# RFC 8410 section 3's OID, which NSS wants).
EC_PARAMS = {
    "P-256": (bytes.fromhex("06082a8648ce3d030107"),),
    "P-384": (bytes.fromhex("06052b81040022"),),
    "P-521": (bytes.fromhex("06052b81040023"),),
    "Ed25519": (bytes.fromhex("130c656477617264733235353139"), bytes.fromhex("06032b6570")),
}

# DigestInfo of SHA-256 for EMSA-PKCS1-v1_5 (RFC 8017 section 9.2, note 1).
SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")

KEY_TYPES = {"EC": KeyType.EC, "RSA": KeyType.RSA, "OKP": KeyType.EC_EDWARDS}
GENERATION_MECHANISMS = {
    "EC": Mechanism.EC_KEY_PAIR_GEN,
    "RSA": Mechanism.RSA_PKCS_KEY_PAIR_GEN,
    "OKP": Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
}
_SIGNING_MECHANISMS = {
    "ES256": Mechanism.ECDSA,
    "ES384": Mechanism.ECDSA,
    "ES512": Mechanism.ECDSA,
    "RS256": Mechanism.RSA_PKCS,
    "PS256": Mechanism.RSA_PKCS_PSS,
    "EdDSA": Mechanism.EDDSA,
    "Ed25519": Mechanism.EDDSA,
}
# RFC 7518 section 3.5: a salt as long as the hash.
PSS_PARAMETERS = (Mechanism.SHA256, pkcs11.MGF.SHA256, 32)

PUBLIC_TEMPLATE = dict.fromkeys(
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
PRIVATE_TEMPLATES = (
    _PRIVATE_TEMPLATE
    | dict.fromkeys(
        (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE, Attribute.SIGN_RECOVER), False
    ),
    _PRIVATE_TEMPLATE,
    _PRIVATE_TEMPLATE | {Attribute.EXTRACTABLE: DEFAULT},
)
CURVE_REFUSED = ("DomainParamsInvalid", "CurveNotSupported")
TEMPLATE_REFUSED = (
    AttributeTypeInvalid,
    AttributeValueInvalid,
    AttributeReadOnly,
    TemplateInconsistent,
    FunctionRejected,
)


def signing_mechanism(alg: str, offered: Container[Mechanism]) -> Mechanism:
    """The one that signs for `alg`, where a PKCS#11 token offers those."""
    # With the bare one tpm2-pkcs11 signs by decrypting, which these keys mustn't do.
    if alg == "RS256" and Mechanism.SHA256_RSA_PKCS in offered:
        return Mechanism.SHA256_RSA_PKCS
    return _SIGNING_MECHANISMS[alg]


UNREADABLE = (PKCS11Error, ValueError, StructError, KeyError, NotImplementedError, MemoryError)
"""What python-pkcs11 raises for an attribute that its module can't tell, or tells in a wrong
form."""


class UnexpectedObject(SignerFailed):
    """The object isn't what the agent put there; that is its own trouble, and not the store's."""


class Unreadable(UnexpectedObject):
    """It can't be read; what it is, nobody knows."""


def read(key: Any, attribute: Attribute) -> Any:
    """An attribute's value; None where the module doesn't have it."""
    try:
        return key[attribute]
    except (AttributeTypeInvalid, pkcs11.exceptions.AttributeSensitive):
        return None


def shown(key: Any) -> dict[str, str]:
    """An object's `ref` and `label` for people, as far as they can be read; it may be anybody's."""
    found = {"ref": "", "label": ""}
    with suppress(*UNREADABLE):
        found["ref"] = ref(key)
    with suppress(*UNREADABLE):
        found["label"] = key[Attribute.LABEL][:MAX_LABEL]
    return found


def ref(key: Any) -> str:
    """What it is found by: its CKA_ID, else its CKA_LABEL; empty if neither can be given."""
    found = bytes(read(key, Attribute.ID) or b"").hex()
    if not found and (label := read(key, Attribute.LABEL)):
        found = LABEL_REF + label.encode("utf-8", "surrogatepass").hex()
    return found if REF.fullmatch(found) else ""


def template_of(ref: str) -> dict[Attribute, Any]:
    """The attributes by which that is found."""
    if ref.startswith(LABEL_REF):
        label = bytes.fromhex(ref.removeprefix(LABEL_REF))
        return {Attribute.LABEL: label.decode("utf-8", "surrogatepass")}
    return {Attribute.ID: bytes.fromhex(ref)}


def never_left(private: Any) -> bool:
    """PKCS#11 3.0 section 4.9: it can't leave the token, and never could."""
    return (
        read(private, Attribute.SENSITIVE) is True
        and read(private, Attribute.EXTRACTABLE) is False
        and read(private, Attribute.ALWAYS_SENSITIVE) is True
        and read(private, Attribute.NEVER_EXTRACTABLE) is True
    )


def certified_jwk(certificate: Any) -> dict[str, str]:
    """The JWK of the public key in an X.509 certificate (RFC 5280).

    Raises:
        UnexpectedObject: it is none that the agent can use.
    """
    try:
        return jwk_of(
            x509.load_der_x509_certificate(bytes(certificate[Attribute.VALUE])).public_key()
        )
    except (*UNREADABLE, UnsupportedAlgorithm, NoJwk) as e:
        raise UnexpectedObject(
            f"a certificate on the PKCS#11 token has no public key that can be used ({cause(e)})"
        ) from e


def public_jwk(public: Any) -> dict[str, str]:
    """A public key as a JWK, required members only (RFC 7517).

    Raises:
        UnexpectedObject: it is none that the agent can have made.
    """
    try:
        return _read_jwk(public)
    except UNREADABLE as e:  # such as an object that its module was killed over
        raise Unreadable(f"a public key on the PKCS#11 token can't be read ({cause(e)})") from e


def cause(error: Exception) -> str:
    """What kept something from being read, for people."""
    return error_name(error) if isinstance(error, PKCS11Error) else type(error).__name__


def _read_jwk(public: Any) -> dict[str, str]:
    kind = read(public, Attribute.KEY_TYPE)
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
        if row.kty == "EC" and row.crv is not None and params in EC_PARAMS[row.crv]:
            size = row.coordinate_size
            octets = _octets(point, 1 + 2 * size)
            if octets[0] != 4:  # SEC 1 section 2.3.3: uncompressed
                break
            return ec_jwk(row.crv, octets[1 : 1 + size], octets[1 + size :])
    raise UnexpectedObject("the PKCS#11 token's public key has an unknown form")


def _octets(point: bytes, size: int) -> bytes:
    """CKA_EC_POINT's content: a DER OCTET STRING, on some modules without its wrapping."""
    if len(point) == size:
        return point
    head = bytes([4, size]) if size < 128 else bytes([4, 0x81, size])
    if len(point) == len(head) + size and point.startswith(head):
        return point[len(head) :]
    raise UnexpectedObject("the PKCS#11 token's CKA_EC_POINT isn't a point")
