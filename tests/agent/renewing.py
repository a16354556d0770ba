"""An application in a process of its own, which shares its access token with others.

    python -m tests.agent.renewing sync|async ORIGIN STORE

asks for ORIGIN/me whenever a line comes on standard input, and prints the status. It logs in and
refreshes at ORIGIN/token, and says its pid with each request.
"""

from __future__ import annotations

import asyncio
import os
import sys

import httpx

from dpop_agent.client import (
    AgentClient,
    AsyncAgentClient,
    AsyncDPoPAuth,
    AsyncDPoPTransport,
    BoundToken,
    DPoPAuth,
    DPoPTransport,
    TokenStore,
)

PID = {"Pid": str(os.getpid())}


def form(old: BoundToken | None) -> dict[str, str]:
    if old is None:
        return {"grant_type": "login"}
    assert old.refresh_token
    return {"grant_type": "refresh_token", "refresh_token": old.refresh_token}


def granted(response: httpx.Response) -> BoundToken:
    body = response.raise_for_status().json()
    return BoundToken.from_response(body, jkt=response.extensions["dpop"].jkt)


def work(origin: str, store: str) -> None:
    transport = DPoPTransport(AgentClient(), origins=[origin])
    with httpx.Client(transport=transport, headers=PID, timeout=60) as http:

        def renew(old: BoundToken | None) -> BoundToken:
            return granted(http.post(f"{origin}/token", data=form(old)))

        auth = DPoPAuth(renew, store=TokenStore(store))
        for _ in sys.stdin:
            print(http.get(f"{origin}/me", auth=auth).status_code, flush=True)


async def work_async(origin: str, store: str) -> None:
    transport = AsyncDPoPTransport(AsyncAgentClient(), origins=[origin])
    async with httpx.AsyncClient(transport=transport, headers=PID, timeout=60) as http:

        async def renew(old: BoundToken | None) -> BoundToken:
            return granted(await http.post(f"{origin}/token", data=form(old)))

        auth = AsyncDPoPAuth(renew, store=TokenStore(store))
        while await asyncio.to_thread(sys.stdin.readline):
            response = await http.get(f"{origin}/me", auth=auth)
            print(response.status_code, flush=True)


if __name__ == "__main__":
    how, *where = sys.argv[1:]
    if how == "sync":
        work(*where)
    else:
        asyncio.run(work_async(*where))
