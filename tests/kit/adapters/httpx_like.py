"""httpx and httpx2: the same names in both."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from dpop_agent.client import AgentClient, AsyncAgentClient, BoundToken
from tests.kit.adapter import (
    Adapter,
    AsyncAdapter,
    BlockingAdapter,
    Came,
    Case,
    Request,
    agenerated,
    bound,
    file_of,
    generated,
    token_form,
)


@dataclass
class Client:
    """A client of the library's, and the auth that has the case's grant."""

    http: Any
    grant: Any = None


class _Httpx(Adapter):
    """What both kinds of client have."""

    def __init__(self, library: str) -> None:
        self._library: Any = importlib.import_module(library)
        self._ours: Any = importlib.import_module(f"dpop_agent.client.{library}")
        self.http_errors = (self._library.HTTPError, self._library.InvalidURL)

    def _arguments(self, request: Request, auth: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "method": request.get("method", "GET"),
            "url": request["url"],
            "headers": [(name, value) for name, value in request.get("headers", [])],
            "follow_redirects": request.get("follow", True),
        }
        if "jkt" in request:
            arguments["extensions"] = {"dpop_jkt": request["jkt"]}
        if auth is not None:
            arguments["auth"] = auth
        return arguments | self._body(request.get("body"))

    def _body(self, body: dict[str, Any] | None) -> dict[str, Any]:
        if body is None:
            return {}
        if "form" in body:
            return {"data": body["form"]}
        if "multipart" in body:
            return {"files": {"file": (body["filename"], file_of({"file": body["multipart"]}))}}
        if "text" in body:
            return {"content": body["text"].encode()}
        return {"content": self._stream(body)}

    def _stream(self, body: dict[str, Any]) -> Any:
        raise NotImplementedError


class HttpxBlocking(_Httpx, BlockingAdapter):
    def __init__(self, library: str) -> None:
        super().__init__(library)
        self.name = library
        if library == "httpx":
            reason = "httpx announces the length of the whole file, and sends the rest of it"
            self.cannot = {"a_file_is_rewound_to_where_it_was": reason}

    def _stream(self, body: dict[str, Any]) -> Any:
        return file_of(body) if "file" in body else generated(body)

    @contextmanager
    def client(self, agent: AgentClient, case: Case) -> Iterator[Client]:
        wanted = case["client"]
        transport = self._ours.DPoPTransport(agent, **_options(wanted))

        def renew(old: BoundToken | None) -> BoundToken:
            response = http.post(wanted["token_endpoint"], data=token_form(old), auth=None)
            jkt = response.raise_for_status().extensions["dpop"].jkt
            return BoundToken.from_response(response.json(), jkt=jkt)

        with self._library.Client(transport=transport, timeout=10) as http:
            yield Client(http, self._ours.DPoPAuth(renew, token=bound(wanted.get("grant"))))

    def send(self, client: Client, request: Request, release: Callable[[], None]) -> Came:
        auth = client.grant if request.get("grant") else None
        if (token := bound(request.get("access_token"))) is not None:
            auth = self._ours.DPoPAuth(_no_renewal, token=token)
        with client.http.stream(**self._arguments(request, auth)) as response:
            came: Came = {"status": response.status_code, "body": ""}
            read = request.get("read", "all")
            if read == "all":
                came["body"] = response.read().decode()
            elif read == "first":
                parts = response.iter_bytes()
                came["body"] = next(parts).decode()
                release()
                came["body"] += b"".join(parts).decode()
            return came


class HttpxAsync(_Httpx, AsyncAdapter):
    def __init__(self, library: str, backend: str = "asyncio") -> None:
        super().__init__(library)
        self.backend = backend
        self.name = f"{library}-{backend}"

    def _stream(self, body: dict[str, Any]) -> Any:
        return _AsyncFile(file_of(body)) if "file" in body else agenerated(body)

    @asynccontextmanager
    async def client(self, agent: AsyncAgentClient, case: Case) -> AsyncIterator[Client]:
        wanted = case["client"]
        transport = self._ours.AsyncDPoPTransport(agent, **_options(wanted))

        async def renew(old: BoundToken | None) -> BoundToken:
            response = await http.post(wanted["token_endpoint"], data=token_form(old), auth=None)
            jkt = response.raise_for_status().extensions["dpop"].jkt
            return BoundToken.from_response(response.json(), jkt=jkt)

        async with self._library.AsyncClient(transport=transport, timeout=10) as http:
            yield Client(http, self._ours.AsyncDPoPAuth(renew, token=bound(wanted.get("grant"))))

    async def send(self, client: Client, request: Request, release: Callable[[], None]) -> Came:
        auth = client.grant if request.get("grant") else None
        if (token := bound(request.get("access_token"))) is not None:
            auth = self._ours.AsyncDPoPAuth(_no_async_renewal, token=token)
        async with client.http.stream(**self._arguments(request, auth)) as response:
            came: Came = {"status": response.status_code, "body": ""}
            read = request.get("read", "all")
            if read == "all":
                came["body"] = (await response.aread()).decode()
            elif read == "first":
                parts = response.aiter_bytes()
                came["body"] = (await anext(parts)).decode()
                release()
                came["body"] += b"".join([part async for part in parts]).decode()
            return came


def _options(wanted: dict[str, Any]) -> dict[str, Any]:
    # Plain http needs no certificates, and loading them takes its time.
    return {"key": wanted["key"], "origins": wanted["origins"], "verify": False}


class _AsyncFile:
    """A file as async clients take one: `aread`, `seek` and `tell`."""

    def __init__(self, file: Any) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    async def aread(self, size: int) -> bytes:
        data: bytes = self._file.read(size)
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._file.read()


def _no_renewal(old: BoundToken | None) -> BoundToken:
    raise AssertionError("no renewal is due")


async def _no_async_renewal(old: BoundToken | None) -> BoundToken:
    raise AssertionError("no renewal is due")
