"""The names of httpx and of httpx2 that are used, as protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType


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
    kept: Callable[[Any], Any]
    replay: Callable[[list[bytes], Iterator[bytes], Any], Any]
    async_replay: Callable[[list[bytes], AsyncIterator[bytes], Any], Any]
    cut: Callable[[Any], Any]
    async_cut: Callable[[Any], Any]
