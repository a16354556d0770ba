"""Connections are taken in as there is room, and waiting for room costs next to nothing."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import Mock

from dpop_agent.agent.acceptor import PAUSE_S, SOON_S, Acceptor


class FewDescriptors:
    """A listening socket of a process that has room for so many connections."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.made: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, str]:
        if not self.room:
            raise OSError(errno.EMFILE, "Too many open files")
        self.room -= 1
        self.made += socket.socketpair()
        return self.made[-1], ""


class Loop:
    """Does nothing by itself, and notes for how long a pause is."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.readable: Callable[[], None] = lambda: None

    def add_reader(self, _sock: object, then: Callable[[], None]) -> None:
        self.readable = then

    def remove_reader(self, _sock: object) -> None:
        self.readable = lambda: None

    def call_later(self, seconds: float, then: Callable[[], None]) -> None:
        self.pauses.append(seconds)
        self.over = then

    def create_task(self, work: Any) -> Mock:
        work.close()
        return Mock()

    def time(self) -> float:
        return 0.0


def test_the_next_try_is_soon_only_where_some_were_taken_in(monkeypatch: Any) -> None:
    """A pause after each few of a backlog of dead clients once kept others waiting for seconds."""
    loop, listening = Loop(), FewDescriptors(3)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    Acceptor(cast("socket.socket", listening), Mock(), Mock())
    for room in (0, 0, 3, 0):
        loop.readable()
        loop.over()
        listening.room = room
    loop.readable()
    for sock in listening.made:
        sock.close()
    assert len(listening.made) == 2 * 6
    assert loop.pauses == [SOON_S, PAUSE_S, PAUSE_S, SOON_S, PAUSE_S]
