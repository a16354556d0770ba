"""What a client asks and what the answers mean, without I/O."""

from __future__ import annotations

from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    KeyUnknown,
    LeaseLost,
    NoActive,
    ProtocolError,
    Timeout,
)
from dpop_agent.jose import access_token_hash, is_access_token, is_compact
from dpop_agent.protocol import MAX_TIMEOUT_MS, Event, decode_response, encode_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    OnTouch = Callable[["Touch"], object]
    Outcome = dict[str, Any] | DPoPAgentError

DEFAULT_TIMEOUT = 10.0
MAX_TIMEOUT = 3600.0
"""Seconds; beyond it, somebody meant milliseconds."""

GRACE = 0.5
"""Seconds that a client waits beyond its timeout, so that the agent's own typed answer wins."""

MAX_PAGES = 1000
"""Pages of one listing, against an agent whose cursor never ends."""

LEASE_GRACE = 2.0
"""The same beyond the time for which somebody waits for a lease."""

_SUBSCRIPTION = 0

SUBSCRIBE = encode_request(_SUBSCRIPTION, "subscribe", {"events": ["touch"]})
"""The first request on each connection; its answer needn't be waited for."""

_REPEATABLE = frozenset(
    {
        *("hello", "proof", "proof.sign", "observe", "key.list", "status", "reload"),
        "socket.list",
    }
)


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""No nonce was given: the agent uses the one that it knows for that server."""


class _Frozen:
    __slots__: tuple[str, ...] = ()

    def __init__(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is read-only")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is read-only")

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), str(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _thaw, (type(self), self._values())


def _thaw(cls: type[_Frozen], values: dict[str, Any]) -> _Frozen:
    return cls(**values)


class Proof(_Frozen):
    """A DPoP proof; `str(proof)` is the value of the `DPoP` header.

    Attributes:
        value: the same; no repr shows it.
        key: the key's name.
        jkt: thumbprint of the generation that signed.
        state: that generation's state, `active` or `draining`.
        nonce: the server's nonce in the proof, or None.
        drain_left_s: seconds that a draining generation still signs if it isn't used meanwhile;
            None where it isn't draining, or the agent doesn't say.
        tries_nonce: others wait until the agent hears what the server says to this proof, as the
            one who asked for it promised (`shares_nonce`).
    """

    __slots__ = ("drain_left_s", "jkt", "key", "nonce", "state", "tries_nonce", "value")
    value: str
    key: str
    jkt: str
    state: str
    nonce: str | None
    drain_left_s: int | None
    tries_nonce: bool

    def __init__(
        self, *, drain_left_s: int | None = None, tries_nonce: bool = False, **values: object
    ) -> None:
        super().__init__(drain_left_s=drain_left_s, tries_nonce=tries_nonce, **values)

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return f"<Proof key={self.key!r} jkt={self.jkt!r} state={self.state!r}>"


class Generation(_Frozen):
    """One generation of a key.

    Attributes:
        key: the key's name.
        generation: its number, from 1.
        jkt: its thumbprint (RFC 7638): `dpop_jkt` in an authorization request.
        state: `active`, `draining`, ...
        alg: the algorithm, such as `ES256`.
        jwk: the public key.
        store: the store's name.
        exportable: whether the private key can leave the store.
        protection: `hardware`, `software-token` or `keychain`.
    """

    __slots__ = (
        "alg",
        "exportable",
        "generation",
        "jkt",
        "jwk",
        "key",
        "protection",
        "state",
        "store",
    )
    key: str
    generation: int
    jkt: str
    state: str
    alg: str
    jwk: dict[str, str]
    store: str
    exportable: bool
    protection: str

    def __str__(self) -> str:
        return f"{self.key}@{self.generation}"

    def __repr__(self) -> str:
        return f"<Generation {self} jkt={self.jkt!r} state={self.state!r}>"


SEND_BEFORE_S = 5.0
"""Seconds before a lease's end from which on nothing is begun any more: a request takes some."""


class Lease:
    """A name that nobody else holds.

    Attributes:
        name: it.
        fence: a number above that of each earlier lease of that name, for a store that can refuse
            what comes with a lower one.
        previous: how the one before ended: `none` if there was none, `released`, or `abandoned`: in
            the middle, or by its time. Then what was refreshed may not have been stored, and the
            refresh token at hand may be used up: read it again, try it once, then begin a new
            grant.
        waited: somebody else held it when it was asked for: read again what it is for.
    """

    __slots__ = ("_ends_at", "fence", "id", "name", "previous", "waited")

    def __init__(self, name: str, result: Mapping[str, Any], now: float) -> None:
        """Take the agent's answer, at a moment of time.monotonic.

        Raises:
            ProtocolError: it has no lease in it.
        """
        lease, fence, previous = (result.get(member) for member in ("lease", "fence", "previous"))
        lasts_ms = result.get("lasts_ms")
        if (
            not isinstance(lease, str)
            or type(fence) is not int
            or type(lasts_ms) is not int
            or not 0 < lasts_ms <= MAX_TIMEOUT_MS
        ):
            raise ProtocolError("the agent's answer has no lease in it")
        self.id = lease
        self.name = name
        self.fence = fence
        self.previous = previous if isinstance(previous, str) else "abandoned"
        self.waited = result.get("waited") is not False
        self._ends_at = now + lasts_ms / 1000

    def __repr__(self) -> str:
        return f"<Lease {self.name!r} previous={self.previous!r} left_s={self.left_s:.1f}>"

    @property
    def left_s(self) -> float:
        """Seconds for which something may still be begun under it; 0 at the least."""
        from time import monotonic

        return max(0.0, self._ends_at - SEND_BEFORE_S - monotonic())

    def check(self) -> None:
        """Look at the time, right before what can't be undone is sent.

        Raises:
            LeaseLost: it is over, or nearly: somebody else may have the lease before that is done.
        """
        if not self.left_s:
            raise LeaseLost(f"the time of the lease {self.name!r} is over")


def lease_params(name: str, wait: float) -> dict[str, Any]:
    """Parameters of `lease`."""
    return {"name": name, "wait_ms": max(0, min(int(wait * 1000), MAX_TIMEOUT_MS))}


class Touch(_Frozen):
    """A proof waits for a person: to touch the card, or to agree.

    Attributes:
        key: the key's name.
        jkt: thumbprint of the generation that is to sign.
        store: the name of the store that the card is.
        consent: whether somebody is asked to agree, and no card waits.
    """

    __slots__ = ("consent", "jkt", "key", "store")
    consent: bool
    key: str
    jkt: str
    store: str

    def __init__(self, **values: object) -> None:
        super().__init__(**{"consent": False} | values)

    def __str__(self) -> str:
        if self.consent:
            return f"you are being asked whether {self.key} may sign"
        return f"touch the card of the store {self.store} to sign with {self.key}"

    def __repr__(self) -> str:
        consent = " consent" if self.consent else ""
        return f"<Touch key={self.key!r} jkt={self.jkt!r} store={self.store!r}{consent}>"


def check_timeout(timeout: float) -> float:
    """`timeout` in seconds.

    Raises:
        ConfigurationError: not more than 0, or more than an hour.
    """
    if not 0 < timeout <= MAX_TIMEOUT:
        raise ConfigurationError(
            f"timeout is {timeout}: it has to be more than 0 and at most {MAX_TIMEOUT:.0f} seconds",
            hint="give it in seconds",
        )
    return float(timeout)


def may_repeat(method: str, params: Mapping[str, Any]) -> bool:
    """Whether asking twice has the effect of asking once."""
    return method in _REPEATABLE or "request_id" in params


def proof_params(
    htm: str,
    uri: str,
    *,
    key: str | None,
    jkt: str | None,
    access_token: str | None,
    ath: str | None,
    nonce: str | None,
    seen: Iterable[Mapping[str, str | None]],
    shares_nonce: bool,
    timeout: float,
) -> dict[str, Any]:
    """Parameters of `proof`; neither the access token nor the URI's query is among them.

    Raises:
        ConfigurationError: both access_token and ath, or an access token that isn't one.
    """
    if access_token is not None:
        if ath is not None:
            raise ConfigurationError(
                "both access_token and ath were given", hint="give the one that you have"
            )
        require_access_token(access_token)
        ath = access_token_hash(access_token)
    params: dict[str, Any] = {"htm": htm, "htu": bare_uri(uri)}
    if key is not None:
        params["key"] = key
    if jkt is not None:
        params["jkt"] = jkt
    if ath is not None:
        params["ath"] = ath
    if nonce is not ABSENT:
        params["nonce"] = nonce
    if told := seen_params(seen):
        params["seen"] = told
    if shares_nonce:
        params["shares_nonce"] = True
    params["timeout_ms"] = max(1, min(int(timeout * 1000), MAX_TIMEOUT_MS))
    return params


def require_access_token(text: str) -> None:
    """Refuse what no Authorization header can carry, before an error of others' shows it.

    Raises:
        ConfigurationError: `text` isn't an access token (RFC 6750 section 2.1).
    """
    if not is_access_token(text):
        raise ConfigurationError(
            "the access token has a character that none has, such as white space or a line end",
            hint="give it as the server sent it, and nothing more (RFC 6750 section 2.1)",
        )


def seen_params(seen: Iterable[Mapping[str, str | None]]) -> list[dict[str, str | None]]:
    """Server answers to tell, their URIs without query."""
    return [{**item, "htu": bare_uri(item["htu"] or "")} for item in seen]


def bare_uri(uri: str) -> str:
    """`uri` without query and fragment: they can hold secrets, and `htu` has neither."""
    return uri.partition("#")[0].partition("?")[0]


def proof_of(result: Mapping[str, Any], *, jkt: str | None) -> Proof:
    """The proof in the answer to a request for one by `jkt`.

    Raises:
        ProtocolError: the answer has no proof, or another generation's, or one that no header can
            be made of.
    """
    nonce = result.get("nonce")
    values = [result.get(name) for name in ("proof", "key", "jkt", "state")]
    if not all(isinstance(v, str) for v in values) or not isinstance(nonce, str | None):
        raise ProtocolError("the agent's answer has no proof in it")
    left_s = result.get("drain_left_s")
    proof = Proof(
        value=values[0],
        key=values[1],
        jkt=values[2],
        state=values[3],
        nonce=nonce,
        drain_left_s=left_s if type(left_s) is int else None,
        tries_nonce=result.get("tries_nonce") is True,
    )
    if jkt is not None and proof.jkt != jkt:
        raise ProtocolError(f"the agent answered with a proof by {proof.jkt}, not by {jkt}")
    if not is_compact(proof.value):
        raise ProtocolError("the agent's answer has a proof that isn't a signed JWT")
    return proof


def timed_out(timeout: float) -> Timeout:
    """The error of a call that had so many seconds."""
    return Timeout(
        f"the agent didn't answer within {timeout:g} s", hint="try again, with a longer timeout"
    )


def read_line(line: bytes) -> tuple[int | None, Outcome | Touch | None]:
    """What a line answers to the request with an id, or tells of it; None where it says nothing.

    Raises:
        DPoPAgentError: an agent that takes no more of us says so without an id.
        ProtocolError: the line isn't an agent's.
    """
    number, message = decode_response(line)
    if isinstance(message, Event):
        return number, _touch_of(message)
    if number is None and isinstance(message, DPoPAgentError):
        raise message
    return number, None if number == _SUBSCRIPTION else message  # an older agent refuses it


def _touch_of(event: Event) -> Touch | None:
    if event.name != "touch":
        return None
    values = {name: event.params.get(name) for name in ("key", "jkt", "store")}
    if not all(isinstance(value, str) for value in values.values()):
        raise ProtocolError("the agent's event has no touch in it")
    return Touch(**values, consent=event.params.get("consent") is True)


class Listing:
    """`key.list` over its pages: ask with `params` while there are any, and `add` the answer."""

    def __init__(self, key: str | None, *, include_destroyed: bool = False) -> None:
        self.keys: list[dict[str, Any]] = []
        self.params: dict[str, Any] | None = {}
        if key is not None:
            self.params["key"] = key
        if include_destroyed:
            self.params["include_destroyed"] = True
        self._pages = 0

    def add(self, page: Mapping[str, Any]) -> None:
        """Take a page in.

        Raises:
            ProtocolError: it isn't one, or there is no end of them.
        """
        keys, cursor = page.get("keys"), page.get("cursor")
        if not isinstance(keys, list) or not all(_is_key(key) for key in keys):
            raise ProtocolError("the agent's answer has no list of keys in it")
        for key in keys:
            if self.keys and self.keys[-1]["key"] == key["key"]:
                self.keys[-1]["generations"] += key["generations"]
            else:
                self.keys.append(key)
        self._pages += 1
        if self._pages == MAX_PAGES:
            raise ProtocolError(f"the agent's list of keys has more than {MAX_PAGES} pages")
        assert self.params is not None
        self.params = {**self.params, "cursor": cursor} if isinstance(cursor, str) else None


def _is_key(key: object) -> bool:
    return (
        isinstance(key, dict)
        and isinstance(key.get("key"), str)
        and isinstance(key.get("generations"), list)
        and all(isinstance(found, dict) for found in key["generations"])
    )


def active_generation(name: str, keys: list[dict[str, Any]]) -> Generation:
    """The active generation of the key `name`.

    Raises:
        KeyUnknown: there is no such key.
        NoActive: none of its generations is active.
        ProtocolError: the agent left something out.
    """
    for key in keys:
        if key["key"] != name:
            continue
        for found in key["generations"]:
            if found.get("state") == "active":
                try:
                    return Generation(
                        key=name,
                        store=key["store"],
                        alg=key["alg"],
                        **{
                            part: found[part]
                            for part in (
                                "generation",
                                "jkt",
                                "state",
                                "jwk",
                                "exportable",
                                "protection",
                            )
                        },
                    )
                except KeyError as e:
                    raise ProtocolError(f"the agent's list of keys has no {e.args[0]}") from e
        raise NoActive(f"the key {name!r} has no active generation")
    raise KeyUnknown(f"there is no key {name!r}")
