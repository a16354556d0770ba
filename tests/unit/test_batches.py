"""A signer answers several frames with one write, and lets no answer wait for long by that."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

import pytest

from dpop_agent.channel import Frames, Signed, frame, sign_frame
from dpop_agent.signer.serving import _answer_frames

LATE_S = 20.0
"""Longer than an answer takes that waits for nothing, on the busiest machine."""


class Signer:
    """One that signs at once, or when it may."""

    broken = False
    authority = None

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.waits_at = -1

    def answer(self, request: dict[str, Any] | Signed) -> bytes:
        number = request[0] if isinstance(request, tuple) else request["id"]
        if number == self.waits_at:
            self.may_go_on.wait(LATE_S)
        return sign_frame(number, b"signature")


class Channel:
    """A signer's end of its channel; `waits` says that it has nothing to do."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.waits = threading.Event()

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not flags & socket.MSG_DONTWAIT:
            self.waits.set()
        return self._sock.recv(size, flags)

    def sendall(self, data: bytes) -> None:
        self._sock.sendall(data)


class Story:
    """The agent's end of its channel."""

    def __init__(self, signer: Signer, ours: socket.socket, channel: Channel) -> None:
        self.signer = signer
        self.channel = channel
        self._ours = ours
        self._frames = Frames()

    def send(self, *frames: bytes) -> None:
        """Send them, to a signer that has nothing to do."""
        assert self.channel.waits.wait(LATE_S)
        self.channel.waits.clear()
        self._ours.sendall(b"".join(frames))

    def answered(self, count: int) -> list[int]:
        """The numbers of so many answers, once they are there."""
        found: list[int] = []
        while len(found) < count:
            found += [cast("Signed", one)[0] for one in self._frames.feed(self._ours.recv(65536))]
        return found


@pytest.fixture
def story() -> Iterator[Story]:
    ours, its = socket.socketpair()
    ours.settimeout(LATE_S / 2)
    signer, channel = Signer(), Channel(its)
    thread = threading.Thread(target=_answer_frames, args=(channel, signer))
    thread.start()
    with closing(its), closing(ours):
        yield Story(signer, ours, channel)
        signer.may_go_on.set()
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(LATE_S)


def signs(*numbers: int) -> list[bytes]:
    return [sign_frame(number, b"key\ninput") for number in numbers]


@pytest.mark.parametrize("before", [0, 1, 2, 8, 16])
def test_half_of_what_comes_is_answered_before_the_rest_is_signed(
    story: Story, before: int
) -> None:
    """Whatever was under way before a pause: an answer would wait for one that nobody needs yet."""
    if before:
        story.send(*signs(*range(100, 100 + before)))
        story.answered(before)
    story.signer.waits_at = 2
    story.signer.may_go_on.clear()
    story.send(*signs(1, 2))
    assert story.answered(1) == [1]
    story.signer.may_go_on.set()
    assert story.answered(1) == [2]


def test_an_answer_waits_for_no_operation(story: Story) -> None:
    story.signer.waits_at = 7
    story.signer.may_go_on.clear()
    story.send(*signs(1, 2, 3), frame(id=7, op="generate"), *signs(8, 9, 10))
    assert story.answered(3) == [1, 2, 3]
    story.signer.may_go_on.set()
    assert story.answered(4) == [7, 8, 9, 10]
