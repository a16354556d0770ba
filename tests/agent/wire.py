"""The agent's socket without the client library: bytes out, lines in."""

from __future__ import annotations

import itertools
import json
import random
import select
import socket
from types import TracebackType
from typing import Any, Self


def request(method: str, params: dict[str, Any] | None = None, *, number: str | int = 1) -> bytes:
    """A request's line."""
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}
    return json.dumps(message).encode() + b"\n"


_TARGET = {"htm": "GET", "htu": "https://api.example.com/"}
_JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
_WHOLE = [
    request("hello", {"client": "x"}),
    request("proof", {**_TARGET, "nonce": "n", "timeout_ms": 1000, "jkt": _JKT}),
    request("proof.sign", {"signing_input": "e30.e30", "jkt": _JKT}),
    request("observe", {"seen": [{"htu": "https://h.example/", "nonce": "n"}]}),
    request("key.list", {"cursor": "a@1", "include_destroyed": True}),
    request("lease", {"name": "mutated", "wait_ms": 1}),
    request("release", {"lease": "mutated"}),
    request("status"),
]
_PIECES = [b'"', b"{", b"}", b"[", b",", b":", b"\\", b"\x00", b"\xff", b"null", b"1e999", b" "]


def mutated(chance: random.Random) -> bytes:
    """A request's line with a few of its bytes changed, and without its newline."""
    line = bytearray(chance.choice(_WHOLE)[:-1])
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(line))
        line[at : at + chance.randrange(4)] = chance.choice(_PIECES)
    return bytes(line).replace(b"\n", b"")


class Wire:
    """One connection; nothing is checked, everything is read."""

    def __init__(self, path: str, *, timeout: float = 15.0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)  # without a timeout it waits while the listener's backlog is full
        self.sock.settimeout(timeout)
        self._rest = b""
        self._ids = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def half_close(self) -> None:
        """Send no more, and still read."""
        self.sock.shutdown(socket.SHUT_WR)

    def line(self) -> dict[str, Any] | None:
        """The next answer; None at the end of file."""
        answer = self._line()
        if answer is not None:
            assert answer.keys() in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"})
        return answer

    def event(self) -> dict[str, Any]:
        """The next line, which answers nothing; there has to be one."""
        event = self._line()
        assert event is not None, "the agent closed the connection"
        assert event.keys() == {"jsonrpc", "method", "params"}
        return event

    def _line(self) -> dict[str, Any] | None:
        while b"\n" not in self._rest:
            try:
                data = self.sock.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                assert self._rest == b"", "half a line"
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        assert answer["jsonrpc"] == "2.0"
        return answer

    @property
    def silent(self) -> bool:
        """Whether nothing has come yet that wasn't read."""
        return not self._rest and not select.select([self.sock], [], [], 0)[0]

    def next(self) -> dict[str, Any]:
        """The next answer; there has to be one."""
        answer = self.line()
        assert answer is not None, "the agent closed the connection"
        return answer

    def lines(self, count: int) -> list[dict[str, Any]]:
        """The next answers."""
        return [self.next() for _ in range(count)]

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """A request and its answer."""
        number = next(self._ids)
        self.send(request(method, params, number=number))
        answer = self.next()
        assert answer["id"] == number
        return answer

    def result(self, method: str, **params: Any) -> dict[str, Any]:
        """What a request that has to succeed gets."""
        answer = self.ask(method, **params)
        assert "error" not in answer, answer["error"]
        found: dict[str, Any] = answer["result"]
        return found

    def error(self, method: str, **params: Any) -> dict[str, Any]:
        """What a request that has to be refused gets: `type`, and the rest of the error."""
        answer = self.ask(method, **params)
        assert "result" not in answer, f"{method} was granted"
        return refusal(answer)


def refusal(answer: dict[str, Any]) -> dict[str, Any]:
    """An error in one level, checked for what every error has: one line that says what and why."""
    error = answer["error"]
    assert error.keys() == {"code", "message", "data"}
    data: dict[str, Any] = error["data"]
    assert {"type", "hint", "retry"} <= data.keys()
    assert data["retry"] in ("no", "now", "later")
    for text in (error["message"], data["hint"]):
        assert isinstance(text, str)
        assert text.isprintable()
        assert "Traceback" not in text
    assert error["message"]
    return {"code": error["code"], "message": error["message"], **data}
