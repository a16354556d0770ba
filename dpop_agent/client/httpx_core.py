"""What httpx and httpx2 have in common: a transport that signs each hop, an auth that chooses.

Their classes are unrelated and have the same names. All that is used of them stands in `Library`
and in the protocols below it; `httpx.py` and `httpx2.py` say which ones.

The transport signs because redirects run inside the library's `Auth`: an auth's proof would go on
to the next URL, wherever that is. The auth never sees the agent; where the agent refuses a
generation, the transport asks the request's own grant for another access token.

The auth only names the access token; the transport alone writes the Authorization header, and only
beside a proof. The library may take another transport for a request, or for a redirect of it
(`proxy=`, `mounts=`): a `Guard` keeps that from sending what isn't for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from dpop_agent.client.exchange import exchange
from dpop_agent.client.grant import AsyncGrant, BlockingGrant, current_renewal
from dpop_agent.client.hop import (
    DEFAULT_KEY,
    Origins,
    dpop_access_token,
    hop,
    merged_cookies,
    wire_path,
)
from dpop_agent.client.proxies import EnvironmentProxies
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY, Answer, decoded, is_event_stream
from dpop_agent.errors import ConfigurationError, KeyUnusable

if TYPE_CHECKING:
    from collections.abc import (
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
    from dpop_agent.client.exchange import Calls
    from dpop_agent.client.grant import Grant, Renewal
    from dpop_agent.client.hop import Done
    from dpop_agent.client.sync import AgentClient
    from dpop_agent.client.token import BoundToken

_JKT = "dpop_jkt"
_PRESENTED = "dpop_agent.presented"
_SIGNED = "dpop_agent.signed"
_TRACE = "trace"  # httpcore's: called at each step of sending, before it is done


class Headers(Protocol):
    """The library's headers."""

    @property
    def raw(self) -> list[tuple[bytes, bytes]]: ...
    def get_list(self, key: str, /) -> list[str]: ...


class URL(Protocol):
    """The library's URLs."""

    @property
    def scheme(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def raw_host(self) -> bytes: ...
    @property
    def port(self) -> int | None: ...
    @property
    def netloc(self) -> bytes: ...
    @property
    def raw_path(self) -> bytes: ...
    def copy_with(self, **changes: Any) -> Any: ...


class Request(Protocol):
    """The library's requests."""

    method: str
    stream: Any
    extensions: Any

    @property
    def url(self) -> URL: ...
    @property
    def headers(self) -> Any: ...


class Response(Protocol):
    """The library's responses."""

    status_code: int
    headers: Any
    stream: Any
    extensions: Any
    request: Any


class Library(NamedTuple):
    """The library's classes, and ours that have to be made of them.

    Attributes:
        kept: a `Kept` that is a byte stream of both kinds.
        replay, async_replay: a `Replay`, and an `AsyncReplay`, that are byte streams.
        cut, async_cut: the same of `Cut` and `AsyncCut`.
    """

    name: str
    request: Any
    headers: Any
    cookies: Any
    byte_stream: type
    kept: Callable[[Body], Any]
    replay: Callable[[list[bytes], Iterator[bytes], Any], Any]
    async_replay: Callable[[list[bytes], AsyncIterator[bytes], Any], Any]
    cut: Callable[[Any], Any]
    async_cut: Callable[[Any], Any]


class Body:
    """A request's body.

    Attributes:
        stream: the library's.
        replayable: whether it can be sent again.
    """

    def __init__(self, stream: Any, library: Library) -> None:
        self.stream = stream
        self._file: Any = None
        self._began_at: int | None = None
        if not isinstance(stream, library.byte_stream):
            # Neither library names what it wraps in public; where that goes, no body is replayed.
            content = getattr(stream, "_stream", None)
            self._began_at = _position(content)
            self._file = content
        self.replayable = (
            isinstance(stream, library.byte_stream)
            or self._began_at is not None
            or isinstance(self._file, list | tuple)
            or _is_replayable_upload(stream)
        )

    def rewind(self) -> None:
        """Go back to where it began, for it is about to be sent again."""
        if self._began_at is not None:
            self._file.seek(self._began_at)


def _position(file: Any) -> int | None:
    """Where a file that can seek stands; None where it can't, or is to be awaited."""
    seek, tell = getattr(file, "seek", None), getattr(file, "tell", None)
    if seek is None or tell is None or iscoroutinefunction(seek):
        return None
    try:
        at = tell()
        seek(at)
    except (OSError, ValueError):  # a pipe; a closed file
        return None
    return at if isinstance(at, int) else None


def _is_replayable_upload(stream: Any) -> bool:
    """Whether it is a multipart upload, which begins each file anew, of files that can seek."""
    fields = getattr(stream, "fields", None)
    if not isinstance(fields, list):
        return False
    files = [field.file for field in fields if hasattr(field, "file")]
    return all(isinstance(file, str | bytes) or _position(file) is not None for file in files)


class Kept:
    """The body of a signed request: a redirect has it, and we alone know how to read it."""

    def __init__(self, body: Body) -> None:
        self.body = body

    def __iter__(self) -> Iterator[bytes]:
        raise _carried()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        raise _carried()
        yield b""  # it is a generator


def _carried() -> ConfigurationError:
    return ConfigurationError(
        "a redirect would carry the body of a signed request on, by a transport that isn't "
        "DPoPTransport",
        hint="give that URL a DPoPTransport too, or don't follow the redirect",
    )


class Replay:
    """A response's raw body, whose beginning was read before."""

    def __init__(self, begun: list[bytes], rest: Iterator[bytes], stream: Any) -> None:
        self._begun = begun
        self._rest = rest
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._begun
        yield from self._rest

    def close(self) -> None:
        self._stream.close()


class AsyncReplay:
    """A `Replay`, async."""

    def __init__(self, begun: list[bytes], rest: AsyncIterator[bytes], stream: Any) -> None:
        self._begun = begun
        self._rest = rest
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._begun:
            yield part
        async for part in self._rest:
            yield part

    async def aclose(self) -> None:
        if isinstance(self._rest, AsyncGenerator):
            await self._rest.aclose()  # trio warns of those that nobody closed
        await self._stream.aclose()


class Cut:
    """The beginning of an answer that nobody wants: the library reads it before it asks again."""

    def __init__(self, stream: Any) -> None:
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


class AsyncCut:
    """A `Cut`, async."""

    def __init__(self, stream: Any) -> None:
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


class Guard:
    """Keeps a transport that isn't ours from sending a request, as its `trace` extension.

    Attributes:
        trace: the one that it stands in for.
    """

    def __init__(self, request: Request, *, presented: Presented | None) -> None:
        before = request.extensions.get(_TRACE)
        self.trace: Any = before.trace if isinstance(before, Guard) else before
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
        if self._presented is None and sent is not None and _has_body(sent.headers):
            raise _carried()

    def __call__(self, step: str, info: dict[str, Any]) -> object:
        self.check(step, info)
        return None if self.trace is None else self.trace(step, info)


class AsyncGuard(Guard):
    """A `Guard` of async requests."""

    async def __call__(self, step: str, info: dict[str, Any]) -> object:
        self.check(step, info)
        return None if self.trace is None else await self.trace(step, info)


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    fields = {name.lower(): value for name, value in headers}
    return b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"


# --- the transport

Transport = TypeVar("Transport")
AnyResponse = TypeVar("AnyResponse", bound=Response)


class Signing(Generic[Transport]):
    """What all transports do with a request, each by a sender of its own."""

    _library: Library
    _grant_type: type[BlockingGrant | AsyncGrant]
    _guard_type: type[Guard]

    def __init__(
        self,
        agent: AgentClient | AsyncAgentClient,
        *,
        key: str | None,
        origins: Iterable[str],
        transport: Transport | None,
        make: Callable[..., Transport],
        options: dict[str, Any],
    ) -> None:
        """Take what every transport has.

        Args:
            agent: gives the proofs.
            key: the key's name.
            origins: the servers that get proofs.
            transport: does the sending.
            make: makes one that does, where there is none.
            options: its arguments; a None is none.
        """
        self._agent = agent
        self._key = key
        self._origins = Origins(origins)
        self._proxies: EnvironmentProxies | None = None
        given = {name: value for name, value in options.items() if value is not None}
        if transport is not None:
            if given:
                raise ConfigurationError(
                    f"{', '.join(given)} beside transport: another transport does the sending",
                    hint=f"give {', '.join(given)} to the transport that does",
                )
            self._senders: dict[str | None, Transport] = {None: transport}
            return
        self._senders = {None: make(**given)}
        if given.get("trust_env", True) and "proxy" not in given:
            self._proxies = EnvironmentProxies()
            self._senders |= {url: make(**given, proxy=url) for url in self._proxies.urls}

    def _sends(self, url: URL) -> Transport:
        """What does the sending: by a proxy of the environment's, or without."""
        proxies = self._proxies
        proxy = None if proxies is None else proxies.of(url.scheme, url.host, url.port)
        return self._senders[proxy]

    def _response(self, request: Request, sender: RequestSender[AnyResponse]) -> Calls[AnyResponse]:
        if (named := _named(request)) is not None:
            named.taken = True
        if isinstance(request.stream, Kept):
            sender.body.rewind()  # of a redirect, or of a request that its auth sends again
        response, done = yield from self._signed_hop(request, sender)
        if (presented := _presented(request)) is not None:
            presented.done = done
        if done.proof is not None:
            response.extensions = {**response.extensions, "dpop": done.proof}
            if _has_body(request.headers.raw):
                guard = self._guard_type(request, presented=None)
                # A redirect has the extensions and the stream of the request that led to it.
                request.extensions = {**request.extensions, _SIGNED: True, _TRACE: guard}
                request.stream = self._library.kept(sender.body)
        return response

    def _signed_hop(
        self, request: Request, sender: RequestSender[AnyResponse]
    ) -> Calls[tuple[AnyResponse, Done]]:
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
        request: Request,
        sender: RequestSender[AnyResponse],
        key: str | None,
        jkt: str | None,
    ) -> Calls[tuple[AnyResponse, Done]]:
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
            replayable=sender.body.replayable,
            redirected_body=_SIGNED in request.extensions and _has_body(request.headers.raw),
        )
        return exchange(steps, self._agent, sender)


class BlockingTransport(Protocol):
    """The library's blocking transports."""

    def __enter__(self) -> Any: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
        /,
    ) -> None: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The library's async transports."""

    async def __aenter__(self) -> Any: ...
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
        /,
    ) -> None: ...
    async def aclose(self) -> None: ...


Blocking = TypeVar("Blocking", bound=BlockingTransport)
Async = TypeVar("Async", bound=AsyncTransport)


class BlockingSigning(Signing[Blocking]):
    """Signs each hop to a listed origin; others are left unsigned.

    `response.extensions["dpop"]` is the hop's Proof. `extensions={"dpop_jkt": jkt}` with a request
    pins the generation that signs it, redirects included; None there means the active one, also
    where DPoPAuth would pin another. A request is sent a second time only if the server wants a
    nonce, or its clock is behind the agent's, and only if its body can be sent again, being bytes
    or files that can seek: others get NonceRequired. The second request has the cookies of the
    answer to the first, which stand in the headers of the second's, for the client to keep. In a
    path `[`, `]`, `^` and `|` go out as their escapes.

    What the client sends by another transport (its `proxy=`, `mounts=`) is unsigned: give `proxy`
    here.

    Args:
        agent: gives the proofs; it isn't closed with the transport.
        key: the key's name; `default` where None.
        origins: the authorization servers and resource servers that get proofs.
        transport: does the sending, in place of the library's own with the arguments that follow.
        verify, cert, http2, limits, proxy, trust_env: as the library's client has them, which sees
            to them no more where it is given a transport. Without `proxy` it is the environment
            that names proxies, unless `trust_env` is False.

    Requests raise, besides the library's own errors, what `AgentClient.proof` raises, and:
        ConfigurationError: an access token, or by a redirect the body of a signed request, would go
            to an origin that isn't listed; or the access token isn't one.
        NonceRequired: see above.
        ProofRefused: the server refuses the proof, and the agent's clock may be to blame.
    """

    _grant_type = BlockingGrant
    _guard_type = Guard

    def __enter__(self) -> Self:
        for sender in self._senders.values():
            sender.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        for sender in self._senders.values():
            sender.__exit__(exc_type, exc_value, traceback)

    def close(self) -> None:
        """Close what does the sending."""
        for sender in self._senders.values():
            sender.close()


class AsyncSigning(Signing[Async]):
    """`DPoPTransport` for the library's async client, with an AsyncAgentClient.

    It works under trio too, where the agent is asked in a thread.
    """

    _grant_type = AsyncGrant
    _guard_type = AsyncGuard

    async def __aenter__(self) -> Self:
        for sender in self._senders.values():
            await sender.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        for sender in self._senders.values():
            await sender.__aexit__(exc_type, exc_value, traceback)

    async def aclose(self) -> None:
        """Close what does the sending."""
        for sender in self._senders.values():
            await sender.aclose()


def _target(request: Request) -> bytes:
    target: bytes = request.extensions.get("target", request.url.raw_path)  # httpcore's override
    return target


class RequestSender(Generic[AnyResponse]):
    """One request, and what of it is the same however it is sent.

    Attributes:
        body: the request's.
    """

    def __init__(self, request: Request, send: Callable[[Any], Any], library: Library) -> None:
        stream = request.stream
        self.body = stream.body if isinstance(stream, Kept) else Body(stream, library)
        self._request = request
        self._send = send
        self._library = library
        self._cookies = library.cookies()
        self._set_cookies: list[tuple[bytes, bytes]] = []

    def send(
        self, proof: Proof | None, access_token: str | None
    ) -> AnyResponse | Awaitable[AnyResponse]:
        raise NotImplementedError

    def read(self, response: AnyResponse) -> bytes | Awaitable[bytes | None] | None:
        raise NotImplementedError

    def close(self, response: AnyResponse) -> object:
        raise NotImplementedError

    def answer(self, response: AnyResponse) -> Answer:
        return Answer(response.status_code, response.headers.get_list)

    def again(self, response: AnyResponse) -> None:
        self.body.rewind()
        self._set_cookies += [
            field for field in response.headers.raw if field[0].lower() == b"set-cookie"
        ]
        response.request = self._request
        self._cookies.extract_cookies(response)

    def outgoing(self, proof: Proof | None, access_token: str | None) -> Any:
        """What the transport within gets; the caller's stays as it is, for a redirect to copy."""
        request = self._request
        url, headers = request.url, self._library.headers(request.headers)
        private = (_PRESENTED, _SIGNED)
        extensions = {k: v for k, v in request.extensions.items() if k not in private}
        if isinstance(guard := extensions.get(_TRACE), Guard):
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
        if (newer := self._new_cookies()) is not None:
            headers["Cookie"] = merged_cookies(headers.get("Cookie"), newer)
        return self._library.request(
            request.method, url, headers=headers, stream=self.body.stream, extensions=extensions
        )

    def _new_cookies(self) -> str | None:
        """What earlier answers to this request set, where it is for this URL."""
        bare = self._library.request("GET", self._request.url)
        self._cookies.set_cookie_header(bare)
        cookie: str | None = bare.headers.get("Cookie")
        return cookie

    def with_cookies(self, response: AnyResponse) -> AnyResponse:
        """The response, whose headers tell the client of the earlier answers' cookies too."""
        if self._set_cookies:
            response.headers = self._library.headers([*self._set_cookies, *response.headers.raw])
        return response


class BlockingSender(RequestSender[AnyResponse]):
    """Sends a request by a blocking transport."""

    def send(self, proof: Proof | None, access_token: str | None) -> AnyResponse:
        return self.with_cookies(self._send(self.outgoing(proof, access_token)))

    def read(self, response: AnyResponse) -> bytes | None:
        stream = response.stream
        begun: list[bytes] = []
        rest = iter(stream)
        response.stream = self._library.replay(begun, rest, stream)
        size = 0
        for part in rest:
            begun.append(part)
            size += len(part)
            if size > MAX_CHALLENGE_BODY:
                return None
        return decoded(b"".join(begun), response.headers.get_list("Content-Encoding"))

    def close(self, response: AnyResponse) -> None:
        response.stream.close()


class AsyncSender(RequestSender[AnyResponse]):
    """Sends a request by an async transport."""

    async def send(self, proof: Proof | None, access_token: str | None) -> AnyResponse:
        return self.with_cookies(await self._send(self.outgoing(proof, access_token)))

    async def read(self, response: AnyResponse) -> bytes | None:
        stream = response.stream
        begun: list[bytes] = []
        rest = aiter(stream)
        response.stream = self._library.async_replay(begun, rest, stream)
        size = 0
        async for part in rest:
            begun.append(part)
            size += len(part)
            if size > MAX_CHALLENGE_BODY:
                return None
        return decoded(b"".join(begun), response.headers.get_list("Content-Encoding"))

    async def close(self, response: AnyResponse) -> None:
        await response.stream.aclose()


# --- the auth


class Presented:
    """An access token that an auth named for a request to one origin.

    Attributes:
        access_token: the one to present there.
        grant: whose it is.
        taken: a DPoPTransport has the request.
        done: what came of presenting it.
    """

    __slots__ = ("_library", "_origin", "access_token", "done", "grant", "taken")

    def __init__(
        self, grant: Grant, access_token: BoundToken, request: Request, library: Library
    ) -> None:
        self.grant = grant
        self.access_token = access_token
        self.taken = False
        self.done: Done | None = None
        self._library = library.name
        self._origin = _origin(request)

    def is_for(self, request: Request) -> bool:
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
                "DPoPTransport(…, proxy=…)",
            )


def _origin(request: Request) -> tuple[str, bytes, int | None]:
    return request.url.scheme, request.url.raw_host, request.url.port


def _named(request: Request) -> Presented | None:
    named = request.extensions.get(_PRESENTED)
    return named if isinstance(named, Presented) else None


def _presented(request: Request) -> Presented | None:
    """What was named for this very server."""
    named = _named(request)
    return named if named is not None and named.is_for(request) else None


def _renewal_of(request: Request) -> Renewal | None:
    """The renewal that says which generation signs this request, if one does.

    None does where the request says so itself, or presents an access token: which generation that
    one is bound to isn't guessed.
    """
    renewal = current_renewal()
    if renewal is None or _JKT in request.extensions:
        return None
    presents = dpop_access_token(request.headers.get_list("Authorization")) is not None
    return None if presents else renewal


class Presenting:
    """What both auths do with a request, each by a grant of its own."""

    _library: Library
    _grant: Grant
    _guard_type: type[Guard]

    def _present(self, request: Request, access_token: BoundToken) -> Presented:
        presented = Presented(self._grant, access_token, request, self._library)
        request.headers.pop("Authorization", None)
        request.extensions = {
            **request.extensions,
            _JKT: access_token.jkt,
            _PRESENTED: presented,
            _TRACE: self._guard_type(request, presented=presented),
        }
        return presented

    def _refused(
        self, request: Request, presented: Presented, response: Response
    ) -> BoundToken | None:
        """The access token to replace before the request is sent again, if that makes sense.

        Raises:
            ConfigurationError: no DPoPTransport was asked.
        """
        presented.require_transport()
        if not presented.is_for(response.request) or presented.done is None:
            return None
        # The library reads an answer before it sends the request again.
        endless = is_event_stream(response.headers.get_list("Content-Type"))
        stream = request.stream
        body = stream.body if isinstance(stream, Kept) else Body(stream, self._library)
        replace = self._grant.replaces(
            presented.access_token, presented.done, repeatable=not endless and body.replayable
        )
        return presented.access_token if replace else None

    def _refused_again(self, request: Request, presented: Presented, response: Response) -> None:
        """Hear what came of another access token.

        Raises:
            ProofRefused: it was refused too, and by the server's clock the agent's is wrong.
        """
        refused = self._refused(request, presented, response)
        if refused is not None and presented.done is not None and presented.done.clock is not None:
            raise presented.done.clock


class BlockingAuth(Presenting):
    """Presents an access token, and renews it: one renewal at a time, others wait for it.

    Renewed are: none yet, one near its expiry, one that the server calls `invalid_token` (the
    request is then sent again, if its body can be), one whose generation gives no proofs any
    more, and, where the grant may change its generation, one whose generation is about to stop
    signing. Goes with DPoPTransport, which sends the access token: no other transport gets it, and
    ConfigurationError says where the client takes one.

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
    _guard_type = Guard

    def __init__(
        self,
        renew: Callable[[BoundToken | None], BoundToken],
        *,
        token: BoundToken | None = None,
        on_token: Callable[[BoundToken], object] | None = None,
        rebind: bool = False,
    ) -> None:
        self._grant = BlockingGrant(renew, token=token, on_token=on_token, rebind=rebind)

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Choose, and choose anew once; the library calls this."""
        presented = self._present(request, self._grant.access_token())
        response = yield request
        refused = self._refused(request, presented, response)
        if refused is not None:
            response.stream = self._library.cut(response.stream)
            presented = self._present(request, self._grant.access_token(but=refused))
            self._refused_again(request, presented, (yield request))

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Refuse: an event loop mustn't wait for `renew`."""
        name = self._library.name
        raise ConfigurationError(
            f"DPoPAuth is for {name}.Client", hint=f"use AsyncDPoPAuth with {name}.AsyncClient"
        )
        yield request


class AsyncAuth(Presenting):
    """`DPoPAuth` for the library's async client: `renew` is async, `on_token` may be.

    It may be shared between event loops: still only one of them renews at a time.
    """

    _grant: AsyncGrant
    _guard_type = AsyncGuard

    def __init__(
        self,
        renew: Callable[[BoundToken | None], Awaitable[BoundToken]],
        *,
        token: BoundToken | None = None,
        on_token: Callable[[BoundToken], Awaitable[object] | object] | None = None,
        rebind: bool = False,
    ) -> None:
        self._grant = AsyncGrant(renew, token=token, on_token=on_token, rebind=rebind)

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Refuse: there is nothing to await `renew` with."""
        name = self._library.name
        raise ConfigurationError(
            f"AsyncDPoPAuth is for {name}.AsyncClient", hint=f"use DPoPAuth with {name}.Client"
        )
        yield request

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Choose, and choose anew once; the library calls this."""
        presented = self._present(request, await self._grant.access_token())
        response = yield request
        refused = self._refused(request, presented, response)
        if refused is not None:
            response.stream = self._library.async_cut(response.stream)
            presented = self._present(request, await self._grant.access_token(but=refused))
            self._refused_again(request, presented, (yield request))
