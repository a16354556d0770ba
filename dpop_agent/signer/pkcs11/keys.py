"""Key pairs in a PKCS#11 token: made, looked for, and signed with.

The mechanisms are named each time: python-pkcs11's defaults aren't JOSE's. Digests are made here
and signed with the bare mechanism, since few modules have the combined ones.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

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
from dpop_agent.jose import ALGORITHMS, RSA_BITS, Algorithm, signature_size
from dpop_agent.signer.pkcs11 import attributes
from dpop_agent.signer.pkcs11.attributes import UnexpectedObject
from dpop_agent.signer.pkcs11.module import error_name
from dpop_agent.signer.pkcs11.signing import Signing
from dpop_agent.signer.pkcs11.token import Token
from dpop_agent.signer.store import KeyInfo, self_test_input
from dpop_agent.verify import check_signature

REFUSED = (
    "KeyFunctionNotPermitted",
    "KeySizeRange",
    "KeyTypeInconsistent",
    "MechanismInvalid",
    "MechanismParamInvalid",
)
"""What C_SignInit says of a key that isn't for this (PKCS#11 3.0 section 5.13.1)."""


TOUCH_S = 1.0
"""Seconds after which a refused signature is taken for one that nobody touched the card for."""


class Way(NamedTuple):
    """How a key's signatures by one algorithm are made.

    Attributes:
        how: python-pkcs11's arguments.
        digest: what of the data is signed.
        sign: signs it.
        size: a signature's bytes.
    """

    how: dict[str, Any]
    digest: Callable[[bytes], bytes]
    sign: Callable[[bytes], bytes]
    size: int


class WrongSignature(UnexpectedObject):
    """The private key isn't the public key's, or its handle is another key's by now."""


class Key:
    """A key pair whose handle is held, and which signs.

    Args:
        token: where it is.
        private: python-pkcs11's private key.
        info: what was read back.
        asks_pin: for each signature (CKA_ALWAYS_AUTHENTICATE, PKCS#11 3.0 section 4.9).
        checks_each: check each of its signatures, not only the first in this process.
        may_sign: it doesn't say that it may not (CKA_SIGN).
    """

    def __init__(
        self,
        token: Token,
        private: Any,
        info: KeyInfo,
        *,
        asks_pin: bool,
        checks_each: bool,
        may_sign: bool = True,
    ) -> None:
        self.info = info
        self.may_sign = may_sign
        self._token = token
        self._private = private
        self.asks_pin = asks_pin
        self._checks_each = checks_each
        self._verified = False
        self._way: tuple[str, Way] | None = None

    def sign(self, alg: Algorithm, data: bytes) -> bytes:
        """The JWS signature (RFC 7515) of `data`.

        Raises:
            PKCS11Error, SignerFailed, PinRefused
            Timeout: it wants a touch, and nobody touched the card.
        """
        way = self._way_for(alg)
        signature = self._signed(way, way.digest(data))
        # Once for each key and process: a module that signs with another key is found out.
        whole = self._checks_each or not self._verified
        if whole or len(signature) != way.size:
            self._check(way, alg, data, signature, whole=whole)
        return bytes(signature)

    def prepared(self, alg: Algorithm) -> Callable[[bytes], bytes] | None:
        """What `sign` does where it decides nothing: for a key that was checked once, and that is
        enough, and that wants no PIN. None for any other.
        """
        if self._checks_each or not self._verified or self.asks_pin:
            return None
        _, digest, sign, size = self._way_for(alg)

        def signature(data: bytes) -> bytes:
            made = self._touched(sign, digest(data))
            if len(made) != size:
                raise _wrong_size(made)
            return made

        return signature

    def self_test(self, alg: Algorithm) -> bool:
        """Make a signature that is no proof, and check it; False where that takes a person, or a
        login.

        Raises:
            PKCS11Error, SignerFailed
        """
        if self.asks_pin or self.info.touch not in (None, "never"):
            return False
        way, data = self._way_for(alg), self_test_input()
        try:
            signature = way.sign(way.digest(data))
        except UserNotLoggedIn:  # one with the PIN policy "always" doesn't say so
            return False
        self._check(way, alg, data, signature, whole=True)
        return True

    def _check(
        self, way: Way, alg: Algorithm, data: bytes, signature: bytes, *, whole: bool
    ) -> None:
        """Let pass what has a signature's size, and, as a whole, is the public key's.

        Raises:
            SignerFailed, WrongSignature
        """
        if len(signature) != way.size:
            raise _wrong_size(signature)
        if whole:
            try:
                check_signature(alg.name, self.info.jwk, data, signature)
            except InvalidProof as e:
                raise WrongSignature("the PKCS#11 token's signature isn't its public key's") from e
            self._verified = True

    def _way_for(self, alg: Algorithm) -> Way:
        if self._way is None or self._way[0] != alg.name:
            self._way = alg.name, self._way_of(alg)
        return self._way[1]

    def _way_of(self, alg: Algorithm) -> Way:
        mechanism = attributes.signing_mechanism(alg.name, self._token.mechanisms)
        how: dict[str, Any] = {"mechanism": mechanism}
        if alg.name == "PS256":
            how["mechanism_param"] = attributes.PSS_PARAMETERS
        size = signature_size(alg, self.info.jwk)
        signing = Signing.by(self._token.module, self._private)
        sign: Callable[[bytes], bytes]
        if signing is None:
            sign = partial(self._private.sign, **how)
        elif mechanism == Mechanism.EDDSA:  # NSS refuses any buffer but one of its size
            sign = signing.prepared(**how, room=size)
        else:
            sign = signing.prepared(**how)
        return Way(how, _digest(alg, mechanism), sign, size)

    def _signed(self, way: Way, digest: bytes) -> bytes:
        """The bare operation, with the PIN for this very signature where the key wants that."""
        if self.asks_pin and self._token.accepted_pin is not None:
            return self._signed_with_pin(way, digest)
        return self._touched(way.sign, digest)

    def _signed_with_pin(self, way: Way, digest: bytes) -> bytes:
        return self._touched(partial(self._with_pin, **way.how), digest)

    def _touched(self, sign: Callable[[bytes], bytes], data: bytes) -> bytes:
        """A signature for which somebody may have to touch the card."""
        began = time.monotonic()
        try:
            return sign(data)
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


def _wrong_size(signature: bytes) -> SignerFailed:
    return SignerFailed(f"the PKCS#11 token's signature has {len(signature)} bytes")


def _digest(alg: Algorithm, mechanism: Mechanism) -> Callable[[bytes], bytes]:
    if mechanism == Mechanism.RSA_PKCS:
        return lambda data: attributes.SHA256_DIGEST_INFO + hashlib.sha256(data).digest()
    if alg.kty == "EC" or alg.name == "PS256":
        made = getattr(hashlib, alg.digest)
        return lambda data: made(data).digest()
    return bytes  # the mechanism makes it


def require_algorithm(token: Token, alg: str) -> None:
    """Let pass an algorithm that keys can be made for.

    Raises:
        AlgorithmUnsupported
    """
    if alg not in _offered(token):
        able = [other for other in ALGORITHMS if other in _offered(token)]
        hint = "make one with its vendor's tool, then: dpop-agent key adopt"
        if able:
            hint = f"give --alg {able[0]}"
            hint += ", which every server accepts" if able[0] == "ES256" else ", which it can"
        raise AlgorithmUnsupported(
            f"the PKCS#11 token {token.uri} can't make keys for {alg}", hint=hint
        )


def _offered(token: Token) -> set[str]:
    """The algorithms that keys can be made for."""
    return {
        name
        for name, alg in ALGORITHMS.items()
        if name not in token.faulty
        and attributes.GENERATION_MECHANISMS[alg.kty] in token.mechanisms
        and attributes.signing_mechanism(name, token.mechanisms) in token.mechanisms
    }


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
    """The objects of a kind that `ref` finds."""
    wanted = {Attribute.CLASS: kind, **attributes.template_of(ref)}
    found = list(token.session.get_objects(wanted))
    return [key for key in found if is_ref_of(key, ref)] if Attribute.LABEL in wanted else found


def is_ref_of(key: Any, ref: str) -> bool:
    """Whether it is found by that: a label finds only what has no id."""
    try:
        return attributes.ref(key) == ref
    except attributes.UNREADABLE:
        return False


def public_keys(token: Token, ref: str) -> list[dict[str, str]]:
    """The JWKs that `ref` finds: of public keys, where there is none of certificates.

    Raises:
        UnexpectedObject: one can't be read, or isn't one that the agent can use.
    """
    public = objects_with(token, ref, ObjectClass.PUBLIC_KEY)
    if public:
        return [attributes.public_jwk(key) for key in public]
    certified: list[dict[str, str]] = []
    for certificate in objects_with(token, ref, ObjectClass.CERTIFICATE):
        jwk = attributes.certified_jwk(certificate)
        if jwk not in certified:  # a renewed one is the same key's
            certified.append(jwk)
    return certified


def pair(token: Token, ref: str) -> tuple[Any, dict[str, str]] | None:
    """The private key that `ref` finds, and its public key as a JWK; None if there is none.

    Raises:
        UnexpectedObject: there is something else.
    """
    private = objects_with(token, ref, ObjectClass.PRIVATE_KEY)
    if not private:
        return None
    public = public_keys(token, ref)
    if not public:
        raise UnexpectedObject(
            f"the PKCS#11 token has neither a public key nor a certificate beside the private key "
            f"{ref}",
            hint="put one of both there with its vendor's tool, with the same id",
        )
    if len(private) > 1 or len(public) > 1:
        raise UnexpectedObject(
            f"the PKCS#11 token has {len(private)} private and {len(public)} public keys with "
            f"the id {ref}, where one of each belongs",
            hint="look with the vendor's tool whose they are; the agent needs one of each",
        )
    return private[0], public[0]


def generate_pair(token: Token, ref: str, alg: Algorithm, label: str) -> None:
    """Make a key pair with the CKA_ID `ref`.

    Raises:
        AlgorithmUnsupported, SignerFailed, PKCS11Error
    """
    refused: PKCS11Error | None = None
    spellings: tuple[bytes | None, ...] = (None,)
    if alg.crv is not None:
        spellings = attributes.EC_PARAMS[alg.crv]
    for curve in spellings:
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
                if curve is None:
                    token.session.generate_keypair(KeyType.RSA, RSA_BITS, **arguments)
                else:
                    token.session.create_domain_parameters(
                        attributes.KEY_TYPES[alg.kty], {Attribute.EC_PARAMS: curve}, local=True
                    ).generate_keypair(**arguments)
            except attributes.TEMPLATE_REFUSED as e:
                refused = e
            except MechanismInvalid as e:
                raise AlgorithmUnsupported(
                    f"the PKCS#11 token can't make keys for {alg.name}"
                ) from e
            except PKCS11Error as e:
                if error_name(e) not in attributes.CURVE_REFUSED:
                    raise
                refused = e
                break
            else:
                return
    if refused is not None and error_name(refused) in attributes.CURVE_REFUSED:
        raise AlgorithmUnsupported(f"the PKCS#11 token can't make keys for {alg.name}") from refused
    raise SignerFailed(f"the PKCS#11 token refused every key template ({refused})")


def undo(token: Token, ref: str) -> None:
    """Destroy what was just made and is of no use; nobody would find it by its jkt."""
    with suppress(PKCS11Error):  # it stays pending, and is looked for again
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            for key in objects_with(token, ref, kind):
                key.destroy()
