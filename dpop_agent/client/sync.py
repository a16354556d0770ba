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
    Generation,
    Listing,
    Proof,
    active_generation,
    check_timeout,
    may_repeat,
    proof_of,
    proof_params,
    seen_params,
)
from dpop_agent.client.connection import RETRY_CONNECT_S, connect
from dpop_agent.errors import AgentUnavailable, DPoPAgentError, ProtocolError, Timeout
from dpop_agent.protocol import MAX_LINE, decode_response, encode_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping
    from typing import Any, Self

MAX_IDLE = 16
"""Idle connections kept; more threads than that at once connect anew."""


class _Closed(Exception):
    """The agent closed the connection, and nothing of an answer came."""


class _Connection:
    __slots__ = ("pid", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pid = os.getpid()

    def ask(self, line: bytes, deadline: float) -> bytes:
        """The line that answers `line`."""
        try:
            self._wait_until(deadline)
            self.sock.sendall(line)
        except TimeoutError:
            raise
        except OSError:
            pass  # refusing a connection, the agent says why before it closes: read on
        answer = bytearray()
        while True:
            self._wait_until(deadline)
            try:
                part = self.sock.recv(MAX_LINE)
            except ConnectionError:
                part = b""
            if not part:
                if answer:
                    raise AgentUnavailable("the agent went away in the middle of its answer")
                raise _Closed
            answer += part
            end = answer.find(b"\n") + 1
            if (end or len(answer)) > MAX_LINE:
                raise ProtocolError(f"the agent's answer has more than {MAX_LINE} bytes")
            if end and end < len(answer):
                raise ProtocolError("the agent answered more than was asked")
            if end:
                return bytes(answer)

    def _wait_until(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)

    def close(self) -> None:
        # No shutdown(2): after a fork it would end the parent's connection too.
        self.sock.close()


class AgentClient:
    """The agent, for threads; a connection is made when it is first needed.

    Safe to share between threads and to keep over a fork; a pickle of it holds no connection.

    Args:
        path: the agent's socket; `$DPOP_AGENT_SOCK` or the user's runtime folder where None.
        timeout: seconds that one call may take, waiting for a touch included.

    Every call raises:
        AgentUnavailable: nobody listens at the socket.
        UnsafeSocket: the socket's folder or its listener isn't ours; nothing was sent.
        Timeout: no answer in time.
        DPoPAgentError: what the agent refused, by its type in `errors`.
    """

    def __init__(self, path: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._idle: deque[_Connection] = deque()
        self.path = paths.agent_socket() if path is None else os.fspath(path)
        self.timeout = check_timeout(timeout)
        self._ids = itertools.count(1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, timeout={self.timeout})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.timeout)

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

        Raises:
            KeyUnusable: no proof by that key now.
            JktRequired: an access token, and several generations that it may be bound to.
            HtuRefused, PolicyRefused, StoreUnusable: as they say.
            ConfigurationError: both access_token and ath, or an access token that isn't ASCII.
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
            timeout=self.timeout,
        )
        return proof_of(self.call("proof", params), jkt=jkt)

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

    def status(self) -> dict[str, Any]:
        """The agent, its stores and the servers that it knows, as PROTOCOL.md has them."""
        return self.call("status")

    def hello(self) -> dict[str, Any]:
        """The agent's version, methods and limits."""
        return self.call("hello")

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Any method of PROTOCOL.md; the result as it came."""
        params = params or {}
        number = next(self._ids)
        line = encode_request(number, method, params)
        deadline = time.monotonic() + self.timeout + GRACE
        # What mustn't happen twice has a connection of its own, as the agent may have left an idle
        # one already.
        repeats = may_repeat(method, params)
        if repeats and (idle := self._take_idle()):
            try:
                return self._ask(idle, number, line, deadline)
            except _Closed:
                pass  # the agent was started anew since
        try:
            return self._ask(self._connect(deadline), number, line, deadline, keep=repeats)
        except _Closed:
            raise AgentUnavailable("the agent closed the connection without an answer") from None

    def _ask(
        self,
        connection: _Connection,
        number: int,
        line: bytes,
        deadline: float,
        *,
        keep: bool = True,
    ) -> dict[str, Any]:
        try:
            outcome = _outcome(number, connection.ask(line, deadline))
        except TimeoutError:
            connection.close()
            raise _timeout(self.timeout) from None
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

    def _connect(self, deadline: float) -> _Connection:
        while (sock := connect(self.path)) is None:
            if time.monotonic() + RETRY_CONNECT_S >= deadline:
                raise _timeout(self.timeout)
            time.sleep(RETRY_CONNECT_S)
        return _Connection(sock)


def _outcome(number: int, answer: bytes) -> dict[str, Any] | DPoPAgentError:
    answered, outcome = decode_response(answer)
    if answered == number:
        return outcome
    if answered is None and isinstance(outcome, DPoPAgentError):
        raise outcome  # an agent that takes no more of us says so without an id
    raise ProtocolError("the agent answered something that wasn't asked")


def _timeout(seconds: float) -> Timeout:
    return Timeout(
        f"the agent didn't answer within {seconds:g} s", hint="try again, with a longer timeout"
    )
