"""The MCP SDK on McpDPoPTransport, against the SDK's own server side: what a session lives through.

After each of it the same session goes on.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.auth import OAuthToken
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceListChangedNotification, TextContent

from dpop_agent.client import AsyncAgentClient
from dpop_agent.client.mcp import TRY_AGAIN_S, McpDPoPTransport
from tests.emulators import YubiKey
from tests.piv_card import NEVER, TouchPolicy
from tests.processes import Agent
from tests.servers.mcp_sdk import Person, Storage, provider
from tests.servers.mcp_server import McpServer, Seen, World, world

KEY = "default"
MODES: Any = {"legacy": "legacy", "modern": "auto"}


@pytest.fixture
def servers() -> Iterator[World]:
    with world() as made:
        yield made


class Session:
    """A session, and whoever uses it.

    Attributes:
        client: the SDK's.
        oauth: the SDK's provider.
        told: what the server said by itself.
    """

    def __init__(
        self, client: Client, oauth: OAuthClientProvider, person: Person, storage: Storage
    ) -> None:
        self.client = client
        self.oauth = oauth
        self.person = person
        self.storage = storage
        self.told: list[Any] = []

    async def call(self, tool: str = "hello", **arguments: Any) -> str:
        """What a tool answers."""
        result = await self.client.call_tool(tool, arguments)
        (content,) = result.content
        assert isinstance(content, TextContent)
        return content.text

    async def refused(self, tool: str = "hello") -> str:
        """The type of the error that a call is answered with."""
        with pytest.raises(MCPError) as caught:
            await self.call(tool)
        data: dict[str, Any] = caught.value.error.data
        assert data["hint"] in caught.value.error.message
        return str(data["type"])

    def expire(self) -> None:
        """As if the access token's time were over."""
        self.oauth.context.token_expiry_time = 1.0


@asynccontextmanager
async def session(
    server: McpServer,
    agent: AsyncAgentClient,
    *,
    mode: str = "legacy",
    key: str | None = None,
    storage: Storage | None = None,
    person: Person | None = None,
    transport: McpDPoPTransport | None = None,
) -> AsyncIterator[Session]:
    transport = transport or McpDPoPTransport(agent, key=key, origins=[server.origin])
    storage, person = storage or Storage(), person or Person()
    oauth = provider(server.url, storage, person, transport)
    told: list[Any] = []

    async def hear(message: Any) -> None:
        told.append(message)

    async with (
        transport.client(auth=oauth) as http,
        Client(
            streamable_http_client(server.url, http_client=http), mode=mode, message_handler=hear
        ) as client,
    ):
        made = Session(client, oauth, person, storage)
        made.told = told
        yield made


def run(
    agent: Agent, scenario: Callable[[AsyncAgentClient], Awaitable[None]], backend: str = "asyncio"
) -> None:
    async def with_agent() -> None:
        async with AsyncAgentClient(agent.socket) as client:
            await scenario(client)

    anyio.run(with_agent, backend=backend)


async def refused_at_once(connecting: AbstractAsyncContextManager[Session]) -> MCPError:
    """What a session that can't begin is ended by; the SDK wraps it in groups."""
    try:
        async with connecting:
            raise AssertionError("there is a session")
    except BaseExceptionGroup as e:
        error: BaseException = e
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, MCPError)
        return error


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not holds():
            await anyio.sleep(0.01)


def of_sessions(server: McpServer) -> list[str]:
    """How sessions began and ended."""
    return [
        seen.rpc or seen.method
        for seen in server.seen
        if (seen.rpc == "initialize" or seen.method == "DELETE") and seen.status < 300
    ]


def signed(server: McpServer) -> list[Seen]:
    return [seen for seen in server.seen if seen.scheme == "dpop" and seen.status < 300]


def rotate(agent: Agent) -> str:
    """The new generation's jkt."""
    agent.admin().call("key.rotate", {"key": KEY})
    return agent.client().generation(KEY).jkt


@pytest.fixture
def jkt(agent: Agent) -> str:
    """The key's first generation."""
    return str(agent.create_key(KEY)["jkt"])


# What sessions do


# The SDK leaves streams that it has read to the garbage collector, and trio says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_progress_comes_while_a_call_goes_on_and_everything_with_an_access_token_is_signed(
    agent: Agent, jkt: str, servers: World, mode: str, backend: str
) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client, mode=mode) as made:

            async def step(progress: float, total: float | None, message: str | None) -> None:
                servers.server.heard += 1

            done = await made.client.call_tool("slow", {"steps": 3}, progress_callback=step)
            assert not done.is_error
            assert servers.server.heard == 3
            assert await made.call() == "hello"

    run(agent, scenario, backend)
    with_access_token = [seen for seen in servers.server.seen if seen.scheme]
    assert {seen.scheme for seen in with_access_token} == {"dpop"}
    assert {seen.jkt for seen in with_access_token if seen.status < 300} == {jkt}
    assert [seen.status for seen in with_access_token].count(401) == 1, "the first nonce's"


def test_what_a_server_says_by_itself_comes_on_the_stream_of_a_signed_get(
    agent: Agent, jkt: str, servers: World
) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client) as made:
            await until(lambda: any(seen.method == "GET" for seen in signed(servers.server)))
            assert await made.call("announce") == "announced"
            await until(
                lambda: any(isinstance(m, ResourceListChangedNotification) for m in made.told)
            )
            assert await made.call() == "hello"

    run(agent, scenario)


def test_a_session_that_is_closed_is_deleted_at_the_server_by_a_signed_request(
    agent: Agent, jkt: str, servers: World
) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client) as made:
            assert await made.call() == "hello"

    run(agent, scenario)
    assert of_sessions(servers.server) == ["initialize", "DELETE"]
    (deleted,) = [seen for seen in signed(servers.server) if seen.method == "DELETE"]
    assert deleted.jkt == jkt


# What happens meanwhile


def test_a_nonce_that_changes_costs_one_challenge_at_either_server(
    agent: Agent, jkt: str, servers: World
) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client) as made:
            await made.call()
            refused = [each.nonces.refused for each in (servers.server, servers.issuer)]
            servers.server.nonces.change()
            servers.issuer.nonces.change()
            assert [await made.call() for _ in range(3)] == ["hello"] * 3
            made.expire()
            assert [await made.call() for _ in range(3)] == ["hello"] * 3
            now = [each.nonces.refused for each in (servers.server, servers.issuer)]
            assert now == [number + 1 for number in refused]

    run(agent, scenario)
    assert of_sessions(servers.server) == ["initialize", "DELETE"]


def test_calls_fail_while_the_agent_is_away_and_work_once_it_is_back(
    agent: Agent, jkt: str, servers: World
) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client) as made:
            await made.call()
            await until(lambda: any(seen.method == "GET" for seen in signed(servers.server)))
            agent.stop()
            assert await made.refused() == "agent_unavailable"
            # A refresh that nobody signs costs neither the refresh token nor a login.
            made.expire()
            assert await made.refused() == "agent_unavailable"
            agent.start()
            await anyio.sleep(TRY_AGAIN_S)
            assert await made.call("announce") == "announced"
            await until(lambda: bool(made.told))
            assert len(made.person.asked) == 1

    run(agent, scenario)
    assert [grant for grant, _ in servers.issuer.token_requests] == [
        "authorization_code",
        "refresh_token",
    ]
    assert of_sessions(servers.server) == ["initialize", "DELETE"]


def test_tokens_stay_with_their_generation_over_rotations_refreshes_and_processes(
    agent: Agent, jkt: str, servers: World
) -> None:
    storage = Storage()

    async def first(client: AsyncAgentClient) -> None:
        async with session(servers.server, client, storage=storage) as made:
            await made.call()
            rotate(agent)
            assert await made.call() == "hello"
            made.expire()
            assert await made.call() == "hello"

    async def second(client: AsyncAgentClient) -> None:
        async with session(servers.server, client, storage=storage) as made:
            assert await made.call() == "hello"
            assert made.person.asked == []

    run(agent, first)
    assert servers.issuer.token_requests == [("authorization_code", jkt), ("refresh_token", jkt)]
    run(agent, second)
    assert {seen.jkt for seen in signed(servers.server)} == {jkt}


def test_a_login_stays_with_the_generation_in_its_dpop_jkt_whatever_is_rotated_meanwhile(
    agent: Agent, jkt: str, servers: World
) -> None:
    class Slow(Person):
        async def redirect(self, url: str) -> None:
            await super().redirect(url)
            rotate(agent)

    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client, person=Slow()) as made:
            assert await made.call() == "hello"
            assert [asked["dpop_jkt"] for asked in made.person.asked] == [jkt]

    run(agent, scenario)
    assert servers.issuer.token_requests == [("authorization_code", jkt)]


def test_a_compromised_generation_leads_to_a_new_login_in_the_same_session(
    agent: Agent, jkt: str, servers: World
) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client) as made:
            await made.call()
            new = rotate(agent)
            agent.admin().call("key.compromise", {"key": KEY, "generation": 1})
            assert await made.call() == "hello"
            assert [asked["dpop_jkt"] for asked in made.person.asked] == [jkt, new]
            newer = rotate(agent)
            agent.admin().call("key.compromise", {"key": KEY, "generation": 2})
            made.expire()
            assert await made.call() == "hello"
            assert made.person.asked[2]["dpop_jkt"] == newer

    run(agent, scenario)
    assert {grant for grant, _ in servers.issuer.token_requests} == {"authorization_code"}
    assert of_sessions(servers.server) == ["initialize", "DELETE"]


def test_a_key_without_another_generation_is_told_and_nobody_is_asked_to_log_in(
    agent: Agent, jkt: str, servers: World
) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client) as made:
            await made.call()
            agent.admin().call("key.suspend", {"key": KEY, "generation": 1})
            assert await made.refused() == "key_suspended"
            servers.issuer.revoke_access_tokens()
            made.expire()
            assert await made.refused() == "key_suspended"
            agent.admin().call("key.resume", {"key": KEY, "generation": 1})
            await anyio.sleep(TRY_AGAIN_S)
            assert await made.call() == "hello"
            assert len(made.person.asked) == 1

    run(agent, scenario)


def test_a_call_that_wants_more_scope_is_made_after_another_login(
    agent: Agent, jkt: str, servers: World
) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client) as made:
            await made.call()
            assert await made.call("admin") == "admin"
            assert await made.call() == "hello"
            assert [asked.get("scope") for asked in made.person.asked] == [None, "admin"]

    run(agent, scenario)
    assert of_sessions(servers.server) == ["initialize", "DELETE"]


def test_two_servers_share_a_transport_and_one_is_left_without_the_other(
    agent: Agent, jkt: str, servers: World
) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        origins = [servers.server.origin, servers.other.origin]
        ours = McpDPoPTransport(client, origins=origins)
        async with AsyncExitStack() as outer, AsyncExitStack() as inner:
            kept = await outer.enter_async_context(session(servers.server, client, transport=ours))
            left = await inner.enter_async_context(session(servers.other, client, transport=ours))
            assert [await each.call() for each in (kept, left)] == ["hello"] * 2
            await until(lambda: any(seen.method == "GET" for seen in signed(servers.server)))
            await inner.aclose()
            assert await kept.call("announce") == "announced"
            await until(lambda: bool(kept.told))
            assert kept.storage.tokens != left.storage.tokens

    run(agent, scenario)
    for server in (servers.server, servers.other):
        assert of_sessions(server) == ["initialize", "DELETE"]


def test_a_token_response_that_bound_nothing_is_refused_and_its_access_token_isnt_used(
    agent: Agent, jkt: str, servers: World
) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client) as made:
            await made.call()
            servers.issuer.downgrades = True
            servers.issuer.revoke_access_tokens()
            assert await made.refused() == "token_not_bound"
            assert not servers.issuer.granted.keys() & set(str(made.storage.tokens).split('"'))
            servers.issuer.downgrades = False
            assert await made.call() == "hello"
            # The refresh that is refused leads to a login, and that to an error.
            servers.issuer.downgrades = True
            made.expire()
            assert await made.refused() == "token_not_bound"
            servers.issuer.downgrades = False
            assert await made.call() == "hello"

    run(agent, scenario)
    assert {seen.scheme for seen in servers.server.seen} == {"", "dpop"}
    assert of_sessions(servers.server) == ["initialize", "DELETE"]


def test_a_missed_touch_is_told_and_the_next_one_does(
    make_agent: Callable[..., Agent], yubikey: YubiKey, servers: World
) -> None:
    agent = make_agent(yubikey.token.config).start()
    card = yubikey.card
    card.make_key(0x82, touch=TouchPolicy.ALWAYS)
    card.touch_s = 0.0
    agent.run("key", "adopt", KEY, "--ref", "05", "--any-origin", check=True)
    agent.run("key", "activate", f"{KEY}@1", check=True)

    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client) as made:
            assert await made.call() == "hello"
            card.touch_s, card.waits_s = NEVER, 1.1
            assert await made.refused() == "timeout"
            made.expire()
            assert await made.refused() == "timeout"
            card.touch_s = 0.0
            await anyio.sleep(TRY_AGAIN_S)
            assert await made.call() == "hello"
            assert len(made.person.asked) == 1

    run(agent, scenario)
    assert of_sessions(servers.server) == ["initialize", "DELETE"]


@pytest.mark.parametrize("how", ["locked", "gone"])
def test_nobody_is_asked_to_log_in_where_the_agent_couldnt_sign_for_it(
    agent: Agent, jkt: str, servers: World, how: str
) -> None:
    person = Person()

    async def scenario(client: AsyncAgentClient) -> None:
        error = await refused_at_once(session(servers.server, client, person=person))
        wanted = {"locked": "locked", "gone": "agent_unavailable"}[how]
        assert error.data["type"] == wanted

    if how == "gone":
        agent.stop()
    else:
        agent.run("lock", check=True)
    run(agent, scenario)
    assert person.asked == []


# What is stored


def test_storage_has_handles_and_no_token(agent: Agent, jkt: str, servers: World) -> None:
    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client) as made:
            await made.call()
            stored = json.loads(str(made.storage.tokens))
            assert stored["token_type"] == "Bearer"
            assert stored["access_token"].startswith(f"dpop:{jkt}:")
            assert stored["refresh_token"].startswith(f"dpop-refresh:{jkt}:")

    run(agent, scenario)
    (registered,) = servers.issuer.registered
    assert registered["dpop_bound_access_tokens"] is True


@pytest.mark.parametrize(
    "stored", ["unbound", "dpop-refused:earlier"], ids=["bearer", "an earlier refusal"]
)
def test_what_was_stored_and_is_no_use_leads_to_a_login(
    agent: Agent, jkt: str, servers: World, stored: str
) -> None:
    storage = Storage()

    async def scenario(client: AsyncAgentClient) -> None:
        await storage.set_tokens(OAuthToken(access_token=stored))
        async with session(servers.server, client, storage=storage) as made:
            assert await made.call() == "hello"
            assert len(made.person.asked) == 1
        assert str(storage.tokens).startswith('{"access_token":"dpop:')

    run(agent, scenario)


def test_a_handle_goes_to_no_server_that_isnt_listed(
    agent: Agent, jkt: str, servers: World
) -> None:
    storage = Storage()

    async def scenario(client: AsyncAgentClient) -> None:
        async with session(servers.server, client, storage=storage) as made:
            await made.call()
        ours = McpDPoPTransport(client, origins=[servers.other.origin])
        before = len(servers.server.seen)
        error = await refused_at_once(
            session(servers.server, client, storage=storage, transport=ours)
        )
        assert error.data["type"] == "configuration"
        assert servers.server.origin in error.message
        assert len(servers.server.seen) == before

    run(agent, scenario)


def test_clients_have_the_sdks_own_timeouts(agent: Agent) -> None:
    ours = McpDPoPTransport(AsyncAgentClient(agent.socket), origins=["https://mcp.example"])
    assert ours.client().timeout == create_mcp_http_client().timeout
    assert ours.client(timeout=httpx2.Timeout(5)).timeout == httpx2.Timeout(5)
