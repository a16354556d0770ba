"""Sixteen requests at once, at a server that wants a nonce in each proof: one challenge, not 16."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from dpop_agent.client import AsyncAgentClient, AsyncDPoPTransport
from tests.agent.places import hurried, until_open
from tests.processes import Agent, NodeServer
from tests.servers.application import (
    CONFIDENTIAL,
    Application,
    over_httpx,
    over_requests,
)
from tests.servers.test_oidc_provider import responses

AT_ONCE = 16
PATIENT = ["trials.TRY_S=60"]  # however slow the machine, the first answer comes before that

Ask = Callable[[Agent, NodeServer], list[int]]


def over(library: Callable[..., object]) -> Ask:
    """Each request as a process of its own makes it."""

    def ask(agent: Agent, server: NodeServer) -> list[int]:
        def one(_: int) -> int:
            with agent.client() as client:
                http = library(client, "default", server.origin)
                return Application(http, server).client_credentials().status  # type: ignore[arg-type]

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(one, range(AT_ONCE)))

    return ask


def over_asyncio(agent: Agent, server: NodeServer) -> list[int]:
    async def ask() -> list[int]:
        async with AsyncAgentClient(agent.socket) as client:
            transport = AsyncDPoPTransport(client, origins=[server.origin])
            async with httpx.AsyncClient(transport=transport, timeout=60) as http:
                form = {"grant_type": "client_credentials"}
                asked = [
                    http.post(
                        f"{server.origin}/token", data=form, auth=CONFIDENTIAL.auth or ("", "")
                    )
                    for _ in range(AT_ONCE)
                ]
                return [response.status_code for response in await asyncio.gather(*asked)]

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "ask",
    [over(over_httpx), over(over_requests), over_asyncio],
    ids=["httpx", "requests", "asyncio"],
)
def test_sixteen_at_once_cost_one_challenge_at_first_and_one_after_the_agents_restart(
    ask: Ask, make_agent: Callable[..., Agent], new_authorization_server: NodeServer
) -> None:
    agent = make_agent(preexec=hurried(*PATIENT)).start()
    agent.create_key("default")
    for challenges in (1, 1, 1):
        assert ask(agent, new_authorization_server) == [200] * AT_ONCE
        assert responses(new_authorization_server, "/token").count(400) == challenges
    agent.stop()
    agent.start()
    until_open(agent)
    for _ in range(2):
        assert ask(agent, new_authorization_server) == [200] * AT_ONCE
        assert responses(new_authorization_server, "/token").count(400) == 2
