"""Key pairs in a PKCS#11 token."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import Any

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.exceptions import (
    MechanismInvalid,
    PKCS11Error,
    UserNotLoggedIn,
)

from dpop_agent.errors import (
    AlgorithmUnsupported,
    InvalidProof,
    SignerFailed,
    Timeout,
)
from dpop_agent.jose import ALGORITHMS, RSA_BITS, Algorithm
from dpop_agent.signer.pkcs11 import attributes
from dpop_agent.signer.pkcs11.token import _PIN_REFUSED, Login, _Open
from dpop_agent.verify import check_signature

TOUCH_S = 1.0
"""Seconds after which a refused signature is taken for one that nobody touched the card for."""


class Keys(Login):
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

    def _require(self, alg: str) -> None:
        needed = {attributes.GENERATION_MECHANISMS[ALGORITHMS[alg].kty], self._mechanism(alg)}
        if alg in self._faulty or not needed <= self._mechanisms:
            raise AlgorithmUnsupported(
                f"the PKCS#11 token {self._uri} can't make keys for {alg}",
                hint="ES256 is the one that every server accepts"
                if alg != "ES256"
                else "make one with its vendor's tool, then: dpop-agent key adopt",
            )

    def _objects_with(self, ref: str, kind: ObjectClass) -> list[Any]:
        return list(
            self._session.get_objects({Attribute.CLASS: kind, Attribute.ID: bytes.fromhex(ref)})
        )

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

    @staticmethod
    def _undo(pair: Iterable[Any]) -> None:
        """Destroy what was just made and is of no use; nobody would find it by its jkt."""
        try:
            for key in pair:
                key.destroy()
        except PKCS11Error:
            pass  # it stays pending, and is looked for again
