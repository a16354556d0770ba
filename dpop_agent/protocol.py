"""The wire: JSON-RPC 2.0, one object per line, without I/O. PROTOCOL.md is its description.

A request's parameters are checked here, against one table, so that what reaches the agent's handler
has the right members and forms; whether the agent grants it is decided there.
"""

from __future__ import annotations

import json
import re

from dpop_agent import paths
from dpop_agent.errors import (
    DPoPAgentError,
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    ParseError,
    ProtocolError,
    from_wire,
)
from dpop_agent.htu import MAX_URI
from dpop_agent.jose import NotAnObject, is_sha256, json_object
from dpop_agent.proof import is_htm, is_nonce
from dpop_agent.spelling import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

PROTOCOL_VERSION = 1

MAX_LINE = 60 * 1024
"""Bytes of a line in either direction, its newline included; fits a socket's buffer at once."""

MAX_TIMEOUT_MS = 60_000
"""The longest deadline that a caller can ask for."""

TOUCH_TIMEOUT_S = 60.0
"""Seconds for a signature that waits for a touch, whatever the caller's own deadline says: people
look for their card. Cards themselves wait 15."""

MAX_SEEN = 32
"""Server answers told at once."""

MAX_REQUESTS = 64
"""Requests under way on one connection."""

MAX_SECONDS = 10 * 366 * 24 * 3600
"""Ten years: the longest time that a key's setting can have; beyond it, somebody erred."""

MAX_RATE = 1_000_000
"""Proofs a minute, and at once: more than any store signs."""

MAX_METHODS = 32
MAX_PATHS = 32

MAX_SOCKET_KEYS = 64
"""Keys of a filtered socket."""

EVENTS = ("touch",)
"""What a connection can subscribe to."""

KEY_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SLOT = re.compile(r"[0-9a-f]{2}")
OWN_SOCKETS = (paths.AGENT, paths.ADMIN, paths.MOUNTED, paths.EXEC)
"""The names that the audit has for other sockets, so that no filtered one has them."""
MAX_REF = 64
"""Bytes of an object's id, or of the label of one without an id."""

MAX_LABEL = 96
"""Characters shown of an object's label: the agent's own are no longer."""

LABEL_REF = "label:"
REF = re.compile(rf"(?:{LABEL_REF})?(?:[0-9a-f]{{2}}){{1,{MAX_REF}}}")
"""What a store finds an object by: its id in hex, or `label:` and its label's UTF-8 in hex."""

LEASE_NAME = re.compile(r"[!-~]{1,128}")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{8,64}")
_RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z", re.ASCII)


class Param:
    """A parameter's form: `check` holds for a good value, `says` tells people what that is."""

    __slots__ = ("check", "required", "says")

    def __init__(self, says: str, check: Callable[[Any], bool], *, required: bool = False) -> None:
        self.says = says
        self.check = check
        self.required = required

    def must(self) -> Param:
        """The same form, required."""
        return Param(self.says, self.check, required=True)


def _is_count(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_seen(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_SEEN
        and all(
            isinstance(item, dict)
            and item.keys() <= {"htu", "nonce", "date", "refused_nonce", "iat_refused"}
            and _HTU.check(item.get("htu"))
            and ("nonce" not in item or is_nonce(item["nonce"]))
            and ("date" not in item or _is_date(item["date"]))
            and ("refused_nonce" not in item or is_nonce(item["refused_nonce"]))
            and isinstance(item.get("iat_refused", False), bool)
            for item in value
        )
    )


def _is_date(value: Any) -> bool:
    return isinstance(value, str) and _RFC3339_UTC.fullmatch(value) is not None


def seconds_of(date: str) -> int:
    """A date on the wire as seconds since 1970, whole ones.

    Raises:
        ValueError: there is no such date.
    """
    from datetime import UTC, datetime

    return int(datetime.fromisoformat(date[:19]).replace(tzinfo=UTC).timestamp())


def _is_list(most: int, check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(check, value))


def _is_rate(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and {"per_minute"} <= value.keys() <= {"per_minute", "burst"}
        and all(map(_is_count(1, MAX_RATE), value.values()))
    )


_BOOL = Param("true or false", lambda v: isinstance(v, bool))
_KEY = Param(
    "a key's name: a-z, 0-9, dot, dash, underscore, 64 characters at most",
    lambda v: isinstance(v, str) and KEY_NAME.fullmatch(v) is not None,
)
_JKT = Param("43 characters of base64url: an RFC 7638 thumbprint", is_sha256)
_ATH = Param("43 characters of base64url: the SHA-256 of an access token", is_sha256)
_HTM = Param("an HTTP method, such as GET", is_htm)
# One more than a URI may have, so that a longer one gets htu's own answer.
_HTU = Param("a target URI", lambda v: isinstance(v, str) and 0 < len(v) <= 4 * MAX_URI)
_NONCE = Param(
    "a server's nonce (RFC 9449 section 8.1) of 512 characters at most, or null for none",
    lambda v: v is None or is_nonce(v),
)
_SEEN = Param(f"at most {MAX_SEEN} objects with htu, and what that server said", _is_seen)
_TIMEOUT = Param(f"milliseconds, 1 to {MAX_TIMEOUT_MS}", _is_count(1, MAX_TIMEOUT_MS))
_WAIT = Param(f"milliseconds, 0 to {MAX_TIMEOUT_MS}", _is_count(0, MAX_TIMEOUT_MS))
_LEASE_NAME = Param(
    "1 to 128 visible ASCII characters",
    lambda v: isinstance(v, str) and LEASE_NAME.fullmatch(v) is not None,
)
_LEASE = Param("a lease", lambda v: isinstance(v, str) and 0 < len(v) <= 64)
_TEXT = Param("text of at most 64 characters", lambda v: isinstance(v, str) and len(v) <= 64)
_CURSOR = Param("the cursor from the page before", lambda v: isinstance(v, str) and len(v) <= 128)
_SIGNING_INPUT = Param(
    "a proof's header and claims, base64url with a dot between them",
    lambda v: isinstance(v, str) and 0 < len(v) <= 16 * 1024,
)
_GENERATION = Param("a generation's number", _is_count(1, 2**31))
_REQUEST = Param(
    "8 to 64 letters, digits or .:_-",
    lambda v: isinstance(v, str) and REQUEST_ID.fullmatch(v) is not None,
)
_ALG = Param("an algorithm, such as ES256", lambda v: isinstance(v, str) and len(v) <= 16)
_ORIGINS = Param(
    "a list of at most 64 origins, such as https://api.example.com",
    _is_list(64, lambda v: isinstance(v, str) and len(v) <= 300),
)

_STORE_REF = Param(
    "the object's id, hex digits, or as status shows it",
    lambda v: isinstance(v, str) and REF.fullmatch(v.lower()) is not None,
)
_OBJECT_LABEL = Param(
    f"the object's label, at most {MAX_LABEL} characters",
    lambda v: isinstance(v, str) and 0 < len(v) <= MAX_LABEL,
)
_SECONDS = Param("seconds, 0 to ten years", _is_count(0, MAX_SECONDS))
_EVERY = Param(
    "seconds, 1 to ten years, or null for never",
    lambda v: v is None or _is_count(1, MAX_SECONDS)(v),
)

_SLOT = Param(
    "a slot's name, such as 9a or 82",
    lambda v: isinstance(v, str) and SLOT.fullmatch(v) is not None,
)
_MAYBE = Param(
    "true, false, or null for what the store says", lambda v: v is None or isinstance(v, bool)
)
_EVENTS = Param(
    f"a list of {', '.join(EVENTS)}",
    _is_list(len(EVENTS), lambda v: v in EVENTS),
)

RULES = {
    "origins": _ORIGINS,
    "methods": Param(
        f"a list of at most {MAX_METHODS} HTTP methods, such as GET", _is_list(MAX_METHODS, is_htm)
    ),
    "paths": Param(
        f"a list of at most {MAX_PATHS} paths, such as /api/v1",
        _is_list(MAX_PATHS, lambda v: isinstance(v, str) and len(v) <= MAX_URI),
    ),
    "require_ath": _BOOL,
    "rate": Param(
        f"null, or an object with per_minute and, if need be, burst: numbers from 1 to {MAX_RATE}",
        _is_rate,
    ),
    "confirm_s": Param(
        "seconds, 0 to ten years, or null for never",
        lambda v: v is None or _is_count(0, MAX_SECONDS)(v),
    ),
}
"""What a key, or a socket of its own, gives proofs for."""

KEY_SETTINGS = {
    **RULES,
    "allow_sign_proof": _BOOL,
    "rotate_every_s": _EVERY,
    "drain_s": _SECONDS,
    "max_drain_s": _SECONDS,
    "touch": _MAYBE,
}
"""What a key may be used for, and for how long."""


def is_socket_name(value: Any) -> bool:
    """Whether a filtered socket can have that name."""
    return (
        isinstance(value, str)
        and KEY_NAME.fullmatch(value) is not None
        and value not in OWN_SOCKETS
    )


_SOCKET = Param(
    "a socket's name: a-z, 0-9, dot, dash, underscore, 64 characters at most, and not "
    f"{', '.join(OWN_SOCKETS)}",
    is_socket_name,
)
_KEYS = Param(
    f"a list of 1 to {MAX_SOCKET_KEYS} keys' names",
    lambda v: v != [] and _is_list(MAX_SOCKET_KEYS, _KEY.check)(v),
)

_PLACE = {"slot": _SLOT, "reuse_slot": _BOOL}
_ONE_GENERATION = {
    "key": _KEY.must(),
    "generation": _GENERATION.must(),
    "request_id": _REQUEST,
}

AGENT_METHODS: Mapping[str, Mapping[str, Param]] = {
    "hello": {"client": _TEXT},
    "proof": {
        "htm": _HTM.must(),
        "htu": _HTU.must(),
        "key": _KEY,
        "jkt": _JKT,
        "ath": _ATH,
        "nonce": _NONCE,
        "seen": _SEEN,
        "shares_nonce": _BOOL,
        "timeout_ms": _TIMEOUT,
    },
    "proof.sign": {"signing_input": _SIGNING_INPUT.must(), "jkt": _JKT.must()},
    "observe": {"seen": _SEEN.must()},
    "key.list": {"key": _KEY, "include_destroyed": _BOOL, "cursor": _CURSOR},
    "lease": {"name": _LEASE_NAME.must(), "wait_ms": _WAIT},
    "release": {"lease": _LEASE.must()},
    "status": {"look": _BOOL},
    "subscribe": {"events": _EVENTS.must()},
}
"""What `agent.sock` answers."""

ADMIN_METHODS: Mapping[str, Mapping[str, Param]] = {
    **AGENT_METHODS,
    "key.create": {
        "key": _KEY.must(),
        "store": _TEXT,
        "alg": _ALG,
        **_PLACE,
        **KEY_SETTINGS,
        "request_id": _REQUEST,
    },
    "key.rotate": {
        "key": _KEY.must(),
        "stage": _BOOL,
        "drain_s": _SECONDS,
        **_PLACE,
        "request_id": _REQUEST,
    },
    "key.activate": {**_ONE_GENERATION, "drain_s": _SECONDS},
    "key.suspend": _ONE_GENERATION,
    "key.resume": {**_ONE_GENERATION, "origins": _ORIGINS},
    "key.compromise": {"key": _KEY.must(), "generation": _GENERATION, "request_id": _REQUEST},
    "key.destroy": _ONE_GENERATION,
    "key.forget": {"key": _KEY.must(), "request_id": _REQUEST},
    "key.adopt": {
        "key": _KEY.must(),
        "ref": _STORE_REF,
        "label": _OBJECT_LABEL,
        "store": _TEXT,
        "alg": _ALG,
        "origins": _ORIGINS,
        "request_id": _REQUEST,
    },
    "key.adopt_all": {"store": _TEXT, "alg": _ALG, "cursor": _CURSOR},
    "key.set": {"key": _KEY.must(), **KEY_SETTINGS, "request_id": _REQUEST},
    "key.attestation": {"key": _KEY.must(), "generation": _GENERATION.must()},
    "store.authorize": {"store": _TEXT.must()},
    "store.self_test": {"store": _TEXT.must()},
    "socket.add": {
        "socket": _SOCKET.must(),
        "keys": _KEYS.must(),
        **RULES,
        "expires": Param("an RFC 3339 date in UTC, such as 2027-01-31T08:00:00Z", _is_date),
        "expires_s": Param("seconds, 1 to ten years", _is_count(1, MAX_SECONDS)),
        "with_connection": _BOOL,
        "request_id": _REQUEST,
    },
    "socket.list": {"socket": _SOCKET, "cursor": _CURSOR},
    "socket.remove": {"socket": _SOCKET.must(), "request_id": _REQUEST},
    "lock": {"store": _TEXT},
    "unlock": {"store": _TEXT.must()},
    "reload": {},
    "stop": {},
}
"""What `admin.sock` answers."""

_REQUIRED = {
    method: [name for name, form in forms.items() if form.required]
    for method, forms in ADMIN_METHODS.items()
}

# A caller that sends one of these thinks that it decides it.
_AGENT_WRITES = frozenset({"iat", "jti", "typ", "jwk", "alg", "exp"})


class Request:
    """A request with checked parameters."""

    __slots__ = ("id", "method", "params")

    def __init__(self, id: str | int, method: str, params: dict[str, Any]) -> None:  # noqa: A002
        self.id = id
        self.method = method
        self.params = params


def decode_request(line: bytes, methods: Mapping[str, Mapping[str, Param]]) -> Request:
    """The request on one line.

    Raises:
        ProtocolError: what is wrong with it; `request_id` is the request's id, where it had one.
    """
    try:
        message = json_object(line)
    except NotAnObject as e:  # JSON-RPC 2.0 section 5.1: it parses, so this isn't a parse error
        raise InvalidRequest(
            "the line is JSON, but not an object", hint="send one request per line, not a batch"
        ) from e
    except ValueError as e:
        raise ParseError(f"the line isn't a request: {e}") from e
    request_id = message.get("id")
    try:
        return _request(message, methods)
    except ProtocolError as e:
        if _is_id(request_id):
            e.request_id = request_id
        method = message.get("method")
        if isinstance(method, str) and method in ADMIN_METHODS:
            e.method = method
        raise


MAX_KNOWN = 256
"""Questions that a `Decoder` remembers."""

MAX_KNOWN_LINE = 1024
"""Bytes of one that it does."""

_NUMBER = re.compile(rb'"id": ?(-?(?:0|[1-9][0-9]{0,14}))(?=[,}])')
"""A request's id, as most clients write it: in a good line nothing else looks like this."""


class Decoder:
    """Decodes the requests of a socket, each question for a proof once.

    Clients ask the same again and again: lines that are alike byte by byte but for the number that
    is their id say the same, so what `decode_request` made of the first holds for all. Any other
    line goes to it.

    Attributes:
        methods: what the socket answers.
    """

    def __init__(self, methods: Mapping[str, Mapping[str, Param]]) -> None:
        self.methods = methods
        self._known: dict[bytes, dict[str, Any]] = {}

    def request(self, line: bytes) -> Request:
        """The request on one line; its parameters are those of others too, and stay as they are.

        Raises:
            ProtocolError: as `decode_request` does.
        """
        number = _NUMBER.search(line, 0, MAX_KNOWN_LINE)
        if number is None:
            return decode_request(line, self.methods)
        # A line that was good has no NUL, so only one that is cut in the same place is like it.
        question = line[: number.start(1)] + b"\0" + line[number.end(1) :]
        params = self._known.get(question)
        if params is not None:
            return Request(int(number[1]), "proof", params)
        request = decode_request(line, self.methods)
        if _is_worth_remembering(request) and len(question) <= MAX_KNOWN_LINE:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[question] = request.params
        return request


def _is_worth_remembering(request: Request) -> bool:
    """Whether it may well come again; what a server said is told once."""
    return request.method == "proof" and "seen" not in request.params


def _is_id(value: object) -> bool:
    return (isinstance(value, str) and len(value) <= 64) or (
        type(value) is int and -(2**53) < value < 2**53
    )


def _request(message: dict[str, Any], methods: Mapping[str, Mapping[str, Param]]) -> Request:
    if message.get("jsonrpc") != "2.0":
        raise InvalidRequest('the request has no "jsonrpc":"2.0"')
    if not _is_id(message.get("id")):
        raise InvalidRequest("the request's id is neither a short string nor an integer")
    method, params = message.get("method"), message.get("params", {})
    if not isinstance(method, str):
        raise InvalidRequest("the request has no method")
    if not isinstance(params, dict):
        raise InvalidRequest("params isn't an object", hint="give parameters by name")
    if not message.keys() <= {"jsonrpc", "id", "method", "params"}:
        raise InvalidRequest("the request has a member that JSON-RPC 2.0 doesn't know")
    forms = methods.get(method)
    if forms is None:
        raise _no_method(method, methods)
    for name, value in params.items():
        form = forms.get(name)
        if form is None:
            raise _no_param(method, name, forms)
        if not form.check(value):
            raise InvalidParams(f"{method}: {name} has to be {form.says}", hint="correct it")
    for name in _REQUIRED[method]:
        if name not in params:
            hint = f"give {forms[name].says}"
            raise InvalidParams(f"{method}: {name} is missing", hint=hint)
    return Request(message["id"], method, params)


def _no_method(method: str, methods: Mapping[str, Mapping[str, Param]]) -> MethodNotFound:
    if method in ADMIN_METHODS:
        return MethodNotFound(
            f"{method} isn't answered on this socket", hint="send it to admin.sock beside it"
        )
    return MethodNotFound("there is no such method", hint=nearest(method, methods))


def _no_param(method: str, name: str, forms: Mapping[str, Param]) -> InvalidParams:
    if name in _AGENT_WRITES and method.startswith("proof"):
        return InvalidParams(
            f"{method} takes no {name}", hint="the agent alone writes typ, jwk, alg, iat and jti"
        )
    return InvalidParams(
        f"{method} has no such parameter",
        hint=nearest(name, forms) if forms else "it takes no parameters",
    )


_COMPACT = json.JSONEncoder(separators=(",", ":")).encode


def encode_request(request_id: int, method: str, params: Mapping[str, Any]) -> bytes:
    """A request's line.

    Raises:
        InvalidParams: the line would be too long.
    """
    return _line(
        {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params},
        InvalidParams(
            f"the request for {method} has more than {MAX_LINE} bytes", hint="shorten it"
        ),
    )


def encode_result(request_id: str | int, result: Mapping[str, Any]) -> bytes:
    """A result's line."""
    return _line(
        {"jsonrpc": "2.0", "id": request_id, "result": result},
        ProtocolError("the answer doesn't fit on a line"),
    )


def encode_made(request_id: str | int, result: bytes) -> bytes:
    """The line of a result that is JSON already, and short enough."""
    number = str(request_id) if type(request_id) is int else _COMPACT(request_id)
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}\n' % (number.encode("ascii"), result)


def encode_event(event: str, params: Mapping[str, Any]) -> bytes:
    """A line that answers nothing: a JSON-RPC notification."""
    return _line(
        {"jsonrpc": "2.0", "method": event, "params": params},
        ProtocolError("the event doesn't fit on a line"),
    )


def encode_error(request_id: str | int | None, error: DPoPAgentError) -> bytes:
    """An error's line."""
    try:
        return _line({"jsonrpc": "2.0", "id": request_id, "error": error.to_wire()}, error)
    except DPoPAgentError:
        short = ProtocolError("the error doesn't fit on a line", hint="see the agent's status")
        return _line({"jsonrpc": "2.0", "id": request_id, "error": short.to_wire()}, short)


def _line(message: Mapping[str, Any], too_long: DPoPAgentError) -> bytes:
    line = _COMPACT(message).encode("ascii") + b"\n"
    if len(line) > MAX_LINE:
        raise too_long
    return line


class Event:
    """What the agent tells without an answer's id: the event's name and its parameters."""

    __slots__ = ("name", "params")

    def __init__(self, name: str, params: dict[str, Any]) -> None:
        self.name = name
        self.params = params


def decode_response(line: bytes) -> tuple[int | None, dict[str, Any] | DPoPAgentError | Event]:
    """The id and the result or error on one line; members this version doesn't know are ignored.

    An event comes with the id of the request that it is about, if it is about one.

    Raises:
        ProtocolError: the line is neither.
    """
    try:
        message = json_object(line)
        if "method" in message:
            return _event(message["method"], message["params"])
        request_id = message["id"]
        error = message.get("error")
        result = message["result"] if error is None else None
    except (ValueError, KeyError) as e:
        raise ProtocolError("the agent's answer isn't a JSON-RPC response") from e
    if request_id is not None and type(request_id) is not int:
        raise ProtocolError("the agent's answer has an id that no request of ours had")
    if error is not None:
        return request_id, from_wire(error)
    if not isinstance(result, dict):
        raise ProtocolError("the agent's result isn't an object")
    return request_id, result


def _event(name: object, params: object) -> tuple[int | None, Event]:
    if not isinstance(name, str) or not isinstance(params, dict):
        raise ProtocolError("the agent's event isn't a JSON-RPC notification")
    about = params.get("id")
    return about if type(about) is int else None, Event(name, params)
