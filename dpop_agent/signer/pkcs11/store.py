"""A PKCS#11 token as a store.

After an error in the middle of an operation the session can't be trusted, and handles outlive what
they named: the store is `broken` then, its process ends, and a new one looks again.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

from pkcs11 import Attribute, ObjectClass
from pkcs11.exceptions import PKCS11Error

from dpop_agent.errors import (
    AlgorithmUnsupported,
    DPoPAgentError,
    KeyMissing,
    KeyRefused,
    ObjectLeft,
    PinRefused,
    SignerFailed,
)
from dpop_agent.jose import ALGORITHMS, RSA_BITS_TAKEN, Algorithm, alg_of, rsa_bits, thumbprint
from dpop_agent.signer.heritage import Accepted
from dpop_agent.signer.pkcs11 import attributes, keys
from dpop_agent.signer.pkcs11.attributes import UnexpectedObject
from dpop_agent.signer.pkcs11.keys import Key, WrongSignature
from dpop_agent.signer.pkcs11.module import error_name
from dpop_agent.signer.pkcs11.token import Token
from dpop_agent.signer.store import (
    ATTENDED,
    SIGNED,
    STALE,
    KeyInfo,
    Listed,
    ListsKeys,
    PinStore,
    PreparesSignatures,
    SharedStore,
    TellsHalfMade,
    self_test_input,
)

LISTING_S = 0.001
"""Seconds for a part of a listing: about what a fast token takes for a few signatures."""

ID_BYTES = 16
"""Random bytes of a CKA_ID: no two agents on one HSM partition meet."""


# What no other try changes: the module can't, the token may not, or this login may not.
_CANT_DELETE = (
    "FunctionNotSupported",  # such as OpenSC's for PIV
    "ActionProhibited",
    "UserTypeInvalid",
    "TokenWriteProtected",
    "SessionReadOnly",
    "AttributeReadOnly",
    "FunctionRejected",
)


class NotDeleted(SignerFailed):
    """The module failed to delete one key. Another try may succeed."""


class TokenStore(PinStore, ListsKeys):
    """What every store on a PKCS#11 token does, whether or not its keys have fixed places.

    Args:
        token: it, which `open` logs in to.
        checks_each: check each signature before it leaves, not only the first by each key.
    """

    def __init__(self, token: Token, *, checks_each: bool = False) -> None:
        self._token = token
        self._checks_each = checks_each
        self._is_shared = False
        self._keys: dict[str, Key] = {}
        self._listing: Iterator[dict[str, Any] | None] | None = None

    def has_pad(self) -> bool:
        return self._token.has_pad()

    def is_braked(self) -> bool:
        return self._token.is_braked()

    def open(self) -> dict[str, Any]:
        return self._token.open()

    def release(self) -> None:
        self._keys.clear()
        self._listing = None
        with self._guard("releasing the PKCS#11 token"):
            self._token.release()

    def find(self, ref: str, alg: str, *, self_test: bool, anew: bool = False) -> KeyInfo | None:
        with self._guard("looking for a key"):
            opened = self._look_for(ref, lambda key: key is not None or not anew, anew=anew)
            if opened is None:
                return None
            try:
                _require_suitable(opened, ALGORITHMS[alg])
            except AlgorithmUnsupported:
                if anew:
                    raise
                return None  # another key than the agent had there
            if anew and not opened.may_sign:
                raise AlgorithmUnsupported(
                    f"the key {ref} isn't for signing (CKA_SIGN is false)", hint="take another key"
                )
            if self_test:
                self._signature(opened, ALGORITHMS[alg], self_test_input())
        return opened.info

    def sign(self, ref: str, jkt: str, alg: str, signing_input: bytes) -> bytes:
        with self._guard("signing"):
            key = self._the_key(ref, jkt)
            if key.asks_pin and self._token.may_have_been_pulled():
                self._look_anew()
                key = self._the_key(ref, jkt)
            return self._signature(key, ALGORITHMS[alg], signing_input)

    def self_test(self, ref: str, jkt: str, alg: str) -> str:
        if self._token.may_have_been_pulled():
            return STALE
        with self._guard("signing for a self-test"):
            key = self._keys.get(ref) or self._load(ref)
            if key is None or key.info.jkt != jkt:
                raise self._missing(ref)
            try:
                return SIGNED if key.self_test(ALGORITHMS[alg]) else ATTENDED
            except WrongSignature:
                self._keys.pop(ref, None)  # its handle may be another key's by now
                raise

    def _missing(self, ref: str) -> KeyMissing:
        return KeyMissing(f"the PKCS#11 token {self._token.uri} has no key with the id {ref}")

    def _signature(self, key: Key, alg: Algorithm, data: bytes) -> bytes:
        """A signature; a key that can't make one keeps no other from it."""
        if key.asks_pin and self._is_shared:
            raise KeyRefused(
                f"the key {key.info.ref} wants its PIN for each signature, which several signers "
                "can't give at once",
                hint="leave signers out of its store's configuration, then: dpop-agent reload",
            )
        try:
            return key.sign(alg, data)
        except (PKCS11Error, WrongSignature) as e:
            self._not_signed(e, key, alg)

    def _not_signed(self, error: Exception, key: Key, alg: Algorithm) -> NoReturn:
        """Clear up what a signature left that failed, and say why it did.

        Raises:
            KeyRefused: this key can't sign.
            Exception: the same, for all else.
        """
        if isinstance(error, WrongSignature):
            self.broken = not self._renew()
        if not isinstance(error, PKCS11Error) or error_name(error) not in keys.REFUSED:
            raise error
        self._renew()  # C_Sign may have left it under way (PKCS#11 3.0 section 5.13)
        raise KeyRefused(
            f"the PKCS#11 token doesn't sign for {alg.name} with the key {key.info.ref} "
            f"({error_name(error)})",
            hint="see with its vendor's tool what that key may be used for",
        ) from error

    def _renew(self) -> bool:
        """See the token as it is now, and hold nothing from before, where nobody has to type."""
        if not self._token.opens_anew():
            return False
        self._look_anew()
        return True

    def destroy(self, ref: str, jkt: str) -> None:
        self._keys.pop(ref, None)
        with self._guard("destroying a key"):
            private = keys.objects_with(self._token, ref, ObjectClass.PRIVATE_KEY)
            public = keys.objects_with(self._token, ref, ObjectClass.PUBLIC_KEY)
            jkts = [thumbprint(jwk) for jwk in keys.public_keys(self._token, ref)]
            if any(found != jkt for found in jkts) or len(private) > min(1, len(jkts)):
                raise KeyMissing(
                    f"what has the id {ref} on the PKCS#11 token isn't the agent's key any more",
                    hint="it is left alone; see: dpop-agent status",
                )
            # The private key first: as long as one is there, its public key tells whose it is.
            try:
                for key in private + public:
                    key.destroy()
            except PKCS11Error as e:  # the key's trouble: whoever signs doesn't notice
                if error_name(e) in _CANT_DELETE:
                    raise ObjectLeft(
                        f"the PKCS#11 token doesn't let this key be deleted ({error_name(e)}): "
                        "it stays, but no longer signs",
                        hint="delete it with the vendor's tool",
                    ) from e
                raise NotDeleted(
                    f"the PKCS#11 module failed to delete this key ({error_name(e)}): it no longer "
                    "signs",
                    hint="nothing: deleting is tried again, with growing pauses",
                ) from e

    def objects(self, *, begin: bool, anew: bool = False) -> Listed:
        if anew:
            with self._guard("looking for keys"):
                self._renew()
        if begin:
            if self._token.may_have_been_pulled():  # modules list what they remember
                self._look_anew()
            self._listing = self._listed()
        if self._listing is None:
            raise SignerFailed("the PKCS#11 token was opened anew while its keys were listed")
        ends = time.monotonic() + LISTING_S
        objects = []
        with self._guard("listing keys"):
            for item in self._listing:
                if item is not None:
                    objects.append(item)
                if time.monotonic() > ends:
                    return Listed(objects, more=True)
        self._listing = None
        return Listed(objects, more=False)

    def _listed(self) -> Iterator[dict[str, Any] | None]:
        """Each private key of the place; None is a step on the way."""
        private, _unreadable = keys.objects_of(self._token, ObjectClass.PRIVATE_KEY)
        yield None
        public: defaultdict[str, list[Any]] = defaultdict(list)
        found, _unreadable = keys.objects_of(self._token, ObjectClass.PUBLIC_KEY)
        for key in found:
            with suppress(*attributes.UNREADABLE):
                public[attributes.ref(key)].append(key)
            yield None
        for key in private:
            item = attributes.shown(key)
            yield item | _told_by(self._public_keys(item["ref"], public[item["ref"]]))

    def _public_keys(self, ref: str, public: list[Any]) -> list[dict[str, str]]:
        """The JWKs of those, where there are none of certificates; none if they can't be read."""
        try:
            if public or not ref:
                return [attributes.public_jwk(key) for key in public]
            return keys.public_keys(self._token, ref)
        except (UnexpectedObject, *attributes.UNREADABLE):
            return []

    def _the_key(self, ref: str, jkt: str) -> Key:
        """Exactly the key with that thumbprint.

        Raises:
            KeyMissing
        """
        opened = self._keys.get(ref)
        if opened is None or opened.info.jkt != jkt:
            opened = self._look_for(ref, lambda key: key is not None and key.info.jkt == jkt)
        if opened is None:
            raise self._missing(ref)
        if opened.info.jkt != jkt:
            raise KeyMissing(f"the key with the id {ref} on the PKCS#11 token isn't the one it was")
        return opened

    def _look_for(
        self, ref: str, fits: Callable[[Key | None], bool], *, anew: bool = False
    ) -> Key | None:
        """What `ref` finds. Modules go on showing what they saw when they opened the PKCS#11 token,
        such as before a card was pulled: what doesn't fit is looked for once more in a new view,
        where this one is old, or can't be read, and with `anew` in any case.

        Raises:
            UnexpectedObject
        """
        failed: UnexpectedObject | None = None
        opened = None
        try:
            opened = self._load(ref)
        except UnexpectedObject as e:
            failed = e
        else:
            if fits(opened):
                return opened
        if self._token.is_view_old():
            self._look_anew()
            return self._load(ref)
        if (anew or failed is not None) and self._renew():
            return self._load(ref)
        if failed is not None:
            raise failed
        return opened

    def _load(self, ref: str) -> Key | None:
        """Find exactly one key pair and read it back.

        Raises:
            UnexpectedObject
        """
        self._keys.pop(ref, None)
        found = keys.pair(self._token, ref)
        if found is None:
            return None
        private, jwk = found
        try:
            opened = self._keys[ref] = self._read_back(ref, private, jwk)
        except attributes.UNREADABLE as e:
            raise attributes.Unreadable(
                f"the private key {ref} on the PKCS#11 token can't be read ({attributes.cause(e)})"
            ) from e
        return opened

    def _read_back(self, ref: str, private: Any, jwk: dict[str, str]) -> Key:
        info = KeyInfo(
            ref=ref,
            jwk=jwk,
            jkt=thumbprint(jwk),
            exportable=not attributes.never_left(private),
            protection=self._token.protection,
            local=attributes.read(private, Attribute.LOCAL),
        )
        asks_pin = attributes.read(private, Attribute.ALWAYS_AUTHENTICATE) is True
        may_sign = attributes.read(private, Attribute.SIGN) is not False
        return Key(
            self._token,
            private,
            info,
            asks_pin=asks_pin,
            checks_each=self._checks_each,
            may_sign=may_sign,
        )

    def _look_anew(self) -> None:
        """See the token as it is now; modules go on showing what they saw when they opened it."""
        try:
            self.release()
            self.open()
        except DPoPAgentError:
            self.broken = True
            raise

    def _guard(self, doing: str) -> _Guard:
        return _Guard(self, doing)

    def failed(self, doing: str, error: BaseException) -> None:
        """Turn the module's error into ours; after one, nothing that is held open is trusted."""
        if isinstance(error, PKCS11Error):
            self.broken = True
            raise SignerFailed(
                f"{doing} failed in the PKCS#11 module ({error_name(error)})",
                hint="see: dpop-agent status",
            ) from error
        if isinstance(error, (UnexpectedObject, NotDeleted)):  # one key's trouble
            return
        if isinstance(error, (SignerFailed, PinRefused)):
            self.broken = True


class _Guard:
    """`with _Guard(store, "signing"):` what its module may fail at."""

    __slots__ = ("_doing", "_store")

    def __init__(self, store: TokenStore, doing: str) -> None:
        self._store = store
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if error is not None:
            self._store.failed(self._doing, error)


class Pkcs11Store(TokenStore, SharedStore, PreparesSignatures, TellsHalfMade):
    """A PKCS#11 token whose keys have the ids that they are given.

    Args:
        token: it, which `open` logs in to.
        checks_each: check each signature before it leaves, not only the first by each key.
        shared: other processes host it too.
    """

    def __init__(self, token: Token, *, checks_each: bool = False, shared: bool = False) -> None:
        super().__init__(token, checks_each=checks_each)
        self._is_shared = shared

    @property
    def accepted(self) -> Accepted:
        return self._token.accepted

    @accepted.setter
    def accepted(self, accepted: Accepted) -> None:
        self._token.accepted = accepted

    def prepared(self, ref: str, jkt: str, alg: str) -> Callable[[bytes], bytes | None] | None:
        key, algorithm = self._keys.get(ref), ALGORITHMS[alg]
        signed = None if key is None or key.info.jkt != jkt else key.prepared(algorithm)
        if key is None or signed is None:
            return None

        def signature(signing_input: bytes) -> bytes | None:
            if self._keys.get(ref) is not key:  # its handle may be another key's by now
                return None
            try:
                return signed(signing_input)
            except Exception as e:
                with self._guard("signing"):
                    self._not_signed(e, key, algorithm)

        return signature

    def look_anew_next_time(self) -> None:
        self._keys.clear()
        self._token.outdate_view()

    def reserve(self, alg: str) -> str:
        keys.require_algorithm(self._token, alg)
        return secrets.token_hex(ID_BYTES)

    def generate(self, ref: str, alg: str, label: str) -> KeyInfo:
        with self._guard("generating a key"):
            if keys.objects_with(self._token, ref, ObjectClass.PRIVATE_KEY):
                raise SignerFailed(f"the PKCS#11 token has a key with the id {ref} already")
            keys.generate_pair(self._token, ref, ALGORITHMS[alg], label)
        try:
            info = self.find(ref, alg, self_test=True)
            if info is None:
                raise SignerFailed("the key that was just made isn't on the PKCS#11 token")
        except DPoPAgentError:
            keys.undo(self._token, ref)
            raise
        if info.exportable:
            self.destroy(ref, info.jkt)
            raise SignerFailed(
                "the PKCS#11 token made a key that could leave it, which was destroyed again",
                hint="use another PKCS#11 token",
            )
        return info

    def half_made(self, ref: str) -> str | None:
        with self._guard("looking for a key"):
            private = keys.objects_with(self._token, ref, ObjectClass.PRIVATE_KEY)
            public = keys.objects_with(self._token, ref, ObjectClass.PUBLIC_KEY)
            return thumbprint(attributes.public_jwk(public[0])) if public and not private else None


def _require_suitable(key: Key, alg: Algorithm) -> None:
    """Let pass a key that can sign for an algorithm, before it is tried.

    Raises:
        AlgorithmUnsupported
    """
    jwk, ref = key.info.jwk, key.info.ref
    if (jwk["kty"], jwk.get("crv")) != (alg.kty, alg.crv):
        fitting = [
            name
            for name, row in ALGORITHMS.items()
            if (row.kty, row.crv) == (jwk["kty"], jwk.get("crv"))
        ]
        raise AlgorithmUnsupported(
            f"the key {ref} isn't one for {alg.name}", hint=f"it is one for {' or '.join(fitting)}"
        )
    if alg.kty == "RSA" and rsa_bits(jwk) not in RSA_BITS_TAKEN:
        raise AlgorithmUnsupported(
            f"the key {ref} is RSA with {rsa_bits(jwk)} bits, {RSA_BITS_TAKEN[0]} to "
            f"{RSA_BITS_TAKEN[-1]} are taken (RFC 7518 section 3.3)",
            hint="take another key",
        )


def _told_by(public: list[dict[str, str]]) -> dict[str, str | None]:
    """`jkt` and `alg` by the one public key with an id; None if they can't be told."""
    if len(public) == 1:
        return {"jkt": thumbprint(public[0]), "alg": alg_of(public[0])}
    return {"jkt": None, "alg": None}
