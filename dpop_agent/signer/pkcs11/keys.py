"""Key pairs in a PKCS#11 token: made, looked for, and signed with.

The mechanisms are named each time: python-pkcs11's defaults aren't JOSE's. Digests are made here
and signed with the bare mechanism, since few modules have the combined ones.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11._pkcs11 import SearchIter  # type: ignore[attr-defined]  # its stub leaves it out
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
from dpop_agent.signer.pkcs11.attributes import UnexpectedObject
from dpop_agent.signer.pkcs11.signing import Signing
from dpop_agent.signer.pkcs11.token import Token
from dpop_agent.signer.store import KeyInfo
from dpop_agent.verify import check_signature

TOUCH_S = 1.0
"""Seconds after which a refused signature is taken for one that nobody touched the card for."""


class Key:
    """A key pair whose handle is held, and which signs.

    Args:
        token: where it is.
        private: python-pkcs11's private key.
        info: what was read back.
        asks_pin: for each signature (CKA_ALWAYS_AUTHENTICATE, PKCS#11 3.0 section 4.9).
        checks_each: check each of its signatures, not only the first in this process.
    """

    def __init__(
        self, token: Token, private: Any, info: KeyInfo, *, asks_pin: bool, checks_each: bool
    ) -> None:
        self.info = info
        self._token = token
        self._private = private
        self.asks_pin = asks_pin
        self._checks_each = checks_each
        self._verified = False

    def sign(self, alg: Algorithm, data: bytes) -> bytes:
        """The JWS signature (RFC 7515) of `data`.

        Raises:
            PKCS11Error, SignerFailed, PinRefused
            Timeout: it wants a touch, and nobody touched the card.
        """
        mechanism = attributes.signing_mechanism(alg.name, self._token.mechanisms)
        if alg.name == "PS256":
            digest = hashlib.sha256(data).digest()
            signature = self._signed(
                digest, mechanism=mechanism, mechanism_param=attributes.PSS_PARAMETERS
            )
        elif mechanism == Mechanism.RSA_PKCS:
            digest = attributes.SHA256_DIGEST_INFO + hashlib.sha256(data).digest()
            signature = self._signed(digest, mechanism=mechanism)
        elif alg.kty == "EC":
            digest = hashlib.new(alg.digest, data).digest()
            signature = self._signed(digest, mechanism=mechanism)
        else:
            signature = self._signed(data, mechanism=mechanism)
        if len(signature) != alg.signature_size:
            raise SignerFailed(f"the PKCS#11 token's signature has {len(signature)} bytes")
        if self._checks_each or not self._verified:
            # Once for each key and process: a module that signs with another key is found out.
            try:
                check_signature(alg.name, self.info.jwk, data, signature)
            except InvalidProof as e:
                raise SignerFailed("the PKCS#11 token's signature isn't its public key's") from e
            self._verified = True
        return bytes(signature)

    def _signed(self, data: bytes, **how: Any) -> Any:
        """The bare operation, with the PIN for this very signature where the key wants that."""
        asks_pin = self.asks_pin and self._token.accepted_pin is not None
        return self._touched(self._with_pin if asks_pin else self._private.sign, data, how)

    def _signed_with_pin(self, data: bytes, how: dict[str, Any]) -> Any:
        return self._touched(self._with_pin, data, how)

    def _touched(self, sign: Callable[..., Any], data: bytes, how: dict[str, Any]) -> Any:
        """A signature for which somebody may have to touch the card."""
        began = time.monotonic()
        try:
            return sign(data, **how)
        except UserNotLoggedIn as e:
            if time.monotonic() - began <= TOUCH_S:
                raise
            raise Timeout(
                "nobody touched the card in time", hint="try again, and touch it", retry="no"
            ) from e

    def _with_pin(self, data: bytes, **how: Any) -> Any:
        self._token.require_tries()
        pin = self._token.accepted_pin
        signing = Signing.by(self._token.module, self._private)
        if signing is None:
            # Which of C_SignInit, C_Login and C_Sign failed nobody knows, but for this error.
            others = (UserNotLoggedIn,)
            with self._token.logging_in(attended=False, stored=False, others=others):
                return self._private.sign(data, pin=pin, **how)
        with signing.begun(**how), self._token.logging_in(attended=False, stored=False):
            self._private.session.reaffirm_credentials(pin)
        # No mark stands while it waits for a touch: the agent may end meanwhile.
        return signing.signature(data)


def require_algorithm(token: Token, alg: str) -> None:
    """Let pass an algorithm that keys can be made for.

    Raises:
        AlgorithmUnsupported
    """
    needed = {
        attributes.GENERATION_MECHANISMS[ALGORITHMS[alg].kty],
        attributes.signing_mechanism(alg, token.mechanisms),
    }
    if alg in token.faulty or not needed <= token.mechanisms:
        raise AlgorithmUnsupported(
            f"the PKCS#11 token {token.uri} can't make keys for {alg}",
            hint="ES256 is the one that every server accepts"
            if alg != "ES256"
            else "make one with its vendor's tool, then: dpop-agent key adopt",
        )


def objects_of(token: Token, kind: ObjectClass) -> tuple[list[Any], int]:
    """The objects of a kind that can be looked at, and how many can't; they may be anybody's.

    `get_objects` would end at the first that can't.
    """
    found, unreadable = [], 0
    with SearchIter(token.session, {Attribute.CLASS: kind}, 1) as search:
        for batch in search:
            try:
                found += batch
            except attributes.UNREADABLE:
                unreadable += 1
    return found, unreadable


def objects_with(token: Token, ref: str, kind: ObjectClass) -> list[Any]:
    """The objects of a kind that have the CKA_ID `ref`."""
    return list(
        token.session.get_objects({Attribute.CLASS: kind, Attribute.ID: bytes.fromhex(ref)})
    )


def pair(token: Token, ref: str) -> tuple[Any, Any] | None:
    """The private key with the CKA_ID `ref`, and its public key; None if there is none.

    Raises:
        UnexpectedObject: there is something else.
    """
    private = objects_with(token, ref, ObjectClass.PRIVATE_KEY)
    public = objects_with(token, ref, ObjectClass.PUBLIC_KEY)
    if not private:
        return None
    if len(private) > 1 or len(public) != 1:
        raise UnexpectedObject(
            f"the PKCS#11 token has {len(private)} private and {len(public)} public keys with "
            f"the id {ref}, where one of each belongs",
            hint="look with the vendor's tool whose they are; the agent needs one of each",
        )
    return private[0], public[0]


def generate_pair(token: Token, ref: str, alg: Algorithm, label: str) -> tuple[Any, Any]:
    """Make a key pair with the CKA_ID `ref`: its private and its public key.

    Raises:
        AlgorithmUnsupported, SignerFailed, PKCS11Error
    """
    refused: PKCS11Error | None = None
    for template in attributes.PRIVATE_TEMPLATES:
        arguments: dict[str, Any] = {
            "id": bytes.fromhex(ref),
            "label": label,
            "store": True,
            "mechanism": attributes.GENERATION_MECHANISMS[alg.kty],
            "public_template": attributes.PUBLIC_TEMPLATE,
            "private_template": template,
        }
        try:
            if alg.crv is None:
                public, private = token.session.generate_keypair(KeyType.RSA, RSA_BITS, **arguments)
            else:
                public, private = token.session.create_domain_parameters(
                    attributes.KEY_TYPES[alg.kty],
                    {Attribute.EC_PARAMS: attributes.EC_PARAMS[alg.crv]},
                    local=True,
                ).generate_keypair(**arguments)
        except attributes.TEMPLATE_REFUSED as e:
            refused = e
        except MechanismInvalid as e:
            raise AlgorithmUnsupported(f"the PKCS#11 token can't make keys for {alg.name}") from e
        else:
            return private, public
    raise SignerFailed(f"the PKCS#11 token refused every key template ({refused})")


def undo(made: Iterable[Any]) -> None:
    """Destroy what was just made and is of no use; nobody would find it by its jkt."""
    try:
        for key in made:
            key.destroy()
    except PKCS11Error:
        pass  # it stays pending, and is looked for again
