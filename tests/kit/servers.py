"""A scripted HTTP/1.1 server in four places of 127.0.0.1, which records what came over the wire.

It needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Any, BinaryIO, Self

from tests.kit.wire import Seen

PLACES = ("as", "api", "other", "proxy")
"""`as` and `api` are listed as origins, `other` isn't, `proxy` is what environments name."""

HELD_S = 5.0
"""Seconds for which a held body waits for the client to have read what came before."""

ENDLESS = 32 * 1024 * 1024
"""Bytes after which an endless body ends all the same, as broken off."""


@dataclass
class _Answer:
    script: dict[str, Any]
    left: float = field(init=False)

    def __post_init__(self) -> None:
        times = self.script.get("times", 1)
        self.left = float("inf") if times == "always" else times


class Servers:
    """Four listeners that share one script: the first answer that fits a request is its own."""

    def __init__(self, *, ports: set[int]) -> None:
        """Listen at ports that aren't among `ports`, and add them: nonces belong to origins."""
        self.seen: list[Seen] = []
        self.endless_sent = 0
        self.held_too_long = 0
        self._answers: list[_Answer] = []
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._connections = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listeners = {place: _listener(ports) for place in PLACES}
        self.hosts = {
            place: f"127.0.0.1:{listener.getsockname()[1]}"
            for place, listener in self._listeners.items()
        }

    def follow(self, script: list[dict[str, Any]]) -> None:
        """Take the answers, and begin."""
        self._answers = [_Answer(each) for each in script]
        for place in self._listeners:
            self._start(self._accept, place)

    def release(self) -> None:
        """The client has read what came before: held bodies go on."""
        self._released.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._released.set()
        for listener in self._listeners.values():
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, place: str) -> None:
        while True:
            try:
                connection, _ = self._listeners[place].accept()
            except OSError:
                return
            with self._lock:
                self._connections += 1
                number = self._connections
                self._open.add(connection)
            self._start(self._serve, place, connection, number)

    def _serve(self, place: str, connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
            while (seen := _request(place, lines, number)) is not None:
                with self._lock:
                    self.seen.append(seen)
                    answer = self._answer(seen)
                if not self._send(connection, seen, answer):
                    break
        with self._lock:
            self._open.discard(connection)

    def _answer(self, seen: Seen) -> dict[str, Any]:
        for answer in self._answers:
            if answer.left > 0 and _fits(answer.script.get("if", {}), seen):
                answer.left -= 1
                return answer.script
        return {}

    def _send(self, connection: socket.socket, seen: Seen, answer: dict[str, Any]) -> bool:
        """Answer; False where the connection is over."""
        if answer.get("drop"):
            return False
        status = answer.get("status", 200)
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        offset_s = answer.get("date_offset_s", 0)
        if offset_s is not None:
            head.append(f"Date: {formatdate(time.time() + offset_s, usegmt=True)}")
        head += [f"{name}: {value}" for name, value in answer.get("headers", [])]
        body = answer.get("body", "")
        if isinstance(body, dict) and ("parts" in body or "endless" in body):
            head.append("Transfer-Encoding: chunked")
            _send_all(connection, head)
            return self._send_parts(connection, body)
        content = _content(body)
        if status not in (204, 304):
            head.append(f"Content-Length: {len(content)}")
        _send_all(connection, head)
        cut = answer.get("cut_after")
        if seen.method != "HEAD":
            connection.sendall(content if cut is None else content[:cut])
        return cut is None

    def _send_parts(self, connection: socket.socket, body: dict[str, Any]) -> bool:
        for number, part in enumerate(body.get("parts", [])):
            if number and body.get("hold") and not self._released.wait(HELD_S):
                self.held_too_long += 1
                return False
            _send_chunk(connection, _content(part))
        if "endless" in body:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
            more = (body["endless"] * 1024).encode()[:1024]
            sent = 0
            try:
                while sent < ENDLESS:
                    _send_chunk(connection, more)
                    sent += len(more)
            finally:
                self.endless_sent = max(self.endless_sent, sent)
            return False
        connection.sendall(b"0\r\n\r\n")
        return True


def _listener(ports: set[int]) -> socket.socket:
    passed_over = []
    while True:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if port not in ports:
            break
        passed_over.append(listener)  # so that the next one gets another
    for each in passed_over:
        each.close()
    ports.add(port)
    return listener


def _send_all(connection: socket.socket, head: list[str]) -> None:
    connection.sendall("".join(f"{line}\r\n" for line in [*head, ""]).encode("latin-1"))


def _send_chunk(connection: socket.socket, part: bytes) -> None:
    connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))


def _content(body: str | dict[str, Any]) -> bytes:
    """A body as README.md has it, whole."""
    if isinstance(body, str):
        return body.encode()
    if "json" in body:
        return json.dumps(body["json"]).encode()
    if "gzip" in body:
        return gzip.compress(_content(body["gzip"]))
    if "deflate" in body:
        return zlib.compress(_content(body["deflate"]))
    if "repeat" in body:
        return str(body["repeat"] * body["times"]).encode()
    raise ValueError(f"no body: {sorted(body)}")


def _fits(conditions: dict[str, Any], seen: Seen) -> bool:
    found = {
        "to": seen.to,
        "method": seen.method,
        "path": seen.target.partition("?")[0],
        "authorization": next(iter(seen.values("authorization")), None),
        "nonce": seen.proof.claims.get("nonce") if seen.proof else None,
    }
    negated = {name: value for name, value in conditions.items() if name.endswith("_not")}
    return all(
        found[name] == value for name, value in conditions.items() if name not in negated
    ) and all(found[name.removesuffix("_not")] != value for name, value in negated.items())


def _request(place: str, lines: BinaryIO, connection: int) -> Seen | None:
    start = lines.readline().decode("latin-1").split()
    if len(start) != 3:
        return None
    headers = list(_headers(lines))
    fields = dict(headers)
    if fields.get("transfer-encoding", "").lower() == "chunked":
        body = b"".join(_chunks(lines))
    else:
        body = lines.read(int(fields.get("content-length", "0")))
    return Seen(place, start[0], start[1], headers, body, connection)


def _headers(lines: BinaryIO) -> Iterator[tuple[str, str]]:
    while (line := lines.readline().decode("latin-1").rstrip("\r\n")) != "":
        name, _, value = line.partition(":")
        yield name.strip().lower(), value.strip()


def _chunks(lines: BinaryIO) -> Iterator[bytes]:
    while size := int(lines.readline().partition(b";")[0], 16):
        yield lines.read(size)
        lines.readline()
    lines.readline()
