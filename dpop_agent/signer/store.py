"""What every store does. One store, one process, one thread: no two calls at once."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from dpop_agent.signer.authority import Authority
from dpop_agent.signer.heritage import Accepted


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key pair as its store describes it, read back from there.

    Attributes:
        ref: what the store finds it by; for PKCS#11 the CKA_ID in hex.
        jwk: the public key, required members only (RFC 7517).
        jkt: its thumbprint (RFC 7638).
        exportable: False only after SENSITIVE, EXTRACTABLE, ALWAYS_SENSITIVE and NEVER_EXTRACTABLE
            were read back and say so (PKCS#11 3.0 section 4.9).
        protection: `hardware`, `software-token` or `keychain`.
        local: CKA_LOCAL, the key was made inside the token; None where the store doesn't tell.
        slot: the name of its place, where keys have fixed places.
        touch: `never`, `always` or `cached`, when it wants a touch; None where the store doesn't
            tell.
    """

    ref: str
    jwk: dict[str, str]
    jkt: str
    exportable: bool
    protection: str
    local: bool | None
    slot: str | None = None
    touch: str | None = None

    def to_frame(self) -> dict[str, Any]:
        """The members of a frame."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Slot:
    """Which place a new key is to have.

    Attributes:
        name: the one that was asked for, or None.
        overwrites: the jkt of the key that may be there.
        taken: the refs of places that aren't chosen, whatever the store sees there.
    """

    name: str | None = None
    overwrites: str | None = None
    taken: frozenset[str] = frozenset()


ANY_SLOT = Slot()
"""Whichever is free."""


SIGNED, ATTENDED, STALE = "signed", "attended", "stale"
"""What came of a self-test: a signature that is right; none, since the key wants somebody's touch
or its PIN for each; none, since the place would have to be opened anew first.
"""


def self_test_input() -> bytes:
    """What a self-test signs: no JWS signing input (RFC 7515 section 5.1), which has no zero byte,
    nor anything else that somebody may want signed.
    """
    return b"dpop-agent self-test\0" + secrets.token_bytes(32)


class Listed(NamedTuple):
    """A part of a listing.

    Attributes:
        objects: `ref`, `label`, and `jkt` and `alg`, the first that the key is for; both None
            where it can't be read.
        more: there are others.
    """

    objects: list[dict[str, Any]]
    more: bool


class Store(ABC):
    """A place where private keys are.

    Every method raises a `DPoPAgentError`; `broken` then tells whether the process should be
    replaced, since what the store holds open may no longer be what is there.
    """

    broken: bool = False

    @abstractmethod
    def open(self) -> dict[str, Any]:
        """Find the place and log in, with a PIN that is tried once.

        Returns: `label`, `serial`, `model` of the place, for people.

        Raises:
            StoreAbsent, Locked, PinRefused, SignerFailed
        """

    @abstractmethod
    def release(self) -> None:
        """Let other programs have the place; `open` takes it again, with the PIN it had."""

    @abstractmethod
    def reserve(self, alg: str) -> str:
        """A ref for a new key, which no object has, before anything is made.

        Raises:
            AlgorithmUnsupported
        """

    @abstractmethod
    def generate(self, ref: str, alg: str, label: str) -> KeyInfo:
        """Make a key pair under a reserved ref, non-exportable where the store can; check it."""

    @abstractmethod
    def find(self, ref: str, alg: str, *, self_test: bool, anew: bool = False) -> KeyInfo | None:
        """The key pair under `ref`, read back, and checked by a signature where that is asked for.

        `anew`: its owner may just have made it, by other means.

        Returns None only if the store answered and has none.
        """

    @abstractmethod
    def sign(self, ref: str, jkt: str, alg: str, signing_input: bytes) -> bytes:
        """The JWS signature (RFC 7515) of exactly the key with thumbprint `jkt`.

        Raises:
            KeyMissing: it isn't there, or what is there is another key.
        """

    @abstractmethod
    def self_test(self, ref: str, jkt: str, alg: str) -> str:
        """Sign `self_test_input` by exactly the key with thumbprint `jkt`, and check that; it logs
        in nowhere, and the signature is dropped.

        Returns SIGNED, ATTENDED or STALE.

        Raises:
            KeyMissing: it isn't there, or what is there is another key.
        """

    @abstractmethod
    def destroy(self, ref: str, jkt: str) -> None:
        """Delete exactly the key with thumbprint `jkt`; one that isn't there is no error.

        Raises:
            ObjectLeft: the store can't delete keys.
        """


class ListsKeys(ABC):
    """A store that can say which keys it has."""

    @abstractmethod
    def objects(self, *, begin: bool, anew: bool = False) -> Listed:
        """Some of the private keys of the place, the agent's or not; with `begin` from the first.

        `anew`: somebody may just have made or deleted some, by other means.

        It takes no longer than a signature does, for somebody may wait for one.

        Raises:
            SignerFailed: the place was opened anew since the first.
        """


class PreparesSignatures(ABC):
    """A store that can sign again and again with nothing left to look up or to decide."""

    @abstractmethod
    def prepared(self, ref: str, jkt: str, alg: str) -> Callable[[bytes], bytes | None] | None:
        """What `sign` does for a key that signed before: the same signatures and the same errors;
        None once that key has to be looked for again. None at once where each signature takes more.
        """


class PinStore(Store):
    """A store that somebody or something has to log in to."""

    @abstractmethod
    def has_pad(self) -> bool:
        """Whether the PIN is typed at the place itself, which is looked for; nobody logs in.

        Raises:
            StoreAbsent, PinRefused
        """

    @abstractmethod
    def is_braked(self) -> bool:
        """Whether, at the place that `has_pad` found, only a person may have a login tried."""


class SharedStore(PinStore):
    """A store that several processes can host at once.

    Attributes:
        accepted: what it was opened with; before it is open, what it is to be opened with.
    """

    accepted: Accepted

    @abstractmethod
    def look_anew_next_time(self) -> None:
        """Another process may have made or destroyed keys: what was found holds no longer."""


class TellsHalfMade(ABC):
    """A store that shows what a making left behind that was cut short."""

    @abstractmethod
    def half_made(self, ref: str) -> str | None:
        """The jkt of a public key under `ref` that has no private key: its making was cut short."""


class SlotStore(Store):
    """A store whose keys have fixed places, and are made with a management key.

    Attributes:
        authority: the management key.
    """

    authority: Authority

    @abstractmethod
    def reserve(self, alg: str, wanted: Slot = ANY_SLOT) -> str:
        """The ref of a place for a new key, before anything is made.

        Raises:
            AlgorithmUnsupported, SlotTaken, NoSlot, AuthorizationRequired
            InvalidParams: there is no such place.
        """

    @abstractmethod
    def slot_name(self, ref: str) -> str | None:
        """The name of the place with that ref."""

    @abstractmethod
    def generate(self, ref: str, alg: str, label: str, *, overwrites: str | None = None) -> KeyInfo:
        """As every store does.

        `overwrites` is the jkt of the key that may be there; any other is left alone.

        Raises:
            SlotTaken, AuthorizationRequired, AuthorizationRefused
        """

    @abstractmethod
    def slots(self) -> dict[str, int]:
        """How many places for keys there are, `total`, and how many are `free`."""


class Attests(ABC):
    """A store that attests its keys."""

    @abstractmethod
    def attestation(self, ref: str, jkt: str) -> list[str]:
        """Certificates (PEM) that say where the key was made, its own first.

        Raises:
            AttestationUnavailable, KeyMissing
        """
