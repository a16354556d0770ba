"""What is particular to one vendor's module, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cryptography import x509

_YUBICO = "Yubico"
_TPM2 = "tpm2-software"
_SOFTWARE_MANUFACTURERS = ("SoftHSM", "Mozilla", "NSS")


def protection(manufacturer: str, *, hardware_slot: bool) -> str:
    """Where a PKCS#11 token keeps its keys, for people to see.

    SoftHSM and NSS keep them in files and say so by their names alone; an unknown module is
    believed when it claims a hardware slot (CKF_HW_SLOT, PKCS#11 3.0 section 3.2).
    """
    if manufacturer.startswith(_SOFTWARE_MANUFACTURERS) or not hardware_slot:
        return "software-token"
    return "hardware"


def low_tries(*manufacturers: str) -> Literal[2] | None:
    """How many PIN tries a module means by CKF_USER_PIN_COUNT_LOW (PKCS#11 3.0 section 3.2).

    ykcs11 says so when two are left; SoftHSM, which never locks, after any wrong PIN.
    """
    return 2 if slots(*manufacturers) is _PIV else None


def faulty_algorithms(library: str, version: tuple[int, int], token: str) -> frozenset[str]:
    """Algorithms that a module offers and can't do, by its CK_INFO (PKCS#11 3.0 section 3.1) and
    its PKCS#11 token's manufacturer.

    tpm2-pkcs11 1.9 gives P-521's points in broken DER and has no room for its signatures. PIV has
    no P-521 (NIST SP 800-78-4 table 3-1).
    """
    is_old_tpm = library.startswith(_TPM2) and version <= (1, 9)
    if is_old_tpm or slots(library, token) is _PIV:
        return frozenset({"ES512"})
    return frozenset()


def known_troubles(library: str, version: tuple[int, int], token: str) -> list[str]:
    """What is known that a module can't do or doesn't tell, by its CK_INFO (PKCS#11 3.0 section
    3.1) and its PKCS#11 token's manufacturer; for people.
    """
    known = [f"it can't do {alg}" for alg in sorted(faulty_algorithms(library, version, token))]
    if library.startswith(_TPM2):
        known.append("it doesn't tell how many PIN tries are left, and a TPM locks itself")
    if library.startswith(_YUBICO) and version < (2, 3):
        known.append("it shows by an attestation alone whether a key wants a touch")
    return known


@dataclass(frozen=True, slots=True)
class Slots:
    """A card whose keys have fixed places, where `C_DestroyObject` doesn't delete a private key.

    Attributes:
        refs: the CKA_ID of each place for keys, in hex, by the place's name.
        chosen: the names of those that are taken where none is asked for, in this order.
        reserved: the CKA_IDs of places that are never used.
        attestation: the CKA_ID of the certificate that signs the others' attestations.
        policies: the attestation's extension with the PIN's and the touch's policy.
        default_authority: the management key that cards come with.
        readers: how the names of readers begin that the module looks at.
    """

    refs: Mapping[str, str]
    chosen: tuple[str, ...]
    reserved: frozenset[str]
    attestation: str
    policies: str
    default_authority: str
    readers: str

    def name(self, ref: str) -> str | None:
        """The place with that CKA_ID."""
        return next((name for name, found in self.refs.items() if found == ref), None)


_RETIRED = tuple(f"{slot:02x}" for slot in range(0x82, 0x96))

# Slots of PIV: NIST SP 800-73-4 part 1 table 4b. Which CKA_ID is which, and what an attestation
# says: Yubico's ykcs11 and "PIV attestation".
_PIV = Slots(
    refs={
        name: f"{number:02x}" for number, name in enumerate(("9a", "9c", "9d", "9e", *_RETIRED), 1)
    },
    chosen=_RETIRED,
    reserved=frozenset({"19"}),
    attestation="19",
    policies="1.3.6.1.4.1.41482.3.8",
    default_authority="0102030405060708" * 3,
    readers="Yubico",
)

TOUCH = {1: "never", 2: "always", 3: "cached"}
"""Touch policies as an attestation numbers them; the same word for a PIN is 1 never, 2 once, 3
always.
"""

PIN_ALWAYS = 3


def policies(attestation: bytes, card: Slots) -> tuple[int, int]:
    """The numbers of the PIN's and the touch's policy in an attestation (DER); 0 for unknown."""
    wanted = x509.ObjectIdentifier(card.policies)
    try:
        value = x509.load_der_x509_certificate(attestation).extensions
        pin, touch = value.get_extension_for_oid(wanted).value.public_bytes()
    except (ValueError, x509.ExtensionNotFound):
        return 0, 0
    return pin, touch


def slots(*manufacturers: str) -> Slots | None:
    """The places of a card, by who made its module or itself; None for what has no places."""
    return _PIV if any(name.startswith(_YUBICO) for name in manufacturers) else None
