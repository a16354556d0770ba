"""Sends one request by the transport within, with a proof or without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dpop_agent.client.hop import merged_cookies, wire_path
from dpop_agent.client.httpx_core.bodies import body_of
from dpop_agent.client.httpx_core.names import Response
from dpop_agent.client.httpx_core.presented import PRESENTED, SIGNED, TRACE, Guard
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY, Answer, decoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dpop_agent.client.answers import Proof
    from dpop_agent.client.httpx_core.names import Library, Request

AnyResponse = TypeVar("AnyResponse", bound=Response)


def target_of(request: Request) -> bytes:
    """The request target, as it goes over the wire."""
    target: bytes = request.extensions.get("target", request.url.raw_path)  # httpcore's override
    return target


class RequestSender(ABC, Generic[AnyResponse]):
    """One request, and what of it is the same however it is sent.

    Attributes:
        body: the request's.
    """

    def __init__(self, request: Request, send: Callable[[Any], Any], library: Library) -> None:
        self.body = body_of(request, library)
        self._request = request
        self._send = send
        self._library = library
        self._cookies = library.cookies()
        self._set_cookies: list[tuple[bytes, bytes]] = []

    @abstractmethod
    def send(
        self, proof: Proof | None, access_token: str | None
    ) -> AnyResponse | Awaitable[AnyResponse]: ...

    @abstractmethod
    def read(self, response: AnyResponse) -> bytes | Awaitable[bytes | None] | None: ...

    @abstractmethod
    def close(self, response: AnyResponse) -> object: ...

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
        private = (PRESENTED, SIGNED)
        extensions = {k: v for k, v in request.extensions.items() if k not in private}
        if isinstance(guard := extensions.get(TRACE), Guard):
            if guard.trace is None:
                del extensions[TRACE]
            else:
                extensions[TRACE] = guard.trace
        headers.pop("DPoP", None)
        if proof is not None:
            headers["DPoP"] = str(proof)
            if access_token is not None:
                headers["Authorization"] = f"DPoP {access_token}"
            path, question, query = target_of(request).decode("latin-1").partition("?")
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
