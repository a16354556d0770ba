"""A line has its time, and is judged by what was sent, not by when the agent came to read it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast
from unittest.mock import Mock

import pytest

from dpop_agent.agent import connection
from dpop_agent.agent.call import Call
from dpop_agent.agent.connection import Connection
from dpop_agent.agent.intake import Intake
from dpop_agent.agent.trails import Trace
from dpop_agent.protocol import AGENT_METHODS, MAX_LINE, MAX_REQUESTS, Decoder
from tests.agent.wire import mutated, request
from tests.processes import resident_kib
from tests.rows import Reached

LINE_S = 0.2


class Server:
    """Answers each request at once, unless it is told to wait."""

    def __init__(self) -> None:
        self.waits = False
        self.waiting: list[Call] = []

    def connected(self, connection: Connection) -> bool:
        return True

    def disconnected(self, connection: Connection) -> None:
        pass

    def handle(self, call: Call) -> None:
        if self.waits:
            self.waiting.append(call)
        else:
            call.respond({})


class Peer:
    """The other end of a connection."""

    def __init__(self, sock: socket.socket, server: Server) -> None:
        self.sock = sock
        self.server = server
        self._rest = b""

    async def next(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        while b"\n" not in self._rest:
            data = await asyncio.wait_for(loop.sock_recv(self.sock, 65536), 10)
            assert data, "it was closed"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Untraced:
    """Remembers nothing of a million lines."""

    def refused(self, *_: object, **__: object) -> None:
        pass

    def granted(self, *_: object) -> None:
        pass


def with_peer(monkeypatch: pytest.MonkeyPatch, story: Callable[[Peer], Awaitable[None]]) -> None:
    monkeypatch.setattr(connection, "LINE_TIMEOUT_S", LINE_S)

    async def told() -> None:
        loop, server = asyncio.get_running_loop(), Server()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with theirs:
            requests = Decoder(AGENT_METHODS)
            made = Connection(server, requests, Intake(loop), (0, "agent.sock", 1), Mock())
            await loop.create_unix_connection(lambda: made, sock=ours)
            await story(Peer(theirs, server))
            made.abort()
            await asyncio.sleep(0)

    asyncio.run(told())


def busy_while(rest: bytes, peer: Peer) -> None:
    """The agent stands still until a line's time is over; its rest is sent meanwhile."""

    def until_the_line_is_late() -> None:
        time.sleep(2 * LINE_S)
        asyncio.get_running_loop().call_soon(while_the_rest_is_sent)

    def while_the_rest_is_sent() -> None:
        peer.sock.send(rest)
        time.sleep(LINE_S)

    asyncio.get_running_loop().call_soon(until_the_line_is_late)


def test_a_line_that_was_sent_while_the_agent_was_busy_isnt_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(peer: Peer) -> None:
        whole = request("status")
        peer.sock.send(whole[:9])
        await asyncio.sleep(LINE_S / 4)
        busy_while(whole[9:], peer)
        assert "result" in await peer.next()

    with_peer(monkeypatch, story)


def test_a_line_whose_time_is_over_isnt_saved_by_one_more_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(peer: Peer) -> None:
        whole = request("status")
        peer.sock.send(whole[:9])
        await asyncio.sleep(LINE_S / 4)
        busy_while(whole[9:10], peer)
        assert (await peer.next())["error"]["data"]["type"] == "timeout"

    with_peer(monkeypatch, story)


def test_a_line_behind_others_that_wait_has_its_time_from_when_it_is_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(peer: Peer) -> None:
        peer.server.waits = True
        last = request("status", number="last")
        lines = b"".join(request("status", number=n) for n in range(MAX_REQUESTS + 1))
        peer.sock.send(lines + last[:9])
        await asyncio.sleep(3 * LINE_S)
        assert len(peer.server.waiting) == MAX_REQUESTS
        peer.server.waits = False
        for call in peer.server.waiting:
            call.respond({})
        answers = [await peer.next() for _ in range(MAX_REQUESTS + 1)]
        assert all("result" in answer for answer in answers)
        peer.sock.send(last[9:])
        assert (await peer.next())["id"] == "last"

    with_peer(monkeypatch, story)


def test_a_client_whose_lines_wait_isnt_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(peer: Peer) -> None:
        peer.server.waits = True
        many = request("status") * 100_000
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(peer.sock, many))
        _, unsent = await asyncio.wait([sending], timeout=5 * LINE_S)
        assert unsent == {sending}
        sending.cancel()
        await asyncio.wait([sending])
        assert len(peer.server.waiting) == MAX_REQUESTS

    with_peer(monkeypatch, story)


def test_lines_of_the_greatest_length_come_whole_however_many_are_sent_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(peer: Peer) -> None:
        line = request("hello", {"client": "x"}).rstrip(b"\n")
        longest = line + b" " * (MAX_LINE - len(line) - 1) + b"\n"
        sending = asyncio.ensure_future(
            asyncio.get_running_loop().sock_sendall(peer.sock, longest * 9)
        )
        for _ in range(9):
            assert "result" in await peer.next()
        await sending
        peer.sock.send(longest[:-1] + b" ")
        assert (await peer.next())["error"]["data"]["type"] == "parse_error"

    with_peer(monkeypatch, story)


async def malformed(count: int) -> int:
    """KiB that memory grew by while so many malformed lines were refused, with an answer each."""
    chance, loop, server = random.Random(9449), asyncio.get_running_loop(), Server()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    refused, before = 0, 0
    with theirs:
        made = Connection(
            server,
            Decoder(AGENT_METHODS),
            Intake(loop),
            (0, "agent.sock", 1),
            cast("Trace", Untraced()),
        )
        await loop.create_unix_connection(lambda: made, sock=ours)
        peer = Peer(theirs, server)
        while refused < count:
            lines = [mutated(chance) for _ in range(50)]
            theirs.sendall(b"".join(line + b"\n" for line in lines))
            for _ in lines:
                answer = await peer.next()
                if "error" in answer:
                    assert answer["error"]["data"]["type"] != "internal"
                    refused += 1
            before = before or resident_kib(os.getpid())
        made.abort()
        await asyncio.sleep(0)
    return resident_kib(os.getpid()) - before


@pytest.mark.parametrize(
    "count",
    [20_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.row(1)])],
)
def test_malformed_lines_are_answered_one_by_one_and_cost_no_memory(
    count: int, reached: Reached
) -> None:
    grew_kib = asyncio.run(malformed(count))
    assert grew_kib < 10 * 1024
    reached("malformed lines in process", count)
    reached("malformed lines and frames that crashed something or got no answer", 0)
    reached("MiB that memory grew by for malformed lines and frames", grew_kib / 1024)
