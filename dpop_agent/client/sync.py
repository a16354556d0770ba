"""`AgentClient`: the agent over blocking sockets."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque

from dpop_agent import paths
from dpop_agent.client.answers import (
    ABSENT,
    DEFAULT_TIMEOUT,
    GRACE,
    LEASE_GRACE,
    SUBSCRIBE,
    Generation,
    Lease,
    Listing,
    Proof,
    Touch,
    active_generation,
    check_timeout,
    lease_params,
    may_repeat,
    proof_of,
    proof_params,
    read_line,
    seen_params,
    timed_out,
)
from dpop_agent.client.connection import RETRY_CONNECT_S, connect
from dpop_agent.errors import AgentUnavailable, DPoPAgentError, InvalidParams, ProtocolError
from dpop_agent.protocol import MAX_LINE, TOUCH_TIMEOUT_S, encode_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping
    from typing import Any, Self

    from dpop_agent.client.answers import OnTouch, Outcome
    from dpop_agent.errors import Timeout

MAX_IDLE = 16
"""Idle connections kept; more threads than that at once connect anew."""


class _Closed(Exception):
    """The agent closed the connection, and nothing of an answer came."""


class _Call:
    """One request, and how long its answer is waited for."""

    __slots__ = ("_deadline", "_on_touch", "_timeout", "line", "number")

    def __init__(self, number: int, line: bytes, timeout: float, on_touch: OnTouch | None) -> None:
        self.number = number
        self.line = line
        self._on_touch = on_touch
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout + GRACE

    def left_s(self) -> float:
        """Seconds that are left.

        Raises:
            Timeout: none.
        """
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise self.late()
        return left_s

    def late(self) -> Timeout:
        return timed_out(self._timeout)

    def waits_for(self, touch: Touch) -> None:
        """A touch has a deadline of its own."""
        deadline = time.monotonic() + TOUCH_TIMEOUT_S + GRACE
        if deadline > self._deadline:
            self._timeout, self._deadline = TOUCH_TIMEOUT_S, deadline
        if self._on_touch:
            self._on_touch(touch)


class _Connection:
    __slots__ = ("greeting", "pid", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pid = os.getpid()
        self.greeting = SUBSCRIBE  # goes out with the first request

    def ask(self, call: _Call) -> Outcome:
        """The answer to the call; what comes before it is the greeting's, or an event."""
        try:
            self.sock.settimeout(call.left_s())
            self.sock.sendall(self.greeting + call.line)
            self.greeting = b""
        except TimeoutError:
            raise call.late() from None
        except OSError:
            pass  # refusing a connection, the agent says why before it closes: read on
        received = bytearray()
        while (outcome := _answer_in(call, self._line(call, received))) is None:
            pass
        if received:
            raise ProtocolError("the agent sent something after its answer")
        return outcome

    def _line(self, call: _Call, received: bytearray) -> bytes:
        """The next line, which is cut off from what was received."""
        while not (end := received.find(b"\n") + 1) and len(received) <= MAX_LINE:
            received += self._receive(call, in_the_middle=bool(received))
        if (end or len(received)) > MAX_LINE:
            raise ProtocolError(f"the agent's answer has more than {MAX_LINE} bytes")
        line = bytes(received[:end])
        del received[:end]
        return line

    def _receive(self, call: _Call, *, in_the_middle: bool) -> bytes:
        self.sock.settimeout(call.left_s())
        try:
            data = self.sock.recv(MAX_LINE)
        except TimeoutError:
            raise call.late() from None
        except ConnectionError:
            data = b""
        if data:
            return data
        if in_the_middle:
            raise AgentUnavailable("the agent went away in the middle of its answer")
        raise _Closed

    def close(self) -> None:
        # No shutdown(2): after a fork it would end the parent's connection too.
        self.sock.close()


class AgentClient:
    """The agent, for threads; a connection is made when it is first needed.

    Safe to share between threads and to keep over a fork; a pickle of it holds no connection.

    Args:
        path: the agent's socket; `$DPOP_AGENT_SOCK` or the user's runtime folder where None.
        timeout: seconds that one call may take. A proof that waits for somebody to touch a card
            has 60 seconds from when the agent says so, which is after 0.3.
        on_touch: called then, in the thread that waits. What it raises ends the call.

    Every call raises:
        AgentUnavailable: nobody listens at the socket.
        UnsafeSocket: the socket's folder or its listener isn't ours; nothing was sent.
        Timeout: no answer in time.
        DPoPAgentError: what the agent refused, by its type in `errors`.
    """

    def __init__(
        self,
        path: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        on_touch: OnTouch | None = None,
    ) -> None:
        self._idle: deque[_Connection] = deque()
        self.path = paths.agent_socket() if path is None else os.fspath(path)
        self.timeout = check_timeout(timeout)
        self.on_touch = on_touch
        self._ids = itertools.count(1)
        self._knows_no_sharing = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, timeout={self.timeout})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.timeout, self.on_touch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections; the client can be used again."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:  # another thread took the last one
                return

    def proof(
        self,
        htm: str,
        uri: str,
        *,
        key: str | None = None,
        jkt: str | None = None,
        access_token: str | None = None,
        ath: str | None = None,
        nonce: str | None = ABSENT,
        seen: Iterable[Mapping[str, str | None]] = (),
        shares_nonce: bool = False,
    ) -> Proof:
        """A proof for one request (RFC 9449 section 4.2).

        Args:
            htm: the HTTP method.
            uri: the target URI as it is requested; query and fragment stay here.
            key: the key's name; `default` where None.
            jkt: the generation that the access token is bound to; the active one where None.
            access_token: the one that is presented, if one is; it stays here.
            ath: its hash, where the access token isn't at hand (section 4.2).
            nonce: the server's; left out, the agent uses the one that it knows; None for none.
            seen: server answers to tell the agent first, as in `observe`.
            shares_nonce: where it isn't known whether the server still takes the nonce, let one
                request try it and wait for what comes of that, a second at the most. Whoever says
                so tells by `observe`, as soon as the answer's headers are there, what came of a
                proof with `tries_nonce`: the server's nonce, or the one in the proof if that was
                taken.

        Raises:
            KeyUnusable: no proof by that key now.
            JktRequired: an access token, and several generations that it may be bound to.
            HtuRefused, PolicyRefused, StoreUnusable: as they say.
            ConfigurationError: both access_token and ath, or an access token that isn't one.
        """
        params = proof_params(
            htm,
            uri,
            key=key,
            jkt=jkt,
            access_token=access_token,
            ath=ath,
            nonce=nonce,
            seen=seen,
            shares_nonce=shares_nonce and not self._knows_no_sharing,
            timeout=self.timeout,
        )
        try:
            result = self.call("proof", params)
        except InvalidParams:
            if not params.pop("shares_nonce", None):
                raise
            result = self.call("proof", params)
            self._knows_no_sharing = True  # the agent is older than that
        return proof_of(result, jkt=jkt)

    def observe(self, seen: Iterable[Mapping[str, str | None]]) -> None:
        """Tell what servers answered: `{"htu": …, "nonce": …, "date": …}` each."""
        self.call("observe", {"seen": seen_params(seen)})

    def generation(self, key: str) -> Generation:
        """The key's active generation; ask once for a grant, then give its `jkt` everywhere.

        Raises:
            KeyUnknown, NoActive: there is none.
        """
        return active_generation(key, self.keys(key))

    def keys(
        self, key: str | None = None, *, include_destroyed: bool = False
    ) -> list[dict[str, Any]]:
        """Keys and their generations, as PROTOCOL.md's `key.list` has them."""
        listing = Listing(key, include_destroyed=include_destroyed)
        while listing.params is not None:
            listing.add(self.call("key.list", listing.params))
        return listing.keys

    def lease(self, name: str, *, wait: float = DEFAULT_TIMEOUT) -> Leasing:
        """`with agent.lease("bluesky") as lease:` what only one at a time may do, as refreshing.

        For those who can't share a file (`TokenStore` has one). A lease lasts a minute; call
        `lease.check()` right before you send what can't be undone. A block that raises leaves it
        `abandoned`, as does one whose process dies.

        Args:
            name: 1 to 128 visible ASCII characters. A filtered socket has names of its own.
            wait: seconds to wait for it, 60 at the most; an agent that was started a moment ago
                gives it out when those of the one before are over.

        Raises, when the block is entered:
            LeaseUnavailable: somebody else has it.
        """
        return Leasing(self, name, wait)

    def status(self) -> dict[str, Any]:
        """The agent, its stores and the servers that it knows, as PROTOCOL.md has them."""
        return self.call("status")

    def hello(self) -> dict[str, Any]:
        """The agent's version, methods and limits."""
        return self.call("hello")

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Any method of PROTOCOL.md; the result as it came."""
        params = params or {}
        call = self._new_call(method, params, self.timeout)
        # What mustn't happen twice has a connection of its own, as the agent may have left an idle
        # one already.
        repeats = may_repeat(method, params)
        if repeats and (idle := self._take_idle()):
            try:
                return self._ask(idle, call)
            except _Closed:
                pass  # the agent was started anew since
        try:
            # What is to last as long as its connection lasts as long as this client.
            keep = repeats or bool(params.get("with_connection"))
            return self._ask(self._connect(call), call, keep=keep)
        except _Closed:
            raise AgentUnavailable("the agent closed the connection without an answer") from None

    def _new_call(self, method: str, params: Mapping[str, Any], timeout: float) -> _Call:
        number = next(self._ids)
        return _Call(number, encode_request(number, method, params), timeout, self.on_touch)

    def _ask(self, connection: _Connection, call: _Call, *, keep: bool = True) -> dict[str, Any]:
        try:
            outcome = connection.ask(call)
        except BaseException:
            connection.close()
            raise
        if keep and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        if isinstance(outcome, DPoPAgentError):
            raise outcome
        return outcome

    def _take_idle(self) -> _Connection | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.pid == os.getpid():
                return connection
            connection.close()  # the parent's: its answers would mix with ours

    def _connect(self, call: _Call) -> _Connection:
        while (sock := connect(self.path)) is None:
            time.sleep(min(RETRY_CONNECT_S, call.left_s()))
        return _Connection(sock)


class Leasing:
    """A lease for as long as a `with` block, on a connection of its own: it ends with that."""

    __slots__ = ("_client", "_connection", "_lease", "_name", "_wait")

    def __init__(self, client: AgentClient, name: str, wait: float) -> None:
        self._client = client
        self._name = name
        self._wait = wait
        self._connection: _Connection | None = None
        self._lease: Lease | None = None

    def __enter__(self) -> Lease:
        try:
            result = self._ask(
                "lease", lease_params(self._name, self._wait), self._wait + LEASE_GRACE
            )
            self._lease = Lease(self._name, result, time.monotonic())
        except BaseException:
            self._close()
            raise
        return self._lease

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        connection, lease = self._connection, self._lease
        try:
            if kind is None and connection and lease and connection.pid == os.getpid():
                self._ask("release", {"lease": lease.id}, self._client.timeout)
        except DPoPAgentError:
            pass  # what it was for is done
        finally:
            self._close()

    def _ask(self, method: str, params: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        call = self._client._new_call(method, params, timeout)
        try:
            if self._connection is None:
                self._connection = self._client._connect(call)
            outcome = self._connection.ask(call)
        except _Closed:
            raise AgentUnavailable("the agent closed the connection without an answer") from None
        if isinstance(outcome, DPoPAgentError):
            raise outcome
        return outcome

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _answer_in(call: _Call, line: bytes) -> Outcome | None:
    """What a line says to the call; None if it doesn't answer it."""
    number, message = read_line(line)
    if isinstance(message, Touch):
        if number == call.number:
            call.waits_for(message)
        return None
    if message is not None and number != call.number:
        raise ProtocolError("the agent answered a request that wasn't made")
    return message
