"""How many connections there can be: as many as this process may open files, less its own."""

from __future__ import annotations

import os
import resource
from typing import NamedTuple

from dpop_agent.errors import ConfigurationError

USUAL_CONNECTIONS = 512
"""Connections on `agent.sock` where the configuration doesn't say."""

ADMIN_CONNECTIONS = 64
"""Connections on `admin.sock`, to which those on `agent.sock` leave room."""

_OWN = 20  # the agent's sockets and locks, and some for what is opened for a moment
_SIGNER = 4


class Room(NamedTuple):
    """The most connections that may be open at once, on either socket."""

    agent: int
    admin: int


def open_now() -> int:
    """How many files this process has open; whoever started it may have left some."""
    return len(os.listdir("/dev/fd"))


def make_room(connections: int | None, *, signers: int, others: int) -> Room:
    """Raise the limit of open files as far as is needed, and say what fits in.

    Args:
        connections: how many are wanted on `agent.sock`; None for the usual number, or fewer.
        signers: how many there are, of all stores.
        others: how many files were open at the start.

    Raises:
        ConfigurationError: so many don't fit.
    """
    own = others + _OWN + _SIGNER * signers
    wanted = connections or USUAL_CONNECTIONS
    limit = _raise_limit(own + ADMIN_CONNECTIONS + wanted)
    room = limit - own
    admin = min(ADMIN_CONNECTIONS, room // 8)
    if connections is not None and connections > room - admin:
        raise ConfigurationError(
            f"agent.max_connections is {connections}, and this process may open {limit} files: "
            f"room for {max(0, room - admin)} connections",
            hint="raise the limit (ulimit -n, LimitNOFILE=), or lower max_connections",
        )
    if admin < 1:
        raise ConfigurationError(
            f"this process may open {limit} files, too few for {signers} signers and clients",
            hint=f"raise the limit (ulimit -n, LimitNOFILE=) to {own + 64} or more",
        )
    return Room(min(wanted, room - admin), admin)


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
