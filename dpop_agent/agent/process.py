"""A signer process: how it comes into being, its channel, its end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, cast

from dpop_agent.channel import Frames, Malformed, Signed, frame, sign_frame

log = logging.getLogger("dpop_agent.process")

END_TIMEOUT_S = 3.0
"""Seconds that a signer whose channel is closed has for what it does; its own grace is half."""

MAX_REAPING = 1024
"""Signers that are waited for at once: more than there can be, so that those that hang keep neither
others nor anything else waiting that is done in a thread."""

_reaping = ThreadPoolExecutor(MAX_REAPING, thread_name_prefix="reaping")


class Child(Protocol):
    """A process that was started."""

    def kill(self) -> None:
        """End it, hanging or not, and what it started."""

    def wait(self, within_s: float) -> None:
        """Wait until it has ended; it is killed if it takes longer. Blocks."""


class Spawn(Protocol):
    """How signers come into being."""

    async def __call__(
        self, channel: socket.socket, env: Mapping[str, str], heir_of: int | None = None
    ) -> Child:
        """A process that serves this end of its channel.

        Args:
            channel: its end, which the caller closes here afterwards.
            env: what it has in its environment beside the agent's.
            heir_of: the pid of a signer that gets one end of a pair of sockets whose other end the
                new one has: what it opens the store with comes from there.

        Raises:
            OSError: none can be started.
        """


class _Program:
    """A signer that was started as a program."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    def kill(self) -> None:
        self._popen.kill()

    def wait(self, within_s: float) -> None:
        try:
            self._popen.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


async def spawn_program(
    channel: socket.socket, env: Mapping[str, str], heir_of: int | None = None
) -> Child:
    """A signer by exec: `python -I -m dpop_agent.signer`."""
    assert heir_of is None  # `config` has one signer for each store where signers aren't forked
    return _Program(
        subprocess.Popen(
            [sys.executable, "-I", "-m", "dpop_agent.signer", str(channel.fileno())],
            pass_fds=[channel.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | dict(env),
            cwd="/",
            process_group=0,
        )
    )


_read_into = memoryview(bytearray(64 * 1024))  # copied before the next read, whoever's


class SignerProcess(asyncio.BufferedProtocol):
    """One signer process and its channel."""

    def __init__(
        self,
        store: str,
        child: Child,
        *,
        on_frame: Callable[[dict[str, Any] | Signed], None],
        on_heard: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        """`start` makes one.

        Args:
            store: its store's name, for people.
            child: the process.
            on_frame: called with each frame that it sends; raises Malformed for one that makes no
                sense.
            on_heard: called after those that came together.
            on_end: called once, when its channel is closed from there or it was killed.
        """
        self._store = store
        self._child = child
        self._on_frame = on_frame
        self._on_heard = on_heard
        self._on_end = on_end
        self._frames = Frames()
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes] | None = None
        self._unanswered = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is a class of its own

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (asyncio's signature)
        return _read_into

    def buffer_updated(self, nbytes: int) -> None:
        if self._held is None:
            self._held = []  # what its answers lead to goes out at once
        try:
            for answer in self._frames.feed(bytes(_read_into[:nbytes])):
                self._unanswered -= 1
                self._on_frame(answer)
            self._on_heard()
        except Malformed as e:
            log.warning("signer of store %s: %s", self._store, e)
            self.kill()
        finally:
            self._give_held()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._on_end()

    def send(self, frame_id: int, what: Mapping[str, Any] | bytes) -> None:
        """Give it a frame: an operation with its members, or what is to be signed.

        One that has something to do gets the frames of a turn of the event loop together: they cost
        one write and one read.
        """
        data = sign_frame(frame_id, what) if isinstance(what, bytes) else frame(id=frame_id, **what)
        self._unanswered += 1
        if self._held is not None:
            self._held.append(data)
        else:
            self._held = [data]
            if self._unanswered == 1:
                self._give_held()
            else:
                self._loop.call_soon(self._give_held)

    def _give_held(self) -> None:
        held, self._held = self._held, None
        if held and not self._transport.is_closing():
            self._transport.write(b"".join(held))

    def close(self) -> None:
        """Let it end after what it is doing."""
        self._give_held()
        self._transport.close()

    def kill(self) -> None:
        """End it, hanging or not; `on_end` follows."""
        self._child.kill()
        self._transport.abort()

    def reap(self, within_s: float = END_TIMEOUT_S) -> Future[None]:
        """Wait in a thread until it has ended; it is killed if it takes longer."""
        return _reaping.submit(self._child.wait, within_s)


async def start(
    spawn: Spawn,
    store: str,
    env: Mapping[str, str],
    *,
    on_frame: Callable[[dict[str, Any] | Signed], None],
    on_heard: Callable[[], None],
    on_end: Callable[[], None],
    heir_of: int | None = None,
) -> SignerProcess:
    """A new signer process, whose store isn't open yet.

    Raises:
        OSError: none can be started.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            child = await spawn(theirs, env, heir_of)
        except BaseException:
            ours.close()
            raise
    process = SignerProcess(store, child, on_frame=on_frame, on_heard=on_heard, on_end=on_end)
    await asyncio.get_running_loop().create_unix_connection(lambda: process, sock=ours)
    return process
