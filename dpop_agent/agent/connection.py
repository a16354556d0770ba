"""One client's connection: which lines come, which go."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

from dpop_agent import protocol
from dpop_agent.agent import telling
from dpop_agent.agent.call import Call
from dpop_agent.agent.intake import Intake
from dpop_agent.agent.queue import Flow
from dpop_agent.agent.trails import Trace
from dpop_agent.errors import (
    DPoPAgentError,
    ParseError,
    ProtocolError,
    Timeout,
)

log = logging.getLogger("dpop_agent.connection")

LINE_TIMEOUT_S = 5.0
"""Seconds for the rest of a line that has begun."""

_read_into = memoryview(bytearray(protocol.MAX_LINE))  # copied before the next read, whoever's


class Server(Protocol):
    """What a connection asks of the server that took it in."""

    def disconnected(self, connection: Connection) -> None:
        """Count a connection out, and drop what it waited for."""

    def handle(self, call: Call) -> None:
        """Answer a request, now or later."""


class Connection(asyncio.BufferedProtocol):
    """One client's connection.

    It is read from unless a line waits or the client leaves its answers unread, so that what it
    has sent takes no more room here than one line may.

    Attributes:
        requests: what its socket answers.
        flow: its peer's uid, its socket, its number.
        trace: what it leaves in the audit.
        client: who its peer is, for the log.
        is_filtered: what leaves here is only what `telling` lets.
        under_way: how many of its requests are.
    """

    def __init__(
        self,
        server: Server,
        requests: protocol.Decoder,
        intake: Intake,
        flow: Flow,
        trace: Trace,
        peer: str = "",
        *,
        is_filtered: bool = False,
    ) -> None:
        self._server = server
        self.requests = requests
        self._intake = intake
        self.flow = flow
        self.trace = trace
        self.client = self._peer = peer
        self.is_filtered = is_filtered
        self.under_way = 0
        self._is_verbose = log.isEnabledFor(logging.DEBUG)
        self._received = b""
        self._begin = 0
        self._end = -1
        self._no_more = False
        self._unread = False
        self._is_paused = False
        self._lost = False
        self._events: frozenset[str] = frozenset()
        self._late: asyncio.TimerHandle | None = None
        self._is_late = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is a class of its own

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._stop_clock()
        self._lost = True
        self._intake.leave(self)
        self._server.disconnected(self)

    def pause_writing(self) -> None:
        """The client doesn't read its answers: take no more requests until it does."""
        self._unread = True
        self._stop_clock()
        self._pause()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._unread = False
        self._intake.go_on(self)
        self._read_on()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (asyncio's signature)
        if not self._received:
            return _read_into
        return _read_into[: protocol.MAX_LINE - len(self._received)]

    def buffer_updated(self, nbytes: int) -> None:
        had = len(self._received)
        self._received += bytes(_read_into[:nbytes])
        self._end = self._received.find(b"\n", had)
        if self._end >= 0:
            if self._late is not None:
                self._stop_clock()
            self._intake.offer(self)
        if self._received:  # else it was taken in
            self._read_on()

    @property
    def has_line(self) -> bool:
        """Whether one waits that could be taken in."""
        return self._end >= 0 and not (self._unread or self._transport.is_closing())

    def take_in(self, now: float) -> bool:
        """Take in the next line, at that moment by time.monotonic; whether there is another."""
        line = self._received[self._begin : self._end]
        self._begin = self._end + 1
        self._end = self._received.find(b"\n", self._begin)
        if self._end < 0:
            self._received, self._begin = self._received[self._begin :], 0
        self._line(line, now)
        if self._is_paused or self._received:
            self._read_on()
        return self._end >= 0

    def _pause(self) -> None:
        self._is_paused = True
        self._transport.pause_reading()

    def _read_on(self) -> None:
        """Read on, or not; a line that has begun has its time only while it could be read."""
        if self._transport.is_closing():
            self._stop_clock()
        elif self._end >= 0:
            self._pause()
        elif len(self._received) >= protocol.MAX_LINE:
            self._fail(_too_long())
        elif self._is_late and self._received:
            self._fail(_too_slow())
        elif not self._unread:
            self._is_paused = False
            self._transport.resume_reading()
            if self._received and self._late is None:
                self._late = asyncio.get_running_loop().call_later(LINE_TIMEOUT_S, self._look)

    def _look(self) -> None:
        self._is_late = True
        if not self._polled(select.POLLIN):  # else it is judged by what comes
            self._read_on()

    def eof_received(self) -> bool:
        """A client may close its sending half and still read the answers; one that went may not."""
        self._no_more = self.under_way > 0 and not self._polled(0) & select.POLLHUP
        return self._no_more

    def _polled(self, events: int) -> int:
        poll = select.poll()
        poll.register(self._descriptor, events)
        return sum(found for _, found in poll.poll(0))

    @property
    def _descriptor(self) -> int:
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        return descriptor

    def _line(self, line: bytes, began: float) -> None:
        if len(line) >= protocol.MAX_LINE:
            self._fail(_too_long())
            return
        try:
            request = self.requests.request(line)
        except ProtocolError as e:
            self._write(protocol.encode_error(e.request_id, self._refused(e, e.method)))
            return
        if self._is_verbose:
            log.debug("%s, asked by %s", request.method, self.client)
        self.under_way += 1
        if self.under_way == 1:
            self._intake.busy()

        def respond(what: dict[str, Any] | bytes | DPoPAgentError) -> None:
            if isinstance(what, bytes):
                line = protocol.encode_made(request.id, what)
            else:
                line = self._answer(request, what, time.monotonic() - began)
            if self._lost:
                return
            self._write(line)
            self.under_way -= 1
            if not self.under_way:
                self._intake.idle()
                if self._no_more:
                    self.close()
            if self._end >= 0:
                self._intake.go_on(self)

        self._server.handle(Call(request, self, respond, began))

    def _answer(
        self, request: protocol.Request, what: dict[str, Any] | DPoPAgentError, took_s: float
    ) -> bytes:
        """The line of a result or an error, which is recorded."""
        if isinstance(what, DPoPAgentError):
            told = self._refused(what, request.method, request.params, took_s)
            return protocol.encode_error(request.id, told)
        self.trace.granted(request, what, took_s)
        if self.is_filtered:
            what = telling.result(request.method, what)
        try:
            return protocol.encode_result(request.id, what)
        except ProtocolError as e:
            return protocol.encode_error(request.id, e)

    def introduce(self, name: str) -> None:
        """Note who its client says that it is."""
        self.client = f"{self._peer}, {name!a}"

    def subscribe(self, events: Iterable[str]) -> None:
        """Be told of these events, and of no others."""
        self._events = frozenset(events)

    def tell(self, event: str, params: Mapping[str, Any]) -> None:
        """Send what answers no request, to a client that subscribed to it."""
        if event in self._events:
            told = telling.event(event, params) if self.is_filtered else params
            self._write(protocol.encode_event(event, told))

    def _refused(
        self,
        error: DPoPAgentError,
        method: str | None = None,
        params: Mapping[str, Any] | None = None,
        took_s: float | None = None,
    ) -> DPoPAgentError:
        """What is told of an error, which is recorded as it is."""
        told = telling.error(error) if self.is_filtered else error
        self.trace.refused(error, method, params, took_s, is_told=told is error)
        return told

    def _write(self, line: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(line)

    def _fail(self, error: DPoPAgentError) -> None:
        """Say why, and close."""
        self._write(protocol.encode_error(None, self._refused(error)))
        self._received, self._end = b"", -1
        self.close()

    def close(self) -> None:
        """Close after what was written went out."""
        self._transport.close()

    def end(self) -> None:
        """Let nothing more be sent; close once what was sent is answered."""
        if sys.platform == "linux" and not self._transport.is_closing():
            # Linux alone keeps what is there already, so that it is read and answered before EOF.
            with socket.socket(fileno=os.dup(self._descriptor)) as sock:
                sock.shutdown(socket.SHUT_RD)
        else:
            self.close()

    def abort(self) -> None:
        """Close, whatever is unread."""
        self._transport.abort()

    def _stop_clock(self) -> None:
        self._is_late = False
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _too_long() -> ParseError:
    return ParseError(
        f"a line has more than {protocol.MAX_LINE} bytes, and the connection is closed",
        hint="shorten the request",
    )


def _too_slow() -> Timeout:
    return Timeout(f"a line wasn't complete after {LINE_TIMEOUT_S:g} s", hint="send whole lines")
