"""An adapter for each library; `ALL` is what the tests run."""

from tests.kit.adapter import Adapter
from tests.kit.adapters.aiohttp import Aiohttp
from tests.kit.adapters.httpx_like import HttpxAsync, HttpxBlocking
from tests.kit.adapters.requests import Requests, RequestsWithAuth
from tests.kit.adapters.requests_oauth2client import RequestsOAuth2Client

ALL: list[Adapter] = [
    *(HttpxBlocking(library) for library in ("httpx", "httpx2")),
    *(
        HttpxAsync(library, backend)
        for library in ("httpx", "httpx2")
        for backend in ("asyncio", "trio")
    ),
    Requests(),
    RequestsWithAuth(),
    Aiohttp(),
    RequestsOAuth2Client(),
]
