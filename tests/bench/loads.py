"""Clients that ask as fast as they get answers: what they saw of it.

They speak over bare sockets and do as little as they can: they take of the same cores.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.bench.figures import P50, P99, RATE, SLOWEST, CannotMeasure, Measures
from tests.processes import START_S

ENOUGH_FOR_P99, ENOUGH_FOR_SLOWEST = 200, 10_000
"""Of fewer there is no such figure: it would be another in each round."""


class Asked(NamedTuple):
    """What is asked again and again, and what an answer is.

    Attributes:
        request: its bytes.
        answers: how many complete answers those bytes are; raises where one is a refusal.
        complete: whether those bytes end with an answer.
    """

    request: bytes
    answers: Callable[[bytes], int]
    complete: Callable[[bytes], bool]


def connected(path: str) -> socket.socket:
    """A connection to a Unix socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


def connected_soon(path: str) -> socket.socket:
    """A connection to what is just being started."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return connected(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise CannotMeasure(f"nothing listens on {path}") from None
            time.sleep(0.001)


def measures(times: list[float], wall: float) -> Measures:
    """Of the seconds that each took, and that all took together."""
    times.sort()
    found = {P50: times[len(times) // 2] * 1e6, RATE: len(times) / wall}
    if len(times) >= ENOUGH_FOR_P99:
        found[P99] = times[len(times) * 99 // 100] * 1e6
    if len(times) >= ENOUGH_FOR_SLOWEST:
        found[SLOWEST] = times[-1] * 1e6
    return found


def timed(call: Callable[[], object], count: int) -> Measures:
    """A call, so many times one after the other."""
    times, clock = [], time.perf_counter
    began = clock()
    for _ in range(count):
        start = clock()
        call()
        times.append(clock() - start)
    return measures(times, clock() - began)


def take(asked: Asked, sock: socket.socket) -> bytes:
    """The next bytes, up to the end of an answer."""
    data = sock.recv(65536)
    while not asked.complete(data):
        more = sock.recv(65536)
        if not more:
            raise CannotMeasure(f"the connection ended after {data[:300]!r}")
        data += more
    return data


def sequential(asked: Asked, sock: socket.socket, count: int, *, pause: float = 0.0) -> Measures:
    """One after the other, with so many seconds between an answer and the next request."""
    times, clock = [], time.perf_counter
    began = clock()
    for _ in range(count):
        if pause:
            time.sleep(pause)
        start = clock()
        sock.sendall(asked.request)
        asked.answers(take(asked, sock))
        times.append(clock() - start)
    return measures(times, clock() - began)


def concurrent(asked: Asked, socks: Sequence[socket.socket], count: int) -> Measures:
    """On each connection one after the other, `count` in all."""
    times: list[float] = []
    by_number = {sock.fileno(): sock for sock in socks}
    started, clock, left = {}, time.perf_counter, count - len(socks)
    with select.epoll() as poll:
        began = clock()
        for number, sock in by_number.items():
            poll.register(number, select.EPOLLIN)
            started[number] = clock()
            sock.sendall(asked.request)
        while len(times) < count:
            for number, _ in poll.poll():
                sock = by_number[number]
                asked.answers(take(asked, sock))
                now = clock()
                times.append(now - started[number])
                if left > 0:
                    left -= 1
                    started[number] = now
                    sock.sendall(asked.request)
        return measures(times, clock() - began)


def pipelined(asked: Asked, sock: socket.socket, count: int, *, ahead: int = 32) -> Measures:
    """On one connection, with up to `ahead` requests that aren't answered yet."""
    times: list[float] = []
    started: deque[float] = deque()
    clock, left = time.perf_counter, count - ahead
    began = clock()
    started.extend([began] * ahead)
    sock.sendall(asked.request * ahead)
    while len(times) < count:
        answers = asked.answers(take(asked, sock))
        now = clock()
        times.extend(now - started.popleft() for _ in range(answers))
        more = min(answers, left)
        if more:
            left -= more
            started.extend([now] * more)
            sock.sendall(asked.request * more)
    return measures(times, clock() - began)
