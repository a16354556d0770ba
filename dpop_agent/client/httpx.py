"""httpx: `DPoPTransport` signs each hop, `DPoPAuth` chooses the access token.

What they do is `httpx_core`'s, shared with httpx2; here are httpx's classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    import httpx
except ModuleNotFoundError as e:
    raise ImportError("httpx isn't installed; install it: pip install 'dpop-agent[httpx]'") from e

from dpop_agent.client.exchange import awaiting, blocking
from dpop_agent.client.httpx_core import auth, bodies, names, sending
from dpop_agent.client.httpx_core import transport as signing

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from dpop_agent.client.aio import AsyncAgentClient
    from dpop_agent.client.sync import AgentClient

    Cert = str | tuple[str, str] | tuple[str, str, str]


class _Kept(bodies.Kept, httpx.SyncByteStream, httpx.AsyncByteStream):
    pass


class _Replay(bodies.Replay, httpx.SyncByteStream):
    pass


class _AsyncReplay(bodies.AsyncReplay, httpx.AsyncByteStream):
    pass


class _Cut(bodies.Cut, httpx.SyncByteStream):
    pass


class _AsyncCut(bodies.AsyncCut, httpx.AsyncByteStream):
    pass


_LIBRARY = names.Library(
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


class DPoPTransport(signing.BlockingSigning[httpx.BaseTransport], httpx.BaseTransport):
    __doc__ = signing.BlockingSigning.__doc__
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
        sender = sending.BlockingSender[httpx.Response](request, send, _LIBRARY)
        return blocking(self._response(request, sender))


class AsyncDPoPTransport(signing.AsyncSigning[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport):
    __doc__ = signing.AsyncSigning.__doc__
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
        sender = sending.AsyncSender[httpx.Response](request, send, _LIBRARY)
        return await awaiting(self._response(request, sender))


class DPoPAuth(auth.BlockingAuth, httpx.Auth):
    __doc__ = auth.BlockingAuth.__doc__
    _library = _LIBRARY


class AsyncDPoPAuth(auth.AsyncAuth, httpx.Auth):
    __doc__ = auth.AsyncAuth.__doc__
    _library = _LIBRARY
