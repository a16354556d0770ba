"""An access token that was named for a request, and what keeps others from sending it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpop_agent.client.httpx_core.bodies import carried
from dpop_agent.errors import ConfigurationError

if TYPE_CHECKING:
    from dpop_agent.client.grant import Grant
    from dpop_agent.client.hop import Done
    from dpop_agent.client.httpx_core.names import Request
    from dpop_agent.client.token import BoundToken

# Extensions of a request.
JKT = "dpop_jkt"
PRESENTED = "dpop_agent.presented"
SIGNED = "dpop_agent.signed"
TRACE = "trace"  # httpcore's: called at each step of sending, before it is done


class Presented:
    """An access token that an auth named for a request to one origin.

    Attributes:
        access_token: the one to present there.
        grant: whose it is.
        taken: a DPoPTransport has the request.
        done: what came of presenting it.
    """

    __slots__ = ("_left", "_origin", "access_token", "done", "grant", "taken")

    def __init__(self, grant: Grant, access_token: BoundToken, request: Request) -> None:
        self.grant = grant
        self.access_token = access_token
        self.taken = False
        self.done: Done | None = None
        self._origin = _origin(request)
        self._left = False

    def is_for(self, request: Request) -> bool:
        """False for a redirect to another server, and for whatever that one redirects to."""
        self._left |= _origin(request) != self._origin
        return not self._left

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


def named_for(request: Request) -> Presented | None:
    """What was named for it, or for the request that led to it by a redirect."""
    named = request.extensions.get(PRESENTED)
    return named if isinstance(named, Presented) else None


def presented_to(request: Request) -> Presented | None:
    """What was named for this very server."""
    named = named_for(request)
    return named if named is not None and named.is_for(request) else None


class Guard:
    """Keeps a transport that isn't ours from sending a request, as its `trace` extension.

    Attributes:
        trace: the one that it stands in for.
    """

    def __init__(self, request: Request, *, presented: Presented | None) -> None:
        before = request.extensions.get(TRACE)
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
        if self._presented is None and sent is not None and has_body(sent.headers):
            raise carried()

    def __call__(self, step: str, info: dict[str, Any]) -> object:
        self.check(step, info)
        return None if self.trace is None else self.trace(step, info)


class AsyncGuard(Guard):
    """A `Guard` of async requests."""

    async def __call__(self, step: str, info: dict[str, Any]) -> object:
        self.check(step, info)
        return None if self.trace is None else await self.trace(step, info)


def has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a message with these headers has a body (RFC 9110 section 6.4.1)."""
    fields = {name.lower(): value for name, value in headers}
    return b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"
