"""Cards whose keys have fixed places, which a management key fills."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pkcs11 import Attribute, ObjectClass
from pkcs11.exceptions import PKCS11Error, UserNotLoggedIn

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
from dpop_agent.signer.authority import Authority
from dpop_agent.signer.pkcs11 import attributes, keys, vendors
from dpop_agent.signer.pkcs11.attributes import Unreadable
from dpop_agent.signer.pkcs11.keys import Key, Way
from dpop_agent.signer.pkcs11.store import TokenStore
from dpop_agent.signer.pkcs11.token import Token
from dpop_agent.signer.store import ANY_SLOT, Attests, KeyInfo, Listed, Slot, SlotStore


class SlotKey(Key):
    """A key pair in a slot."""

    def _signed(self, way: Way, digest: bytes) -> bytes:
        try:
            return super()._signed(way, digest)
        except UserNotLoggedIn:
            if self.asks_pin or self._token.accepted_pin is None:
                raise
            if self._token.may_have_been_pulled():
                raise
        # A key made with the PIN policy "always" doesn't say so: once more, with the user's PIN.
        signature = self._signed_with_pin(way, digest)
        self.asks_pin = True
        return signature


class CardStore(TokenStore, SlotStore, Attests):
    """A card.

    Args:
        token: it, as a PKCS#11 token.
        slots: its places.
    """

    def __init__(self, token: Token, slots: vendors.Slots) -> None:
        super().__init__(token)
        self.authority = Authority(default=slots.default_authority)
        self._slots = slots

    def open(self) -> dict[str, Any]:
        before = self._token.serial
        try:
            return super().open()
        finally:
            if self._token.serial != before:
                self.authority.forget()  # it was typed for another card

    def reserve(self, alg: str, wanted: Slot = ANY_SLOT) -> str:
        slots = self._slots
        keys.require_algorithm(self._token, alg)
        if wanted.name is not None and wanted.name not in slots.refs:
            raise InvalidParams(
                f"the PKCS#11 token {self._token.uri} has no slot {wanted.name} for keys",
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
                        f"the PKCS#11 token {self._token.uri} has no free slot among "
                        f"{slots.chosen[0]} to {slots.chosen[-1]}",
                        details={"free": [n for n, ref in slots.refs.items() if ref in free]},
                    )
            else:
                name = wanted.name
                if slots.refs[name] in occupied | wanted.taken:
                    self._require_overwritable(name, wanted.overwrites)
        self.authority.require()
        return slots.refs[name]

    def slot_name(self, ref: str) -> str | None:
        return self._slots.name(ref)

    def generate(self, ref: str, alg: str, label: str, *, overwrites: str | None = None) -> KeyInfo:
        """As whoever has the management key, who has to be alone; then log in again.

        Generating overwrites without a word, so nothing lies between the look and it but a
        program that does the same at the same instant.
        """
        name = self._slots.name(ref)
        if name is None:
            raise InvalidParams(f"the PKCS#11 token has no slot for keys with the id {ref}")
        self.authority.require()
        self.release()
        try:
            with self._guard("generating a key"):
                self._token.open_managed(self.authority.take())
                if ref in self._occupied():
                    self._require_overwritable(name, overwrites)
                keys.generate_pair(self._token, ref, ALGORITHMS[alg], label)
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

    def find(self, ref: str, alg: str, *, self_test: bool, anew: bool = False) -> KeyInfo | None:
        if self._slots.name(ref) is None:
            return None  # one of the reserved places
        return super().find(ref, alg, self_test=self_test, anew=anew)

    def objects(self, *, begin: bool, anew: bool = False) -> Listed:
        listed = super().objects(begin=begin, anew=anew)
        ours = [item for item in listed.objects if item["ref"] not in self._slots.reserved]
        return Listed(ours, listed.more)

    def slots(self) -> dict[str, int]:
        with self._guard("counting free slots"):
            occupied, unreadable = self._seen()
            free = len(set(self._slots.refs.values()) - occupied) - unreadable
            return {"total": len(self._slots.refs), "free": max(0, free)}

    def attestation(self, ref: str, jkt: str) -> list[str]:
        with self._guard("reading an attestation"):
            opened = self._load(ref)
            if opened is None or opened.info.jkt != jkt:
                raise KeyMissing("that key's slot holds another key now")
            own = self._attested(ref)
            above = keys.objects_with(self._token, self._slots.attestation, ObjectClass.CERTIFICATE)
            if own is None or not above:
                raise AttestationUnavailable(
                    "the card attests no key in that slot",
                    hint="it attests only what was made there, from firmware 4.3 on",
                )
            return [_pem(der) for der in (own, bytes(above[0][Attribute.VALUE]))]

    def _occupied(self) -> set[str]:
        """The ids of whatever is there; an attestation is there only with its key.

        Raises:
            Unreadable: of something nobody knows where it is.
        """
        occupied, unreadable = self._seen()
        if unreadable:
            raise Unreadable(
                f"{unreadable} objects on the PKCS#11 token {self._token.uri} can't be read: any "
                "slot may be theirs, and none is overwritten",
                hint="see what its vendor's tool says of them",
            )
        return occupied

    def _seen(self) -> tuple[set[str], int]:
        """The ids of what is there, and of how many objects nobody knows."""
        occupied, unknown = set(), 0
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY, ObjectClass.CERTIFICATE):
            found, unreadable = keys.objects_of(self._token, kind)
            unknown += unreadable
            for item in found:
                try:
                    occupied.add(attributes.ref(item))
                except attributes.UNREADABLE:
                    unknown += 1
        return occupied, unknown

    def _require_overwritable(self, name: str, jkt: str | None) -> None:
        """Let pass a slot whose key has that thumbprint.

        Raises:
            SlotTaken
        """
        if jkt is None:
            raise SlotTaken(
                f"slot {name} isn't free, and isn't overwritten", hint="take another slot, or none"
            )
        public = keys.objects_with(self._token, self._slots.refs[name], ObjectClass.PUBLIC_KEY)
        if [thumbprint(attributes.public_jwk(key)) for key in public] != [jkt]:
            raise SlotTaken(
                f"slot {name} has another key than the agent's, and isn't overwritten",
                hint="take another slot, or none",
            )

    def _log_in_again(self) -> None:
        """Whatever became of the management session: no error hides what it was used for."""
        try:
            self._token.release()
            self.open()
        except (DPoPAgentError, PKCS11Error):
            self.broken = True

    def _read_back(self, ref: str, private: Any, jwk: dict[str, str]) -> Key:
        plain = super()._read_back(ref, private, jwk)
        pin, touch = self._policies(ref)
        info = replace(plain.info, slot=self._slots.name(ref), touch=vendors.TOUCH.get(touch))
        asks_pin = plain.asks_pin or pin == vendors.PIN_ALWAYS
        # A slot may have another key by now, and a card is slower than a check.
        return SlotKey(
            self._token,
            private,
            info,
            asks_pin=asks_pin,
            checks_each=True,
            may_sign=plain.may_sign,
        )

    def _policies(self, ref: str) -> tuple[int, int]:
        """The numbers of its PIN's and its touch's policy, by its attestation; 0 for unknown."""
        attestation = self._attested(ref)
        if attestation is None:
            return 0, 0
        return vendors.policies(attestation, self._slots)

    def _attested(self, ref: str) -> bytes | None:
        """The attestation of the key in a slot: a certificate that only the module makes up."""
        for found in keys.objects_with(self._token, ref, ObjectClass.CERTIFICATE):
            if attributes.read(found, Attribute.TOKEN) is False:
                return bytes(found[Attribute.VALUE])
        return None


def _pem(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode("ascii")
