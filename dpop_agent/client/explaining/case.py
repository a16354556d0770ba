"""What an exchange shows: the proof and the access token taken apart, the server's own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from dpop_agent.client.explaining.messages import (
    PRIVATE_MEMBERS,
    Exchange,
    Jws,
    is_jwt,
    jws,
    split,
    without_query,
)
from dpop_agent.client.explaining.redaction import Redaction, is_redacted, is_unfilled
from dpop_agent.client.refusal import challenges, dated
from dpop_agent.jose import PUBLIC_MEMBERS, access_token_hash, is_sha256, thumbprint

SIGNS = ("active", "draining")
"""States of a generation that gives proofs."""


@dataclass(frozen=True, slots=True)
class Known:
    """A generation that the agent here has, or had.

    Attributes:
        key: the key's name.
        generation: its number.
        state: `active`, `destroyed` and so on.
        jkt: its thumbprint.
    """

    key: str
    generation: int
    state: str
    jkt: str

    def __str__(self) -> str:
        return f"{self.key}@{self.generation} ({self.state})"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the audit has of a `jti`.

    Attributes:
        time: when the agent gave that proof (RFC 3339).
        times: how often that `jti` is there.
        generation: of which key, such as `default@1`.
    """

    time: str
    times: int
    generation: str


@dataclass(frozen=True, slots=True)
class Sources:
    """What is known beside the exchanges.

    Attributes:
        known: the generations here, tombstones included; None where no agent was asked.
        metadata: the authorization server's (RFC 8414), or none.
        seen: what the audit has of a `jti`; None where it has nothing, or there is none.
        is_signed: whether a proof's signature was made by the key in its header; None where
            nobody can say.
        now: seconds since 1970 where the exchange has only just been; else None.
        latest: seconds since 1970 after which it can't have been.
    """

    known: Sequence[Known] | None = None
    metadata: Mapping[str, Any] | None = None
    seen: Callable[[str], Seen | None] = lambda _: None
    is_signed: Callable[[str], bool | None] = lambda _: None
    now: float | None = None
    latest: float = inf


class Case:
    """The last of some exchanges, taken apart."""

    def __init__(self, exchanges: Sequence[Exchange], sources: Sources) -> None:
        self.exchange = exchanges[-1]
        self.earlier = list(exchanges[:-1])
        self.sources = sources
        self.proofs = proofs_of(self.exchange)
        self.is_redacted = self.is_unsigned = False
        self.proof: Jws | None = None
        if len(self.proofs) == 1:
            self.proof, self.is_unsigned = proof_of(self.proofs[0])
            self.is_redacted = self.proof is None
        self.jkt = jkt_of(self.proof)
        self.scheme, self.access_token = credentials(self.exchange)
        self.access_claims = jws(self.access_token).claims if self.access_token else {}
        self.is_opaque = bool(self.access_token) and not is_jwt(self.access_token or "")
        self.form = self.exchange.form
        self.answer = self.exchange.answer
        self.challenges = [
            each for header in self.exchange.got("WWW-Authenticate") for each in challenges(header)
        ]
        self.errors = self._errors()
        self.description = self._description()
        self.date = date_of(self.exchange)
        jkts = [g.jkt for g in sources.known or ()]
        shown = {*jkts, *filter(None, (self.jkt, self.bound_to)), *self._hashes}
        self.redaction = Redaction(exchanges, shown)

    # The request

    def claim(self, name: str) -> Any:
        """A claim of the proof's."""
        return None if self.proof is None else self.proof.claims.get(name)

    @property
    def has_proof(self) -> bool:
        return bool(self.proofs)

    @property
    def is_unseen(self) -> bool:
        """Whether there is one proof, and what it says can't be read."""
        return len(self.proofs) == 1 and (self.proof is None or bool(self.proof.wrong))

    @property
    def is_left_out(self) -> bool:
        """Whether there is an access token, which what was given doesn't show."""
        value = next(iter(self.exchange.sent("Authorization")), "")
        return self.access_token is None and (
            (self.scheme in ("dpop", "bearer") and not is_unfilled(value.rpartition(" ")[2]))
            or is_redacted(value)
        )

    @property
    def url(self) -> str:
        """The request's, without its query: what `htu` has to be."""
        return without_query(self.exchange.url)

    @property
    def ath(self) -> str | None:
        """What `ath` has to be; None where no access token can be seen."""
        try:
            return access_token_hash(self.access_token) if self.access_token else None
        except ValueError:
            return None

    @property
    def is_token_request(self) -> bool:
        """Whether it went to the authorization server, with no access token to present."""
        if self.access_token or self.scheme in ("dpop", "bearer"):
            return False
        path = split(self.exchange.url)[2].rstrip("/").lower()
        return (
            "grant_type" in self.form
            or "access_token" in self.answer
            or (
                self.exchange.method == "POST"
                and path.endswith(("token", "/par", "/request", "/revoke", "/revocation", "/auth"))
            )
        )

    @property
    def is_pushed(self) -> bool:
        """Whether it is a pushed authorization request (RFC 9126)."""
        path = split(self.exchange.url)[2].rstrip("/").lower()
        return self.is_token_request and (
            path.endswith(("/par", "/request")) or "response_type" in self.form
        )

    @property
    def grant(self) -> str:
        """The grant type, as far as it can be seen."""
        return self.form.get("grant_type", "")

    # The access token

    @property
    def issued(self) -> Exchange | None:
        """The earlier exchange that this access token came from."""
        for each in self.earlier:
            if self.access_token and each.answer.get("access_token") == self.access_token:
                return each
        return None

    @property
    def bound_to(self) -> str | None:
        """The thumbprint that the access token is bound to, as far as it can be seen."""
        cnf = self.access_claims.get("cnf")
        jkt = cnf.get("jkt") if isinstance(cnf, Mapping) else None
        if isinstance(jkt, str) and is_sha256(jkt):
            return jkt
        issued = self.issued
        if issued is not None and str(issued.answer.get("token_type")).lower() == "dpop":
            return next((jkt_of(jws(each)) for each in proofs_of(issued)), None)
        return None

    @property
    def is_bound(self) -> bool | None:
        """Whether the access token is; None where that can't be seen."""
        if self.bound_to is not None:
            return True
        if self.access_token and not self.is_opaque:
            return False
        issued = self.issued
        if issued is not None:
            return str(issued.answer.get("token_type")).lower() == "dpop"
        return None

    # The response

    @property
    def failed(self) -> bool:
        return (self.exchange.status or 0) >= 400

    @property
    def words(self) -> str:
        """What the server says, in lower case; a semicolon parts what is said in two places."""
        return "; ".join([*self.errors, self.description]).lower()

    @property
    def says(self) -> str:
        """The server's answer, for people."""
        code = next(iter(self.errors), "")
        said = self.redaction.text(self.description, 200)
        parts = [str(self.exchange.status), self.redaction.text(code, 60)]
        return " ".join(filter(None, parts)) + (f': "{said}"' if said else "")

    @property
    def offered_nonce(self) -> str | None:
        values = self.exchange.got("DPoP-Nonce")
        return values[0] if len(values) == 1 else None

    @property
    def givers(self) -> list[str]:
        """The origins of those earlier responses that gave the proof's nonce."""
        nonce = self.claim("nonce")
        return [each.origin for each in self.earlier if nonce in each.got("DPoP-Nonce")]

    @property
    def algs(self) -> list[str] | None:
        """The algorithms that the server takes, as far as it says."""
        for scheme, params in self.challenges:
            if scheme == "dpop" and params.get("algs"):
                return params["algs"].split()
        listed = (self.sources.metadata or {}).get("dpop_signing_alg_values_supported")
        if isinstance(listed, list) and all(isinstance(each, str) for each in listed):
            return listed
        return None

    @property
    def age_s(self) -> int | None:
        """Seconds from the proof's `iat` to the response's Date."""
        iat = number(self.claim("iat"))
        if iat is None:
            return None
        if self.date is not None:
            return round(self.date - iat)
        return None if self.sources.now is None else round(self.sources.now - iat)

    def name(self, jkt: str | None) -> str:
        """A thumbprint, and which generation here has it."""
        if jkt is None:
            return "-"
        if not is_sha256(jkt):
            return self.redaction.text(jkt, 60)
        if self.sources.known is None:
            return jkt
        found = self.generation(jkt)
        return f"{jkt}, {found}" if found else f"{jkt}, no key known here"

    def generation(self, jkt: str | None) -> Known | None:
        for each in self.sources.known or ():
            if each.jkt == jkt:
                return each
        return None

    @property
    def _hashes(self) -> list[str]:
        found: list[object] = [self.ath, self.claim("ath"), self.form.get("dpop_jkt")]
        return [str(each) for each in found if is_sha256(each)]

    @property
    def _members(self) -> Mapping[str, Any]:
        """Those of the answer that tell of an error; some have them one level further down."""
        members = dict(self.answer)
        for name in ("error", "detail"):
            if isinstance(members.get(name), Mapping):
                members |= members[name]
        return members

    def _errors(self) -> list[str]:
        found: list[Any] = [params["error"] for _, params in self.challenges if params.get("error")]
        found += [self._members[name] for name in ("error", "code") if name in self._members]
        return list(dict.fromkeys(each for each in found if isinstance(each, str)))

    def _description(self) -> str:
        found = [params.get("error_description", "") for _, params in self.challenges]
        for name in ("error_description", "message", "errorSummary", "detail"):
            value = self._members.get(name)
            found.append(value if isinstance(value, str) else "")
        return "; ".join(dict.fromkeys(filter(None, found)))


def number(value: object) -> float | None:
    """A number of JSON that is no boolean, and small enough to reckon with; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        return None
    return value


def proofs_of(exchange: Exchange) -> list[str]:
    """The proofs of a request; a header with a comma holds several (RFC 9110 section 5.3)."""
    return [
        part.strip() for value in exchange.sent("DPoP") for part in value.split(",") if part.strip()
    ]


def proof_of(value: str) -> tuple[Jws | None, bool]:
    """A proof taken apart, and whether its signature alone is left out; None if more of it is."""
    if not is_redacted(value):
        return jws(value), False
    signed, _, signature = value.rpartition(".")
    if is_redacted(signed) or not is_redacted(signature):
        return None, False
    found = jws(f"{signed}.-")
    return (None, False) if found.wrong else (found, True)


def jkt_of(proof: Jws | None) -> str | None:
    """The thumbprint of a proof's key; None where its header has no public key."""
    jwk = None if proof is None else proof.header.get("jwk")
    if not isinstance(jwk, dict) or jwk.get("kty") not in PUBLIC_MEMBERS:
        return None
    members = PUBLIC_MEMBERS[jwk["kty"]]
    if not all(isinstance(jwk.get(each), str) and jwk[each].isascii() for each in members):
        return None
    return thumbprint({k: v for k, v in jwk.items() if k not in PRIVATE_MEMBERS})


def credentials(exchange: Exchange) -> tuple[str, str | None]:
    """The scheme of a request's Authorization header, and the access token in it, if any."""
    value = next(iter(exchange.sent("Authorization")), "")
    scheme, _, rest = value.strip().partition(" ")
    given = rest.strip()
    if scheme.lower() in ("dpop", "bearer") and given and " " not in given:
        return scheme.lower(), None if is_redacted(given) or is_unfilled(given) else given
    return scheme.lower(), None


def date_of(exchange: Exchange) -> float | None:
    """A response's Date, in seconds since 1970."""
    when = dated(exchange.got("Date"))
    return None if when is None else when.timestamp()
