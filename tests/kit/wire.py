"""A request as it came over the wire, and the proof in it.

It reads RFC 9449 by the standard library alone, and shares no code with what writes it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

_MEMBERS = {
    "EC": ("crv", "kty", "x", "y"),
    "OKP": ("crv", "kty", "x"),
    "RSA": ("e", "kty", "n"),
}


@dataclass(frozen=True)
class ProofSeen:
    """What a DPoP header says; nothing where it is no JWT.

    Attributes:
        jkt: the thumbprint of its key (RFC 7638).
    """

    claims: dict[str, Any] = field(default_factory=dict)
    jkt: str | None = None


@dataclass
class Seen:
    """A request as it came.

    Attributes:
        to: which of the servers it came to.
        target: its request target, as it stands in the request line.
        headers: names in lower case, each line by itself.
        connection: the number of the connection that it came over.
        proof: the first DPoP header's.
    """

    to: str
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int
    proof: ProofSeen | None = field(init=False)

    def __post_init__(self) -> None:
        proofs = self.values("dpop")
        self.proof = _read(proofs[0]) if proofs else None

    def values(self, name: str) -> list[str]:
        """What the header's lines say."""
        return [value for each, value in self.headers if each == name]


def hashed(text: str) -> str:
    """BASE64URL(SHA-256(text)): an `ath`, or a thumbprint of canonical JSON."""
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _read(proof: str) -> ProofSeen:
    try:
        header, claims, _ = (base64.urlsafe_b64decode(part + "==") for part in proof.split("."))
        jwk = json.loads(header)["jwk"]
        members = {name: jwk[name] for name in _MEMBERS[jwk["kty"]]}
        text = json.dumps(members, sort_keys=True, separators=(",", ":"))
        return ProofSeen(json.loads(claims), hashed(text))
    except (ValueError, KeyError, TypeError):
        return ProofSeen()
