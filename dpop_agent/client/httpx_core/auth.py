"""The auths: each request is given an access token, which is renewed when it is due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpop_agent.client.grant import AsyncGrant, BlockingGrant
from dpop_agent.client.httpx_core.bodies import body_of
from dpop_agent.client.httpx_core.presented import (
    JKT,
    PRESENTED,
    TRACE,
    AsyncGuard,
    Guard,
    Presented,
)
from dpop_agent.client.refusal import is_event_stream
from dpop_agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

    from dpop_agent.client.grant import Grant
    from dpop_agent.client.httpx_core.names import Library, Request, Response
    from dpop_agent.client.stores import TokenStore
    from dpop_agent.client.token import BoundToken


class Presenting:
    """What both auths do with a request, each by a grant of its own."""

    _library: Library
    _grant: Grant
    _guard_type: type[Guard]

    def _present(self, request: Request, access_token: BoundToken) -> Presented:
        presented = Presented(self._grant, access_token, request)
        request.headers.pop("Authorization", None)
        request.extensions = {
            **request.extensions,
            JKT: access_token.jkt,
            PRESENTED: presented,
            TRACE: self._guard_type(request, presented=presented),
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
        body = body_of(request, self._library)
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
        store: where it is, in place of `token`: one process at a time renews it, the others use
            what is there then. Where a process died with a new refresh token that it hadn't stored
            yet, the one that is there is tried once; if the server refuses it (`invalid_grant`),
            `renew(None)` is to begin a new grant.
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
        store: TokenStore | None = None,
    ) -> None:
        self._grant = BlockingGrant(
            renew, token=token, on_token=on_token, rebind=rebind, store=store
        )

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
        store: TokenStore | None = None,
    ) -> None:
        self._grant = AsyncGrant(renew, token=token, on_token=on_token, rebind=rebind, store=store)

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
