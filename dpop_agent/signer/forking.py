"""The process that forks signers (`dpop_agent.forking` says why there is one).

It has imported all that signers need, so that an upgrade mixes no versions, but no vendor's module:
PKCS#11 modules may not be touched after a fork. It has one thread, opens nothing, and takes orders
from the agent alone.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import importlib
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple, NoReturn

from dpop_agent import forking
from dpop_agent.hardening import harden
from dpop_agent.signer import serving

GRACE_S = 5.0
"""Seconds that signers have to finish what they do when the agent has gone: slow cards log in for
4, and a key pair that was cut short leaves half an object."""

MAX_DESCRIPTORS = 1 << 20
"""Linux's own limit of descriptors, where there is no lower one."""

_NEEDED = (
    "dpop_agent.config",
    "dpop_agent.signer.pkcs11.slots",
    "dpop_agent.signer.keychain.store",
    "keyring.core",
    "keyring.backends.SecretService",
    "secretstorage",
)
"""What signers import when they come to it."""


def serve(channel: socket.socket) -> NoReturn:
    """Fork signers until the agent has gone, and end this process."""
    (channel,) = _keep_only(channel)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    os.setpgid(0, 0)
    harden()
    for name in _NEEDED:
        importlib.import_module(name)
    gc.freeze()  # shared with each signer, as long as nobody writes there
    _take_orders(channel)
    os._exit(0)


class _Signer(NamedTuple):
    """One that runs, and this end of the line to it, over which it gets ends of pairs."""

    pid: int
    line: socket.socket


def _take_orders(channel: socket.socket) -> None:
    signers: dict[int, _Signer] = {}  # by pidfd
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in signers:
                poll.unregister(descriptor)
                _reap(signers, descriptor)
                continue
            order = forking.receive(channel)
            if order is None:
                _end(signers)
                return
            message, descriptors = order
            try:
                giver = _giver(signers, message["heir_of"])
                pidfd, signer = _fork_signer(message["env"], _line(giver), descriptors)
            except OSError as e:
                answer: tuple[dict[str, int], list[int]] = ({"errno": e.errno or errno.EAGAIN}, [])
            else:
                signers[pidfd] = signer
                poll.register(pidfd, select.POLLIN)
                answer = ({"pid": signer.pid}, [pidfd])
            for given in descriptors:
                os.close(given)
            with suppress(OSError):  # the agent has gone, which is seen next
                forking.send(channel, answer[0], *answer[1])


def _giver(signers: Mapping[int, _Signer], heir_of: int | None) -> _Signer | None:
    """The signer that has what a new one is to open its store with, if there is to be one.

    Raises:
        OSError: it has ended.
    """
    if heir_of is None:
        return None
    for signer in signers.values():
        if signer.pid == heir_of:
            return signer
    raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))


def _line(giver: _Signer | None) -> tuple[socket.socket, socket.socket]:
    """A line to a new signer, our end and its own; with a giver, both find the ends of their pair
    on their lines.

    Raises:
        OSError: the giver has ended, or reads nothing.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)  # a giver that hangs reads nothing
    if giver is None:
        return ours, theirs
    try:
        given, inherited = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with given, inherited:  # no end stays here
            forking.send(ours, {}, inherited.fileno())
            forking.send(giver.line, {}, given.fileno())
    except OSError:
        ours.close()
        theirs.close()
        raise
    return ours, theirs


def _fork_signer(
    env: dict[str, str], line: tuple[socket.socket, socket.socket], given: list[int]
) -> tuple[int, _Signer]:
    """Fork a signer that serves the channel on the one given descriptor.

    Returns its pidfd and it.

    Raises:
        OSError: none can be made.
    """
    ours, theirs = line
    try:
        pid = _fork(given)
        if not pid:
            try:
                _become_signer(env, given[0], theirs)
            finally:
                os._exit(1)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return pidfd, _Signer(pid, ours)


def _fork(given: list[int]) -> int:
    if not given:  # the order's descriptor found no room here
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return os.fork()


def _become_signer(env: dict[str, str], given: int, line: socket.socket) -> NoReturn:
    channel, line = _keep_only(socket.socket(fileno=given), line)
    os.environ.update(env)
    harden()
    serving.serve(channel, line)


def _keep_only(*sockets: socket.socket) -> list[socket.socket]:
    """Close every descriptor but standard error and these.

    Nothing at all is in the place of standard input and output: where they were closed, what a
    vendor's module opens next would come there, and what it prints into that.
    """
    kept = [fcntl.fcntl(one.detach(), fcntl.F_DUPFD_CLOEXEC, 3) for one in sockets]  # ascending
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    end = limit if limit != resource.RLIM_INFINITY else MAX_DESCRIPTORS
    for low, high in pairwise([2, *kept, end]):
        os.closerange(low + 1, high)
    return [socket.socket(fileno=one) for one in kept]


def _reap(signers: dict[int, _Signer], pidfd: int) -> None:
    pid, line = signers.pop(pidfd)
    os.waitpid(pid, 0)
    os.close(pidfd)
    line.close()


def _end(signers: dict[int, _Signer]) -> None:
    """The agent has gone: signers that hang don't outlive their grace."""
    deadline = time.monotonic() + GRACE_S
    while signers:
        left_s = max(0.0, deadline - time.monotonic())
        ended, _, _ = select.select(list(signers), [], [], left_s)
        for pidfd in ended:
            _reap(signers, pidfd)
        if not ended:
            for pidfd in signers:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            deadline = float("inf")
