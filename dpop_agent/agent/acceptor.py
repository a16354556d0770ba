"""Takes connections in from a listening socket, while there is room.

Not asyncio's own: where descriptors run out, that one writes a line for each of the backlog, again
and again, each time twice as many.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from dpop_agent.agent.connection import Connection
from dpop_agent.errors import DPoPAgentError, TooManyConnections, UnsafeSocket
from dpop_agent.peer import Peer, peer_of, require_own_uid
from dpop_agent.protocol import encode_error

log = logging.getLogger("dpop_agent.acceptor")

AT_ONCE = 16
"""Connections that are taken in before others have their turn."""

PAUSE_S = 0.2
"""Seconds until the next try where the system has no room for a connection."""

SOON_S = 0.01
"""The same after some were taken in: with few descriptors left, a backlog of clients that went
is worked off a few at a time."""

QUIET_S = 60.0
"""Seconds in which that is told once."""


class Acceptor:
    """Takes connections in, one after the other.

    Args:
        listening: a socket that listens and doesn't block; it is closed with this.
        connect: makes a connection of a peer's, and counts it in; raises TooManyConnections where
            there is no room.
        refused: told of each peer that isn't let in, and why.
    """

    def __init__(
        self,
        listening: socket.socket,
        connect: Callable[[Peer], Connection],
        refused: Callable[[Peer, DPoPAgentError], None],
    ) -> None:
        self._listening = listening
        self._connect = connect
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._taking: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._told: float | None = None
        self._go_on()

    async def close(self) -> None:
        """Take no more in; those that were are connections now."""
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        if self._taking:
            await asyncio.wait(self._taking)

    def _go_on(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for taken in range(AT_ONCE):
            try:
                sock, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:
                self._pause(e, SOON_S if taken else PAUSE_S)
                return
            sock.setblocking(False)
            self._take_in(sock)

    def _pause(self, error: OSError, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._paused = self._loop.call_later(seconds, self._go_on)
        now = self._loop.time()
        if self._told is None or now > self._told + QUIET_S:
            log.warning("no connection can be taken in for now: %s", error.strerror)
            self._told = now

    def _take_in(self, sock: socket.socket) -> None:
        try:
            peer = peer_of(sock)
        except OSError as e:
            log.warning("refused a connection: %s", e)
            sock.close()
            return
        try:
            require_own_uid(peer, what="the program that connected")
            connection = self._connect(peer)
        except UnsafeSocket as e:
            log.warning("refused a connection: %s", e)
            sock.close()
            self._refused(peer, e)
            return
        except TooManyConnections as e:
            _refuse(sock, e)
            self._refused(peer, e)
            return
        task = self._loop.create_task(self._start(connection, sock))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _start(self, connection: Connection, sock: socket.socket) -> None:
        await self._loop.connect_accepted_socket(lambda: connection, sock)


def _refuse(sock: socket.socket, error: DPoPAgentError) -> None:
    """Say why, and close; it takes no descriptor longer than that."""
    with sock:
        try:
            sock.send(encode_error(None, error))
        except OSError:
            pass  # it went
