"""The transport for the MCP SDK: what it signs, what it shows, and what it never raises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx2
import pytest

from dpop_agent import errors
from dpop_agent.client import AsyncAgentClient, BoundToken
from dpop_agent.client.discovered import MAX_REMEMBERED, Discovered
from dpop_agent.client.handles import (
    MAX_REFUSALS,
    RefreshToken,
    Refusals,
    access_token_of,
    refresh_token_of,
    shown_access_token,
    shown_refresh_token,
)
from dpop_agent.client.mcp import MAX_LOGINS, McpDPoPTransport
from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    KeyUnusable,
    StoreAbsent,
    TokenNotBound,
)
from tests.unit.fake_agent import JKT, OTHER_JKT, FakeAgent, Params, Reply

MCP, AS = "https://mcp.example", "https://as.example"
URL, ENDPOINT = f"{MCP}/mcp", f"{AS}/token"
ACCESS = shown_access_token(BoundToken("geheim", JKT))
REFRESH = shown_refresh_token(RefreshToken("geheim", JKT, ENDPOINT))
CODE = {"grant_type": "authorization_code", "code": "c", "code_verifier": "v" * 43}
REFRESHES = {"grant_type": "refresh_token", "refresh_token": REFRESH}


# Handles


def test_a_handle_says_by_itself_what_its_token_is_bound_to_and_shows_nobody_else() -> None:
    access_token, refresh_token = access_token_of(ACCESS), refresh_token_of(REFRESH)
    assert access_token == BoundToken("geheim", JKT)
    assert refresh_token == RefreshToken("geheim", JKT, ENDPOINT)
    assert "geheim" not in repr((access_token, refresh_token))


@pytest.mark.parametrize("text", ["", "geheim", f"dpop:{JKT}:", f"dpop:{JKT[1:]}:geheim", REFRESH])
def test_anything_else_is_no_handle_of_an_access_token(text: str) -> None:
    assert access_token_of(text) is None


@pytest.mark.parametrize("text", ["", "geheim", ACCESS, f"dpop-refresh:{JKT}:a:geheim"])
def test_anything_else_is_no_handle_of_a_refresh_token(text: str) -> None:
    assert refresh_token_of(text) is None


def test_only_the_newest_refusals_are_kept() -> None:
    refusals = Refusals()
    shown = [refusals.shown(DPoPAgentError(str(number))) for number in range(MAX_REFUSALS + 1)]
    assert all(refusals.has(handle) for handle in shown)
    found = [refusals.error(handle) for handle in shown]
    assert [str(error) for error in found] == ["None", *map(str, range(1, MAX_REFUSALS + 1))]


# Which token endpoints are taken

RESOURCE = (f"{MCP}/.well-known/oauth-protected-resource/mcp", {"resource": URL})
NAMES_AS = {**RESOURCE[1], "authorization_servers": [AS]}
METADATA = f"{AS}/.well-known/oauth-authorization-server"
SAYS = {"issuer": AS, "token_endpoint": ENDPOINT}
ELSEWHERE = "https://cdn.example/resource.json"


@pytest.mark.parametrize(
    "seen",
    [
        [(RESOURCE[0], NAMES_AS), (METADATA, SAYS)],
        [(RESOURCE[0], NAMES_AS), (f"{AS}/.well-known/openid-configuration", SAYS)],
        [(RESOURCE[0], NAMES_AS), (METADATA, {**SAYS, "issuer": f"{AS}/"})],
        [
            (RESOURCE[0], {**NAMES_AS, "authorization_servers": [f"{AS}/a"]}),
            (f"{METADATA}/a", {**SAYS, "issuer": f"{AS}/a"}),
        ],
        [f'DPoP resource_metadata="{ELSEWHERE}"', (ELSEWHERE, NAMES_AS), (METADATA, SAYS)],
        [(f"{MCP}/.well-known/oauth-authorization-server", {**SAYS, "issuer": MCP})],
    ],
    ids=["RFC 8414", "OpenID Connect", "a slash", "a path", "a challenge names it", "its own AS"],
)
def test_a_token_endpoint_is_taken_that_a_listed_server_leads_to(seen: list[Any]) -> None:
    assert taken(seen)


@pytest.mark.parametrize(
    "seen",
    [
        [(METADATA, SAYS)],
        [(ELSEWHERE, NAMES_AS), (METADATA, SAYS)],
        [(RESOURCE[0], {**NAMES_AS, "resource": "https://other.example/"}), (METADATA, SAYS)],
        [(RESOURCE[0], NAMES_AS), ("https://other.example/.well-known/x", SAYS)],
        [(RESOURCE[0], NAMES_AS), (METADATA, {**SAYS, "issuer": f"{AS}/other"})],
        [(RESOURCE[0], NAMES_AS), (METADATA, {**SAYS, "token_endpoint": f"{AS}/other"})],
        [(RESOURCE[0], {**NAMES_AS, "authorization_servers": AS}), (METADATA, SAYS)],
        [(RESOURCE[0], {**NAMES_AS, "authorization_servers": [1]}), (METADATA, SAYS)],
        [(RESOURCE[0], NAMES_AS), (METADATA, {**SAYS, "token_endpoint": 1})],
    ],
    ids=[
        *("nobody names the issuer", "a stranger names it", "another resource's", "from elsewhere"),
        *("another issuer's", "another endpoint", "no list", "no texts", "no text"),
    ],
)
def test_any_other_token_endpoint_gets_nothing(seen: list[Any]) -> None:
    assert not taken(seen)


def taken(seen: list[Any]) -> bool:
    found = Discovered([MCP])
    for each in seen:
        if isinstance(each, str):
            found.heard(URL, [each])
        else:
            found.learn(*each)
    assert found.lists(URL)
    assert not found.lists(ENDPOINT), "it gets token requests and nothing else"
    assert found.has(AS) == any(map(found.takes_token_requests, (ENDPOINT, f"{AS}/other")))
    return found.takes_token_requests(ENDPOINT)


def test_a_server_that_isnt_listed_names_no_place_of_metadata() -> None:
    found = Discovered([MCP])
    found.heard("https://other.example/", [f'DPoP resource_metadata="{ELSEWHERE}"'])
    assert not found.expects(ELSEWHERE)
    found.heard(URL, [f'DPoP resource_metadata="{ELSEWHERE}"'])
    assert found.expects(ELSEWHERE)


def test_a_server_that_names_ever_new_ones_has_the_oldest_forgotten() -> None:
    found = Discovered([MCP])
    found.learn(RESOURCE[0], NAMES_AS)
    for number in range(MAX_REMEMBERED + 1):
        found.learn(METADATA, {**SAYS, "token_endpoint": f"{AS}/{number}"})
    taken = [found.takes_token_requests(f"{AS}/{number}") for number in range(MAX_REMEMBERED + 1)]
    assert taken == [False] + [True] * MAX_REMEMBERED


# The transport


class OneKey(FakeAgent):
    """Its key has one generation, `active`, whatever signs."""

    active = JKT

    def _usual(self, method: str, params: Params) -> Reply:
        if method != "key.list":
            return super()._usual(method, params)
        generation = {"generation": 1, "jkt": self.active, "state": "active", "jwk": {}}
        generation |= {"exportable": False, "protection": "hardware"}
        key = {"key": "default", "store": "card", "store_state": "ready", "alg": "ES256"}
        return {"keys": [{**key, "generations": [generation]}]}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[OneKey]:
    with OneKey(tmp_path / "run") as fake:
        yield fake


class Server:
    """Plays all servers, by what `answers` says of a URL, and records what came.

    Attributes:
        closed: how often it was, as a transport.
        moved: where a URL is redirected to.
    """

    def __init__(self) -> None:
        self.seen: list[httpx2.Request] = []
        self.closed = 0
        self.moved: dict[str, str] = {}
        self.token_response: dict[str, Any] | bytes = {
            "access_token": "neu",
            "token_type": "DPoP",
            "refresh_token": "frisch",
            "expires_in": 60,
        }

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        url = str(request.url)
        if url in self.moved:
            return httpx2.Response(307, headers={"Location": self.moved[url]})
        if url == RESOURCE[0]:
            return httpx2.Response(200, json=NAMES_AS)
        if url == METADATA:
            return httpx2.Response(200, json=SAYS)
        if url == ENDPOINT:
            if isinstance(self.token_response, bytes):
                return httpx2.Response(200, content=self.token_response)
            return httpx2.Response(200, json=self.token_response)
        if request.headers.get("Authorization", "").startswith("DPoP "):
            return httpx2.Response(200, json={})
        challenge = 'DPoP scope="here"'
        return httpx2.Response(401, headers={"WWW-Authenticate": challenge})


class Sending(httpx2.MockTransport):
    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._server = server

    async def aclose(self) -> None:
        self._server.closed += 1

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


Scenario = Callable[[httpx2.AsyncClient, McpDPoPTransport], Awaitable[None]]


def run(agent: FakeAgent, server: Server, scenario: Scenario, *, knows: bool = True) -> None:
    """With a transport that was led to the token endpoint, unless it knows nothing."""

    async def go() -> None:
        async with AsyncAgentClient(agent.path) as client:
            ours = McpDPoPTransport(client, origins=[MCP], transport=Sending(server))
            async with ours.client() as http:
                for place in (RESOURCE[0], METADATA) if knows else ():
                    await http.get(place)
                server.seen.clear()
                await scenario(http, ours)

    asyncio.run(go())


def bearer(handle: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {handle}"}


def error_of(response: httpx2.Response) -> str:
    """The type of the error in a JSON-RPC response."""
    assert response.status_code == 503
    return str(response.json()["error"]["data"]["type"])


def test_what_goes_over_the_wire_is_dpop_and_what_comes_back_is_shown_as_handles(
    agent: OneKey,
) -> None:
    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        assert (await http.post(URL, json={}, headers=bearer(ACCESS))).status_code == 200
        shown = (await http.post(ENDPOINT, data=REFRESHES)).json()
        assert shown == {
            "access_token": f"dpop:{JKT}:neu",
            "token_type": "Bearer",
            "refresh_token": shown_refresh_token(RefreshToken("frisch", JKT, ENDPOINT)),
            "expires_in": 60,
        }

    run(agent, server := Server(), scenario)
    called, refreshed = server.seen
    assert called.headers.get_list("Authorization") == ["DPoP geheim"]
    assert parse_qs(refreshed.content.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["geheim"],
    }
    assert refreshed.headers["Content-Length"] == str(len(refreshed.content))
    assert [len(seen.headers.get_list("DPoP")) for seen in server.seen] == [1, 1]
    assert [params["jkt"] for params in agent.proofs] == [JKT, JKT]


@pytest.mark.parametrize("url", [URL, ENDPOINT, "https://other.example/"])
def test_everything_else_goes_out_unsigned_as_it_came(agent: OneKey, url: str) -> None:
    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        await http.get(url)
        await http.post(url, json={"grant_type": "refresh_token"})
        await http.post(url, data={"token": "t"}, headers=bearer("plain"))

    run(agent, server := Server(), scenario)
    assert len(server.seen) == 3
    assert not any("DPoP" in seen.headers for seen in server.seen)
    assert server.seen[2].headers["Authorization"] == "Bearer plain"
    assert agent.proofs == []


@pytest.mark.parametrize("place", ["https://other.example/", f"{AS}/x"])
def test_a_redirect_carries_the_body_of_a_signed_request_to_no_other_server(
    agent: OneKey, place: str
) -> None:
    server = Server()
    server.moved[URL] = place

    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        http.follow_redirects = True
        told = await http.post(URL, json={"secret": 1}, headers=bearer(ACCESS))
        assert error_of(told) == "configuration"

    run(agent, server, scenario)
    assert all(seen.url == URL or seen.content == b"" for seen in server.seen)


def test_a_redirect_within_a_server_carries_body_and_access_token(agent: OneKey) -> None:
    server = Server()
    server.moved[URL] = f"{MCP}/moved"

    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        http.follow_redirects = True
        for _ in range(2):
            answer = await http.post(URL, json={"a": 1}, headers=bearer(ACCESS))
            assert answer.status_code == 200

    run(agent, server, scenario)
    assert [seen.content for seen in server.seen] == [b'{"a":1}'] * 4
    assert {seen.headers["Authorization"] for seen in server.seen} == {"DPoP geheim"}


@pytest.mark.parametrize("url", [f"{AS}/userinfo", "https://other.example/"])
def test_a_handle_goes_to_no_other_server_not_even_to_the_authorization_server(
    agent: OneKey, url: str
) -> None:
    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        assert error_of(await http.get(url, headers=bearer(ACCESS))) == "configuration"

    run(agent, server := Server(), scenario)
    assert server.seen == []
    assert agent.proofs == []


@pytest.mark.parametrize("text", ["geheim\r\nX: y", "geheim, Bearer geheim"])
def test_a_handle_of_what_is_no_access_token_isnt_sent_and_not_shown(
    agent: OneKey, text: str
) -> None:
    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        told = await http.get(URL, headers=bearer(f"dpop:{JKT}:{text}"))
        assert error_of(told) == "configuration"
        assert "geh" not in told.text

    run(agent, server := Server(), scenario)
    assert server.seen == []


@pytest.mark.parametrize("fields", [CODE, {"grant_type": "client_credentials"}])
def test_a_token_request_to_an_unknown_endpoint_isnt_sent_and_the_call_says_why(
    agent: OneKey, fields: dict[str, str]
) -> None:
    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        answer = await http.post(ENDPOINT, data=fields)
        assert answer.status_code == 200
        assert answer.json()["expires_in"] < 0
        told = await http.post(URL, json={}, headers=bearer(answer.json()["access_token"]))
        assert error_of(told) == "configuration"
        assert AS in told.text

    run(agent, server := Server(), scenario, knows=False)
    assert server.seen == []
    assert agent.proofs == []


@pytest.mark.parametrize("knows", [True, False], ids=["another's", "an unknown one"])
def test_a_refresh_token_goes_to_no_other_endpoint_and_the_sdk_logs_in_anew(
    agent: OneKey, knows: bool
) -> None:
    elsewhere = RefreshToken("geheim", JKT, f"{AS}/other" if knows else ENDPOINT)
    fields = {**REFRESHES, "refresh_token": shown_refresh_token(elsewhere)}

    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        answer = await http.post(ENDPOINT, data=fields)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")

    run(agent, server := Server(), scenario, knows=knows)
    assert server.seen == []


@pytest.mark.parametrize(
    "answer",
    [
        {"access_token": "neu", "token_type": "Bearer"},
        {"access_token": "neu"},
        {"token_type": "DPoP"},
        {"access_token": "neu", "token_type": "DPoP", "cnf": {"jkt": OTHER_JKT}},
        b'{"access_token":"neu","token_type":"DPoP","token_type":"Bearer"}',
        b"neu",
        b'{"access_token":"neu","token_type":"DPoP","scope":"\\ud800"}',
        b'{"access_token":"neu","token_type":"DPoP","refresh_token":"\\ud800"}',
        b'{"access_token":"neu","token_type":"DPoP","expires_in":1e999}',
    ],
    ids=[
        *("Bearer", "no type", "no access token", "another key's", "two types", "no JSON"),
        *("half a character", "half of one in a refresh token", "a number without end"),
    ],
)
def test_a_token_response_that_bound_nothing_is_shown_to_nobody(
    agent: OneKey, answer: dict[str, Any] | bytes
) -> None:
    server = Server()
    server.token_response = answer

    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        refreshed = await http.post(ENDPOINT, data=REFRESHES)
        assert (refreshed.status_code, refreshed.json()["error"]) == (400, "invalid_grant")
        exchanged = await http.post(ENDPOINT, data=CODE)
        handle = exchanged.json()["access_token"]
        told = await http.post(URL, json={}, headers=bearer(handle))
        assert error_of(told) == "token_not_bound"
        assert "neu" not in refreshed.text + exchanged.text + told.text

    run(agent, server, scenario)


@pytest.mark.parametrize("text", ["neu\r\nX: y", "neué"])
def test_an_access_token_that_is_none_is_refused_before_a_header_is_made_of_it(
    agent: OneKey, text: str
) -> None:
    server = Server()
    server.token_response = {"access_token": text, "token_type": "DPoP"}

    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        exchanged = await http.post(ENDPOINT, data=CODE)
        assert "neu" not in exchanged.text
        told = await http.post(URL, json={}, headers=bearer(exchanged.json()["access_token"]))
        assert error_of(told) == "configuration"

    run(agent, server, scenario)


def kinds(root: type[DPoPAgentError]) -> Iterator[type[DPoPAgentError]]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


# A client's own errors aren't the agent's.
BY_WIRE = [
    kind
    for kind in kinds(DPoPAgentError)
    if kind.__module__ == errors.__name__
    and kind.__init__ is DPoPAgentError.__init__
    and kind not in (ConfigurationError, TokenNotBound)
]


@pytest.mark.parametrize("kind", BY_WIRE, ids=lambda kind: kind.__name__)
def test_no_refusal_of_the_agents_is_raised_and_each_is_told(
    agent: OneKey, kind: type[DPoPAgentError]
) -> None:
    agent.refuse = {JKT: kind("no", hint="why")}

    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        told = await http.post(URL, json={}, headers=bearer(ACCESS))
        wanted = error_of(told)
        assert told.json()["error"]["message"] == "no; why"
        for fields in (CODE, REFRESHES):
            answer = await http.post(ENDPOINT, data=fields)
            assert answer.status_code == 200
            assert "refresh_token" not in answer.json(), "the SDK keeps the one that it has"
            handle = answer.json()["access_token"]
            assert error_of(await http.post(URL, json={}, headers=bearer(handle))) == wanted

    run(agent, server := Server(), scenario)
    assert server.seen == []


@pytest.mark.parametrize("kind", list(kinds(KeyUnusable)), ids=lambda kind: kind.__name__)
def test_where_another_generation_signs_a_login_is_asked_for_as_the_server_does(
    agent: OneKey, kind: type[KeyUnusable]
) -> None:
    agent.refuse = {JKT: kind("no")}
    agent.active = OTHER_JKT

    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        told = await http.post(URL, json={}, headers=bearer(ACCESS))
        assert (told.status_code, told.headers["WWW-Authenticate"]) == (401, 'DPoP scope="here"')
        answer = await http.post(ENDPOINT, data=REFRESHES)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")

    run(agent, server := Server(), scenario)
    (asked,) = server.seen
    assert (asked.method, asked.content) == ("GET", b""), "the call itself isn't made unsigned"


def test_no_login_begins_where_the_agent_has_nothing_to_bind_it_to(agent: OneKey) -> None:
    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        agent.script = [StoreAbsent("away")]
        assert error_of(await http.post(URL, json={})) == "store_absent"
        assert (await http.post(URL, json={})).status_code == 401

    run(agent, Server(), scenario)


def test_each_login_has_the_generation_of_its_own_authorization_url(agent: OneKey) -> None:
    urls: list[str] = []

    async def redirect(url: str) -> None:
        urls.append(url)

    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        bound = ours.binding(redirect)
        await http.post(URL, json={})
        await bound(f"{AS}/authorize?code_challenge={CHALLENGE}")
        agent.active = OTHER_JKT
        await http.post(URL, json={})
        await bound(f"{AS}/authorize?code_challenge=another")
        await http.post(ENDPOINT, data=CODE)
        await bound(f"{AS}/authorize?code_challenge={CHALLENGE}")
        for number in range(MAX_LOGINS):
            await bound(f"{AS}/authorize?code_challenge={number}")
        await http.post(ENDPOINT, data=CODE)

    run(agent, Server(), scenario)
    assert urls[0] == f"{AS}/authorize?code_challenge={CHALLENGE}&dpop_jkt={JKT}"
    assert urls[1].endswith(f"&dpop_jkt={OTHER_JKT}")
    assert [params.get("jkt") for params in agent.proofs] == [JKT, None]


# Of CODE's verifier (RFC 7636 section 4.2).
CHALLENGE = "7w_YNF9DSfIdPf_pRjSq646_kPr-2-o9NAl16JGghdM"


def test_it_closes_with_the_last_of_its_clients(agent: OneKey) -> None:
    server = Server()

    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        async with ours.client() as other:
            await other.get(MCP)
        assert server.closed == 0
        assert (await http.get(MCP)).status_code == 401

    run(agent, server, scenario)
    assert server.closed == 1


def test_refusals_have_the_form_of_json_rpc(agent: OneKey) -> None:
    agent.refuse = {JKT: StoreAbsent("away", hint="plug it in")}

    async def scenario(http: httpx2.AsyncClient, ours: McpDPoPTransport) -> None:
        told = await http.post(URL, json={}, headers=bearer(ACCESS))
        assert told.headers["Content-Type"] == "application/json"
        assert json.loads(told.text) == {
            "jsonrpc": "2.0",
            "id": None,
            "error": {
                "code": -32603,
                "message": "away; plug it in",
                "data": {"type": "store_absent", "hint": "plug it in", "retry": "later"},
            },
        }

    run(agent, Server(), scenario)
