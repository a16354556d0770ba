"""aiohttp: a client middleware that signs each hop, and presents access tokens.

aiohttp calls it for each redirect too, with a new request. What it has to know of the hops before
(where they began, whether a body of theirs was signed) hangs on their responses, which aiohttp
keeps as the history of the last one: it is gone when they are.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

try:
    from aiohttp import ClientPayloadError
    from aiohttp.multipart import MultipartWriter
    from aiohttp.payload import BytesPayload, IOBasePayload, Payload
    from yarl import URL
except ModuleNotFoundError as e:
    raise ImportError(
        "aiohttp isn't installed; install it: pip install 'dpop-agent[aiohttp]'"
    ) from e

from dpop_agent.client.exchange import awaiting, exchange
from dpop_agent.client.grant import AsyncGrant
from dpop_agent.client.hop import Origins, dpop_access_token, hop, wire_path
from dpop_agent.client.presenting import present, sign
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY, Answer, decoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from typing import Any, Self

    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

    from dpop_agent.client.aio import AsyncAgentClient
    from dpop_agent.client.answers import Proof
    from dpop_agent.client.exchange import Calls
    from dpop_agent.client.hop import Done
    from dpop_agent.client.stores import TokenStore
    from dpop_agent.client.token import BoundToken


class DPoPMiddleware:
    """Signs each hop to a listed origin; others are left unsigned.

        sign = DPoPMiddleware(agent, key="default", origins=[AS, API])
        http = aiohttp.ClientSession(middlewares=[sign])

    `response.dpop` is the hop's Proof, None where there is none. A request is sent a second time
    only if the server wants a nonce, or its clock is behind the agent's, and only if its body can
    be sent twice: generators get NonceRequired. Give it as the last middleware: what comes after it
    is sent the proof and the access token, and mustn't send them twice. `middlewares=` of a request
    stand in place of the session's, so without this one there the request is unsigned.

    Args:
        agent: gives the proofs; it isn't closed with the session.
        key: the key's name; `default` where None.
        origins: the authorization servers and resource servers that get proofs.

    Requests raise, besides aiohttp's own errors, what `AsyncAgentClient.proof` raises, and:
        ConfigurationError: an access token, or by a redirect the body of a signed request, would go
            to an origin that isn't listed; or the access token isn't one.
        NonceRequired: see above.
        ProofRefused: the server refuses the proof, and the agent's clock may be to blame.
    """

    def __init__(
        self, agent: AsyncAgentClient, *, key: str | None = None, origins: Iterable[str]
    ) -> None:
        self._agent = agent
        self._key = key
        self._origins = Origins(origins)
        self._jkt: str | None = None
        self._pinned = False
        self._grant: AsyncGrant | None = None

    def pinned(self, jkt: str | None) -> Self:
        """The same, for requests that one generation signs, redirects included.

            http.post(token_endpoint, data=…, middlewares=[sign.pinned(jkt)])

        Args:
            jkt: the generation; the active one where None, in a renewal too.
        """
        other = self._copy()
        other._jkt, other._pinned = jkt, True
        return other

    def presenting(
        self,
        renew: Callable[[BoundToken | None], Awaitable[BoundToken]],
        *,
        token: BoundToken | None = None,
        on_token: Callable[[BoundToken], Awaitable[object] | object] | None = None,
        rebind: bool = False,
        store: TokenStore | None = None,
    ) -> Self:
        """The same, for requests that present an access token: make it once, and keep it.

            me = sign.presenting(renew, token=saved, on_token=save)
            http.get(f"{API}/me", middlewares=[me])

        It presents and renews as AsyncDPoPAuth does for httpx, where what its arguments are is
        said too: one renewal at a time, at first use, near the expiry, when the server or the agent
        says that the access token is no longer any use. A redirect to another origin has none.

        Args:
            renew: gets the old access token, or None for a new grant; returns a BoundToken. It may
                use the same session for its token request, with `middlewares=[sign]`.
            token: one from earlier.
            on_token: gets each new one, to save it.
            rebind: refresh with the active generation.
            store: where it is, in place of `token`, if other processes have it too.
        """
        other = self._copy()
        other._grant = AsyncGrant(renew, token=token, on_token=on_token, rebind=rebind, store=store)
        return other

    def _copy(self) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send one hop; aiohttp calls this."""
        call = _Call.of(request)
        sender = _Sender(request, handler)
        response, done = await awaiting(self._hop(request, sender, call))
        response.dpop = done.proof  # type: ignore[attr-defined]
        response._dpop_call = call  # type: ignore[attr-defined]
        if done.proof is not None and _has_body(request):
            call.signed_a_body = True
        return response

    def _hop(
        self, request: ClientRequest, sender: _Sender, call: _Call
    ) -> Calls[tuple[ClientResponse, Done]]:
        replayable = _replayable(request.body)
        authorization = [value for _, value in _fields(request, "authorization")]
        url = request.url

        def hop_by(
            key: str | None, jkt: str | None, access_token: str | None = None
        ) -> Calls[tuple[ClientResponse, Done]]:
            steps = hop(
                htm=request.method,
                authority=str(url.origin()),
                path=wire_path(url.raw_path),
                authorization=authorization,
                access_token=access_token,
                origins=self._origins,
                key=key,
                jkt=jkt,
                replayable=replayable,
                redirected_body=call.signed_a_body and _has_body(request),
            )
            return exchange(steps, self._agent, sender)

        def hop_with(bound: BoundToken) -> Calls[tuple[ClientResponse, Done]]:
            return hop_by(self._key, bound.jkt, bound.access_token)

        if self._grant is not None and call.began_at(request):
            return present(self._grant, hop_with, sender, replayable=replayable)
        return sign(
            hop_by,
            agent=self._agent.path,
            key=self._key,
            jkt=self._jkt,
            pinned=self._pinned or dpop_access_token(authorization) is not None,
        )


class _Call:
    """One call of a session's, which may have several hops.

    Attributes:
        signed_a_body: one of its hops was signed, and had a body.
    """

    __slots__ = ("__weakref__", "_left", "_origin", "_traces", "signed_a_body")

    def __init__(self, request: ClientRequest) -> None:
        self._origin = request.url.origin()
        self._traces = request._traces  # kept, so that its id is no other call's
        self._left = False
        self.signed_a_body = False

    @classmethod
    def of(cls, request: ClientRequest) -> _Call:
        """The call that a request is a hop of."""
        # Of what a session gives its requests, this list alone is all hops' and no other call's.
        call = _CALLS.get(id(request._traces))
        if call is None:
            call = _CALLS[id(request._traces)] = cls(request)
        return call

    def began_at(self, request: ClientRequest) -> bool:
        """False for a redirect to another server, and for whatever that one redirects to."""
        self._left |= request.url.origin() != self._origin
        return not self._left


_CALLS: WeakValueDictionary[int, _Call] = WeakValueDictionary()


class _Sender:
    """Sends a request by what comes after the middleware."""

    def __init__(self, request: ClientRequest, handler: ClientHandlerType) -> None:
        self._request = request
        self._handler = handler

    async def send(self, proof: Proof | None, access_token: str | None) -> ClientResponse:
        request = self._request
        before = request.headers.copy()
        for name, _ in _fields(request, "dpop"):
            request.headers.popall(name, None)
        if proof is not None:
            request.headers["DPoP"] = str(proof)
            request.url = _on_the_wire(request.url)
        if access_token is not None:
            for name, _ in _fields(request, "authorization"):
                request.headers.popall(name, None)
            request.headers["Authorization"] = f"DPoP {access_token}"
        try:
            return await self._handler(request)
        finally:
            # `request_info` of responses and of errors shows these headers.
            for name in ("DPoP", "Authorization"):
                request.headers.popall(name, None)
                request.headers.extend((name, value) for value in before.getall(name, ()))

    def answer(self, response: ClientResponse) -> Answer:
        def headers(name: str) -> Sequence[str]:
            return response.headers.getall(name, ())

        return Answer(response.status, headers)

    async def read(self, response: ClientResponse) -> bytes | None:
        parts: list[bytes] = []
        size = 0
        try:
            while size <= MAX_CHALLENGE_BODY and (
                part := await response.content.read(MAX_CHALLENGE_BODY)
            ):
                parts.append(part)
                size += len(part)
        except ClientPayloadError:
            return None  # the stream says so to who reads it too
        body = b"".join(parts)
        if not body:
            return body
        with warnings.catch_warnings():
            # Deprecated for years, and without a successor.
            warnings.simplefilter("ignore", DeprecationWarning)
            response.content.unread_data(body)
        if size > MAX_CHALLENGE_BODY:
            return None
        # A session decodes bodies, unless it was told not to.
        return decoded(body, response.headers.getall("Content-Encoding", ())) or body

    async def close(self, response: ClientResponse) -> None:
        response.release()
        await response.wait_for_close()

    def again(self, response: ClientResponse) -> None:
        """What aiohttp does with the cookies of each response, but not of this one."""
        jar = self._request.session.cookie_jar
        jar.update_cookies(response.cookies, response.url)
        newer = jar.filter_cookies(self._request.url)
        self._request.update_cookies(
            {name: cookie for name, cookie in newer.items() if name in response.cookies}
        )


def _on_the_wire(url: URL) -> URL:
    path = wire_path(url.raw_path)
    if path == url.raw_path:
        return url
    question = "?" if url.raw_query_string else ""
    return URL(f"{url.origin()}{path}{question}{url.raw_query_string}", encoded=True)


def _fields(request: ClientRequest, name: str) -> list[tuple[str, str]]:
    """A header's lines as they are spelt: aiohttp sends one with a space too."""
    return [(field, value) for field, value in request.headers.items() if _is(field, name)]


def _is(field: str, name: str) -> bool:
    return field.strip().lower() == name


def _has_body(request: ClientRequest) -> bool:
    body: Any = request.body
    return bool(body) and (not isinstance(body, Payload) or body.size != 0)


def _replayable(body: Any) -> bool:
    """Whether aiohttp sends the same again: it reads files from where they began, since 3.12.1."""
    if isinstance(body, MultipartWriter):
        return all(_replayable(part) for part, _, _ in body)
    if isinstance(body, IOBasePayload):
        return getattr(body, "consumed", True) is False and _can_seek(body)
    return isinstance(body, bytes | BytesPayload)


def _can_seek(body: IOBasePayload) -> bool:
    return bool(body._value.seekable())
