"""The cases, and a run of one: its servers, its agent, its faults."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dpop_agent.client import AgentClient
from tests.kit import judge
from tests.kit.servers import Servers
from tests.unit.agent_in_process import AgentInProcess

FOLDER = Path(__file__).parent / "cases"

Case = dict[str, Any]


def cases() -> dict[str, Case]:
    """All cases by name."""
    found: dict[str, Case] = {}
    for file in sorted(FOLDER.glob("*.json")):
        for case in json.loads(file.read_text("utf-8")):
            assert case["name"] not in found, f"two cases are called {case['name']}"
            found[case["name"]] = {**case, "needs": case.get("needs", [])}
    return found


class Kit:
    """An agent that has the keys that cases name; each run has servers of its own.

    Attributes:
        socket: the path of the agent's socket.
    """

    def __init__(self) -> None:
        self._agent = AgentInProcess()
        self.cases = cases()
        self._ports: set[int] = set()

    def __enter__(self) -> Self:
        self._agent.__enter__()
        self.socket = self._agent.socket
        with AgentClient(self._agent.admin_socket) as admin:
            for key, origins in (
                ("default", []),
                ("shop", []),
                ("suspended", []),
                ("elsewhere", ["https://elsewhere.example"]),
            ):
                admin.call("key.create", {"key": key, "store": "dict", "origins": origins})
            (draining,) = admin.keys("default")[0]["generations"]
            admin.call("key.rotate", {"key": "default"})
            admin.call("key.suspend", {"key": "suspended", "generation": 1})
            self._jkts = {
                "draining": draining["jkt"],
                "active": admin.generation("default").jkt,
                "shop": admin.generation("shop").jkt,
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._agent.__exit__(kind, error, trace)

    def begin(self, case: Case) -> Run:
        """Have servers that follow the case's script."""
        return Run(case, self._jkts, self._ports)


class Run:
    """One case under way.

    Attributes:
        case: with its places filled in.
        places: each server's origin.
    """

    def __init__(self, case: Case, jkts: dict[str, str], ports: set[int]) -> None:
        self._servers = Servers(ports=ports)
        hosts = self._servers.hosts
        self.places = {place: f"http://{host}" for place, host in hosts.items()}
        names = {
            **self.places,
            **{f"{place}.host": host for place, host in hosts.items()},
            **jkts,
        }
        self.case: Case = _filled(case, {f"{{{name}}}": value for name, value in names.items()})
        client = self.case["client"] = {"key": "default", **self.case.get("client", {})}
        client["origins"] = [names["as"], names["api"], *client.get("origins", [])]
        client["token_endpoint"] = f"{names['as']}/token"
        self._servers.follow(self.case.get("answers", []))
        self.release = self._servers.release

    def end(self, came: list[dict[str, Any]]) -> list[str]:
        """The faults, once the client has done all requests and is closed."""
        self.close()
        return judge.faults(self.case, came, self._servers)

    def close(self) -> None:
        """End the servers."""
        self._servers.__exit__(None, None, None)


def _filled(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace(name, text)
        return value
    if isinstance(value, list):
        return [_filled(each, names) for each in value]
    if isinstance(value, dict):
        return {name: _filled(each, names) for name, each in value.items()}
    return value
