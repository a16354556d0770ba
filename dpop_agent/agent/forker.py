"""The agent's end of the process that forks signers."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import signal
import socket
import weakref
from collections import deque
from collections.abc import Callable, Mapping

from dpop_agent import forking
from dpop_agent.agent.process import END_TIMEOUT_S, Child

SPAWN_TIMEOUT_S = 10.0
"""Seconds for a new process; the first waits until the forking process has loaded all it needs."""

log = logging.getLogger("dpop_agent.forker")


class _Forked:
    """A signer that was forked; whoever forked it reaps it."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        weakref.finalize(self, os.close, pidfd)

    def kill(self) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait(self, within_s: float) -> None:
        if not _ends_within(self._pidfd, within_s):
            self.kill()
            _ends_within(self._pidfd, END_TIMEOUT_S)


class Forker:
    """Forks signers on order.

    Attributes:
        pid: the forking process; None when it has ended.
    """

    def __init__(self, pid: int, channel: socket.socket, *, on_end: Callable[[], None]) -> None:
        """Inside a running event loop.

        Args:
            pid: the process, a child of this one.
            channel: this end of its channel.
            on_end: called if it ends before `close`.
        """
        self.pid: int | None = pid
        self._child = pid
        self._channel = channel
        self._on_end = on_end
        self._ordered: deque[asyncio.Future[Child]] = deque()
        self._loop = asyncio.get_running_loop()
        channel.setblocking(False)
        self._loop.add_reader(channel, self._answered)

    async def spawn(
        self, channel: socket.socket, env: Mapping[str, str], heir_of: int | None = None
    ) -> Child:
        """A new signer, as `process.Spawn` has it.

        Raises:
            OSError
        """
        if self.pid is None:
            raise OSError(errno.ECHILD, "the process that starts signers has ended")
        order = {"env": dict(env), "heir_of": heir_of}
        forking.send(self._channel, order, channel.fileno())
        made: asyncio.Future[Child] = self._loop.create_future()
        self._ordered.append(made)
        try:
            async with asyncio.timeout(SPAWN_TIMEOUT_S):
                return await made
        except TimeoutError:
            raise OSError(
                errno.ETIMEDOUT, "the process that starts signers doesn't answer"
            ) from None

    async def close(self) -> None:
        """End it after the last signer; all channels of signers are closed before."""
        if self.pid is not None:
            self._forget()
            await asyncio.to_thread(_reap, self._child)

    def _answered(self) -> None:
        try:
            answer = forking.receive(self._channel)
        except BlockingIOError:
            return
        except OSError:
            answer = None
        if answer is None:
            self._forget()
            self._loop.run_in_executor(None, _reap, self._child)
            self._on_end()
            return
        message, descriptors = answer
        made = self._ordered.popleft()
        child = _Forked(*descriptors) if descriptors else None
        if made.done():  # nobody waits any more; its channel is closed, and it ends by itself
            return
        if child is None:
            number = message.get("errno", errno.EMFILE)  # without the descriptor: no room for it
            made.set_exception(OSError(number, os.strerror(number)))
        else:
            made.set_result(child)

    def _forget(self) -> None:
        self.pid = None
        self._loop.remove_reader(self._channel)
        self._channel.close()
        for made in self._ordered:
            if not made.done():
                made.set_exception(OSError(errno.ECHILD, "the process that starts signers ended"))
        self._ordered.clear()


def _reap(pid: int) -> None:
    """Wait for the forking process, whose own grace for the last signers is shorter. Blocks."""
    pidfd = os.pidfd_open(pid)
    try:
        if not _ends_within(pidfd, END_TIMEOUT_S):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


def _ends_within(pidfd: int, seconds: float) -> bool:
    """Whether a process has ended by then. Blocks."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
