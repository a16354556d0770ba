"""httpx: a transport that signs each hop, and an auth that chooses the access token.

The transport signs because redirects run inside `httpx.Auth`: an auth's proof would go on to the
next URL, wherever that is. The auth never sees the agent; where the agent refuses a generation, the
transport asks the request's own grant for another access token.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

try:
    import httpx
except ModuleNotFoundError as e:
    raise ImportError("httpx isn't installed; install it: pip install 'dpop-agent[httpx]'") from e

from dpop_agent.client.exchange import awaiting, blocking, exchange
from dpop_agent.client.grant import AsyncGrant, BlockingGrant, current_renewal
from dpop_agent.client.hop import DEFAULT_KEY, Origins, dpop_access_token, hop
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY, Answer
from dpop_agent.errors import ConfigurationError, KeyUnusable

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Generator,
        Iterable,
        Iterator,
    )
    from types import TracebackType
    from typing import Self

    from dpop_agent.client.aio import AsyncAgentClient
    from dpop_agent.client.answers import Proof
    from dpop_agent.client.exchange import Calls, Sender
    from dpop_agent.client.grant import Grant, Renewal
    from dpop_agent.client.sync import AgentClient
    from dpop_agent.client.token import BoundToken

_JKT = "dpop_jkt"
_PRESENTED = "dpop_agent.presented"


class _Signing:
    """What both transports do with a request, each by a sender of its own."""

    _grant_type: type[BlockingGrant | AsyncGrant]

    def __init__(
        self, agent: AgentClient | AsyncAgentClient, *, key: str | None, origins: Iterable[str]
    ) -> None:
        self._agent = agent
        self._key = key
        self._origins = Origins(origins)

    def _response(
        self, request: httpx.Request, sender: Sender[httpx.Response]
    ) -> Calls[httpx.Response]:
        response, proof = yield from self._signed_hop(request, sender)
        if proof is not None:
            response.extensions = {**response.extensions, "dpop": proof}
        return response

    def _signed_hop(
        self, request: httpx.Request, sender: Sender[httpx.Response]
    ) -> Calls[tuple[httpx.Response, Proof | None]]:
        """One hop by the generation of its renewal, of its access token, or that it names."""
        if (renewal := _renewal_of(request)) is not None:
            key = self._key or DEFAULT_KEY
            hop_by = partial(self._hop, request, sender, key)
            return (yield from renewal.hop(hop_by, agent=self._agent.path, key=key))
        hop_by = partial(self._hop, request, sender, self._key)
        try:
            return (yield from hop_by(request.extensions.get(_JKT)))
        except KeyUnusable:
            presented = _presented(request)
            if presented is None or not isinstance(presented.grant, self._grant_type):
                raise
            other = yield partial(presented.grant.access_token, but=presented.access_token)
            _present(request, _Presented(presented.grant, other))
        return (yield from hop_by(other.jkt))

    def _hop(
        self,
        request: httpx.Request,
        sender: Sender[httpx.Response],
        key: str | None,
        jkt: str | None,
    ) -> Calls[tuple[httpx.Response, Proof | None]]:
        url = request.url
        wire_path: bytes = request.extensions.get("target", url.raw_path)  # httpcore's override
        steps = hop(
            htm=request.method,
            authority=f"{url.scheme}://{url.netloc.decode('ascii')}",
            path=wire_path.decode("latin-1").partition("?")[0],
            authorization=request.headers.get_list("Authorization"),
            origins=self._origins,
            key=key,
            jkt=jkt,
            replayable=isinstance(request.stream, httpx.ByteStream),
        )
        return exchange(steps, self._agent, sender)


class DPoPTransport(_Signing, httpx.BaseTransport):
    """Signs each hop to a listed origin; others are left unsigned.

    `response.extensions["dpop"]` is the hop's Proof. `extensions={"dpop_jkt": jkt}` with a request
    pins the generation that signs it, redirects included; None there means the active one, also
    where DPoPAuth would pin another. A request is sent a second time only if the server wants a
    nonce, and only if its body is bytes: a stream gets NonceRequired instead.

    Args:
        agent: gives the proofs; it isn't closed with the transport.
        key: the key's name; `default` where None.
        origins: the authorization servers and resource servers that get proofs.
        transport: does the sending; `httpx.HTTPTransport()` where None.

    Requests raise, besides httpx's own errors, what `AgentClient.proof` raises, and:
        ConfigurationError: `Authorization: DPoP` to an origin that isn't listed.
        NonceRequired: see above.
    """

    _grant_type = BlockingGrant

    def __init__(
        self,
        agent: AgentClient,
        *,
        key: str | None = None,
        origins: Iterable[str],
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(agent, key=key, origins=origins)
        self._inner = httpx.HTTPTransport() if transport is None else transport

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._inner.__exit__(exc_type, exc_value, traceback)

    def close(self) -> None:
        """Close the transport that does the sending."""
        self._inner.close()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one hop; httpx calls this."""
        return blocking(self._response(request, _Sender(request, self._inner)))


class AsyncDPoPTransport(_Signing, httpx.AsyncBaseTransport):
    """`DPoPTransport` for `httpx.AsyncClient`, with an AsyncAgentClient."""

    _grant_type = AsyncGrant

    def __init__(
        self,
        agent: AsyncAgentClient,
        *,
        key: str | None = None,
        origins: Iterable[str],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(agent, key=key, origins=origins)
        self._inner = httpx.AsyncHTTPTransport() if transport is None else transport

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._inner.__aexit__(exc_type, exc_value, traceback)

    async def aclose(self) -> None:
        """Close the transport that does the sending."""
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one hop; httpx calls this."""
        return await awaiting(self._response(request, _AsyncSender(request, self._inner)))


def _with_proof(request: httpx.Request, proof: Proof | None) -> httpx.Request:
    # The caller's request stays as it is: a redirect copies its headers.
    headers = httpx.Headers(request.headers)
    headers.pop("DPoP", None)
    if proof is not None:
        headers["DPoP"] = str(proof)
    return httpx.Request(
        request.method,
        request.url,
        headers=headers,
        stream=request.stream,
        extensions=request.extensions,
    )


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers.get_list)


class _Sender:
    """Sends a request by a blocking transport."""

    answer = staticmethod(_answer)

    def __init__(self, request: httpx.Request, transport: httpx.BaseTransport) -> None:
        self._request = request
        self._transport = transport

    def send(self, proof: Proof | None) -> httpx.Response:
        return self._transport.handle_request(_with_proof(self._request, proof))

    def read(self, response: httpx.Response) -> bytes | None:
        stream = response.stream
        assert isinstance(stream, httpx.SyncByteStream)
        begun: list[bytes] = []
        rest = iter(stream)
        response.stream = _Replay(begun, rest, stream)
        size = 0
        for part in rest:
            begun.append(part)
            size += len(part)
            if size > MAX_CHALLENGE_BODY:
                return None
        return _decoded(response, begun)

    def close(self, response: httpx.Response) -> None:
        response.close()

    def rewind(self) -> None:
        pass  # bytes begin anew by themselves


class _AsyncSender:
    """Sends a request by an async transport."""

    answer = staticmethod(_answer)

    def __init__(self, request: httpx.Request, transport: httpx.AsyncBaseTransport) -> None:
        self._request = request
        self._transport = transport

    async def send(self, proof: Proof | None) -> httpx.Response:
        return await self._transport.handle_async_request(_with_proof(self._request, proof))

    async def read(self, response: httpx.Response) -> bytes | None:
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        begun: list[bytes] = []
        rest = aiter(stream)
        response.stream = _AsyncReplay(begun, rest, stream)
        size = 0
        async for part in rest:
            begun.append(part)
            size += len(part)
            if size > MAX_CHALLENGE_BODY:
                return None
        return _decoded(response, begun)

    async def close(self, response: httpx.Response) -> None:
        await response.aclose()

    def rewind(self) -> None:
        pass  # bytes begin anew by themselves


class _Replay(httpx.SyncByteStream):
    """A response's raw body, whose beginning was read before."""

    def __init__(self, begun: list[bytes], rest: Iterator[bytes], stream: httpx.SyncByteStream):
        self._begun = begun
        self._rest = rest
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._begun
        yield from self._rest

    def close(self) -> None:
        self._stream.close()


class _AsyncReplay(httpx.AsyncByteStream):
    def __init__(
        self, begun: list[bytes], rest: AsyncIterator[bytes], stream: httpx.AsyncByteStream
    ):
        self._begun = begun
        self._rest = rest
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._begun:
            yield part
        async for part in self._rest:
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def _decoded(response: httpx.Response, raw: list[bytes]) -> bytes | None:
    encoding = response.headers.get("Content-Encoding")
    headers = {"Content-Encoding": encoding} if encoding else None
    try:
        return httpx.Response(200, headers=headers, content=b"".join(raw)).content
    except httpx.DecodingError:
        return None


class _Presented:
    """Which access token a request presents, and whose it is."""

    __slots__ = ("access_token", "grant")

    def __init__(self, grant: Grant, access_token: BoundToken) -> None:
        self.grant = grant
        self.access_token = access_token


def _present(request: httpx.Request, presented: _Presented) -> None:
    access_token = presented.access_token
    request.headers["Authorization"] = f"DPoP {access_token.access_token}"
    request.extensions = {
        **request.extensions,
        _JKT: access_token.jkt,
        _PRESENTED: presented,
    }


def _presented(request: httpx.Request) -> _Presented | None:
    """What the request still presents: a redirect elsewhere took the header away."""
    presented = request.extensions.get(_PRESENTED)
    if not isinstance(presented, _Presented):
        return None
    shown = request.headers.get("Authorization") == f"DPoP {presented.access_token.access_token}"
    return presented if shown else None


def _renewal_of(request: httpx.Request) -> Renewal | None:
    """The renewal that says which generation signs this request, if one does.

    None does where the request says so itself, or presents an access token: which generation that
    one is bound to isn't guessed.
    """
    renewal = current_renewal()
    if renewal is None or _JKT in request.extensions:
        return None
    presents = dpop_access_token(request.headers.get_list("Authorization")) is not None
    return None if presents else renewal


def _refused(grant: Grant, request: httpx.Request, response: httpx.Response) -> BoundToken | None:
    """The access token to replace before the request is sent again, if that makes sense."""
    presented = _presented(response.request)
    if presented is None or presented.grant is not grant:
        return None
    # httpx reads an answer to its end before it sends the request again.
    endless = response.headers.get("Content-Type", "").startswith("text/event-stream")
    replace = presented.grant.replaces(
        presented.access_token,
        _answer(response),
        response.extensions.get("dpop"),
        repeatable=not endless and isinstance(request.stream, httpx.ByteStream),
    )
    return presented.access_token if replace else None


class DPoPAuth(httpx.Auth):
    """Presents an access token, and renews it: one renewal at a time, others wait for it.

    Renewed are: none yet, one near its expiry, one that the server calls `invalid_token` (the
    request is then sent again, if its body is bytes), one whose generation gives no proofs any
    more, and once one whose generation is draining. Goes with DPoPTransport.

    A grant stays with its generation: what `renew(old)` requests is signed by `old.jkt` if there is
    a refresh token, else by whichever generation is active at the first request. That holds for
    each DPoPTransport of that key in `renew`'s own thread, or in the tasks that it starts; not for
    requests that present an access token or say `extensions={"dpop_jkt": …}`. If the agent refuses
    to sign by `old.jkt`, `renew(None)` has one chance to begin a new grant.

    Args:
        renew: gets the old access token, or None for a new grant; returns a BoundToken. It may use
            the same client for its token request, with another `auth` or `auth=None`.
        token: one from earlier.
        on_token: gets each new one, to save it.
        rebind: refresh with the active generation. For confidential clients at servers that follow
            RFC 9449 section 5; others refuse, and a Bluesky server ends the whole session.
    """

    def __init__(
        self,
        renew: Callable[[BoundToken | None], BoundToken],
        *,
        token: BoundToken | None = None,
        on_token: Callable[[BoundToken], object] | None = None,
        rebind: bool = False,
    ) -> None:
        self._grant = BlockingGrant(renew, token=token, on_token=on_token, rebind=rebind)

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Choose, and choose anew once; httpx calls this."""
        access_token = self._grant.access_token()
        _present(request, _Presented(self._grant, access_token))
        refused = _refused(self._grant, request, (yield request))
        if refused is not None:
            access_token = self._grant.access_token(but=refused)
            _present(request, _Presented(self._grant, access_token))
            _refused(self._grant, request, (yield request))

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Refuse: an event loop mustn't wait for `renew`."""
        raise ConfigurationError(
            "DPoPAuth is for httpx.Client", hint="use AsyncDPoPAuth with httpx.AsyncClient"
        )
        yield request


class AsyncDPoPAuth(httpx.Auth):
    """`DPoPAuth` for `httpx.AsyncClient`: `renew` is async, `on_token` may be."""

    def __init__(
        self,
        renew: Callable[[BoundToken | None], Awaitable[BoundToken]],
        *,
        token: BoundToken | None = None,
        on_token: Callable[[BoundToken], Awaitable[object] | object] | None = None,
        rebind: bool = False,
    ) -> None:
        self._grant = AsyncGrant(renew, token=token, on_token=on_token, rebind=rebind)

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Refuse: there is nothing to await `renew` with."""
        raise ConfigurationError(
            "AsyncDPoPAuth is for httpx.AsyncClient", hint="use DPoPAuth with httpx.Client"
        )
        yield request

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Choose, and choose anew once; httpx calls this."""
        access_token = await self._grant.access_token()
        _present(request, _Presented(self._grant, access_token))
        refused = _refused(self._grant, request, (yield request))
        if refused is not None:
            access_token = await self._grant.access_token(but=refused)
            _present(request, _Presented(self._grant, access_token))
            _refused(self._grant, request, (yield request))
