"""One client's connection: which lines come, which go."""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from dpop_agent import protocol
from dpop_agent.agent.call import Call
from dpop_agent.errors import (
    Busy,
    DPoPAgentError,
    ParseError,
    ProtocolError,
    Timeout,
)
from dpop_agent.protocol import MAX_REQUESTS

log = logging.getLogger("dpop_agent.connection")

LINE_TIMEOUT_S = 5.0
"""Seconds for the rest of a line that has begun."""


class Server(Protocol):
    """What a connection asks of the server that took it in."""

    def disconnected(self, connection: Connection) -> None:
        """Count a connection out, and drop what it waited for."""

    def handle(self, call: Call) -> None:
        """Answer a request, now or later."""


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: Server, methods: Mapping[str, Mapping[str, protocol.Param]]) -> None:
        self._server = server
        self.methods = methods
        self._rest = b""
        self._under_way = 0
        self._no_more = False
        self._unread = False
        self._events: frozenset[str] = frozenset()
        self._late: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._stop_clock()
        self._server.disconnected(self)

    def pause_writing(self) -> None:
        """The client doesn't read its answers: take no more requests until it does."""
        self._unread = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._unread = False
        self._transport.resume_reading()
        self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        self._rest += data
        begin = 0
        while not (self._unread or self._transport.is_closing()):
            end = self._rest.find(b"\n", begin)
            if end < 0:
                break
            self._line(self._rest[begin:end])
            begin = end + 1
        self._rest = self._rest[begin:]
        if self._unread or self._transport.is_closing():
            self._stop_clock()
            return
        if len(self._rest) >= protocol.MAX_LINE:
            self._fail(_too_long())
        elif begin or not self._rest:
            self._stop_clock()
        if self._rest and self._late is None and not self._transport.is_closing():
            self._late = asyncio.get_running_loop().call_later(LINE_TIMEOUT_S, self._too_slow)

    def eof_received(self) -> bool:
        """A client may close its sending half and still read the answers; one that went may not."""
        self._no_more = self._under_way > 0 and not self._hung_up()
        return self._no_more

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def _line(self, line: bytes) -> None:
        if len(line) >= protocol.MAX_LINE:
            self._fail(_too_long())
            return
        try:
            request = protocol.decode_request(line, self.methods)
        except ProtocolError as e:
            self._write(protocol.encode_error(e.request_id, e))
            return
        if self._under_way >= MAX_REQUESTS:
            error = Busy(
                f"{MAX_REQUESTS} requests are under way on this connection",
                hint="read answers before sending more",
            )
            self._write(protocol.encode_error(request.id, error))
            return
        log.debug("%s", request.method)
        self._under_way += 1

        def respond(what: dict[str, Any] | DPoPAgentError) -> None:
            self._under_way -= 1
            self._write(_encoded(request.id, what))
            if self._no_more and not self._under_way:
                self.close()

        self._server.handle(Call(request, self, respond))

    def subscribe(self, events: Iterable[str]) -> None:
        """Be told of these events, and of no others."""
        self._events = frozenset(events)

    def tell(self, event: str, params: Mapping[str, Any]) -> None:
        """Send what answers no request, to a client that subscribed to it."""
        if event in self._events:
            self._write(protocol.encode_event(event, params))

    def _write(self, line: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(line)

    def _fail(self, error: DPoPAgentError) -> None:
        """Say why, and close."""
        self._write(protocol.encode_error(None, error))
        self._rest = b""
        self.close()

    def close(self) -> None:
        """Close after what was written went out."""
        self._transport.close()

    def _too_slow(self) -> None:
        self._late = None
        self._fail(
            Timeout(f"a line wasn't complete after {LINE_TIMEOUT_S:g} s", hint="send whole lines")
        )

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _too_long() -> ParseError:
    return ParseError(
        f"a line has more than {protocol.MAX_LINE} bytes, and the connection is closed",
        hint="shorten the request",
    )


def _encoded(request_id: str | int, what: dict[str, Any] | DPoPAgentError) -> bytes:
    if isinstance(what, DPoPAgentError):
        return protocol.encode_error(request_id, what)
    try:
        return protocol.encode_result(request_id, what)
    except ProtocolError as e:
        return protocol.encode_error(request_id, e)
