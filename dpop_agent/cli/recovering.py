"""`key adopt --all`: keys whose ledger was lost, by the labels of what is in the stores."""

from __future__ import annotations

from dpop_agent.cli import calls, output
from dpop_agent.errors import DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

_LOST = (
    "What they may be used for is lost, and so is when they were used and for whom, how long they "
    "drain, and which were compromised or destroyed. Resume those that you know are good:"
)


def adopt_all(args: Namespace) -> int:
    """Adopt what there is in one store or in all, suspended; what can't be is told and left."""
    names = [args.store] if args.store else _stores()
    told, failed = [], None
    for store in names:
        try:
            told.append(_adopted(store, args.alg))
        except DPoPAgentError as e:
            failed = failed or e
            told.append({"store": store, "error": e.to_wire()})
    calls.answer(args, {"stores": told}, _lines(told))
    if failed is not None:
        raise failed
    return 0


def _stores() -> list[str]:
    """All of them, in the order of the configuration."""
    from dpop_agent import paths
    from dpop_agent.client.sync import AgentClient

    with AgentClient(paths.agent_socket()) as agent:
        return [store["store"] for store in agent.status()["stores"]]


def _adopted(store: str, alg: str | None) -> dict[str, Any]:
    """What of a store was adopted, in as many answers as it takes."""
    params = {"store": store} | ({} if alg is None else {"alg": alg})
    whole = page = calls.admin_call("key.adopt_all", params)
    while "cursor" in page:
        page = calls.admin_call("key.adopt_all", params | {"cursor": page["cursor"]})
        for member in ("adopted", "left"):
            whole[member] += page[member]
    whole.pop("cursor", None)
    return whole


def _lines(told: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    keys: list[str] = []
    for store in told:
        if "error" in store:
            continue
        lines += _of_store(store)
        keys += [found["key"] for found in store["adopted"]]
    if keys:
        lines += ["", _LOST]
        lines += [
            f"dpop-agent key resume {key} --origin ORIGIN (or --any-origin)"
            for key in dict.fromkeys(keys)
        ]
    return [output.plain(line) for line in lines]


def _of_store(store: dict[str, Any]) -> list[str]:
    name, others = store["store"], store["others"]
    if not store["listed"]:
        return [f"{name}: it can't say which keys it has, so none is found there"]
    lines = [f"{name}: nothing to adopt"] if not store["adopted"] else []
    lines += [
        f"{name}: {found['key']}@{found['generation']} is suspended, jkt {found['jkt']}"
        for found in store["adopted"]
    ]
    lines += [
        f"{name}: {found['label']!r} with the id {found['ref'] or '-'} is left alone: "
        f"{found['reason']}"
        for found in store["left"]
    ]
    if others:
        lines.append(
            f"{name}: {others} more private key{'' if others == 1 else 's'} without a label of "
            f"dpop-agent's; see dpop-agent status"
        )
    return lines
