"""Everything that can go wrong, as types: the same classes on both sides of the socket.

    DPoPAgentError
    ├── AgentUnavailable             nobody listens at the socket
    ├── UnsafeSocket                 the socket or its folder is somebody else's
    ├── ConfigurationError           configuration, place or argument that can't be right
    ├── ServiceFailed                systemd can't be asked, or doesn't do what it was asked for
    ├── LedgerUnreadable             the agent doesn't start on a ledger that it can't read
    ├── InvalidProof                 a proof failed a check of RFC 9449 section 4.3
    ├── TokenNotBound                a token response that bound nothing, or another key
    ├── ProofRefused                 a server refused a proof, and the clock may be to blame
    ├── NonceRequired                a server wants a nonce and the body can't be sent again
    ├── ProtocolError                JSON-RPC's own codes
    │   └── ParseError, InvalidRequest, MethodNotFound, InvalidParams
    ├── KeyUnusable                  no proof by this key now
    │   └── KeyMismatch, KeyUnknown, KeyPending, KeyStaged, KeySuspended, KeyCompromised,
    │       KeyRetired, KeyDestroyed, KeyMissing, KeyRefused, NoActive
    ├── JktRequired, HtuRefused
    ├── PolicyRefused
    │   └── RateExceeded, ConsentRefused
    ├── StoreUnusable
    │   └── Locked, PinRefused, StoreAbsent, StoreInUse, SignerFailed
    ├── AuthorizationRequired
    │   └── AuthorizationRefused
    ├── SlotTaken, NoSlot
    ├── LeaseUnavailable, LeaseLost
    ├── SocketExists, SocketUnknown
    └── KeyExists, StoreUnknown, Timeout, Cancelled, Busy, TooManyConnections, LimitReached, ...

An error says what happened and why (its message) and what to do next (its hint). What crosses the
socket is `wire_type`, message and hint; see PROTOCOL.md.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` costs a command-line client a tenth of its start-up
if TYPE_CHECKING:
    from typing import Any, ClassVar, Literal

    Retry = Literal["no", "now", "later"]

OURS = -32000  # JSON-RPC 2.0 section 5.1: "reserved for implementation-defined server-errors"


class DPoPAgentError(Exception):
    """Root of the tree.

    Args:
        message: what happened and why, one line, no secret in it.
        hint: what to do next; the class's own where none is given.
        retry: whether the same request can succeed: `no`, `now` or `later`.
        retry_after_ms: when `later` is, in milliseconds, where that is known.
        details: further members of the wire's `data`, such as `choices`.
    """

    code: ClassVar[int] = OURS
    wire_type: ClassVar[str] = "failed"
    default_hint: ClassVar[str] = ""
    default_retry: ClassVar[Retry] = "no"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry: Retry | None = None,
        retry_after_ms: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.retry: Retry = retry or self.default_retry
        self.retry_after_ms = retry_after_ms
        self.details = details or {}

    @property
    def type(self) -> str:
        """The stable name that programs compare; an unknown one is kept as it came."""
        return str(self.details.get("unknown_type", self.wire_type))

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def to_wire(self) -> dict[str, Any]:
        """The `error` member of a JSON-RPC response."""
        data: dict[str, Any] = {"type": self.wire_type, "hint": self.hint, "retry": self.retry}
        if self.retry_after_ms is not None:
            data["retry_after_ms"] = self.retry_after_ms
        return {"code": self.code, "message": self.message, "data": data | self.details}


class AgentUnavailable(DPoPAgentError):
    """Nobody listens at the socket, or the agent went away before it answered."""

    wire_type = "agent_unavailable"
    default_hint = "start it with: dpop-agent serve, or dpop-agent service start"
    default_retry = "later"


class UnsafeSocket(DPoPAgentError):
    """The socket, its folder or its listener isn't ours: nothing is sent, nothing is served."""

    wire_type = "unsafe_socket"


class ConfigurationError(DPoPAgentError):
    """A configuration, a place or an argument that can't be right."""

    wire_type = "configuration"


class ServiceFailed(DPoPAgentError):
    """The service manager can't be asked, or doesn't do what it was asked for."""

    wire_type = "service_failed"


class LedgerUnreadable(DPoPAgentError):
    """The ledger exists and can't be read: refusing beats starting empty."""

    wire_type = "ledger_unreadable"


class InvalidProof(DPoPAgentError):
    """A proof failed a check of RFC 9449 section 4.3; `check` is its number there, 1 to 12."""

    wire_type = "invalid_proof"

    def __init__(self, check: int, message: str) -> None:
        super().__init__(
            f"check {check} of RFC 9449 section 4.3 failed: {message}", details={"check": check}
        )
        self.check = check


class TokenNotBound(DPoPAgentError):
    """The token response bound its access token to nothing, or to another key."""

    wire_type = "token_not_bound"
    default_hint = "ask the server's operator whether DPoP is on for this client"


class ProofRefused(DPoPAgentError):
    """A server refused a proof, and the agent's clock may be to blame.

    `details` has `clock_offset_s`: the seconds that the server's clock is ahead of the proof's
    `iat`, or None where it didn't send its time.
    """

    wire_type = "proof_refused"


class NonceRequired(DPoPAgentError):
    """The server wants `nonce` in the proof, but the request's body can't be sent twice.

    The agent has the nonce by now, so the same request, made anew, carries it.
    """

    wire_type = "nonce_required"
    default_hint = "send the request again with a fresh body: the agent knows the nonce now"
    default_retry = "now"

    def __init__(self, message: str, *, nonce: str) -> None:
        super().__init__(message)
        self.nonce = nonce


class ProtocolError(DPoPAgentError):
    """A line that isn't a request of this protocol, or an answer that isn't one.

    `request_id` is the id of the request at fault, where it had a usable one, and `method` its
    method, where that is one of the protocol's.
    """

    request_id: str | int | None = None
    method: str | None = None
    code = -32603
    wire_type = "internal"
    default_hint = "see the agent's log"


class ParseError(ProtocolError):
    """Not one JSON object on one line."""

    code = -32700
    wire_type = "parse_error"
    default_hint = "send one JSON object per line, in UTF-8"


class InvalidRequest(ProtocolError):
    """JSON, but no JSON-RPC 2.0 request."""

    code = -32600
    wire_type = "invalid_request"
    default_hint = 'send {"jsonrpc":"2.0","id":1,"method":"hello"}'


class MethodNotFound(ProtocolError):
    """No such method on this socket."""

    code = -32601
    wire_type = "method_not_found"


class InvalidParams(ProtocolError):
    """A parameter that is unknown, missing, or of the wrong type or form."""

    code = -32602
    wire_type = "invalid_params"


class KeyUnusable(DPoPAgentError):
    """The key or generation gives no proof now; another one is never used instead."""

    wire_type = "key_unusable"


class KeyMismatch(KeyUnusable):
    """`jkt` names a generation that `key` doesn't own."""

    wire_type = "key_mismatch"
    default_hint = "leave out key, or see: dpop-agent key list"


class KeyUnknown(KeyUnusable):
    """No key of that name, or no generation of that jkt, is in the ledger."""

    wire_type = "key_unknown"
    default_hint = "see: dpop-agent key list"


class KeyPending(KeyUnusable):
    """The generation is being made; whether its object exists isn't known yet."""

    wire_type = "key_pending"
    default_retry = "later"


class KeyStaged(KeyUnusable):
    """The generation is made and announced, not yet active."""

    wire_type = "key_staged"


class KeySuspended(KeyUnusable):
    """Suspended by command; reversible."""

    wire_type = "key_suspended"


class KeyCompromised(KeyUnusable):
    """Marked as compromised: never signs again."""

    wire_type = "key_compromised"
    default_hint = "get a new access token with a new generation, and revoke the old one"


class KeyRetired(KeyUnusable):
    """Its drain is over."""

    wire_type = "key_retired"
    default_hint = "get a new access token, bound to the active generation"


class KeyDestroyed(KeyUnusable):
    """The private key is gone."""

    wire_type = "key_destroyed"
    default_hint = "get a new access token, bound to the active generation"


class KeyMissing(KeyUnusable):
    """In the ledger, but its object can't be found in its store; never forgotten for that."""

    wire_type = "key_missing"
    default_hint = "see: dpop-agent key list"


class KeyRefused(KeyUnusable):
    """Its store has it, and doesn't sign with it."""

    wire_type = "key_refused"


class NoActive(KeyUnusable):
    """The key has no active generation, and no `jkt` was given."""

    wire_type = "no_active"
    default_hint = "see: dpop-agent key list"


class JktRequired(DPoPAgentError):
    """An access token is presented while several generations sign: which one is it bound to?"""

    wire_type = "jkt_required"
    default_hint = "send the jkt that the access token is bound to (its cnf.jkt)"


class HtuRefused(DPoPAgentError):
    """A target URI that isn't one, or that two parsers could read differently."""

    wire_type = "htu_refused"


class PolicyRefused(DPoPAgentError):
    """The key isn't allowed to do this."""

    wire_type = "policy_refused"


class RateExceeded(PolicyRefused):
    """As many proofs were given out as the key's rate allows for now."""

    wire_type = "rate_exceeded"
    default_retry = "later"


class ConsentRefused(PolicyRefused):
    """A person has to agree, and didn't: said no, said nothing, or couldn't be asked."""

    wire_type = "consent_refused"


class StoreUnusable(DPoPAgentError):
    """The store can't sign now."""

    wire_type = "store_unusable"
    default_retry: ClassVar[Retry] = "later"


class Locked(StoreUnusable):
    """The store wants its PIN."""

    wire_type = "locked"


class PinRefused(Locked):
    """The store refused its PIN, which is not tried again by itself."""

    wire_type = "pin_refused"
    default_retry = "no"


class StoreAbsent(StoreUnusable):
    """The module or the PKCS#11 token isn't there, or the URI fits several."""

    wire_type = "store_absent"


class StoreInUse(StoreAbsent):
    """Another program holds the card for itself alone."""

    wire_type = "store_in_use"


class SignerFailed(StoreUnusable):
    """The signer process died, or its module failed."""

    wire_type = "signer_failed"


class SocketExists(DPoPAgentError):
    """The name is taken by another filtered socket."""

    wire_type = "socket_exists"


class SocketUnknown(DPoPAgentError):
    """No filtered socket has that name."""

    wire_type = "socket_unknown"
    default_hint = "see: dpop-agent socket list"


class StoreUnknown(DPoPAgentError):
    """No store of that name in the configuration."""

    wire_type = "store_unknown"
    default_hint = "see: dpop-agent config show"


class KeyExists(DPoPAgentError):
    """There is a key of that name already."""

    wire_type = "key_exists"


class AlgorithmUnsupported(DPoPAgentError):
    """The store can't make keys for this algorithm."""

    wire_type = "algorithm_unsupported"


class AuthorizationRequired(DPoPAgentError):
    """The store makes keys only for who has its management key, which is never stored."""

    wire_type = "authorization_required"


class AuthorizationRefused(AuthorizationRequired):
    """That wasn't its management key."""

    wire_type = "authorization_refused"


class SlotTaken(DPoPAgentError):
    """Something is in that slot, and isn't overwritten."""

    wire_type = "slot_taken"


class NoSlot(DPoPAgentError):
    """The store has no free slot for another key."""

    wire_type = "no_slot"


class AttestationUnavailable(DPoPAgentError):
    """The store has no attestation of this key."""

    wire_type = "attestation_unavailable"


class ObjectLeft(DPoPAgentError):
    """The generation is destroyed and signs no more, but its store can't delete the key."""

    wire_type = "object_left"


class IllegalTransition(DPoPAgentError):
    """The generation's state doesn't allow this; nothing was changed."""

    wire_type = "illegal_transition"
    default_hint = "see: dpop-agent key list --all"


class RequestIdReused(DPoPAgentError):
    """A `request_id` that was used with other parameters."""

    wire_type = "request_id_reused"
    default_hint = "use a new request_id for a new request"


class NotDurable(DPoPAgentError):
    """The ledger couldn't be written."""

    wire_type = "not_durable"
    default_retry = "later"


class NotRecorded(DPoPAgentError):
    """The audit couldn't be written, and the configuration says that no proof leaves without."""

    wire_type = "not_recorded"
    default_retry = "later"


class LimitReached(DPoPAgentError):
    """As many keys, generations or request ids as the ledger keeps; none is forgotten for more."""

    wire_type = "limit_reached"


class LeaseUnavailable(DPoPAgentError):
    """Somebody else has the lease, or none is given out now."""

    wire_type = "lease_unavailable"
    default_retry = "later"


class LeaseLost(DPoPAgentError):
    """The lease has ended: what it is for may be somebody else's by now."""

    wire_type = "lease_lost"
    default_hint = "ask for it again, and then read again what it is for"


class Timeout(DPoPAgentError):
    """The request's deadline passed."""

    wire_type = "timeout"
    default_retry = "now"


class Cancelled(DPoPAgentError):
    """The request was cancelled."""

    wire_type = "cancelled"
    default_retry = "now"


class Busy(DPoPAgentError):
    """Too much under way on this connection or in this agent."""

    wire_type = "busy"
    default_retry = "later"


class TooManyConnections(DPoPAgentError):
    """The agent's limit of connections is reached."""

    wire_type = "too_many_connections"
    default_retry = "later"


def _tree(cls: type[DPoPAgentError]) -> list[type[DPoPAgentError]]:
    return [cls] + [below for child in cls.__subclasses__() for below in _tree(child)]


_BY_TYPE = {cls.wire_type: cls for cls in _tree(DPoPAgentError)}
_OWN_SIGNATURE = (InvalidProof, NonceRequired)  # raised on the side that checks; never on the wire


def from_wire(error: object) -> DPoPAgentError:
    """The exception for a response's `error` member; a type this version doesn't know is kept."""
    if not isinstance(error, dict):
        return ProtocolError("the agent's error isn't an object")
    data = error.get("data")
    data = dict(data) if isinstance(data, dict) else {}
    name, hint, retry = data.pop("type", None), data.pop("hint", ""), data.pop("retry", "no")
    after = data.pop("retry_after_ms", None)
    name = name if isinstance(name, str) else DPoPAgentError.wire_type
    cls = _BY_TYPE.get(name, DPoPAgentError)
    if cls in _OWN_SIGNATURE:
        cls = DPoPAgentError
    if cls.wire_type != name:
        data["unknown_type"] = name
    return cls(
        str(error.get("message", "the agent refused")),
        hint=hint if isinstance(hint, str) else "",
        retry=retry if retry in ("no", "now", "later") else "no",
        retry_after_ms=after if isinstance(after, int) else None,
        details=data,
    )
