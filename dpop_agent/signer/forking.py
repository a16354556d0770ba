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
from contextlib import suppress
from typing import NoReturn

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

_THE_AGENTS_OWN = ("LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")
"""Names, or their beginnings, in an environment that systemd gave the agent alone."""


def serve(channel: socket.socket) -> NoReturn:
    """Fork signers until the agent has gone, and end this process."""
    channel = _keep_only(channel)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for name in list(os.environ):
        if name.startswith(_THE_AGENTS_OWN):
            del os.environ[name]
    os.chdir("/")
    os.setpgid(0, 0)
    harden()
    for name in _NEEDED:
        importlib.import_module(name)
    gc.freeze()  # shared with each signer, as long as nobody writes there
    _take_orders(channel)
    os._exit(0)


def _take_orders(channel: socket.socket) -> None:
    signers: dict[int, int] = {}  # by pidfd
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
            forked = _fork_signer(message["env"], *descriptors) if descriptors else errno.EMFILE
            for given in descriptors:
                os.close(given)
            if isinstance(forked, int):
                answer: tuple[dict[str, int], list[int]] = ({"errno": forked}, [])
            else:
                pidfd, pid = forked
                signers[pidfd] = pid
                poll.register(pidfd, select.POLLIN)
                answer = ({"pid": pid}, [pidfd])
            with suppress(OSError):  # the agent has gone, which is seen next
                forking.send(channel, answer[0], *answer[1])


def _fork_signer(env: dict[str, str], given: int) -> tuple[int, int] | int:
    """Fork a signer that serves the channel on the given descriptor.

    Returns its pidfd and pid, or the number of the error where none can be made.
    """
    try:
        pid = os.fork()
    except OSError as e:
        return e.errno or errno.EAGAIN
    if not pid:
        try:
            _become_signer(env, given)
        finally:
            os._exit(1)
    try:
        return os.pidfd_open(pid), pid
    except OSError as e:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return e.errno or errno.EAGAIN


def _become_signer(env: dict[str, str], given: int) -> NoReturn:
    channel = _keep_only(socket.socket(fileno=given))
    os.environ.update(env)
    harden()
    serving.serve(channel)


def _keep_only(channel: socket.socket) -> socket.socket:
    """Close every descriptor but standard error and the channel.

    Nothing at all is in the place of standard input and output: where they were closed, what a
    vendor's module opens next would come there, and what it prints into that.
    """
    kept = fcntl.fcntl(channel.detach(), fcntl.F_DUPFD_CLOEXEC, 3)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(3, kept)
    os.closerange(kept + 1, limit if limit != resource.RLIM_INFINITY else MAX_DESCRIPTORS)
    return socket.socket(fileno=kept)


def _reap(signers: dict[int, int], pidfd: int) -> None:
    os.waitpid(signers.pop(pidfd), 0)
    os.close(pidfd)


def _end(signers: dict[int, int]) -> None:
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
