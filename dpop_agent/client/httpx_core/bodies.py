"""Bodies: of requests that are sent again, of answers that were begun or that nobody wants."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from dpop_agent.client.refusal import MAX_CHALLENGE_BODY
from dpop_agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dpop_agent.client.httpx_core.names import Library, Request


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
        raise carried()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        raise carried()
        yield b""  # it is a generator


def carried() -> ConfigurationError:
    """A redirect would carry a body on that isn't for this transport."""
    return ConfigurationError(
        "a redirect would carry the body of a signed request on, by a transport that isn't "
        "DPoPTransport",
        hint="give that URL a DPoPTransport too, or don't follow the redirect",
    )


def body_of(request: Request, library: Library) -> Body:
    """A request's body, which it may have been sent with before."""
    stream = request.stream
    return stream.body if isinstance(stream, Kept) else Body(stream, library)


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
