"""`explain`: what is wrong with a response, with what the agent knows of its keys."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dpop_agent.client.explaining.case import Known, Sources
from dpop_agent.client.explaining.findings import Explanation
from dpop_agent.client.explaining.responses import of_response
from dpop_agent.client.explaining.verdict import explained

if TYPE_CHECKING:
    from dpop_agent.client.sync import AgentClient


def explain(
    response: object,
    *,
    agent: AgentClient | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Explanation:
    """Say what is wrong with a request and its response, likeliest first.

    `print(explain(response))` is what `dpop-agent explain` prints; there is no secret in it. A body
    that wasn't read stays unread, and signatures aren't checked.

    Args:
        response: one of httpx, httpx2, requests or aiohttp, which has only just come.
        agent: asked which keys there are, tombstones included; by default nobody is.
        metadata: the authorization server's (RFC 8414), as its JSON has it.

    Raises:
        ValueError: `response` is none of these.
        DPoPAgentError: the agent doesn't answer.
    """
    known = None if agent is None else generations(agent.keys(include_destroyed=True))
    now = time.time()
    return explained(
        of_response(response), Sources(known=known, metadata=metadata, now=now, latest=now)
    )


def generations(keys: Iterable[Mapping[str, Any]]) -> list[Known]:
    """All generations of some keys, as `AgentClient.keys` has them."""
    return [
        Known(key["key"], generation["generation"], generation["state"], generation["jkt"])
        for key in keys
        for generation in key["generations"]
        if generation["jkt"] is not None
    ]
