"""httpx2: `DPoPTransport` signs each hop, `DPoPAuth` chooses the access token.

What they do is `httpx_core`'s, shared with httpx; here are httpx2's classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    import httpx2
except ModuleNotFoundError as e:
    raise ImportError("httpx2 isn't installed; install it: pip install 'dpop-agent[httpx2]'") from e

from dpop_agent.client.exchange import awaiting, blocking
from dpop_agent.client.httpx_core import auth, bodies, names, sending
from dpop_agent.client.httpx_core import transport as signing

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from dpop_agent.client.aio import AsyncAgentClient
    from dpop_agent.client.sync import AgentClient

    Cert = str | tuple[str, str] | tuple[str, str, str]


class _Kept(bodies.Kept, httpx2.SyncByteStream, httpx2.AsyncByteStream):
    pass


class _Replay(bodies.Replay, httpx2.SyncByteStream):
    pass


class _AsyncReplay(bodies.AsyncReplay, httpx2.AsyncByteStream):
    pass


class _Cut(bodies.Cut, httpx2.SyncByteStream):
    pass


class _AsyncCut(bodies.AsyncCut, httpx2.AsyncByteStream):
    pass


_LIBRARY = names.Library(
    name="httpx2",
    request=httpx2.Request,
    headers=httpx2.Headers,
    cookies=httpx2.Cookies,
    byte_stream=httpx2.ByteStream,
    kept=_Kept,
    replay=_Replay,
    async_replay=_AsyncReplay,
    cut=_Cut,
    async_cut=_AsyncCut,
)


class DPoPTransport(signing.BlockingSigning[httpx2.BaseTransport], httpx2.BaseTransport):
    __doc__ = signing.BlockingSigning.__doc__
    _library = _LIBRARY

    def __init__(
        self,
        agent: AgentClient,
        *,
        key: str | None = None,
        origins: Iterable[str],
        transport: httpx2.BaseTransport | None = None,
        verify: ssl.SSLContext | str | bool | None = None,
        cert: Cert | None = None,
        http2: bool | None = None,
        limits: httpx2.Limits | None = None,
        proxy: str | httpx2.URL | httpx2.Proxy | None = None,
        trust_env: bool | None = None,
    ) -> None:
        super().__init__(
            agent,
            key=key,
            origins=origins,
            transport=transport,
            make=httpx2.HTTPTransport,
            options={
                "verify": verify,
                "cert": cert,
                "http2": http2,
                "limits": limits,
                "proxy": proxy,
                "trust_env": trust_env,
            },
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one hop; httpx2 calls this."""
        send = self._sends(request.url).handle_request
        sender = sending.BlockingSender[httpx2.Response](request, send, _LIBRARY)
        return blocking(self._response(request, sender))


class AsyncDPoPTransport(
    signing.AsyncSigning[httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport
):
    __doc__ = signing.AsyncSigning.__doc__
    _library = _LIBRARY

    def __init__(
        self,
        agent: AsyncAgentClient,
        *,
        key: str | None = None,
        origins: Iterable[str],
        transport: httpx2.AsyncBaseTransport | None = None,
        verify: ssl.SSLContext | str | bool | None = None,
        cert: Cert | None = None,
        http2: bool | None = None,
        limits: httpx2.Limits | None = None,
        proxy: str | httpx2.URL | httpx2.Proxy | None = None,
        trust_env: bool | None = None,
    ) -> None:
        super().__init__(
            agent,
            key=key,
            origins=origins,
            transport=transport,
            make=httpx2.AsyncHTTPTransport,
            options={
                "verify": verify,
                "cert": cert,
                "http2": http2,
                "limits": limits,
                "proxy": proxy,
                "trust_env": trust_env,
            },
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one hop; httpx2 calls this."""
        send = self._sends(request.url).handle_async_request
        sender = sending.AsyncSender[httpx2.Response](request, send, _LIBRARY)
        return await awaiting(self._response(request, sender))


class DPoPAuth(auth.BlockingAuth, httpx2.Auth):
    __doc__ = auth.BlockingAuth.__doc__
    _library = _LIBRARY


class AsyncDPoPAuth(auth.AsyncAuth, httpx2.Auth):
    __doc__ = auth.AsyncAuth.__doc__
    _library = _LIBRARY
