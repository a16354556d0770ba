"""Keys in a PKCS#11 token, through a vendor's module (PKCS#11 3.0; python-pkcs11).

The mechanisms are named each time: python-pkcs11's defaults aren't JOSE's. Digests are made here
and signed with the bare mechanism, since few modules have the combined ones. After an error in
the middle of an operation the session can't be trusted, and handles outlive what they named: the
store is `broken` then, its process ends, and a new one looks again.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pkcs11
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, TokenFlag
from pkcs11.constants import SlotFlag
from pkcs11.exceptions import (
    ArgumentsBad,
    DeviceError,
    DeviceRemoved,
    FunctionCancelled,
    FunctionNotSupported,
    MechanismInvalid,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
    TokenNotPresent,
    UserNotLoggedIn,
)

from dpop_agent.config import TokenUri
from dpop_agent.errors import (
    AlgorithmUnsupported,
    AttestationUnavailable,
    AuthorizationRefused,
    Cancelled,
    DPoPAgentError,
    InvalidParams,
    InvalidProof,
    KeyMissing,
    Locked,
    NoSlot,
    ObjectLeft,
    PinRefused,
    SignerFailed,
    SlotTaken,
    StoreAbsent,
    Timeout,
)
from dpop_agent.jose import ALGORITHMS, RSA_BITS, Algorithm, thumbprint
from dpop_agent.signer.authority import Authority
from dpop_agent.signer.pin import UserPin
from dpop_agent.signer.pkcs11 import attributes, discovery, vendors
from dpop_agent.signer.pkcs11.attributes import UnexpectedObject
from dpop_agent.signer.pkcs11.module import Module, error_name
from dpop_agent.signer.store import KeyInfo, Slot, Store
from dpop_agent.verify import check_signature

ID_BYTES = 16
"""Random bytes of a CKA_ID: no two agents on one HSM partition meet."""

TOUCH_S = 1.0
"""Seconds after which a refused signature is taken for one that nobody touched the card for."""

FRESH_S = 5.0
"""Seconds after opening in which what is found, or isn't, counts as really so."""

_UNBLOCK = (
    "unblock it by its vendor's tool (a card by its PUK, a TPM by tpm2_dictionarylockout), then: "
    "dpop-agent unlock"
)
_TRIES = {
    None: "",
    0: ", and is locked now",
    1: ", one try is left",
    2: ", two tries are left",
}

_PIN_REFUSED = (PinIncorrect, PinInvalid, PinLenRange)
_LOGIN_REFUSED = (*_PIN_REFUSED, ArgumentsBad)  # ykcs11: a PIN that is too short or too long
_GONE = (DeviceError, DeviceRemoved, TokenNotPresent)


@dataclass(slots=True)
class _Open:
    """A key pair whose handle is held."""

    private: Any
    info: KeyInfo
    asks_pin: bool  # for each signature: PKCS#11 3.0 section 4.9, CKA_ALWAYS_AUTHENTICATE
    verified: bool = False


def _pin_locked() -> PinRefused:
    return PinRefused("the PKCS#11 token's PIN is locked: too many wrong ones came", hint=_UNBLOCK)


class Pkcs11Store(Store):
    """One PKCS#11 token.

    Args:
        module: the vendor's.
        uri: names it (RFC 7512).
        pin: where the user PIN comes from; asked once, and an accepted one is kept.
    """

    def __init__(self, *, module: Module, uri: TokenUri, pin: UserPin) -> None:
        self._module = module
        self._uri = uri
        self._pin = pin
        self._accepted: str | None = None
        self._serial: str | None = None
        self._token: Any = None
        self._slots: vendors.Slots | None = None
        self._session: Any = None
        self._keys: dict[str, _Open] = {}

    def has_pad(self) -> bool:
        flags = self._find_token().flags
        self._require_pin(flags)
        return bool(flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH)

    def _require_pin(self, flags: TokenFlag) -> None:
        """Let pass a PKCS#11 token that takes a PIN now.

        Raises:
            StoreAbsent, PinRefused
        """
        if not discovery.has_pin(flags):
            raise StoreAbsent(
                f"the PKCS#11 token {self._uri} has no user PIN",
                hint="set one with the tool that came with its module, then: dpop-agent reload",
                retry="no",
            )
        if flags & TokenFlag.USER_PIN_LOCKED:
            raise _pin_locked()

    def open(self) -> dict[str, Any]:
        token = self._find_token()
        if self.authority is not None and token.serial != self._token.serial:
            self.authority.forget()  # it was typed for another card
        self._token = token
        self._protection = vendors.protection(
            discovery.unpadded(self._token.manufacturer_id),
            hardware_slot=bool(self._token.slot.flags & SlotFlag.HW_SLOT),
        )
        self._mechanisms = set(self._token.slot.get_mechanisms())
        library = self._module.library
        self._slots = vendors.slots(library.manufacturer_id)
        if self._slots is not None and self.authority is None:
            self.authority = Authority(default=self._slots.default_authority)
        self._faulty = vendors.faulty_algorithms(library.manufacturer_id, library.library_version)
        self._session = self._login()
        self._opened = time.monotonic()
        return {
            "label": discovery.unpadded(self._token.label),
            "serial": discovery.unpadded(self._token.serial),
            "model": discovery.unpadded(self._token.model),
        }

    def _find_token(self) -> Any:
        found = [
            token
            for token in discovery.present(self._module)
            if token.flags & TokenFlag.TOKEN_INITIALIZED  # SoftHSM always has one that isn't
            and self._uri.matches(
                label=discovery.unpadded(token.label),
                serial=discovery.unpadded(token.serial),
                manufacturer=discovery.unpadded(token.manufacturer_id),
                model=discovery.unpadded(token.model),
            )
        ]
        if not found:
            discovery.refuse_held(self._module)
            raise StoreAbsent(
                f"no PKCS#11 token {self._uri} is there",
                hint="plug it in, or correct uri in the configuration",
            )
        if len(found) > 1:
            serials = ", ".join(discovery.unpadded(token.serial) for token in found)
            raise StoreAbsent(
                f"{len(found)} PKCS#11 tokens fit {self._uri}: serials {serials}",
                hint="give the serial in uri",
                retry="no",
            )
        return found[0]

    def _login(self) -> Any:
        flags = self._token.flags
        self._require_pin(flags)
        if flags & TokenFlag.USER_PIN_FINAL_TRY and not self._pin.typed:
            raise PinRefused(
                "the PKCS#11 token has one PIN try left, which isn't spent on a stored PIN",
                hint="log in once with its vendor's tool, then: dpop-agent unlock",
            )
        if flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
            self._pin.at_pad()
            return self._login_with(pkcs11.PROTECTED_AUTH)  # PKCS#11 3.0 section 5.6.8
        serial = discovery.unpadded(self._token.serial)
        pin = self._accepted
        if pin is None or serial != self._serial:  # not one card's PIN for another card
            pin = self._pin.get(tries_low=bool(flags & TokenFlag.USER_PIN_COUNT_LOW))
            if self._pin.typed:
                self._require_still_there(serial)
        session = self._login_with(pin)
        self._accepted, self._serial = pin, serial
        self._pin.accepted(pin)
        return session

    def _require_still_there(self, serial: str) -> None:
        """Somebody typed for a minute, and may have changed one card for another meanwhile.

        Raises:
            StoreAbsent
        """
        self._token = self._find_token()
        if discovery.unpadded(self._token.serial) != serial:
            raise StoreAbsent(
                f"another PKCS#11 token came in the place of {self._uri} while its PIN was typed",
                hint="dpop-agent unlock",
            )

    def _login_with(self, pin: Any) -> Any:
        try:
            return self._token.open(rw=True, user_pin=pin)
        except _LOGIN_REFUSED as e:
            raise self._pin_refused() from e
        except PinLocked as e:
            raise _pin_locked() from e
        except _GONE as e:
            raise StoreAbsent(
                f"the PKCS#11 token {self._uri} went away", hint="plug it in again"
            ) from e
        except FunctionCancelled as e:
            raise Cancelled(
                "no PIN was typed at the PKCS#11 token's pad", hint=self._pin.after_refusal
            ) from e
        except PKCS11Error as e:
            raise Locked(f"logging in to the PKCS#11 token failed ({error_name(e)})") from e

    def _pin_refused(self) -> PinRefused:
        self._accepted = None
        self._pin.refused()
        left = self._tries_left()
        return PinRefused(
            f"the PKCS#11 token {self._uri} refused its PIN{_TRIES[left]}",
            hint=_UNBLOCK if left == 0 else self._pin.after_refusal,
            details={} if left is None else {"tries_left": left},
        )

    def release(self) -> None:
        self._keys.clear()
        with self._guard("releasing the PKCS#11 token"):
            self._session.close()
            self._session = None
            self._module.unload()

    def _tries_left(self) -> Literal[0, 1, 2] | None:
        """How many wrong PINs the PKCS#11 token takes still, where its module tells."""
        try:
            flags = self._token.slot.get_token().flags  # the old object's flags are a snapshot
        except PKCS11Error:
            return None
        if flags & TokenFlag.USER_PIN_LOCKED:
            return 0
        if flags & TokenFlag.USER_PIN_FINAL_TRY:
            return 1
        if flags & TokenFlag.USER_PIN_COUNT_LOW:
            return vendors.low_tries(self._module.library.manufacturer_id)
        return None

    def reserve(self, alg: str) -> str:
        self._require(alg)
        return secrets.token_hex(ID_BYTES)

    def _require(self, alg: str) -> None:
        needed = {attributes.GENERATION_MECHANISMS[ALGORITHMS[alg].kty], self._mechanism(alg)}
        if alg in self._faulty or not needed <= self._mechanisms:
            raise AlgorithmUnsupported(
                f"the PKCS#11 token {self._uri} can't make keys for {alg}",
                hint="ES256 is the one that every server accepts"
                if alg != "ES256"
                else "make one with its vendor's tool, then: dpop-agent key adopt",
            )

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

    def _look_anew(self) -> None:
        """See the token as it is now; modules go on showing what they saw when they opened it."""
        try:
            self.release()
            self.open()
        except DPoPAgentError:
            self.broken = True
            raise

    def generate(self, ref: str, alg: str, label: str, *, overwrites: str | None = None) -> KeyInfo:
        if self._slots is not None:
            return self._generate_in_slot(ref, alg, label, overwrites)
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

    def _managed(self, key: str) -> Any:
        """A session of whoever manages the token.

        Raises:
            AuthorizationRefused
        """
        try:
            return self._find_token().open(rw=True, so_pin=key)
        except _LOGIN_REFUSED as e:
            raise AuthorizationRefused(
                f"the PKCS#11 token {self._uri} refused its management key", hint="try again"
            ) from e

    def _log_in_again(self) -> None:
        """Whatever became of the management session: no error hides what it was used for."""
        try:
            if self._session is not None:
                self._session.close()
            self._module.unload()
            self.open()
        except (DPoPAgentError, PKCS11Error):
            self.broken = True

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
        for template in attributes.PRIVATE_TEMPLATES:
            arguments: dict[str, Any] = {
                "id": key_id,
                "label": label,
                "store": True,
                "mechanism": attributes.GENERATION_MECHANISMS[alg.kty],
                "public_template": attributes.PUBLIC_TEMPLATE,
                "private_template": template,
            }
            try:
                if alg.crv is None:
                    public, private = self._session.generate_keypair(
                        KeyType.RSA, RSA_BITS, **arguments
                    )
                else:
                    public, private = self._session.create_domain_parameters(
                        attributes.KEY_TYPES[alg.kty],
                        {Attribute.EC_PARAMS: attributes.EC_PARAMS[alg.crv]},
                        local=True,
                    ).generate_keypair(**arguments)
            except attributes.TEMPLATE_REFUSED as e:
                refused = e
            except MechanismInvalid as e:
                raise AlgorithmUnsupported(
                    f"the PKCS#11 token can't make keys for {alg.name}"
                ) from e
            else:
                return private, public
        raise SignerFailed(f"the PKCS#11 token refused every key template ({refused})")

    def find(self, ref: str, alg: str, *, self_test: bool, anew: bool = False) -> KeyInfo | None:
        self._keys.pop(ref, None)
        if self._slots is not None and self._slots.name(ref) is None:
            return None  # one of the reserved places
        with self._guard("looking for a key"):
            opened = self._load(ref, ALGORITHMS[alg])
            if opened is None and anew and self._slots is not None:
                self._look_anew()
                opened = self._load(ref, ALGORITHMS[alg])
            if opened is not None and self_test:
                self._signature(opened, ALGORITHMS[alg], secrets.token_bytes(32))
        return None if opened is None else opened.info

    def half_made(self, ref: str) -> str | None:
        if self._slots is not None:
            return None  # a slot's public key is somebody's certificate
        with self._guard("looking for a key"):
            private = self._objects_with(ref, ObjectClass.PRIVATE_KEY)
            public = self._objects_with(ref, ObjectClass.PUBLIC_KEY)
            return thumbprint(attributes.public_jwk(public[0])) if public and not private else None

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
        if (opened is None or opened.info.jkt != jkt) and self._view_is_old():
            # Modules show an object list from before a card was pulled: look anew.
            self._look_anew()
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
            if any(thumbprint(attributes.public_jwk(key)) != jkt for key in public) or (
                len(private) > min(1, len(public))
            ):
                raise KeyMissing(
                    f"what has the id {ref} on the PKCS#11 token isn't the agent's key any more",
                    hint="delete it with the vendor's tool if it is nobody's",
                )
            # The private key first: as long as one is there, its public key tells whose it is.
            try:
                for key in private + public:
                    key.destroy()
            except FunctionNotSupported as e:  # such as OpenSC's for PIV
                raise ObjectLeft(
                    "the PKCS#11 module can't delete keys: this one signs no more, and stays there",
                    hint="delete it with the vendor's tool",
                ) from e

    def objects(self) -> list[dict[str, Any]]:
        with self._guard("listing keys"):
            found = list(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
            listed = [
                {
                    "ref": (attributes.read(key, Attribute.ID) or b"").hex(),
                    "label": attributes.label(key),
                }
                for key in found
            ]
            if self._slots is None:
                return listed
            return [
                item | {"jkt": self._jkt_of(item["ref"])}
                for item in listed
                if item["ref"] not in self._slots.reserved
            ]

    def _jkt_of(self, ref: str) -> str | None:
        public = self._objects_with(ref, ObjectClass.PUBLIC_KEY)
        try:
            return thumbprint(attributes.public_jwk(public[0])) if len(public) == 1 else None
        except UnexpectedObject:  # one that the agent can't have made
            return None

    def slots(self) -> dict[str, int] | None:
        if self._slots is None:
            return None
        with self._guard("counting free slots"):
            free = set(self._slots.refs.values()) - self._occupied()
            return {"total": len(self._slots.refs), "free": len(free)}

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
            raise UnexpectedObject(
                f"the PKCS#11 token has {len(private)} private and {len(public)} public keys with "
                f"the id {ref}, where one of each belongs",
                hint="delete what isn't the agent's with the vendor's tool",
            )
        jwk = attributes.public_jwk(public[0])
        if alg is not None and (jwk["kty"], jwk.get("crv")) != (alg.kty, alg.crv):
            if self._slots is not None:
                return None  # another key has the slot
            raise UnexpectedObject(f"the key with the id {ref} isn't one for {alg.name}")
        policies = self._policies(ref)
        info = KeyInfo(
            ref=ref,
            jwk=jwk,
            jkt=thumbprint(jwk),
            exportable=not attributes.never_left(private[0]),
            protection=self._protection,
            local=attributes.read(private[0], Attribute.LOCAL),
            slot=None if self._slots is None else self._slots.name(ref),
            touch=vendors.TOUCH.get(policies[1]),
        )
        asks_pin = (
            attributes.read(private[0], Attribute.ALWAYS_AUTHENTICATE) is True
            or policies[0] == vendors.PIN_ALWAYS
        )
        opened = self._keys[ref] = _Open(private[0], info, asks_pin)
        return opened

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

    def _mechanism(self, alg: str) -> Mechanism:
        # With the bare one tpm2-pkcs11 signs by decrypting, which these keys mustn't do.
        if alg == "RS256" and Mechanism.SHA256_RSA_PKCS in self._mechanisms:
            return Mechanism.SHA256_RSA_PKCS
        return attributes._SIGNING_MECHANISMS[alg]

    def _signature(self, key: _Open, alg: Algorithm, data: bytes) -> bytes:
        mechanism = self._mechanism(alg.name)
        if alg.name == "PS256":
            digest = hashlib.sha256(data).digest()
            signature = self._signed(
                key, digest, mechanism=mechanism, mechanism_param=attributes.PSS_PARAMETERS
            )
        elif mechanism == Mechanism.RSA_PKCS:
            digest = attributes.SHA256_DIGEST_INFO + hashlib.sha256(data).digest()
            signature = self._signed(key, digest, mechanism=mechanism)
        elif alg.kty == "EC":
            digest = hashlib.new(alg.digest, data).digest()
            signature = self._signed(key, digest, mechanism=mechanism)
        else:
            signature = self._signed(key, data, mechanism=mechanism)
        if len(signature) != alg.signature_size:
            raise SignerFailed(f"the PKCS#11 token's signature has {len(signature)} bytes")
        if not key.verified or self._slots is not None:
            # Once for each key and process: a module that signs with another key is found out. A
            # slot may have another key by now, and a card is slower than this.
            try:
                check_signature(alg.name, key.info.jwk, data, signature)
            except InvalidProof as e:
                raise SignerFailed("the PKCS#11 token's signature isn't its public key's") from e
            key.verified = True
        return bytes(signature)

    def _signed(self, key: _Open, data: bytes, **how: Any) -> Any:
        """The bare operation, with the PIN for this very signature where the key wants that."""
        if key.asks_pin and self._accepted is not None:
            return self._signed_with_pin(key, data, how)
        began = time.monotonic()
        try:
            return key.private.sign(data, **how)
        except UserNotLoggedIn as e:
            if time.monotonic() - began > TOUCH_S:
                raise self._untouched() from e
            if self._slots is None or self._accepted is None:
                raise
        # A key made with the PIN policy "always" doesn't say so: once more, with the user's PIN.
        signature = self._signed_with_pin(key, data, how)
        key.asks_pin = True
        return signature

    def _signed_with_pin(self, key: _Open, data: bytes, how: dict[str, Any]) -> Any:
        began = time.monotonic()
        try:
            return key.private.sign(data, pin=self._accepted, **how)
        except _PIN_REFUSED as e:
            self.broken = True
            raise self._pin_refused() from e
        except UserNotLoggedIn as e:
            if time.monotonic() - began > TOUCH_S:
                raise self._untouched() from e
            raise

    def _untouched(self) -> Timeout:
        return Timeout(
            "nobody touched the card in time", hint="try again, and touch it", retry="no"
        )

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
                f"{doing} failed in the PKCS#11 module ({error_name(e)})",
                hint="see: dpop-agent status",
            ) from e
        except UnexpectedObject:
            self.broken = self._view_is_old()
            raise
        except SignerFailed:
            self.broken = True
            raise


def _pem(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode("ascii")
