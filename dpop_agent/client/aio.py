"""`AsyncAgentClient`: the agent over asyncio, one connection for all calls of an event loop."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from functools import partial

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
from dpop_agent.errors import (
    AgentUnavailable,
    ConfigurationError,
    DPoPAgentError,
    InvalidParams,
    ProtocolError,
)
from dpop_agent.protocol import MAX_LINE, TOUCH_TIMEOUT_S, encode_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping
    from typing import Any, Self

    from dpop_agent.client.answers import OnTouch, Outcome
    from dpop_agent.client.sync import AgentClient

MAX_UNDER_WAY = 32
"""Requests on a connection at once; half of what an agent takes, further ones wait here."""


class _Closed(AgentUnavailable):
    """The agent closed the connection, and nothing of an answer came."""


class _Call:
    """One request, its answer to come, and how long that is waited for."""

    __slots__ = ("_on_touch", "answer", "limit", "line", "number", "tells", "timeout")

    def __init__(
        self,
        number: int,
        line: bytes,
        timeout: float,
        on_touch: OnTouch | None,
        *,
        tells: bool = False,
    ) -> None:
        self.number = number
        self.line = line
        self.tells = tells
        self.timeout = timeout
        self.limit = asyncio.timeout(timeout + GRACE)
        self.answer: asyncio.Future[Outcome]
        self._on_touch = on_touch

    def waits_for(self, touch: Touch) -> None:
        """A touch has a deadline of its own."""
        if self.answer.done():
            return
        deadline = asyncio.get_running_loop().time() + TOUCH_TIMEOUT_S + GRACE
        if deadline > (self.limit.when() or 0.0):
            self.timeout = TOUCH_TIMEOUT_S
            self.limit.reschedule(deadline)
        try:
            if self._on_touch:
                self._on_touch(touch)
        except Exception as e:  # the caller's own
            if not self.answer.done():
                self.answer.set_exception(e)


class _Connection(asyncio.Protocol):
    """Requests out, answers by id in; the late answer to a cancelled call is dropped."""

    def __init__(self, sock: socket.socket) -> None:
        self.closed = False
        self._sock = sock
        self._leaving = False
        self._greeting = SUBSCRIBE  # goes out with the first request
        self._buffer = bytearray()
        self._unanswered: dict[int, _Call] = {}
        self._capacity = asyncio.Semaphore(MAX_UNDER_WAY)
        self._transport: asyncio.Transport | None = None

    @property
    def usable(self) -> bool:
        return not self.closed and not self._leaving

    async def ask(self, call: _Call) -> Outcome:
        # What others may wait for, at the agent, isn't kept back behind them here.
        if not call.tells:
            await self._capacity.acquire()
        if self.closed or self._transport is None:
            self._free(call)
            return _Closed("the agent closed the connection")
        call.answer = asyncio.get_running_loop().create_future()
        self._unanswered[call.number] = call
        # After a write that failed, `connection_lost` is still to come, and answers for all.
        if not self._transport.is_closing():
            self._transport.write(self._greeting + call.line)
            self._greeting = b""
        return await call.answer

    def leave(self) -> None:
        """Close as soon as nobody waits for an answer."""
        self._leaving = True
        if self._transport and all(call.answer.done() for call in self._unanswered.values()):
            self._transport.abort()

    def close(self) -> None:
        self._break_off(AgentUnavailable("the client was closed", hint="", retry="no"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while not self.closed and self._take_line():
                pass
        except DPoPAgentError as e:
            self._break_off(e)
        if self._leaving:
            self.leave()

    def _take_line(self) -> bool:
        line, newline, rest = self._buffer.partition(b"\n")
        if len(line) + len(newline) > MAX_LINE:
            raise ProtocolError(f"the agent's answer has more than {MAX_LINE} bytes")
        if not newline:
            return False
        self._buffer = rest
        number, message = read_line(bytes(line))
        if isinstance(message, Touch):
            if number in self._unanswered:
                self._unanswered[number].waits_for(message)
        elif message is not None:
            if number not in self._unanswered:
                raise ProtocolError("the agent answered a request that wasn't made")
            self._settle(self._unanswered.pop(number), message)
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's)
        # Refusing a connection, an agent says why before it closes; a write that fails hides it.
        try:
            while not self.closed and (data := self._sock.recv(MAX_LINE)):
                self.data_received(data)
        except OSError:
            pass
        if self._buffer:
            self._break_off(AgentUnavailable("the agent went away in the middle of its answer"))
        else:
            self._break_off(_Closed("the agent closed the connection without an answer"))

    def _break_off(self, error: DPoPAgentError) -> None:
        self.closed = True
        unanswered, self._unanswered = self._unanswered, {}
        for call in unanswered.values():
            self._settle(call, error)
        self._capacity.release()  # who waits for capacity sees `closed`, and wakes the next
        if self._transport:
            self._transport.abort()

    def _free(self, call: _Call) -> None:
        if not call.tells:
            self._capacity.release()

    def _settle(self, call: _Call, outcome: Outcome) -> None:
        self._free(call)
        if not call.answer.done():
            call.answer.set_result(outcome)


class _LoopConnection:
    """The connection of one event loop in one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.connecting = asyncio.Lock()
        self.connection: _Connection | None = None


class AsyncAgentClient:
    """The agent, for asyncio: `AgentClient` with `async` methods, which raise the same errors.

    It may be shared between event loops; in each, close it with `aclose` or `async with`. After a
    fork the child makes a connection of its own; a pickle holds none. Cancelling a call drops its
    answer and leaves the others alone. Under trio each call is an AgentClient's, in a thread.

    Args:
        path: the agent's socket; `$DPOP_AGENT_SOCK` or the user's runtime folder where None.
        timeout: seconds that one call may take, a touch apart, as for `AgentClient`.
        on_touch: called in the event loop when a proof waits for somebody to touch a card; it is
            no coroutine function. What it raises ends the call.
    """

    def __init__(
        self,
        path: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        on_touch: OnTouch | None = None,
    ) -> None:
        self.path = paths.agent_socket() if path is None else os.fspath(path)
        self.timeout = check_timeout(timeout)
        self.on_touch = on_touch
        self._ids = itertools.count(1)
        self._knows_no_sharing = False
        self._loops: dict[asyncio.AbstractEventLoop, _LoopConnection] = {}
        self._blocking: AgentClient | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, timeout={self.timeout})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.timeout, self.on_touch)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close this event loop's connection; calls under way fail, later ones connect anew."""
        if not _in_asyncio():
            if self._blocking is not None:
                self._blocking.close()
            return
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here and here.pid == os.getpid() and here.connection:
            here.connection.close()
            await asyncio.sleep(0)  # the transport closes its socket in the loop's next turn

    async def proof(
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
        """A proof for one request, as `AgentClient.proof` gives it."""
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
            result = await self.call("proof", params)
        except InvalidParams:
            if not params.pop("shares_nonce", None):
                raise
            result = await self.call("proof", params)
            self._knows_no_sharing = True  # the agent is older than that
        return proof_of(result, jkt=jkt)

    async def observe(self, seen: Iterable[Mapping[str, str | None]]) -> None:
        """Tell what servers answered: `{"htu": …, "nonce": …, "date": …}` each."""
        await self.call("observe", {"seen": seen_params(seen)})

    async def generation(self, key: str) -> Generation:
        """The key's active generation; ask once for a grant, then give its `jkt` everywhere."""
        return active_generation(key, await self.keys(key))

    async def keys(
        self, key: str | None = None, *, include_destroyed: bool = False
    ) -> list[dict[str, Any]]:
        """Keys and their generations, as PROTOCOL.md's `key.list` has them."""
        listing = Listing(key, include_destroyed=include_destroyed)
        while listing.params is not None:
            listing.add(await self.call("key.list", listing.params))
        return listing.keys

    def lease(self, name: str, *, wait: float = DEFAULT_TIMEOUT) -> AsyncLeasing:
        """`async with agent.lease("bluesky") as lease:`, as `AgentClient.lease`."""
        return AsyncLeasing(self, name, wait)

    async def status(self) -> dict[str, Any]:
        """The agent, its stores and the servers that it knows, as PROTOCOL.md has them."""
        return await self.call("status")

    async def hello(self) -> dict[str, Any]:
        """The agent's version, methods and limits."""
        return await self.call("hello")

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Any method of PROTOCOL.md; the result as it came."""
        if not _in_asyncio():
            return await self._call_in_a_thread(method, params)
        params = params or {}
        call = self._new_call(method, params, self.timeout)
        connection: _Connection | None = None
        try:
            async with call.limit:
                connection, kept = await self._connection()
                outcome = await connection.ask(call)
                if isinstance(outcome, _Closed) and kept and may_repeat(method, params):
                    connection, _ = await self._connection()
                    outcome = await connection.ask(call)
        except TimeoutError:
            if connection:
                connection.leave()  # an agent that lets deadlines pass isn't asked there again
            raise timed_out(call.timeout) from None
        if isinstance(outcome, DPoPAgentError):
            raise outcome
        return outcome

    async def _call_in_a_thread(
        self, method: str, params: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        try:
            import trio
        except ModuleNotFoundError:
            raise ConfigurationError(
                "AsyncAgentClient knows asyncio and trio, and neither runs here",
                hint="call an AgentClient in a thread",
            ) from None
        from dpop_agent.client.sync import AgentClient

        def on_touch(touch: Touch) -> None:
            if self.on_touch is not None:
                trio.from_thread.run_sync(self.on_touch, touch)

        if self._blocking is None:
            self._blocking = AgentClient(self.path, self.timeout, on_touch)
        call = partial(self._blocking.call, method, params)
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)

    def _new_call(self, method: str, params: Mapping[str, Any], timeout: float) -> _Call:
        number = next(self._ids)
        line = encode_request(number, method, params)
        return _Call(number, line, timeout, self.on_touch, tells="seen" in params)

    async def _connection(self) -> tuple[_Connection, bool]:
        """This loop's connection, and whether it was there already."""
        here = self._of_this_loop()
        async with here.connecting:
            if here.connection and here.connection.usable:
                return here.connection, True
            here.connection = await self._connect()
            return here.connection, False

    async def _connect(self) -> _Connection:
        while (sock := connect(self.path)) is None:
            await asyncio.sleep(RETRY_CONNECT_S)
        _, connection = await asyncio.get_running_loop().create_unix_connection(
            partial(_Connection, sock), sock=sock
        )
        return connection

    def _of_this_loop(self) -> _LoopConnection:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        # A parent's connection is left alone: its loop's selector is shared with the parent.
        if here is None or here.pid != os.getpid():
            for other in list(self._loops):
                if other.is_closed():
                    self._loops.pop(other, None)
            here = self._loops[loop] = _LoopConnection()
        return here


class AsyncLeasing:
    """A lease for as long as an `async with` block, on a connection of its own."""

    def __init__(self, client: AsyncAgentClient, name: str, wait: float) -> None:
        self._client = client
        self._name = name
        self._wait = wait
        self._connection: _Connection | None = None
        self._lease: Lease | None = None

    async def __aenter__(self) -> Lease:
        if not _in_asyncio():
            raise ConfigurationError(
                "AsyncAgentClient has leases on asyncio alone",
                hint="hold one of an AgentClient's, in a thread",
            )
        params = lease_params(self._name, self._wait)
        try:
            outcome = await self._ask("lease", params, self._wait + LEASE_GRACE)
            self._lease = Lease(self._name, outcome, time.monotonic())
        except BaseException:
            self._close()
            raise
        return self._lease

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None and self._lease is not None:
                await self._ask("release", {"lease": self._lease.id}, self._client.timeout)
        except DPoPAgentError:
            pass  # what it was for is done
        finally:
            self._close()

    async def _ask(self, method: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        call = self._client._new_call(method, params, timeout)
        try:
            async with call.limit:
                if self._connection is None:
                    self._connection = await self._client._connect()
                outcome = await self._connection.ask(call)
        except TimeoutError:
            raise timed_out(call.timeout) from None
        if isinstance(outcome, DPoPAgentError):
            raise outcome
        return outcome

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _in_asyncio() -> bool:
    """Whether asyncio runs this, or trio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
