"""The transports: each hop is signed, by whatever does the sending."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dpop_agent.client.exchange import exchange
from dpop_agent.client.grant import AsyncGrant, BlockingGrant, current_renewal
from dpop_agent.client.hop import DEFAULT_KEY, Origins, dpop_access_token, hop, wire_path
from dpop_agent.client.httpx_core.bodies import Kept
from dpop_agent.client.httpx_core.names import AsyncTransport, BlockingTransport
from dpop_agent.client.httpx_core.presented import (
    JKT,
    SIGNED,
    TRACE,
    AsyncGuard,
    Guard,
    has_body,
    named_for,
    presented_to,
)
from dpop_agent.client.httpx_core.sending import target_of
from dpop_agent.client.proxies import EnvironmentProxies
from dpop_agent.errors import ConfigurationError, KeyUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from dpop_agent.client.aio import AsyncAgentClient
    from dpop_agent.client.exchange import Calls
    from dpop_agent.client.grant import Renewal
    from dpop_agent.client.hop import Done
    from dpop_agent.client.httpx_core.names import URL, Library, Request
    from dpop_agent.client.httpx_core.sending import AnyResponse, RequestSender
    from dpop_agent.client.sync import AgentClient

Transport = TypeVar("Transport")


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
        if (named := named_for(request)) is not None:
            named.taken = True
        if isinstance(request.stream, Kept):
            sender.body.rewind()  # of a redirect, or of a request that its auth sends again
        response, done = yield from self._signed_hop(request, sender)
        if (presented := presented_to(request)) is not None:
            presented.done = done
        if done.proof is not None:
            response.extensions = {**response.extensions, "dpop": done.proof}
            if has_body(request.headers.raw):
                guard = self._guard_type(request, presented=None)
                # A redirect has the extensions and the stream of the request that led to it.
                request.extensions = {**request.extensions, SIGNED: True, TRACE: guard}
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
            return (yield from hop_by(request.extensions.get(JKT)))
        except KeyUnusable:
            presented = presented_to(request)
            if presented is None or not isinstance(presented.grant, self._grant_type):
                raise
            other = yield partial(presented.grant.access_token, but=presented.access_token)
            presented.access_token = other
            request.extensions = {**request.extensions, JKT: other.jkt}
        return (yield from hop_by(other.jkt))

    def _hop(
        self,
        request: Request,
        sender: RequestSender[AnyResponse],
        key: str | None,
        jkt: str | None,
    ) -> Calls[tuple[AnyResponse, Done]]:
        url = request.url
        presented = presented_to(request)
        steps = hop(
            htm=request.method,
            authority=f"{url.scheme}://{url.netloc.decode('ascii')}",
            path=wire_path(target_of(request).decode("latin-1")).partition("?")[0],
            authorization=request.headers.get_list("Authorization"),
            access_token=None if presented is None else presented.access_token.access_token,
            origins=self._origins,
            key=key,
            jkt=jkt,
            replayable=sender.body.replayable,
            redirected_body=SIGNED in request.extensions and has_body(request.headers.raw),
        )
        return exchange(steps, self._agent, sender)


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


def _renewal_of(request: Request) -> Renewal | None:
    """The renewal that says which generation signs this request, if one does.

    None does where the request says so itself, or presents an access token: which generation that
    one is bound to isn't guessed.
    """
    renewal = current_renewal()
    if renewal is None or JKT in request.extensions:
        return None
    presents = dpop_access_token(request.headers.get_list("Authorization")) is not None
    return None if presents else renewal
