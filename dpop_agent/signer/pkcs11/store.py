"""Keys in a PKCS#11 token, through a vendor's module (PKCS#11 3.0; python-pkcs11).

The mechanisms are named each time: python-pkcs11's defaults aren't JOSE's. Digests are made here
and signed with the bare mechanism, since few modules have the combined ones. After an error in
the middle of an operation the session can't be trusted, and handles outlive what they named: the
store is `broken` then, its process ends, and a new one looks again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pkcs11 import Attribute, ObjectClass
from pkcs11.exceptions import (
    FunctionNotSupported,
    PKCS11Error,
)

from dpop_agent.errors import (
    DPoPAgentError,
    KeyMissing,
    ObjectLeft,
    SignerFailed,
)
from dpop_agent.jose import ALGORITHMS, Algorithm, thumbprint
from dpop_agent.signer.pkcs11 import attributes, vendors
from dpop_agent.signer.pkcs11.attributes import UnexpectedObject
from dpop_agent.signer.pkcs11.module import error_name
from dpop_agent.signer.pkcs11.slots import InSlots
from dpop_agent.signer.pkcs11.token import FRESH_S, _Open
from dpop_agent.signer.store import KeyInfo

ID_BYTES = 16
"""Random bytes of a CKA_ID: no two agents on one HSM partition meet."""


class Pkcs11Store(InSlots):
    def release(self) -> None:
        self._keys.clear()
        with self._guard("releasing the PKCS#11 token"):
            self._session.close()
            self._session = None
            self._module.unload()

    def reserve(self, alg: str) -> str:
        self._require(alg)
        return secrets.token_hex(ID_BYTES)

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
