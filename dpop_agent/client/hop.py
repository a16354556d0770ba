"""What happens on one HTTP hop, without I/O: RFC 9449 sections 7 to 9 from the client's side.

`hop` is one generator for every HTTP library. It yields steps; the library's adapter does them and
sends back what came of them:

    Sign  → the agent's Proof for these arguments
    Send  → an Answer, having sent the request with that proof or with none
    Read  → the body of that answer, decoded, or None where it is too long or broken
    Tell  → nothing: the agent hears what the server said

A redirect is a hop of its own, so it has its own proof, by the rules for where it leads.
"""

from __future__ import annotations

from dpop_agent.client.answers import ABSENT
from dpop_agent.client.refusal import CHALLENGE_STATUSES, has_error, is_json
from dpop_agent.errors import ConfigurationError, HtuRefused, NonceRequired
from dpop_agent.htu import origin_of, target
from dpop_agent.jose import json_object
from dpop_agent.proof import is_nonce

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from typing import Any

    from dpop_agent.client.answers import Proof
    from dpop_agent.client.refusal import Answer

    Steps = Generator["Sign | Send | Read | Tell", Any, Proof | None]

DEFAULT_KEY = "default"
"""The key that the agent takes where none is named (PROTOCOL.md)."""


class Sign:
    """Ask the agent for a proof; `arguments` are those of `AgentClient.proof`."""

    __slots__ = ("arguments",)

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


class Send:
    """Send the request, with `proof` as its one DPoP header, or with none."""

    __slots__ = ("proof",)

    def __init__(self, proof: Proof | None) -> None:
        self.proof = proof


class Read:
    """Read at most MAX_CHALLENGE_BODY bytes of the answer; it stays readable for the caller."""

    __slots__ = ()


class Tell:
    """Tell the agent what the server answered; it is no failure if that can't be done."""

    __slots__ = ("seen",)

    def __init__(self, seen: dict[str, str | None]) -> None:
        self.seen = seen


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
    origins: Origins,
    key: str | None,
    jkt: str | None,
    replayable: bool,
) -> Steps:
    """Send one request, a second time at most where the server asks for a nonce.

    Args:
        htm: the HTTP method.
        authority: scheme, host and port of the request's URI, without user name.
        path: its path, byte for byte as it goes over the wire.
        authorization: values of the request's Authorization headers.
        origins: the servers that get proofs.
        key: the key's name, if one is set.
        jkt: the generation that signs, where it is pinned.
        replayable: whether the request's body can be sent twice.

    Returns:
        The proof of the last answer, None where the server isn't listed.

    Raises:
        ConfigurationError: an access token for a server that isn't listed.
        NonceRequired: the server wants a nonce, and the body can't be sent twice.
    """
    access_token = dpop_access_token(authorization)
    if not origins.has(authority):
        if access_token is not None:
            raise ConfigurationError(
                f"a DPoP access token would go to {authority}, which isn't among the origins",
                hint="add it to origins=[…] if it may have this access token",
            )
        yield Send(None)
        return None

    uri = authority + path
    wanted = {"htm": htm, "uri": uri, "key": key, "jkt": jkt, "access_token": access_token}
    proof: Proof = yield Sign(**wanted, nonce=ABSENT)
    answer: Answer = yield Send(proof)
    seen = _news(uri, answer, proof)
    nonce = _nonce(answer)
    if nonce is not None and (yield from _wants_nonce(answer)):
        if not replayable:
            yield Tell({"htu": uri, "nonce": nonce, **(seen or {})})
            raise NonceRequired(
                f"{authority} asks for a nonce in the proof, but the body can't be sent twice",
                nonce=nonce,
            )
        # A new proof has a new jti; the agent learns the nonce by the way.
        proof = yield Sign(**wanted, nonce=nonce, seen=[seen] if seen else [])
        answer = yield Send(proof)
        seen = _news(uri, answer, proof)
    if seen:
        yield Tell(seen)
    return proof


def dpop_access_token(authorization: Sequence[str]) -> str | None:
    """The access token in `Authorization: DPoP …` (RFC 9449 section 7.1).

    Raises:
        ConfigurationError: there is another Authorization header.
    """
    found = [
        value.strip()
        for scheme, _, value in (header.strip().partition(" ") for header in authorization)
        if scheme.lower() == "dpop"
    ]
    if found and len(authorization) > 1:
        raise ConfigurationError(
            "the request has several Authorization headers", hint="give one access token"
        )
    return found[0] if found else None


def _nonce(answer: Answer) -> str | None:
    """The nonce for the next request (section 8.2); a repeated or malformed header is none."""
    values = answer.headers("DPoP-Nonce")
    return values[0] if len(values) == 1 and is_nonce(values[0]) else None


def _news(uri: str, answer: Answer, proof: Proof) -> dict[str, str | None] | None:
    """What the agent doesn't know yet: another nonce, and the server's clock where it refused."""
    seen: dict[str, str | None] = {}
    nonce = _nonce(answer)
    if nonce is not None and nonce != proof.nonce:
        seen["nonce"] = nonce
    if answer.status in CHALLENGE_STATUSES and (date := _server_time(answer)):
        seen["date"] = date
    return {"htu": uri, **seen} if seen else None


def _server_time(answer: Answer) -> str | None:
    """The answer's Date (RFC 9110 section 6.6.1) as RFC 3339, UTC."""
    from datetime import UTC
    from email.utils import parsedate_to_datetime

    values = answer.headers("Date")
    if len(values) != 1:
        return None
    try:
        when = parsedate_to_datetime(values[0])
        if when.tzinfo is None:  # "-0000", which RFC 5322 allows
            when = when.replace(tzinfo=UTC)
        return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if when.year > 1970 else None
    except (ValueError, OverflowError):
        return None


def _wants_nonce(answer: Answer) -> Generator[Read, bytes | None, bool]:
    """Whether the server refused for want of a nonce (sections 8 and 9)."""
    if answer.status not in CHALLENGE_STATUSES:
        return False
    if has_error(answer.headers("WWW-Authenticate"), "use_dpop_nonce"):
        return True
    if not is_json(answer.headers("Content-Type")):
        return False  # an event stream may never end
    body = yield Read()
    try:
        return body is not None and json_object(body).get("error") == "use_dpop_nonce"
    except ValueError:
        return False
