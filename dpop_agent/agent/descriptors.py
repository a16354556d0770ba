"""How many connections there can be: as many as this process may open files, less its own.

Each socket has a part that no client of another one takes; the further ones share the rest. No uid
has one of its own: only the agent's gets as far as being counted.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from typing import NamedTuple

from dpop_agent import paths
from dpop_agent.errors import ConfigurationError, TooManyConnections

USUAL_CONNECTIONS = 512
"""Connections on `agent.sock` where the configuration doesn't say."""

ADMIN_CONNECTIONS = 64
"""Connections on `admin.sock`, to which those on `agent.sock` leave room."""

FURTHER_CONNECTIONS = 256
"""Those on all further sockets together, beside the reserved ones, to which those on `agent.sock`
leave room; more where one of them may have more."""

RESERVED = 4
"""Connections of each further socket that no client of another takes, where so many files may be
open."""

RETRY_MS = 1000
"""Milliseconds after which who found no room may try again: programs that ask for one proof are
gone by then."""

_OWN = 20  # the agent's sockets and locks, and some for what is opened for a moment
_SIGNER = 4
_SOCKET = 2  # a filtered one listens, and has a lock


class Room(NamedTuple):
    """The most connections that may be open at once.

    Attributes:
        agent: on `agent.sock`.
        admin: on `admin.sock`.
        each: on each further socket.
        further: on all of those together, beside the reserved ones.
        reserved: on each of those, whatever others have.
    """

    agent: int
    admin: int
    each: int
    further: int
    reserved: int

    def require(self, open_now: Mapping[str, int], socket: str) -> None:
        """Let another connection pass on a socket, given how many each has.

        Raises:
            TooManyConnections
        """
        own = {paths.AGENT: self.agent, paths.ADMIN: self.admin}
        here = open_now.get(socket, 0)
        full = here >= own.get(socket, self.each)
        if not full and socket not in own and here >= self.reserved:
            counts = (count for name, count in open_now.items() if name not in own)
            full = sum(max(0, count - self.reserved) for count in counts) >= self.further
        if full:
            raise TooManyConnections(
                "as many connections are open here as can be",
                hint="close some, or try again later",
                retry_after_ms=RETRY_MS,
            )


def open_now() -> int:
    """How many files this process has open; whoever started it may have left some."""
    return len(os.listdir("/dev/fd"))


def make_room(
    connections: int | None, *, each: int, signers: int, filtered: int, others: int
) -> Room:
    """Raise the limit of open files as far as is needed, and say what fits in.

    Args:
        connections: how many are wanted on `agent.sock`; None for the usual number, or fewer.
        each: how many are wanted on each further socket, or fewer.
        signers: how many there are, of all stores.
        filtered: how many filtered sockets there are.
        others: how many files were open at the start.

    Raises:
        ConfigurationError: so many don't fit.
    """
    own = others + _OWN + _SIGNER * signers + _SOCKET * filtered
    wanted = connections or USUAL_CONNECTIONS
    sockets = filtered + 1  # with the one in `mount`
    wanted_further = max(FURTHER_CONNECTIONS, each) + RESERVED * sockets
    limit = _raise_limit(own + ADMIN_CONNECTIONS + wanted_further + wanted)
    room = limit - own
    admin = min(ADMIN_CONNECTIONS, room // 8)
    least = max(room // 8, min(RESERVED * sockets, room // 4))
    further = min(wanted_further, max(least, room - admin - wanted))
    reserved = min(RESERVED, further // sockets)
    if connections is not None and connections > room - admin - further:
        raise ConfigurationError(
            f"agent.max_connections is {connections}, and this process may open {limit} files: "
            f"room for {max(0, room - admin - further)} connections",
            hint="raise the limit (ulimit -n, LimitNOFILE=), or lower max_connections",
        )
    if admin < 1:
        raise ConfigurationError(
            f"this process may open {limit} files, too few for {signers} signers and clients",
            hint=f"raise the limit (ulimit -n, LimitNOFILE=) to {own + 64} or more",
        )
    shared = further - reserved * sockets
    return Room(
        min(wanted, room - admin - further), admin, min(each, reserved + shared), shared, reserved
    )


def _raise_limit(needed: int) -> int:
    """Have the soft limit be what is needed, or the hard one; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed if soft == resource.RLIM_INFINITY else soft
    new = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (new, hard))
    except (OSError, ValueError):  # macOS has another limit beside these
        return soft
    return new
