"""Answers in the words of servers that can't run here, so that what curl shows is curl's own."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

from tests.exchanges.exchange import Curl, Form, Headers
from tests.exchanges.fronts import Front, front


@dataclass(frozen=True)
class Response:
    """What a server would answer.

    Args:
        status: with its reason, where the server gives one.
        body: is sent as JSON.
        headers: beside those of the server.
    """

    status: str
    body: Any = None
    headers: Sequence[tuple[str, str]] = ()


@dataclass
class Played:
    """A host of one's choice, and curl to it.

    Args:
        front: where curl finds it.
        curl: asks.
        always: headers of all its responses; an empty Date becomes the present one.
    """

    front: Front
    curl: Curl
    always: Sequence[tuple[str, str]]
    answers: list[bytes] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return self.front.origin

    def __call__(
        self,
        response: Response,
        method: str,
        uri: str,
        headers: Headers = (),
        *options: str,
        form: Form | None = None,
        traced: bool = False,
    ) -> str:
        """Curl's output of this request and this response."""
        self.answers.append(self._bytes(response))
        return self.curl(
            method, uri, headers, *self.front.options, *options, form=form, traced=traced
        )

    def _bytes(self, response: Response) -> bytes:
        body = (
            b""
            if response.body is None
            else json.dumps(response.body, separators=(",", ":")).encode()
        )
        always = [
            (name, value or formatdate(usegmt=True)) if name.lower() == "date" else (name, value)
            for name, value in self.always
        ]
        kind = [("Content-Type", "application/json")] if body else []
        length = [("Content-Length", str(len(body)))]
        lines = [f"{name}: {value}" for name, value in [*always, *response.headers, *kind, *length]]
        return "\r\n".join([f"HTTP/1.1 {response.status}", *lines, "", ""]).encode() + body


@contextmanager
def played(
    folder: Path, host: str, curl: Curl, always: Sequence[tuple[str, str]]
) -> Iterator[Played]:
    """A server for `https://HOST`, over HTTP/2, that says what it is told."""
    listening = socket.create_server(("127.0.0.1", 0))
    with listening, front(folder, host, target=listening.getsockname()[1]) as tls:
        server = Played(tls, curl, always)
        threading.Thread(target=serve, args=(listening, server.answers), daemon=True).start()
        yield server


def serve(listening: socket.socket, answers: list[bytes]) -> None:
    """Give each request the next answer, until the socket closes."""
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection:
            read_request(connection)
            connection.sendall(answers.pop(0))


def read_request(connection: socket.socket) -> None:
    """All of it, or the server's end would reset the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    wanted = int(lengths[0].partition(b":")[2]) if lengths else 0
    while len(body) < wanted:
        body += connection.recv(65536)
