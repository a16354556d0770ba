"""httpx2: what the kit can't have, since it is about several transports, loops and libraries."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx
import httpx2
import pytest
import trio

from dpop_agent.client import AgentClient, AsyncAgentClient, BoundToken
from dpop_agent.client import httpx as with_httpx
from dpop_agent.client import httpx2 as with_httpx2
from dpop_agent.client.httpx2 import AsyncDPoPAuth, DPoPAuth, DPoPTransport
from dpop_agent.errors import ConfigurationError
from tests.unit.fake_agent import JKT, FakeAgent
from tests.unit.fake_server import FakeServer, Reply, Seen

HELD = BoundToken("geheim", JKT)
FORM = {"refresh_token": "geheim"}
PUBLIC = ("AsyncDPoPAuth", "AsyncDPoPTransport", "DPoPAuth", "DPoPTransport")


def handle(seen: Seen) -> Reply:
    if seen.path.startswith("/307/"):
        return Reply(307, Location=seen.path.removeprefix("/307/"))
    return Reply(200, b"here")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(handle) as made:
        yield made


def never(old: BoundToken | None) -> BoundToken:
    raise AssertionError("no renewal is due")


def inner() -> httpx2.HTTPTransport:
    return httpx2.HTTPTransport(verify=False)


@pytest.mark.parametrize("mounted", [False, True])
def test_an_access_token_goes_by_no_transport_of_httpx2_and_nothing_is_sent(
    client: AgentClient, server: FakeServer, mounted: bool
) -> None:
    ours = DPoPTransport(client, origins=[server.origin], transport=inner())
    transports: dict[str, Any] = (
        {"transport": ours, "mounts": {"all://": inner()}} if mounted else {"transport": inner()}
    )
    with httpx2.Client(**transports) as http:
        auth = DPoPAuth(never, token=HELD)
        with pytest.raises(ConfigurationError, match="isn't DPoPTransport") as caught:
            http.post(server.origin, data=FORM, auth=auth)
    assert "geheim" not in f"{caught.value!r} {caught.value.__context__!r}"
    assert server.seen == []


def test_a_transport_of_httpx2_is_given_no_body_of_a_signed_request(
    client: AgentClient, server: FakeServer
) -> None:
    ours = DPoPTransport(client, origins=[server.origin], transport=inner())
    with (
        FakeServer(handle) as other,
        httpx2.Client(mounts={server.origin: ours}, verify=False, follow_redirects=True) as http,
    ):
        with pytest.raises(ConfigurationError, match="redirect"):
            http.post(f"{server.origin}/307/{other.origin}/", data=FORM)
        assert other.seen == []
        assert http.get(f"{server.origin}/307/{other.origin}/").text == "here"


@pytest.mark.parametrize("name", PUBLIC)
def test_both_libraries_have_the_same_names_and_say_what_they_do(name: str) -> None:
    assert getattr(with_httpx, name).__doc__ == getattr(with_httpx2, name).__doc__ is not None
    assert issubclass(
        getattr(with_httpx2, name),
        httpx2.Auth | httpx2.BaseTransport | httpx2.AsyncBaseTransport,
    )


def test_an_auth_for_the_other_kind_of_client_names_the_one_to_use(client: AgentClient) -> None:
    async def anever(old: BoundToken | None) -> BoundToken:
        raise AssertionError("no renewal is due")

    with httpx2.Client(transport=inner()) as http, pytest.raises(ConfigurationError) as caught:
        http.get("http://127.0.0.1/", auth=AsyncDPoPAuth(anever))
    assert "httpx2.AsyncClient" in caught.value.message

    async def main() -> None:
        async with httpx2.AsyncClient(verify=False) as ahttp:
            with pytest.raises(ConfigurationError, match=r"is for httpx2\.Client"):
                await ahttp.get("http://127.0.0.1/", auth=DPoPAuth(never))

    asyncio.run(main())


# --- one auth, several event loops


@asynccontextmanager
async def signing(
    theirs: Any, ours: Any, agent: FakeAgent, server: FakeServer
) -> AsyncIterator[Any]:
    """An async client of that library, whose requests to the server are signed."""
    async with AsyncAgentClient(agent.path) as client:
        transport = ours.AsyncDPoPTransport(
            client,
            origins=[server.origin],
            transport=theirs.AsyncHTTPTransport(verify=False),
        )
        async with theirs.AsyncClient(transport=transport) as http:
            yield http


@pytest.mark.parametrize(
    ("theirs", "ours"), [(httpx, with_httpx), (httpx2, with_httpx2)], ids=["httpx", "httpx2"]
)
@pytest.mark.parametrize("backends", ["asyncio", "trio", "asyncio trio"])
def test_an_auth_that_event_loops_share_renews_once_for_all_of_them(
    agent: FakeAgent, server: FakeServer, theirs: Any, ours: Any, backends: str
) -> None:
    renewals: list[BoundToken | None] = []
    asked = threading.Barrier(4)

    async def renew(old: BoundToken | None) -> BoundToken:
        renewals.append(old)
        await anyio.sleep(0.05)  # the others ask meanwhile
        return BoundToken("new", JKT)

    auth = ours.AsyncDPoPAuth(renew)

    async def main() -> None:
        async with signing(theirs, ours, agent, server) as http:
            asked.wait(10)
            assert (await http.get(server.origin, auth=auth)).status_code == 200

    kinds = itertools.islice(itertools.cycle(backends.split()), 4)
    threads = [
        threading.Thread(target=partial(anyio.run, main, backend=backend)) for backend in kinds
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert renewals == [None]
    assert [seen.headers["Authorization"] for seen in server.seen] == ["DPoP new"] * 4


def test_a_task_that_is_cancelled_while_it_waits_leaves_the_turn_to_the_others(
    agent: FakeAgent, server: FakeServer
) -> None:
    async def main() -> None:
        renewing, go_on = asyncio.Event(), asyncio.Event()

        async def renew(old: BoundToken | None) -> BoundToken:
            renewing.set()
            await go_on.wait()
            raise OSError("no network")

        auth = AsyncDPoPAuth(renew)
        async with signing(httpx2, with_httpx2, agent, server) as http:
            tasks = [asyncio.create_task(http.get(server.origin, auth=auth)) for _ in range(3)]
            await renewing.wait()
            tasks[1].cancel()
            go_on.set()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in ended] == [OSError, asyncio.CancelledError, OSError]

    asyncio.run(main())


def test_a_loop_that_ended_while_its_task_waited_holds_up_nobody(
    agent: FakeAgent, server: FakeServer
) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def renew(old: BoundToken | None) -> BoundToken:
        begun.set()
        await asyncio.to_thread(ended.wait, 10)
        return BoundToken("new", JKT)

    auth = AsyncDPoPAuth(renew)

    async def get(give_up: bool) -> None:
        async with signing(httpx2, with_httpx2, agent, server) as http:
            task = asyncio.create_task(http.get(server.origin, auth=auth))
            if give_up:
                await asyncio.sleep(0.05)
                return  # asyncio.run cancels what is left
            assert (await task).status_code == 200

    renewing = threading.Thread(target=asyncio.run, args=(get(False),))
    renewing.start()
    begun.wait(10)
    asyncio.run(get(True))
    ended.set()
    renewing.join(10)
    assert len(server.seen) == 1
    asyncio.run(get(False))
    assert len(server.seen) == 2


# --- the agent under trio


def test_under_trio_an_agent_is_asked_in_a_thread(agent: FakeAgent) -> None:
    touches: list[str] = []
    agent.touch_s = 0.0

    async def main() -> None:
        async with AsyncAgentClient(agent.path, on_touch=lambda t: touches.append(t.key)) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(partial(client.proof, "GET", "https://as.example/"))
            await client.observe([{"htu": "https://as.example/", "nonce": "n1"}])

    trio.run(main)
    assert len(agent.proofs) == 3
    assert touches == ["shop"] * 3
    assert agent.observed[-1]["nonce"] == "n1"


def test_under_trio_a_call_can_be_cancelled(agent: FakeAgent) -> None:
    agent.touch_s = 5.0

    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            with trio.move_on_after(0.05) as scope:
                await client.proof("GET", "https://as.example/")
            assert scope.cancelled_caught
            agent.touch_s = None
            assert (await client.hello())["method"] == "hello"

    trio.run(main)
