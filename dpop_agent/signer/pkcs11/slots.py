"""Cards whose keys have fixed places."""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pkcs11 import Attribute, ObjectClass
from pkcs11.exceptions import (
    PKCS11Error,
)

from dpop_agent.errors import (
    AttestationUnavailable,
    DPoPAgentError,
    InvalidParams,
    KeyMissing,
    NoSlot,
    SignerFailed,
    SlotTaken,
)
from dpop_agent.jose import ALGORITHMS, thumbprint
from dpop_agent.signer.pkcs11 import attributes, vendors
from dpop_agent.signer.pkcs11.attributes import UnexpectedObject
from dpop_agent.signer.pkcs11.keys import Keys
from dpop_agent.signer.store import KeyInfo, Slot


class InSlots(Keys):
    def reserve_slot(self, alg: str, wanted: Slot) -> tuple[str, str | None]:
        slots = self._slots
        if slots is None:
            return super().reserve_slot(alg, wanted)
        self._require(alg)
        if wanted.name is not None and wanted.name not in slots.refs:
            raise InvalidParams(
                f"the PKCS#11 token {self._uri} has no slot {wanted.name} for keys",
                hint=f"there are: {', '.join(slots.refs)}",
            )
        self._look_anew()
        with self._guard("looking for a free slot"):
            occupied = self._occupied()
            if wanted.name is None:
                free = set(slots.refs.values()) - occupied - wanted.taken
                name = next((name for name in slots.chosen if slots.refs[name] in free), None)
                if name is None:
                    raise NoSlot(
                        f"the PKCS#11 token {self._uri} has no free slot among "
                        f"{slots.chosen[0]} to {slots.chosen[-1]}",
                        details={"free": [n for n, ref in slots.refs.items() if ref in free]},
                    )
            else:
                name = wanted.name
                if slots.refs[name] in occupied | wanted.taken:
                    self._require_overwritable(name, wanted.overwrites)
        assert self.authority is not None
        self.authority.require()
        return slots.refs[name], name

    def _occupied(self) -> set[str]:
        """The ids of whatever is there; an attestation is there only with its key."""
        kinds = (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY, ObjectClass.CERTIFICATE)
        return {
            (attributes.read(found, Attribute.ID) or b"").hex()
            for kind in kinds
            for found in list(self._session.get_objects({Attribute.CLASS: kind}))
        }

    def _require_overwritable(self, name: str, jkt: str | None) -> None:
        """Let pass a slot whose key has that thumbprint.

        Raises:
            SlotTaken
        """
        assert self._slots is not None
        if jkt is None:
            raise SlotTaken(
                f"slot {name} isn't free, and isn't overwritten", hint="take another slot, or none"
            )
        public = self._objects_with(self._slots.refs[name], ObjectClass.PUBLIC_KEY)
        if [thumbprint(attributes.public_jwk(key)) for key in public] != [jkt]:
            raise SlotTaken(
                f"slot {name} has another key than the agent's, and isn't overwritten",
                hint="take another slot, or none",
            )

    def _generate_in_slot(self, ref: str, alg: str, label: str, overwrites: str | None) -> KeyInfo:
        """As whoever has the management key, who has to be alone; then log in again.

        Generating overwrites without a word, so nothing lies between the look and it but a
        program that does the same at the same instant.
        """
        assert self._slots is not None
        assert self.authority is not None
        name = self._slots.name(ref)
        if name is None:
            raise InvalidParams(f"the PKCS#11 token has no slot for keys with the id {ref}")
        self.authority.require()
        self.release()
        try:
            with self._guard("generating a key"):
                self._session = self._managed(self.authority.take())
                if ref in self._occupied():
                    self._require_overwritable(name, overwrites)
                self._generate_pair(bytes.fromhex(ref), ALGORITHMS[alg], label)
        finally:
            self._log_in_again()
        info = self.find(ref, alg, self_test=True)
        if info is None:
            raise SignerFailed("the key that was just made isn't on the PKCS#11 token")
        if info.exportable:
            raise SignerFailed(
                "the PKCS#11 token made a key that could leave it", hint="use another PKCS#11 token"
            )
        return info

    def slots(self) -> dict[str, int] | None:
        if self._slots is None:
            return None
        with self._guard("counting free slots"):
            free = set(self._slots.refs.values()) - self._occupied()
            return {"total": len(self._slots.refs), "free": len(free)}

    def attestation(self, ref: str, jkt: str) -> list[str]:
        if self._slots is None:
            return super().attestation(ref, jkt)
        with self._guard("reading an attestation"):
            opened = self._load(ref, None)
            if opened is None or opened.info.jkt != jkt:
                raise KeyMissing("what has that key's slot now isn't that key")
            own = self._attested(ref)
            above = self._objects_with(self._slots.attestation, ObjectClass.CERTIFICATE)
            if own is None or not above:
                raise AttestationUnavailable(
                    "the card attests no key in that slot",
                    hint="it attests only what was made there, from firmware 4.3 on",
                )
            return [_pem(der) for der in (own, bytes(above[0][Attribute.VALUE]))]

    def _log_in_again(self) -> None:
        """Whatever became of the management session: no error hides what it was used for."""
        try:
            if self._session is not None:
                self._session.close()
            self._module.unload()
            self.open()
        except (DPoPAgentError, PKCS11Error):
            self.broken = True

    def _jkt_of(self, ref: str) -> str | None:
        public = self._objects_with(ref, ObjectClass.PUBLIC_KEY)
        try:
            return thumbprint(attributes.public_jwk(public[0])) if len(public) == 1 else None
        except UnexpectedObject:  # one that the agent can't have made
            return None

    def _policies(self, ref: str) -> tuple[int, int]:
        """The numbers of its PIN's and its touch's policy, by its attestation; 0 for unknown."""
        attestation = None if self._slots is None else self._attested(ref)
        if self._slots is None or attestation is None:
            return 0, 0
        return vendors.policies(attestation, self._slots)

    def _attested(self, ref: str) -> bytes | None:
        """The attestation of the key in a slot: a certificate that only the module makes up."""
        for found in self._objects_with(ref, ObjectClass.CERTIFICATE):
            if attributes.read(found, Attribute.TOKEN) is False:
                return bytes(found[Attribute.VALUE])
        return None


def _pem(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode("ascii")
