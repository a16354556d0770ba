"""What is particular to one vendor's module, and nowhere else."""

from __future__ import annotations

_SOFTWARE_MANUFACTURERS = ("SoftHSM", "Mozilla", "NSS")


def protection(manufacturer: str, *, hardware_slot: bool) -> str:
    """Where a PKCS#11 token keeps its keys, for people to see.

    SoftHSM and NSS keep them in files and say so by their names alone; an unknown module is
    believed when it claims a hardware slot (CKF_HW_SLOT, PKCS#11 3.0 section 3.2).
    """
    if manufacturer.startswith(_SOFTWARE_MANUFACTURERS) or not hardware_slot:
        return "software-token"
    return "hardware"


def faulty_algorithms(library: str, version: tuple[int, int]) -> frozenset[str]:
    """Algorithms that a module offers and can't do, by its CK_INFO (PKCS#11 3.0 section 3.1).

    tpm2-pkcs11 1.9 gives P-521's points in broken DER and has no room for its signatures.
    """
    if library.startswith("tpm2-software") and version <= (1, 9):
        return frozenset({"ES512"})
    return frozenset()
