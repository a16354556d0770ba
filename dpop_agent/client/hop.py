"""What happens on one HTTP hop, without I/O: RFC 9449 sections 7 to 9 from the client's side.

`hop` is one generator for every HTTP library. It yields steps; the library's adapter does them and
sends back what came of them:

    Sign  → the agent's Proof for these arguments
    Send  → an Answer, having sent the request with that proof and access token, or with neither
    Read  → the body of that answer, decoded, or None where it is too long or broken
    Tell  → nothing: the agent hears what the server said

A redirect is a hop of its own, so it has its own proof, by the rules for where it leads.
"""

from __future__ import annotations

import re

from dpop_agent.client.answers import ABSENT, require_access_token
from dpop_agent.client.refusal import (
    CHALLENGE_STATUSES,
    CLOCK_AHEAD_S,
    CLOCK_BEHIND_S,
    Refusal,
    clock_offset_s,
    dated,
    is_event_stream,
    is_json,
)
from dpop_agent.errors import ConfigurationError, HtuRefused, NonceRequired, ProofRefused
from dpop_agent.htu import origin_of, target
from dpop_agent.proof import TCHAR, is_nonce

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from typing import Any, TypeGuard

    from dpop_agent.client.answers import Proof
    from dpop_agent.client.refusal import Answer

    Steps = Generator["Sign | Send | Read | Tell", Any, "Done"]

DEFAULT_KEY = "default"
"""The key that the agent takes where none is named (PROTOCOL.md)."""


# Wherever a lenient server might find the scheme.
_DPOP = re.compile(rf"(?:\A|,)[^{TCHAR},]*dpop(?![{TCHAR}])", re.I)

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_ESCAPABLE = re.compile(r"[\[\]^|]")

# What a server calls a nonce that it takes no more.
_NONCE_REFUSED = frozenset({"use_dpop_nonce", "invalid_dpop_proof", "invalid_token"})


class Sign:
    """Ask the agent for a proof; `arguments` are those of `AgentClient.proof`."""

    __slots__ = ("arguments",)

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


class Send:
    """Send the request: `proof` is its one DPoP header, or it has none.

    An access token, which there is beside a proof alone, is its one Authorization header; without
    one the request's own stays.
    """

    __slots__ = ("access_token", "proof")

    def __init__(self, proof: Proof | None, access_token: str | None = None) -> None:
        self.proof = proof
        self.access_token = access_token


class Read:
    """Read at most MAX_CHALLENGE_BODY bytes of the answer; it stays readable for the caller."""

    __slots__ = ()


class Tell:
    """Tell the agent what the server answered; it is no failure if that can't be done."""

    __slots__ = ("seen",)

    def __init__(self, seen: dict[str, str | None]) -> None:
        self.seen = seen


class Done:
    """What came of a hop.

    Attributes:
        proof: that of the last answer, None where the server isn't listed.
        refused_access_token: the server takes that access token no more (RFC 6750 section 3.1).
        refused_grant: nor the code or the refresh token that was posted (RFC 6749 section 5.2).
        clock: the error to raise where another access token is refused too: its server's clock
            isn't the agent's.
    """

    __slots__ = ("clock", "proof", "refused_access_token", "refused_grant")

    def __init__(
        self,
        proof: Proof | None,
        *,
        refused_access_token: bool = False,
        refused_grant: bool = False,
        clock: ProofRefused | None = None,
    ) -> None:
        self.proof = proof
        self.refused_access_token = refused_access_token
        self.refused_grant = refused_grant
        self.clock = clock


class Origins:
    """The servers that get proofs."""

    __slots__ = ("_listed",)

    def __init__(self, origins: Iterable[str]) -> None:
        """Take a list of origins, as in `https://api.example.com`.

        Raises:
            HtuRefused: one of them isn't an origin.
            ConfigurationError: there are none, or a text instead of a list.
        """
        if isinstance(origins, str):
            raise ConfigurationError("origins is a text", hint="give a list: origins=[…]")
        self._listed = frozenset(origin_of(origin) for origin in origins)
        if not self._listed:
            raise ConfigurationError(
                "origins is empty: nothing would be signed",
                hint="list the authorization server and the resource servers",
            )

    def has(self, authority: str) -> bool:
        """Whether the server at `authority`, a URI without path, is listed."""
        try:
            return target(authority).origin in self._listed
        except HtuRefused:
            return False  # what has two readings isn't the origin that somebody listed


def hop(
    *,
    htm: str,
    authority: str,
    path: str,
    authorization: Sequence[str],
    access_token: str | None,
    origins: Origins,
    key: str | None,
    jkt: str | None,
    replayable: bool,
    redirected_body: bool,
) -> Steps:
    """Send one request; a second time at most, with the server's nonce or dated back.

    Args:
        htm: the HTTP method.
        authority: scheme, host and port of the request's URI, without user name.
        path: its path, byte for byte as it goes over the wire.
        authorization: values of the request's Authorization headers.
        access_token: one that isn't among them, and is to be presented.
        origins: the servers that get proofs.
        key: the key's name, if one is set.
        jkt: the generation that signs, where it is pinned.
        replayable: whether the request's body can be sent twice.
        redirected_body: whether it has a body that was sent to a listed server before.

    Raises:
        ConfigurationError: an access token that isn't one, or an access token or the body of a
            request to a listed server would go to one that isn't listed.
        NonceRequired: the server wants a nonce, and the body can't be sent twice.
        ProofRefused: the server refuses the proof, and the agent's clock may be to blame.
    """
    if access_token is None:
        access_token = dpop_access_token(authorization)
    else:
        require_access_token(access_token)
    if not origins.has(authority):
        _refuse_unlisted(authority, access_token=access_token, redirected_body=redirected_body)
        yield Send(None)
        return Done(None)

    uri = authority + path
    wanted = {"htm": htm, "uri": uri, "key": key, "jkt": jkt, "access_token": access_token}
    proof: Proof = yield Sign(**wanted, nonce=ABSENT, shares_nonce=True)
    answer: Answer = yield Send(proof, access_token)
    refusal = yield from _refusal(answer)
    again = None
    if refusal is not None:
        again = yield from _second_proof(
            wanted, authority, answer, refusal, proof, replayable=replayable
        )
    if again is not None:
        proof = again
        answer = yield Send(proof, access_token)
        refusal = yield from _refusal(answer)
    if seen := _news(uri, answer, refusal, proof):
        yield Tell(seen)
    if refusal is None:
        return Done(proof)
    clock = _clock_error(authority, answer, refusal, proof)
    iat_refused = clock is not None and refusal.of_proof
    if trouble := _trouble(answer, refusal, proof, iat_refused=iat_refused):
        yield Tell({"htu": uri, **trouble})
    if clock is not None and iat_refused:
        raise clock
    expired = answer.status == 401 and "invalid_token" in refusal.errors
    return Done(
        proof,
        refused_access_token=expired and access_token is not None,
        refused_grant="invalid_grant" in refusal.errors,
        clock=clock,
    )


def _second_proof(
    wanted: dict[str, Any],
    authority: str,
    answer: Answer,
    refusal: Refusal,
    proof: Proof,
    *,
    replayable: bool,
) -> Generator[Sign | Tell, Proof, Proof | None]:
    """Another proof after a refusal, if it may fare better: it has a new jti.

    Raises:
        NonceRequired: it would, but the body can't be sent twice.
    """
    uri, nonce = wanted["uri"], _nonce(answer)
    seen = _news(uri, answer, refusal, proof)
    told = [seen] if seen else []
    if nonce is not None and "use_dpop_nonce" in refusal.errors:
        if not replayable:
            yield Tell({"htu": uri, "nonce": nonce, **(seen or {})})
            raise NonceRequired(
                f"{authority} asks for a nonce in the proof, but the body can't be sent twice",
                nonce=nonce,
            )
        return (yield Sign(**wanted, nonce=nonce, seen=told))
    date = _server_time(answer)
    offset_s = clock_offset_s(date, proof)
    if not (refusal.maybe_of_time and replayable and _is_wrong(offset_s)):
        return None
    # The agent dates proofs back for a server that is behind, and no longer for one that was;
    # whether it does now, its next proof shows.
    later = yield Sign(**wanted, nonce=ABSENT, seen=told)
    later_s = clock_offset_s(date, later)
    return later if later_s is not None and abs(later_s) + 1 < abs(offset_s) else None


def _refuse_unlisted(authority: str, *, access_token: str | None, redirected_body: bool) -> None:
    if access_token is not None:
        raise ConfigurationError(
            f"a DPoP access token would go to {authority}, which isn't among the origins",
            hint="add it to origins=[…] if it may have this access token",
        )
    if redirected_body:
        raise ConfigurationError(
            f"a redirect would carry a request's body on to {authority}, which isn't among the "
            "origins",
            hint="add it to origins=[…] if it may have what was in that body",
        )


def dpop_access_token(authorization: Sequence[str]) -> str | None:
    """The access token in `Authorization: DPoP …` (RFC 9449 section 7.1).

    Raises:
        ConfigurationError: there is another Authorization header, or it can be read otherwise.
    """
    if any(_CONTROL.search(value) for value in authorization):
        raise ConfigurationError(
            "the Authorization header has a line end or another control character",
            hint="give the credentials as the server sent them, and nothing more",
        )
    if not any(_DPOP.search(value) for value in authorization):
        return None
    if len(authorization) > 1:
        raise ConfigurationError(
            "the request has several Authorization headers", hint="give one access token"
        )
    scheme, _, access_token = authorization[0].strip(" ").partition(" ")
    if scheme.lower() != "dpop":
        raise ConfigurationError(
            "the Authorization header isn't DPoP, a space and an access token",
            hint="give it as RFC 9449 section 7.1 has it",
        )
    require_access_token(access_token.lstrip(" "))
    return access_token.lstrip(" ")


def wire_path(path: str) -> str:
    """A path as it is to go over the wire: escaped where there is but one way to (RFC 3986).

    What could be meant otherwise is left, for the agent to refuse: a backslash that some take for a
    slash, a percent sign that begins no escape.
    """
    return _ESCAPABLE.sub(lambda found: f"%{ord(found[0]):02X}", path)


def merged_cookies(cookie: str | None, newer: str) -> str:
    """A Cookie header (RFC 6265 section 4.2), newer cookies in place of those of the same names."""

    def name(pair: str) -> str:
        return pair.partition("=")[0].strip()

    names = {name(pair) for pair in newer.split(";")}
    kept = [pair.strip() for pair in (cookie or "").split(";") if name(pair) not in {*names, ""}]
    return "; ".join([*kept, newer])


def _nonce(answer: Answer) -> str | None:
    """The nonce for the next request (section 8.2); a repeated or malformed header is none."""
    values = answer.headers("DPoP-Nonce")
    return values[0] if len(values) == 1 and is_nonce(values[0]) else None


def _news(uri: str, answer: Answer, refusal: Refusal | None, proof: Proof) -> dict[str, Any] | None:
    """What the agent doesn't know yet: another nonce, and the server's clock where it refused; of
    one that was tried for others, that it was taken too.
    """
    from datetime import UTC, datetime

    seen: dict[str, Any] = {}
    nonce = _nonce(answer)
    refused = refusal is not None and _refuses_nonce(answer, refusal, proof)
    tried = proof.tries_nonce and not refused
    if nonce is not None and nonce != proof.nonce:
        seen["nonce"] = nonce
    elif tried and proof.nonce is not None:
        seen["nonce"] = proof.nonce
    if answer.status in CHALLENGE_STATUSES and (date := _server_time(answer)):
        seen["date"] = datetime.fromtimestamp(date, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"htu": uri, **seen} if seen or tried else None


def _trouble(
    answer: Answer, refusal: Refusal, proof: Proof, *, iat_refused: bool
) -> dict[str, Any]:
    """What an agent takes since 0.2, told apart: an older one refuses whatever it comes with."""
    trouble: dict[str, Any] = {}
    if _refuses_nonce(answer, refusal, proof):
        trouble["refused_nonce"] = proof.nonce
    if iat_refused:
        trouble["iat_refused"] = True
    return trouble


def _refuses_nonce(answer: Answer, refusal: Refusal, proof: Proof) -> bool:
    """Whether the nonce may be to blame, and there is no other."""
    named = refusal.errors or ({"invalid_token"} if answer.status == 401 else set())
    return (
        proof.nonce is not None and _nonce(answer) is None and not _NONCE_REFUSED.isdisjoint(named)
    )


def _clock_error(
    authority: str, answer: Answer, refusal: Refusal, proof: Proof
) -> ProofRefused | None:
    """Say that the clock may be to blame, where the server's time doesn't say otherwise."""
    date = _server_time(answer)
    if date is None:
        # The nonce may be to blame as well.
        suspect = refusal.maybe_of_time and proof.nonce is None
        return _unknown_clock(authority) if suspect else None
    offset_s = clock_offset_s(date, proof)
    suspect = refusal.maybe_of_time or "invalid_token" in refusal.errors
    return _wrong_clock(authority, offset_s) if suspect and _is_wrong(offset_s) else None


def _is_wrong(clock_offset_s: int | None) -> TypeGuard[int]:
    return clock_offset_s is not None and not -CLOCK_AHEAD_S < clock_offset_s < CLOCK_BEHIND_S


def _unknown_clock(authority: str) -> ProofRefused:
    return ProofRefused(
        f"{authority} refused a proof; the agent's clock may be wrong, and the answer has no Date "
        "to compare it with",
        hint="compare the clock of the agent's machine with the right time",
        details={"clock_offset_s": None},
    )


def _wrong_clock(authority: str, offset_s: int) -> ProofRefused:
    behind = offset_s > 0
    return ProofRefused(
        f"{authority} refused a proof; by its Date the agent's clock is {abs(offset_s)} s "
        f"{'behind' if behind else 'ahead'}",
        hint="set the clock of the agent's machine; "
        + (
            "proofs are never dated ahead of it"
            if behind
            else "proofs are dated back by 300 s at most, from the next request on"
        ),
        details={"clock_offset_s": offset_s},
    )


def _server_time(answer: Answer) -> float | None:
    """The answer's Date, in seconds since 1970, where it can be one."""
    when = dated(answer.headers("Date"))
    return None if when is None or not 1970 < when.year < 9999 else when.timestamp()


def _refusal(answer: Answer) -> Generator[Read, bytes | None, Refusal | None]:
    """What the server says where it refused, in its challenges or in its body."""
    if answer.status not in CHALLENGE_STATUSES:
        return None
    said = Refusal.from_challenges(answer.headers("WWW-Authenticate"))
    if "use_dpop_nonce" in said.errors or (said.errors and _nonce(answer) is None):
        return said
    content_type = answer.headers("Content-Type")
    # Some send their JSON as text/plain, or with no type at all.
    readable = _nonce(answer) is not None and not is_event_stream(content_type)
    if not (readable or is_json(content_type)):
        return said
    return said.and_body((yield Read()))
