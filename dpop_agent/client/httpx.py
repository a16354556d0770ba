"""httpx: `DPoPTransport` signs each hop, `DPoPAuth` chooses the access token.

What they do is `httpx_core`'s, shared with httpx2; here are httpx's classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    import httpx
except ModuleNotFoundError as e:
    raise ImportError("httpx isn't installed; install it: pip install 'dpop-agent[httpx]'") from e

from dpop_agent.client import httpx_core as core
from dpop_agent.client.exchange import awaiting, blocking

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from dpop_agent.client.aio import AsyncAgentClient
    from dpop_agent.client.sync import AgentClient

    Cert = str | tuple[str, str] | tuple[str, str, str]


class _Kept(core.Kept, httpx.SyncByteStream, httpx.AsyncByteStream):
    pass


class _Replay(core.Replay, httpx.SyncByteStream):
    pass


class _AsyncReplay(core.AsyncReplay, httpx.AsyncByteStream):
    pass


class _Cut(core.Cut, httpx.SyncByteStream):
    pass


class _AsyncCut(core.AsyncCut, httpx.AsyncByteStream):
    pass


_LIBRARY = core.Library(
    name="httpx",
    request=httpx.Request,
    headers=httpx.Headers,
    cookies=httpx.Cookies,
    byte_stream=httpx.ByteStream,
    kept=_Kept,
    replay=_Replay,
    async_replay=_AsyncReplay,
    cut=_Cut,
    async_cut=_AsyncCut,
)


class DPoPTransport(core.BlockingSigning[httpx.BaseTransport], httpx.BaseTransport):
    __doc__ = core.BlockingSigning.__doc__
    _library = _LIBRARY

    def __init__(
        self,
        agent: AgentClient,
        *,
        key: str | None = None,
        origins: Iterable[str],
        transport: httpx.BaseTransport | None = None,
        verify: ssl.SSLContext | str | bool | None = None,
        cert: Cert | None = None,
        http2: bool | None = None,
        limits: httpx.Limits | None = None,
        proxy: str | httpx.URL | httpx.Proxy | None = None,
        trust_env: bool | None = None,
    ) -> None:
        super().__init__(
            agent,
            key=key,
            origins=origins,
            transport=transport,
            make=httpx.HTTPTransport,
            options={
                "verify": verify,
                "cert": cert,
                "http2": http2,
                "limits": limits,
                "proxy": proxy,
                "trust_env": trust_env,
            },
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one hop; httpx calls this."""
        send = self._sends(request.url).handle_request
        sender = core.BlockingSender[httpx.Response](request, send, _LIBRARY)
        return blocking(self._response(request, sender))


class AsyncDPoPTransport(core.AsyncSigning[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport):
    __doc__ = core.AsyncSigning.__doc__
    _library = _LIBRARY

    def __init__(
        self,
        agent: AsyncAgentClient,
        *,
        key: str | None = None,
        origins: Iterable[str],
        transport: httpx.AsyncBaseTransport | None = None,
        verify: ssl.SSLContext | str | bool | None = None,
        cert: Cert | None = None,
        http2: bool | None = None,
        limits: httpx.Limits | None = None,
        proxy: str | httpx.URL | httpx.Proxy | None = None,
        trust_env: bool | None = None,
    ) -> None:
        super().__init__(
            agent,
            key=key,
            origins=origins,
            transport=transport,
            make=httpx.AsyncHTTPTransport,
            options={
                "verify": verify,
                "cert": cert,
                "http2": http2,
                "limits": limits,
                "proxy": proxy,
                "trust_env": trust_env,
            },
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one hop; httpx calls this."""
        send = self._sends(request.url).handle_async_request
        sender = core.AsyncSender[httpx.Response](request, send, _LIBRARY)
        return await awaiting(self._response(request, sender))


class DPoPAuth(core.BlockingAuth, httpx.Auth):
    __doc__ = core.BlockingAuth.__doc__
    _library = _LIBRARY


class AsyncDPoPAuth(core.AsyncAuth, httpx.Auth):
    __doc__ = core.AsyncAuth.__doc__
    _library = _LIBRARY
