"""A scripted agent on a real socket, for what a real one never does."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dpop_agent.errors import DPoPAgentError, MethodNotFound
from dpop_agent.jose import b64url
from dpop_agent.protocol import encode_error, encode_event, encode_result

Params = dict[str, Any]
JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
OTHER_JKT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


class Raw:
    """Bytes sent instead of an answer; then the connection is closed, unless `keep`."""

    def __init__(self, data: bytes, *, keep: bool = False) -> None:
        self.data = data
        self.keep = keep


NOTHING = Raw(b"", keep=True)
HANG_UP = Raw(b"")
TOUCH = {"key": "shop", "jkt": JKT, "store": "yubikey"}
TOUCH_DUE = Raw(
    encode_event("touch", {"id": "$ID", **TOUCH, "later": 1}).replace(b'"$ID"', b"$ID"), keep=True
)
"""A touch that never comes, unless something is sent after it."""

Reply = Params | DPoPAgentError | Raw


class FakeAgent:
    """Answers proofs like an agent with one key; `script` replaces answers, the first ones first.

    Subscriptions aren't among the requests, and `script` has no answer for them.

    Attributes:
        subscriptions: what connections subscribed to.
        knows_subscribe: False for an agent of before.
        touch_s: seconds that a proof waits for a touch, which is announced; None for no touch.
        requests: method and params of everything that came, in order.
        connections: how many were accepted.
        state: of the generation that signs.
        drain_left_s: how much longer it does, where the agent says so.
        clock_s: seconds that its clock is ahead of this machine's; its proofs have `iat` then.
        backdates: how far it goes back for a server's `date`.
        refuse: an error for proofs by a jkt.
    """

    def __init__(self, folder: Path, *, serve: bool = True) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.path = str(folder / "agent.sock")
        self.requests: list[tuple[str, Params]] = []
        self.subscriptions: list[Params] = []
        self.knows_subscribe = True
        self.touch_s: float | None = None
        self.script: list[Reply | Callable[[Params], Reply]] = []
        self.greeting: Raw | None = None
        self.connections = 0
        self.bytes = 0
        self.jkt = JKT
        self.state = "active"
        self.drain_left_s: int | None = None
        self.nonces: dict[str, str] = {}
        self.clock_s: float | None = None
        self.backdates: dict[str, float] = {}
        self.refuse: dict[str, DPoPAgentError] = {}
        self._proofs = 0
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.listener = self._bind()
        if serve:
            self._listen()

    def restart(self) -> None:
        self.stop()
        os.unlink(self.path)
        self.listener = self._bind()
        self._listen()

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        return listener

    def _listen(self) -> None:
        self.listener.listen(64)
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def stop(self) -> None:
        """As an agent that ends: every connection is closed."""
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def proofs(self) -> list[Params]:
        return [params for method, params in self.requests if method == "proof"]

    @property
    def observed(self) -> list[Params]:
        return [item for method, params in self.requests for item in params.get("seen", [])]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            try:
                if self.greeting:
                    connection.sendall(self.greeting.data)
                    return
                for line in lines:
                    self.bytes += len(line)
                    if not self._reply(connection, json.loads(line)):
                        return
            except OSError:
                return

    def _reply(self, connection: socket.socket, request: Params) -> bool:
        method, params = request["method"], request["params"]
        if method == "subscribe":
            self.subscriptions.append(params)
            unknown = MethodNotFound("there is no such method")
            number = request["id"]
            connection.sendall(
                encode_result(number, {}) if self.knows_subscribe else encode_error(number, unknown)
            )
            return True
        touch_s = self.touch_s
        if method == "proof" and touch_s is not None:
            connection.sendall(TOUCH_DUE.data.replace(b"$ID", str(request["id"]).encode()))
            time.sleep(touch_s)
        with self._lock:
            self.requests.append((method, params))
            step = self.script.pop(0) if self.script else self._usual(method, params)
        reply = step(params) if callable(step) else step
        if isinstance(reply, Raw):
            connection.sendall(reply.data.replace(b"$ID", str(request["id"]).encode()))
            return reply.keep
        if isinstance(reply, DPoPAgentError):
            connection.sendall(encode_error(request["id"], reply))
        else:
            connection.sendall(encode_result(request["id"], reply))
        return True

    def _claims(self, params: Params) -> str:
        if self.clock_s is None:
            return "e30"
        iat = time.time() + self.clock_s - self.backdates.get(_origin(params["htu"]), 0.0)
        return b64url(json.dumps({"iat": int(iat)}).encode())

    def _usual(self, method: str, params: Params) -> Reply:
        for item in params.get("seen", []):
            if "nonce" in item:
                self.nonces[_origin(item["htu"])] = item["nonce"]
            if "refused_nonce" in item:
                self.nonces.pop(_origin(item["htu"]), None)
            if "date" in item and self.clock_s is not None:
                ahead = time.time() + self.clock_s - _seconds(item["date"])
                self.backdates[_origin(item["htu"])] = ahead if 2 <= ahead <= 300 else 0.0
        if method != "proof":
            return {"method": method}
        jkt = params.get("jkt", self.jkt)
        if jkt in self.refuse:
            return self.refuse[jkt]
        self._proofs += 1
        left = {} if self.drain_left_s is None else {"drain_left_s": self.drain_left_s}
        return left | {
            "proof": f"e30.{self._claims(params)}.proof-{self._proofs}",
            "key": params.get("key", "default"),
            "jkt": jkt,
            "state": self.state,
            "nonce": params.get("nonce", self.nonces.get(_origin(params["htu"]))),
        }


def _seconds(date: str) -> float:
    return datetime.fromisoformat(date).timestamp()


def _origin(htu: str) -> str:
    return "/".join(htu.split("/")[:3])
