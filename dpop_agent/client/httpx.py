"""httpx: a transport that signs each hop, and an auth that chooses the access token.

The transport signs because redirects run inside `httpx.Auth`: an auth's proof would go on to the
next URL, wherever that is. The auth never sees the agent; where the agent refuses a generation, the
transport asks the request's own grant for another access token.

The auth only names the access token; the transport alone writes the Authorization header, and only
beside a proof. httpx may take another transport for a request, or for a redirect of it (`proxy=`,
`mounts=`): a `_Guard` keeps that from sending what isn't for it.
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
from dpop_agent.client.hop import DEFAULT_KEY, Origins, dpop_access_token, hop, wire_path
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY, Answer, decoded
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
    from typing import Any, Self

    from dpop_agent.client.aio import AsyncAgentClient
    from dpop_agent.client.answers import Proof
    from dpop_agent.client.exchange import Calls, Sender
    from dpop_agent.client.grant import Grant, Renewal
    from dpop_agent.client.hop import Done
    from dpop_agent.client.sync import AgentClient
    from dpop_agent.client.token import BoundToken

_JKT = "dpop_jkt"
_PRESENTED = "dpop_agent.presented"
_SIGNED = "dpop_agent.signed"
_TRACE = "trace"  # httpcore's: called at each step of sending, before it is done


class _Guard:
    """Keeps a transport that isn't ours from sending a request, as its `trace` extension.

    Attributes:
        trace: the one that it stands in for.
    """

    def __init__(self, request: httpx.Request, *, presented: _Presented | None) -> None:
        before = request.extensions.get(_TRACE)
        self.trace: Any = before.trace if isinstance(before, _Guard) else before
        self._presented = presented

    def check(self, step: str, info: dict[str, Any]) -> None:
        """Refuse a step that isn't for this transport.

        Raises:
            ConfigurationError
        """
        if "close" in step:
            return  # httpcore tidies up after our own error
        if self._presented is not None:
            self._presented.require_transport()
        sent = info.get("request") if step.endswith("send_request_headers.started") else None
        if self._presented is None and sent is not None and _has_body(httpx.Headers(sent.headers)):
            raise _carried()

    def __call__(self, step: str, info: dict[str, Any]) -> object:
        self.check(step, info)
        return None if self.trace is None else self.trace(step, info)


class _AsyncGuard(_Guard):
    async def __call__(self, step: str, info: dict[str, Any]) -> object:
        self.check(step, info)
        return None if self.trace is None else await self.trace(step, info)


def _has_body(headers: httpx.Headers) -> bool:
    return "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"


class _Kept(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a request that was signed: a redirect has it, and we alone know how to read it.

    Attributes:
        within: the body.
    """

    def __init__(self, within: httpx.SyncByteStream | httpx.AsyncByteStream) -> None:
        self.within = within

    def __iter__(self) -> Iterator[bytes]:
        raise _carried()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        raise _carried()
        yield b""  # it is a generator


def _body(request: httpx.Request) -> httpx.SyncByteStream | httpx.AsyncByteStream:
    stream = request.stream
    return stream.within if isinstance(stream, _Kept) else stream


def _carried() -> ConfigurationError:
    return ConfigurationError(
        "a redirect would carry the body of a signed request on, by a transport that isn't "
        "DPoPTransport",
        hint="give that URL a DPoPTransport too, or don't follow the redirect",
    )


class _Signing:
    """What both transports do with a request, each by a sender of its own."""

    _grant_type: type[BlockingGrant | AsyncGrant]
    _guard_type: type[_Guard]

    def __init__(
        self, agent: AgentClient | AsyncAgentClient, *, key: str | None, origins: Iterable[str]
    ) -> None:
        self._agent = agent
        self._key = key
        self._origins = Origins(origins)

    def _response(
        self, request: httpx.Request, sender: Sender[httpx.Response]
    ) -> Calls[httpx.Response]:
        if (named := _named(request)) is not None:
            named.taken = True
        response, done = yield from self._signed_hop(request, sender)
        if (presented := _presented(request)) is not None:
            presented.done = done
        if done.proof is not None:
            response.extensions = {**response.extensions, "dpop": done.proof}
            if _has_body(request.headers):
                guard = self._guard_type(request, presented=None)
                # A redirect has the extensions and the stream of the request that led to it.
                request.extensions = {**request.extensions, _SIGNED: True, _TRACE: guard}
                request.stream = _Kept(_body(request))
        return response

    def _signed_hop(
        self, request: httpx.Request, sender: Sender[httpx.Response]
    ) -> Calls[tuple[httpx.Response, Done]]:
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
            presented.access_token = other
            request.extensions = {**request.extensions, _JKT: other.jkt}
        return (yield from hop_by(other.jkt))

    def _hop(
        self,
        request: httpx.Request,
        sender: Sender[httpx.Response],
        key: str | None,
        jkt: str | None,
    ) -> Calls[tuple[httpx.Response, Done]]:
        url = request.url
        presented = _presented(request)
        steps = hop(
            htm=request.method,
            authority=f"{url.scheme}://{url.netloc.decode('ascii')}",
            path=wire_path(_target(request).decode("latin-1")).partition("?")[0],
            authorization=request.headers.get_list("Authorization"),
            access_token=None if presented is None else presented.access_token.access_token,
            origins=self._origins,
            key=key,
            jkt=jkt,
            replayable=isinstance(_body(request), httpx.ByteStream),
            redirected_body=_SIGNED in request.extensions and _has_body(request.headers),
        )
        return exchange(steps, self._agent, sender)


class DPoPTransport(_Signing, httpx.BaseTransport):
    """Signs each hop to a listed origin; others are left unsigned.

    `response.extensions["dpop"]` is the hop's Proof. `extensions={"dpop_jkt": jkt}` with a request
    pins the generation that signs it, redirects included; None there means the active one, also
    where DPoPAuth would pin another. A request is sent a second time only if the server wants a
    nonce, or its clock is behind the agent's, and only if its body is bytes: a stream gets
    NonceRequired instead. In a path `[`, `]`, `^` and `|` go out as their escapes.

    What httpx sends by another transport (`proxy=`, `mounts=`) is unsigned: for a proxy, give
    `transport=httpx.HTTPTransport(proxy=…)` here.

    Args:
        agent: gives the proofs; it isn't closed with the transport.
        key: the key's name; `default` where None.
        origins: the authorization servers and resource servers that get proofs.
        transport: does the sending; `httpx.HTTPTransport()` where None.

    Requests raise, besides httpx's own errors, what `AgentClient.proof` raises, and:
        ConfigurationError: an access token, or by a redirect the body of a signed request, would go
            to an origin that isn't listed; or the access token isn't one.
        NonceRequired: see above.
        ProofRefused: the server refuses the proof, and the agent's clock may be to blame.
    """

    _grant_type = BlockingGrant
    _guard_type = _Guard

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
    _guard_type = _AsyncGuard

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


def _target(request: httpx.Request) -> bytes:
    target: bytes = request.extensions.get("target", request.url.raw_path)  # httpcore's override
    return target


def _outgoing(
    request: httpx.Request, proof: Proof | None, access_token: str | None
) -> httpx.Request:
    """What the transport within gets; the caller's stays as it is, for a redirect to copy."""
    url, headers = request.url, httpx.Headers(request.headers)
    private = (_PRESENTED, _SIGNED)
    extensions = {k: v for k, v in request.extensions.items() if k not in private}
    if isinstance(guard := extensions.get(_TRACE), _Guard):
        if guard.trace is None:
            del extensions[_TRACE]
        else:
            extensions[_TRACE] = guard.trace
    headers.pop("DPoP", None)
    if proof is not None:
        headers["DPoP"] = str(proof)
        if access_token is not None:
            headers["Authorization"] = f"DPoP {access_token}"
        path, question, query = _target(request).decode("latin-1").partition("?")
        target = (wire_path(path) + question + query).encode("latin-1")
        if "target" in extensions:
            extensions["target"] = target
        elif target != url.raw_path:
            url = url.copy_with(raw_path=target)
    return httpx.Request(
        request.method, url, headers=headers, stream=_body(request), extensions=extensions
    )


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers.get_list)


class _Sender:
    """Sends a request by a blocking transport."""

    answer = staticmethod(_answer)

    def __init__(self, request: httpx.Request, transport: httpx.BaseTransport) -> None:
        self._request = request
        self._transport = transport

    def send(self, proof: Proof | None, access_token: str | None) -> httpx.Response:
        return self._transport.handle_request(_outgoing(self._request, proof, access_token))

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
        return decoded(b"".join(begun), response.headers.get_list("Content-Encoding"))

    def close(self, response: httpx.Response) -> None:
        response.close()

    def again(self, response: httpx.Response) -> None:
        pass  # bytes begin anew by themselves


class _AsyncSender:
    """Sends a request by an async transport."""

    answer = staticmethod(_answer)

    def __init__(self, request: httpx.Request, transport: httpx.AsyncBaseTransport) -> None:
        self._request = request
        self._transport = transport

    async def send(self, proof: Proof | None, access_token: str | None) -> httpx.Response:
        outgoing = _outgoing(self._request, proof, access_token)
        return await self._transport.handle_async_request(outgoing)

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
        return decoded(b"".join(begun), response.headers.get_list("Content-Encoding"))

    async def close(self, response: httpx.Response) -> None:
        await response.aclose()

    def again(self, response: httpx.Response) -> None:
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


class _Cut(httpx.SyncByteStream):
    """The beginning of a body that nobody wants: httpx reads an answer before it asks again."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._stream:
            yield part
            size += len(part)
            if size > MAX_CHALLENGE_BODY:
                return

    def close(self) -> None:
        self._stream.close()


class _AsyncCut(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            yield part
            size += len(part)
            if size > MAX_CHALLENGE_BODY:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Presented:
    """An access token that an auth named for a request to one origin.

    Attributes:
        access_token: the one to present there.
        grant: whose it is.
        taken: a DPoPTransport has the request.
        done: what came of presenting it.
    """

    __slots__ = ("_origin", "access_token", "done", "grant", "taken")

    def __init__(self, grant: Grant, access_token: BoundToken, request: httpx.Request) -> None:
        self.grant = grant
        self.access_token = access_token
        self.taken = False
        self.done: Done | None = None
        self._origin = _origin(request)

    def is_for(self, request: httpx.Request) -> bool:
        """False for a redirect to another server."""
        return _origin(request) == self._origin

    def require_transport(self) -> None:
        """Refuse a request that no DPoPTransport has: nobody would sign it.

        Raises:
            ConfigurationError
        """
        if not self.taken:
            raise ConfigurationError(
                "an access token was to be presented by a transport that isn't DPoPTransport: it "
                "wasn't sent",
                hint="give DPoPTransport as transport=, in mounts= too; a proxy goes inside it: "
                "DPoPTransport(…, transport=httpx.HTTPTransport(proxy=…))",
            )


def _origin(request: httpx.Request) -> tuple[str, bytes, int | None]:
    return request.url.scheme, request.url.raw_host, request.url.port


def _named(request: httpx.Request) -> _Presented | None:
    named = request.extensions.get(_PRESENTED)
    return named if isinstance(named, _Presented) else None


def _presented(request: httpx.Request) -> _Presented | None:
    """What was named for this very server."""
    named = _named(request)
    return named if named is not None and named.is_for(request) else None


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


class _Presenting:
    """What both auths do with a request, each by a grant of its own."""

    _grant: Grant
    _guard_type: type[_Guard]

    def _present(self, request: httpx.Request, access_token: BoundToken) -> _Presented:
        presented = _Presented(self._grant, access_token, request)
        request.headers.pop("Authorization", None)
        request.extensions = {
            **request.extensions,
            _JKT: access_token.jkt,
            _PRESENTED: presented,
            _TRACE: self._guard_type(request, presented=presented),
        }
        return presented

    def _refused(
        self, request: httpx.Request, presented: _Presented, response: httpx.Response
    ) -> BoundToken | None:
        """The access token to replace before the request is sent again, if that makes sense.

        Raises:
            ConfigurationError: no DPoPTransport was asked.
        """
        presented.require_transport()
        if not presented.is_for(response.request) or presented.done is None:
            return None
        # httpx reads an answer before it sends the request again.
        endless = response.headers.get("Content-Type", "").startswith("text/event-stream")
        replace = self._grant.replaces(
            presented.access_token,
            presented.done,
            repeatable=not endless and isinstance(_body(request), httpx.ByteStream),
        )
        return presented.access_token if replace else None

    def _refused_again(
        self, request: httpx.Request, presented: _Presented, response: httpx.Response
    ) -> None:
        """Hear what came of another access token.

        Raises:
            ProofRefused: it was refused too, and by the server's clock the agent's is wrong.
        """
        refused = self._refused(request, presented, response)
        if refused is not None and presented.done is not None and presented.done.clock is not None:
            raise presented.done.clock


class DPoPAuth(_Presenting, httpx.Auth):
    """Presents an access token, and renews it: one renewal at a time, others wait for it.

    Renewed are: none yet, one near its expiry, one that the server calls `invalid_token` (the
    request is then sent again, if its body is bytes), one whose generation gives no proofs any
    more, and, where the grant may change its generation, one whose generation is about to stop
    signing. Goes with DPoPTransport, which sends the access token: no other transport gets it, and
    ConfigurationError says where httpx takes one.

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

    _grant: BlockingGrant
    _guard_type = _Guard

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
        presented = self._present(request, self._grant.access_token())
        response = yield request
        refused = self._refused(request, presented, response)
        if refused is not None:
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = _Cut(response.stream)
            presented = self._present(request, self._grant.access_token(but=refused))
            self._refused_again(request, presented, (yield request))

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Refuse: an event loop mustn't wait for `renew`."""
        raise ConfigurationError(
            "DPoPAuth is for httpx.Client", hint="use AsyncDPoPAuth with httpx.AsyncClient"
        )
        yield request


class AsyncDPoPAuth(_Presenting, httpx.Auth):
    """`DPoPAuth` for `httpx.AsyncClient`: `renew` is async, `on_token` may be."""

    _grant: AsyncGrant
    _guard_type = _AsyncGuard

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
        presented = self._present(request, await self._grant.access_token())
        response = yield request
        refused = self._refused(request, presented, response)
        if refused is not None:
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = _AsyncCut(response.stream)
            presented = self._present(request, await self._grant.access_token(but=refused))
            self._refused_again(request, presented, (yield request))
