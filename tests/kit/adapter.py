"""What makes an HTTP library run the kit: a class that sends one request and says what came."""

from __future__ import annotations

import io
import os
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import anyio

from dpop_agent.client import AgentClient, AsyncAgentClient, BoundToken
from dpop_agent.errors import DPoPAgentError

Case = dict[str, Any]
Request = dict[str, Any]
Came = dict[str, Any]


class Adapter:
    """One HTTP library with this project's client in it.

    Attributes:
        name: for the tests' names.
        cannot: the names of cases, or of what cases need, that it can't do, each with its reason.
        http_errors: what the library raises where the wire fails.
    """

    name = ""
    cannot: dict[str, str] = {}  # noqa: RUF012  (each adapter's own)
    http_errors: tuple[type[Exception], ...] = ()

    def why_not(self, case: Case) -> str | None:
        """The reason why it can't run this case."""
        wanted = [case["name"], *case["needs"]]
        return next((self.cannot[each] for each in wanted if each in self.cannot), None)

    def run(self, case: Case, socket: str, release: Callable[[], None]) -> list[Came]:
        """Do a case's requests, one after the other, by one client.

        Args:
            case: with its places filled in.
            socket: the agent's.
            release: to be called once the first part of a body that is read as "first" is there.
        """
        raise NotImplementedError

    def came(self, error: Exception) -> Came:
        """A request's failure, as the judge wants it."""
        if isinstance(error, DPoPAgentError):
            return {"error": error.type, "shown": _shown(error)}
        if isinstance(error, self.http_errors):
            return {"error": "http", "shown": _shown(error)}
        raise error


class BlockingAdapter(Adapter):
    """One for threads."""

    def client(self, agent: AgentClient, case: Case) -> AbstractContextManager[Any]:
        """A client of the library's, as `case["client"]` has it."""
        raise NotImplementedError

    def send(self, client: Any, request: Request, release: Callable[[], None]) -> Came:
        """Send a request, and say what came; errors are raised."""
        raise NotImplementedError

    def run(self, case: Case, socket: str, release: Callable[[], None]) -> list[Came]:
        def one(request: Request) -> Came:
            try:
                return self.send(client, request, release)
            except Exception as e:
                return self.came(e)

        came: list[Came] = []
        with (
            environment(case),
            AgentClient(socket) as agent,
            self.client(agent, case) as client,
            ThreadPoolExecutor(32) as threads,
        ):
            for request in case["requests"]:
                came += threads.map(one, [request] * request.get("at_once", 1))
        return came


class AsyncAdapter(Adapter):
    """One for an event loop.

    Attributes:
        backend: anyio's name for its kind.
    """

    backend = "asyncio"

    def client(self, agent: AsyncAgentClient, case: Case) -> AbstractAsyncContextManager[Any]:
        """A client of the library's, as `case["client"]` has it."""
        raise NotImplementedError

    async def send(self, client: Any, request: Request, release: Callable[[], None]) -> Came:
        """Send a request, and say what came; errors are raised."""
        raise NotImplementedError

    def run(self, case: Case, socket: str, release: Callable[[], None]) -> list[Came]:
        with environment(case):
            return anyio.run(self._run, case, socket, release, backend=self.backend)

    async def _run(self, case: Case, socket: str, release: Callable[[], None]) -> list[Came]:
        came: list[Came] = []

        async def one(request: Request) -> None:
            try:
                came.append(await self.send(client, request, release))
            except Exception as e:
                came.append(self.came(e))

        async with AsyncAgentClient(socket) as agent, self.client(agent, case) as client:
            for request in case["requests"]:
                async with anyio.create_task_group() as tasks:
                    for _ in range(request.get("at_once", 1)):
                        tasks.start_soon(one, request)
        return came


PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@contextmanager
def environment(case: Case) -> Iterator[None]:
    """Have the case's environment, and no other proxies than it names."""
    with patch.dict(os.environ):
        for name in PROXIES:
            os.environ.pop(name, None)
            os.environ.pop(name.upper(), None)
        os.environ.update(case["client"].get("environment", {}))
        yield


def file_of(body: dict[str, Any]) -> io.BytesIO:
    """A body that can seek, where its beginning is."""
    file = io.BytesIO(body["file"].encode())
    file.seek(body.get("from", 0))
    return file


def generated(body: dict[str, Any]) -> Iterator[bytes]:
    """A body that can't be read twice."""
    for part in body["generator"]:
        yield part.encode()


async def agenerated(body: dict[str, Any]) -> AsyncIterator[bytes]:
    """That, async."""
    for part in body["generator"]:
        yield part.encode()


def bound(token: dict[str, Any] | None) -> BoundToken | None:
    """An access token that a case names."""
    return None if token is None else BoundToken(**token)


def token_form(old: BoundToken | None) -> dict[str, str]:
    """What a renewal posts to the authorization server's `/token`."""
    if old is None or old.refresh_token is None:
        return {"grant_type": "client_credentials"}
    return {"grant_type": "refresh_token", "refresh_token": old.refresh_token}


def _shown(error: BaseException) -> str:
    """All that a program may show of an error."""
    shown = "".join(traceback.format_exception(error))
    chain: BaseException | None = error
    while chain is not None:
        shown += f"{chain!r} {getattr(chain, 'hint', '')}\n"
        chain = chain.__cause__ or chain.__context__
    return shown
