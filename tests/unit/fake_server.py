"""A scripted HTTP server on 127.0.0.1, for what only the wire shows."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class Seen:
    """A request as it came."""

    def __init__(self, method: str, path: str, headers: Message, body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body

    @property
    def proofs(self) -> list[str]:
        return self.headers.get_all("DPoP") or []


class Reply:
    """What the server answers; a body in parts is sent chunked, each part when it comes.

    It has a Date, unless `dated` is set to False.
    """

    def __init__(
        self, status: int = 200, body: bytes | Iterable[bytes] = b"", **headers: str
    ) -> None:
        self.status = status
        self.body = body
        self.dated = True
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class FakeServer:
    """Answers what `handle` says; `seen` is what came, over so many `connections`.

    With `tls`, a server's, it speaks https.
    """

    def __init__(
        self, handle: Callable[[Seen], Reply], *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.seen: list[Seen] = []
        self.connections = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def _answer(self) -> None:
                # http.server's own path has repeated slashes folded
                target = self.requestline.split()[1]
                seen = Seen(self.command, target, self.headers, self._read())
                outer.seen.append(seen)
                self._send(handle(seen))

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815  (its names)

            def _read(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", "0")))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _send(self, reply: Reply) -> None:
                if reply.dated:
                    self.send_response(reply.status)
                else:
                    self.send_response_only(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if isinstance(reply.body, bytes):
                    self.send_header("Content-Length", str(len(reply.body)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(reply.body)
                    return
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for part in reply.body:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # whoever finds no room tries again a second later

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that hangs up in the middle is part of the tests

        self._server = Server(("127.0.0.1", 0), Handler)
        self.origin = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
