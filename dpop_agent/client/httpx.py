"""httpx: a transport that signs each hop, and an auth that chooses the access token.

The transport signs because redirects run inside `httpx.Auth`: an auth's proof would go on to the
next URL, wherever that is. The auth never sees the agent; where the agent refuses a generation, the
transport asks the request's own auth for another access token. Which generation signs the requests
that `renew` makes, the auth says in a context variable: neither other threads nor other tasks see
it, and nested renewals say their own.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

try:
    import httpx
except ModuleNotFoundError as e:
    raise ImportError("httpx isn't installed; install it: pip install 'dpop-agent[httpx]'") from e

from dpop_agent.client.grant import _Chooser, _current, _Renewal, _renewal
from dpop_agent.client.hop import (
    DEFAULT_KEY,
    MAX_CHALLENGE_BODY,
    Answer,
    Origins,
    Read,
    Send,
    Sign,
    Tell,
    dpop_access_token,
    has_error,
    hop,
)
from dpop_agent.errors import ConfigurationError, DPoPAgentError, KeyMismatch, KeyUnusable

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
    from dpop_agent.client.sync import AgentClient
    from dpop_agent.client.token import BoundToken

_PIN = "dpop_jkt"
_PRESENTED = "dpop_agent.presented"


class DPoPTransport(httpx.BaseTransport):
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

    def __init__(
        self,
        agent: AgentClient,
        *,
        key: str | None = None,
        origins: Iterable[str],
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._agent = agent
        self._key = key
        self._origins = Origins(origins)
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
        if (renewal := _renewal_of(request)) is not None:
            return self._hop_of(renewal, request)
        try:
            return self._hop(request, self._key, request.extensions.get(_PIN))
        except KeyUnusable:
            presented = _presented(request)
            if presented is None or not isinstance(presented.auth, DPoPAuth):
                raise
            presented.auth._present(request, presented.auth._other_than(presented.access_token))
        return self._hop(request, self._key, request.extensions[_PIN])

    def _hop_of(self, renewal: _Renewal, request: httpx.Request) -> httpx.Response:
        key = self._key or DEFAULT_KEY
        jkt = renewal.signer(self._agent.path, key)
        try:
            response = self._hop(request, key, jkt)
        except KeyMismatch:
            # The grant is another key's.
            response = self._hop(request, key, None)
        except KeyUnusable:
            renewal.refused(jkt)
            raise
        renewal.signed(self._agent.path, key, response)
        return response

    def _hop(self, request: httpx.Request, key: str | None, jkt: str | None) -> httpx.Response:
        steps = _steps(request, self._origins, key, jkt)
        response: httpx.Response | None = None
        result: Any = None
        try:
            while True:
                step = steps.send(result)
                result = None
                if isinstance(step, Sign):
                    result = self._agent.proof(**step.arguments)
                elif isinstance(step, Send):
                    if response is not None:
                        response.close()
                    response = self._inner.handle_request(_signed(request, step.proof))
                    result = _answer(response)
                elif isinstance(step, Tell):
                    try:
                        self._agent.observe([step.seen])
                    except DPoPAgentError:
                        pass  # the response is worth more than the nonce
                else:
                    assert response is not None
                    result = _peek(response)
        except StopIteration as done:
            assert response is not None
            return _finished(response, done.value)
        except BaseException:
            if response is not None:
                response.close()
            raise


class AsyncDPoPTransport(httpx.AsyncBaseTransport):
    """`DPoPTransport` for `httpx.AsyncClient`, with an AsyncAgentClient."""

    def __init__(
        self,
        agent: AsyncAgentClient,
        *,
        key: str | None = None,
        origins: Iterable[str],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._agent = agent
        self._key = key
        self._origins = Origins(origins)
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
        if (renewal := _renewal_of(request)) is not None:
            return await self._hop_of(renewal, request)
        try:
            return await self._hop(request, self._key, request.extensions.get(_PIN))
        except KeyUnusable:
            presented = _presented(request)
            if presented is None or not isinstance(presented.auth, AsyncDPoPAuth):
                raise
            other = await presented.auth._other_than(presented.access_token)
            presented.auth._present(request, other)
        return await self._hop(request, self._key, request.extensions[_PIN])

    async def _hop_of(self, renewal: _Renewal, request: httpx.Request) -> httpx.Response:
        key = self._key or DEFAULT_KEY
        jkt = renewal.signer(self._agent.path, key)
        try:
            response = await self._hop(request, key, jkt)
        except KeyMismatch:
            # The grant is another key's.
            response = await self._hop(request, key, None)
        except KeyUnusable:
            renewal.refused(jkt)
            raise
        renewal.signed(self._agent.path, key, response)
        return response

    async def _hop(
        self, request: httpx.Request, key: str | None, jkt: str | None
    ) -> httpx.Response:
        steps = _steps(request, self._origins, key, jkt)
        response: httpx.Response | None = None
        result: Any = None
        try:
            while True:
                step = steps.send(result)
                result = None
                if isinstance(step, Sign):
                    result = await self._agent.proof(**step.arguments)
                elif isinstance(step, Send):
                    if response is not None:
                        await response.aclose()
                    response = await self._inner.handle_async_request(_signed(request, step.proof))
                    result = _answer(response)
                elif isinstance(step, Tell):
                    try:
                        await self._agent.observe([step.seen])
                    except DPoPAgentError:
                        pass  # the response is worth more than the nonce
                else:
                    assert response is not None
                    result = await _apeek(response)
        except StopIteration as done:
            assert response is not None
            return _finished(response, done.value)
        except BaseException:
            if response is not None:
                await response.aclose()
            raise


def _steps(
    request: httpx.Request, origins: Origins, key: str | None, jkt: str | None
) -> Generator[Sign | Send | Read | Tell, Any, Proof | None]:
    url = request.url
    wire_path: bytes = request.extensions.get("target", url.raw_path)  # httpcore's override
    return hop(
        htm=request.method,
        authority=f"{url.scheme}://{url.netloc.decode('ascii')}",
        path=wire_path.decode("latin-1").partition("?")[0],
        authorization=request.headers.get_list("Authorization"),
        origins=origins,
        key=key,
        jkt=jkt,
        replayable=isinstance(request.stream, httpx.ByteStream),
    )


def _signed(request: httpx.Request, proof: Proof | None) -> httpx.Request:
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


def _finished(response: httpx.Response, proof: Proof | None) -> httpx.Response:
    if proof is not None:
        response.extensions = {**response.extensions, "dpop": proof}
    return response


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


def _peek(response: httpx.Response) -> bytes | None:
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


async def _apeek(response: httpx.Response) -> bytes | None:
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


def _decoded(response: httpx.Response, raw: list[bytes]) -> bytes | None:
    encoding = response.headers.get("Content-Encoding")
    headers = {"Content-Encoding": encoding} if encoding else None
    try:
        return httpx.Response(200, headers=headers, content=b"".join(raw)).content
    except httpx.DecodingError:
        return None


class _Presented:
    """Which access token a request presents, and who chose it."""

    __slots__ = ("access_token", "auth")

    def __init__(self, auth: _Presenting, access_token: BoundToken) -> None:
        self.auth = auth
        self.access_token = access_token


def _presented(request: httpx.Request) -> _Presented | None:
    """What the request still presents: a redirect elsewhere took the header away."""
    presented = request.extensions.get(_PRESENTED)
    if not isinstance(presented, _Presented):
        return None
    shown = request.headers.get("Authorization") == f"DPoP {presented.access_token.access_token}"
    return presented if shown else None


def _renewal_of(request: httpx.Request) -> _Renewal | None:
    """The renewal that says which generation signs this request, if one does.

    None does where the request says so itself, or presents an access token: which generation that
    one is bound to isn't guessed.
    """
    renewal = _current(_renewal.get())
    if renewal is None or _PIN in request.extensions:
        return None
    presents = dpop_access_token(request.headers.get_list("Authorization")) is not None
    return None if presents else renewal


class _Presenting(_Chooser, httpx.Auth):
    def _present(self, request: httpx.Request, access_token: BoundToken) -> None:
        request.headers["Authorization"] = f"DPoP {access_token.access_token}"
        request.extensions = {
            **request.extensions,
            _PIN: access_token.jkt,
            _PRESENTED: _Presented(self, access_token),
        }

    def _refused(self, request: httpx.Request, response: httpx.Response) -> BoundToken | None:
        """The access token to replace before the request is sent again, if that makes sense."""
        presented = _presented(response.request)
        if presented is None or presented.auth is not self:
            return None
        access_token = presented.access_token
        proof = response.extensions.get("dpop")
        if proof is not None and proof.state == "draining" and access_token.jkt != self._drained:
            # Once for each generation: a grant that stays with it gets no other.
            self._drained = access_token.jkt
            self._overdue = access_token
        if response.status_code != 401 or not has_error(
            response.headers.get_list("WWW-Authenticate"), "invalid_token"
        ):
            return None
        endless = response.headers.get("Content-Type", "").startswith("text/event-stream")
        if endless or not isinstance(request.stream, httpx.ByteStream):
            self._overdue = access_token
            return None
        return access_token


class DPoPAuth(_Presenting):
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
        super().__init__(token, rebind=rebind)
        self._renew = renew
        self._on_token = on_token
        self._lock = threading.Lock()

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Choose, and choose anew once; httpx calls this."""
        self._present(request, self._other_than(None))
        response = yield request
        refused = self._refused(request, response)
        if refused is not None:
            self._present(request, self._other_than(refused))
            self._refused(request, (yield request))

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Refuse: an event loop mustn't wait for `renew`."""
        raise ConfigurationError(
            "DPoPAuth is for httpx.Client", hint="use AsyncDPoPAuth with httpx.AsyncClient"
        )
        yield request

    def _other_than(self, refused: BoundToken | None) -> BoundToken:
        self._refuse_recursion()
        if access_token := self._usable_but(refused):
            return access_token
        with self._lock:
            if access_token := self._usable_but(refused):
                return access_token
            return self._renewed(self._access_token)

    def _renewed(self, old: BoundToken | None) -> BoundToken:
        with self._renewing(old) as renewal:
            try:
                access_token = self._renew(old)
            except KeyUnusable:
                if not renewal.lost:
                    raise
            else:
                self._keep(access_token)
                if self._on_token is not None:
                    self._on_token(access_token)
                return access_token
        return self._renewed(None)


class AsyncDPoPAuth(_Presenting):
    """`DPoPAuth` for `httpx.AsyncClient`: `renew` is async, `on_token` may be."""

    def __init__(
        self,
        renew: Callable[[BoundToken | None], Awaitable[BoundToken]],
        *,
        token: BoundToken | None = None,
        on_token: Callable[[BoundToken], Awaitable[object] | object] | None = None,
        rebind: bool = False,
    ) -> None:
        import asyncio

        super().__init__(token, rebind=rebind)
        self._renew = renew
        self._on_token = on_token
        self._lock = asyncio.Lock()

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
        self._present(request, await self._other_than(None))
        response = yield request
        refused = self._refused(request, response)
        if refused is not None:
            self._present(request, await self._other_than(refused))
            self._refused(request, (yield request))

    async def _other_than(self, refused: BoundToken | None) -> BoundToken:
        self._refuse_recursion()
        if access_token := self._usable_but(refused):
            return access_token
        async with self._lock:
            if access_token := self._usable_but(refused):
                return access_token
            return await self._renewed(self._access_token)

    async def _renewed(self, old: BoundToken | None) -> BoundToken:
        from inspect import isawaitable

        with self._renewing(old) as renewal:
            try:
                access_token = await self._renew(old)
            except KeyUnusable:
                if not renewal.lost:
                    raise
            else:
                self._keep(access_token)
                if self._on_token is not None:
                    saved = self._on_token(access_token)
                    if isawaitable(saved):
                        await saved
                return access_token
        return await self._renewed(None)
