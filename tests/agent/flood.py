"""Greedy clients, as a program of its own: each connection keeps so many requests in flight.

    python -m tests.agent.flood PATH CONNECTIONS DEPTH proof|status

It says `flooding` once each connection was answered, then, on each line that it is sent, how many
answers of which kind it got since.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.agent.wire import request

TARGET = {"htm": "GET", "htu": "https://api.example.com/"}


class Flood:
    """The program, seen from a test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def answers(self) -> dict[str, int]:
        """`results` and `errors` since it was asked last."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, int] = json.loads(self._process.stdout.readline())
        return found


@contextmanager
def flooding(path: str, *, connections: int, depth: int, method: str = "proof") -> Iterator[Flood]:
    """Greedy clients at that socket, until the block ends."""
    words = [path, str(connections), str(depth), method]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.agent.flood", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "flooding\n"
            yield Flood(process)
        finally:
            process.kill()


class _Greedy:
    """One connection."""

    def __init__(self, path: str, line: bytes, depth: int) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.setblocking(False)
        self.answered = False
        self._line = line
        self._unsent = line * depth
        self._rest = b""

    def send(self) -> bool:
        """Whether something is left to be sent."""
        try:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        return bool(self._unsent)

    def read(self) -> list[bytes]:
        data = self.sock.recv(1 << 18)
        assert data, "the agent closed the connection"
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.answered = self.answered or bool(lines)
        self._unsent += self._line * len(lines)
        return lines


def main(path: str, connections: str, depth: str, method: str) -> None:
    line = request(method, TARGET if method == "proof" else {})
    counted = {"results": 0, "errors": 0}
    silent = int(connections)
    with selectors.DefaultSelector() as selector:
        for _ in range(silent):
            greedy = _Greedy(path, line, int(depth))
            selector.register(greedy.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, greedy)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, events in selector.select():
                if key.data is None:
                    if not sys.stdin.readline():
                        return
                    print(json.dumps(counted), flush=True)
                    counted = {"results": 0, "errors": 0}
                    continue
                found: Any = key.data
                if events & selectors.EVENT_READ:
                    was_silent = not found.answered
                    lines = found.read()
                    results = sum(b'"result":' in answer for answer in lines)
                    counted["results"] += results
                    counted["errors"] += len(lines) - results
                    if was_silent and found.answered:
                        silent -= 1
                        if not silent:
                            print("flooding", flush=True)
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if found.send() else 0)
                if wanted != key.events:
                    selector.modify(found.sock, wanted, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
