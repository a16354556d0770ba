"""What there is at this moment, for a shell that completes a word: nothing is started to find out.

The agent is asked, for it alone knows what its sockets give; but only where a process serves the
socket. Where systemd listens there, to connect would start the agent.
"""

from __future__ import annotations

import os
import sys

from dpop_agent import paths
from dpop_agent.alarm import limited

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from dpop_agent.cli.calls import Key
    from dpop_agent.client import AgentClient

    T = TypeVar("T")

BOUND_S = 0.5
"""Seconds that somebody who pressed a key waits for an agent that doesn't answer."""


class _TooLate(Exception):
    """The agent said nothing in time."""


def keys(name: str | None = None, *, include_destroyed: bool = False) -> list[Key]:
    """All keys, or the one of that name; none where no agent answers."""
    return _asked(
        paths.agent_socket(),
        lambda agent: agent.keys(name, include_destroyed=include_destroyed),
        instead=[],
    )


def stores() -> dict[str, str]:
    """The agent's stores, each with its state."""
    found = _status().get("stores", [])
    return {store["store"]: store["state"] for store in found}


def sockets() -> dict[str, str]:
    """The filtered sockets, each with its keys."""

    def listed(agent: AgentClient) -> dict[str, str]:
        found: dict[str, str] = {}
        params: dict[str, Any] | None = {}
        while params is not None:
            result = agent.call("socket.list", params)
            found |= {s["socket"]: ", ".join(s["keys"]) for s in result["sockets"]}
            params = {"cursor": result["cursor"]} if "cursor" in result else None
        return found

    return _asked(paths.admin_socket(paths.agent_socket()), listed, instead={})


def recorded() -> list[str]:
    """The sockets of which the audit has something."""
    from dpop_agent.protocol import KEY_NAME

    folder = paths.state_folder()
    if "DPOP_AGENT_STATE_DIR" not in os.environ and (ledger := _status().get("ledger")):
        folder = os.path.dirname(ledger)
    try:
        names = map(paths.socket_of, os.listdir(paths.audit_folder(folder)))
    except OSError:
        return []
    return sorted(name for name in names if name is not None and KEY_NAME.fullmatch(name))


def settings(*, set_ones: bool) -> list[str]:
    """The names of the settings that the configuration has, or of all that it may have."""
    import tomllib

    from dpop_agent import config
    from dpop_agent.cli import setting
    from dpop_agent.errors import DPoPAgentError

    try:
        table = tomllib.loads(config.read(paths.config_file()))
    except (DPoPAgentError, ValueError, RecursionError):
        return []
    return [
        name
        for name, (place, _) in setting.known(table).items()
        if (place[0] != "stores" or config.STORE_NAME.fullmatch(place[1]))
        and (not set_ones or _is_in(table, place))
    ]


def _is_in(table: Any, place: Iterable[str]) -> bool:
    for step in place:
        if not isinstance(table, dict) or step not in table:
            return False
        table = table[step]
    return True


def _status() -> dict[str, Any]:
    return _asked(paths.agent_socket(), lambda agent: agent.status(), instead={})


def _asked(socket: str, question: Callable[[AgentClient], T], *, instead: T) -> T:
    """What the agent answers at that socket; `instead` where none does within the bound."""
    if not is_served(socket):
        return instead
    from dpop_agent.client.sync import AgentClient

    try:
        with limited(BOUND_S, _TooLate), AgentClient(socket, timeout=BOUND_S) as agent:
            return question(agent)
    except Exception:  # noqa: BLE001, RUF100  (whatever it is, a word is being typed)
        return instead


def is_served(socket: str) -> bool:
    """Whether a process of the agent serves that socket, as far as can be told without connecting.

    In a container nobody can tell, so nothing is asked there.
    """
    if paths.socket_at(socket) is None:
        return False
    if sys.platform != "linux":
        return True  # no systemd listens there
    from dpop_agent.agent.lock import is_held

    filtered = paths.filtered_lock(*os.path.split(os.path.dirname(socket)))
    return any(map(is_held, (paths.socket_lock(socket), paths.mounted_lock(socket), filtered)))
