"""What agents that are gone left behind, and nothing that may be another program's."""

from __future__ import annotations

import os
import time
from shlex import quote

from dpop_agent import paths
from dpop_agent.channel import is_secret_socket
from dpop_agent.cli.checks.finding import OK, WARNING, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

CHECK = "leftovers"

UNDER_WAY_S = 60.0
"""Seconds after which a file that is to replace another was forgotten."""


def leftovers(
    *, state_folder: str, agent_socket: str, stores: Collection[str] | None, runs: bool
) -> list[Finding]:
    """Temporary files, locks of stores that are gone, sockets at which nobody listens.

    Args:
        state_folder: the agent's.
        agent_socket: its socket.
        stores: all that it may have; None where nobody knows.
        runs: whether it does; the next start tidies up after one that was killed.
    """
    files = [*_temporary(state_folder, runs=runs)]
    if stores is not None:
        files += _locks(state_folder, stores)
    sockets = [*_dead_sockets(agent_socket)]
    found = []
    if files or (runs and sockets):
        left = files + sockets * runs
        what = f"left by an agent that is gone: {', '.join(left)}"
        found.append(Finding(CHECK, WARNING, what, f"rm {' '.join(map(quote, left))}"))
    if sockets and not runs:
        what = f"left by an agent that was killed: {', '.join(sockets)}"
        found.append(Finding(CHECK, WARNING, what, "the next one tidies up: dpop-agent serve"))
    return found or [Finding(CHECK, OK, "none")]


def _temporary(folder: str, *, runs: bool) -> Iterator[str]:
    from dpop_agent.agent.ledger import FILE, USES

    for name in (FILE, USES):
        path = os.path.join(folder, name + paths.NEW)
        try:
            age_s = time.time() - os.lstat(path).st_mtime
        except OSError:
            continue
        if not runs or abs(age_s) > UNDER_WAY_S:
            yield path


def _locks(folder: str, stores: Collection[str]) -> Iterator[str]:
    for name in _names(folder):
        store = paths.store_of_lock(name)
        if store is not None and store not in stores:
            yield os.path.join(folder, name)


def _dead_sockets(agent_socket: str) -> Iterator[str]:
    """Those named as an agent's are, at which nobody listens."""
    from dpop_agent.agent.listener import is_dead

    folder = os.path.dirname(agent_socket)
    own = [agent_socket, paths.admin_socket(agent_socket), paths.mounted_socket(agent_socket)]
    own += [os.path.join(folder, name) for name in _names(folder) if is_secret_socket(name)]
    filtered = paths.filtered_sockets(agent_socket)
    own += [paths.filtered_socket(agent_socket, name) for name in _names(filtered)]
    for path in own:
        if paths.socket_at(path) is not None and is_dead(path):
            yield path


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
