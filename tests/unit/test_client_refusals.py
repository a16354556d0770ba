"""What clients make of a server's refusal: a dead access token, a stale nonce, a wrong clock."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import requests

import dpop_agent.client.requests
from dpop_agent.client import (
    AgentClient,
    AsyncAgentClient,
    AsyncDPoPAuth,
    AsyncDPoPTransport,
    BoundToken,
    DPoPAdapter,
    DPoPAuth,
    DPoPTransport,
)
from dpop_agent.client.aiohttp import DPoPMiddleware
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY
from dpop_agent.errors import ProofRefused
from tests.unit.fake_agent import JKT, FakeAgent
from tests.unit.fake_server import FakeServer, Reply, Seen

Get = Callable[[str], tuple[int, str]]
Handle = Callable[[Seen], Reply]


def signing(client: AgentClient, origin: str) -> DPoPTransport:
    # Whoever speaks plain http needs no certificates, and loading them takes its time.
    inner = httpx.HTTPTransport(verify=False)
    return DPoPTransport(client, origins=[origin], transport=inner)


def asigning(client: AsyncAgentClient, origin: str) -> AsyncDPoPTransport:
    inner = httpx.AsyncHTTPTransport(verify=False)
    return AsyncDPoPTransport(client, origins=[origin], transport=inner)


def over_httpx(agent: FakeAgent, uri: str) -> tuple[int, str]:
    origin = "/".join(uri.split("/")[:3])
    with (
        AgentClient(agent.path) as client,
        httpx.Client(transport=signing(client, origin)) as http,
    ):
        response = http.post(uri, content=b"body")
        return response.status_code, response.text


def over_async_httpx(agent: FakeAgent, uri: str) -> tuple[int, str]:
    async def main() -> tuple[int, str]:
        origin = "/".join(uri.split("/")[:3])
        async with (
            AsyncAgentClient(agent.path) as client,
            httpx.AsyncClient(transport=asigning(client, origin)) as http,
        ):
            response = await http.post(uri, content=b"body")
            return response.status_code, response.text

    return asyncio.run(main())


def over_requests(agent: FakeAgent, uri: str) -> tuple[int, str]:
    with AgentClient(agent.path) as client, requests.Session() as session:
        session.mount("http://", DPoPAdapter(client, origins=["/".join(uri.split("/")[:3])]))
        response = session.post(uri, data=b"body", timeout=5)
        return response.status_code, response.text


def over_aiohttp(agent: FakeAgent, uri: str) -> tuple[int, str]:
    async def main() -> tuple[int, str]:
        origin = "/".join(uri.split("/")[:3])
        async with (
            AsyncAgentClient(agent.path) as client,
            aiohttp.ClientSession(middlewares=[DPoPMiddleware(client, origins=[origin])]) as http,
            http.post(uri, data=b"body") as response,
        ):
            return response.status, await response.text()

    return asyncio.run(main())


@pytest.fixture(params=[over_httpx, over_async_httpx, over_requests, over_aiohttp])
def post(agent: FakeAgent, request: pytest.FixtureRequest) -> Get:
    return lambda uri: request.param(agent, uri)


# --- clocks


def iat_of(seen: Seen) -> int:
    claims = seen.proofs[0].split(".")[1]
    iat: int = json.loads(base64.urlsafe_b64decode(claims + "=="))["iat"]
    return iat


NOT_ACTIVE = {"error": "invalid_request", "error_description": "DPoP proof is not active"}
CHALLENGE = 'DPoP error="invalid_dpop_proof"'


def judge(*, back: int, ahead: int, refusal: Callable[[], Reply], dated: bool) -> Handle:
    """A server whose clock is right, and takes `iat` from so far back to so far ahead."""

    def handle(seen: Seen) -> Reply:
        late = time.time() - iat_of(seen)
        reply = Reply(200, b"here") if -ahead <= late <= back else refusal()
        reply.dated = dated
        return reply

    return handle


def by_challenge() -> Reply:
    return Reply(401, WWW_Authenticate=CHALLENGE)


def by_body() -> Reply:
    return Reply(400, json.dumps(NOT_ACTIVE).encode(), Content_Type="application/json")


def keycloak(*, dated: bool = False) -> Handle:
    return judge(back=24, ahead=15, refusal=by_body, dated=dated)


def spring(*, dated: bool = True) -> Handle:
    return judge(back=60, ahead=60, refusal=by_challenge, dated=dated)


def test_an_agent_that_is_ahead_recovers_at_once_by_the_servers_date(
    agent: FakeAgent, post: Get
) -> None:
    agent.clock_s = 90
    with FakeServer(spring()) as server:
        assert post(server.origin + "/a") == (200, "here")
        assert post(server.origin + "/b") == (200, "here")
        assert [seen.path for seen in server.seen] == ["/a", "/a", "/b"]
        assert [seen.body for seen in server.seen] == [b"body"] * 3


def test_a_clock_that_was_set_right_recovers_at_once_too(agent: FakeAgent, post: Get) -> None:
    agent.clock_s = 0
    with FakeServer(spring()) as server:
        agent.backdates[server.origin] = 90  # as long as it was ahead
        assert post(server.origin) == (200, "here")
        assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("clock_s", "said"),
    [
        (-90, "the agent's clock is 9. s behind; .*never dated ahead"),
        (400, r"the agent's clock is (400|399) s ahead; .*back by 300 s"),
    ],
)
def test_an_agent_whose_clock_is_too_wrong_says_so_with_the_offset(
    agent: FakeAgent, post: Get, clock_s: int, said: str
) -> None:
    agent.clock_s = clock_s
    with FakeServer(spring()) as server:
        with pytest.raises(ProofRefused, match=said) as caught:
            post(server.origin)
        assert server.origin in caught.value.message
        assert abs(caught.value.details["clock_offset_s"] + clock_s) <= 2
        assert len(server.seen) == 1  # the same again would be of no use
    assert {"date", "iat_refused"} <= {name for item in agent.observed for name in item}


@pytest.mark.parametrize("clock_s", [20, -90])
def test_without_a_date_a_refusal_that_may_come_from_the_clock_says_so(
    agent: FakeAgent, post: Get, clock_s: int
) -> None:
    agent.clock_s = clock_s
    said = "clock may be wrong, and the answer has no Date"
    with FakeServer(keycloak()) as server, pytest.raises(ProofRefused, match=said):
        post(server.origin)
    assert agent.observed == [{"htu": f"{server.origin}/", "iat_refused": True}]


@pytest.mark.parametrize(
    ("error", "description"),
    [
        ("invalid_dpop_proof", ""),
        ("invalid_dpop_proof", "Invalid DPoP proof"),
        ("invalid_dpop_proof", '"iat" claim timestamp check failed'),
        ("invalid_request", "DPoP proof is not active"),
    ],
)
def test_a_clock_that_is_right_is_not_blamed(
    agent: FakeAgent, post: Get, error: str, description: str
) -> None:
    agent.clock_s = 0
    body = json.dumps({"error": error, "error_description": description})
    with FakeServer(lambda _: Reply(400, body.encode(), Content_Type="application/json")) as server:
        assert post(server.origin) == (400, body)
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("error", "description"),
    [
        ("invalid_request", "DPoP proof has already been used"),
        ("invalid_request", "DPoP HTTP URL mismatch"),
        ("invalid_request", "Unsupported DPoP algorithm: ES384"),
        ("invalid_request", "grant_type is missing"),
        ("invalid_dpop_proof", "htu mismatch"),
        ("invalid_dpop_proof", "jti was used already"),
        ("invalid_grant", "the refresh token has expired"),
        ("invalid_client", ""),
    ],
)
def test_a_refusal_for_another_reason_is_given_back(
    agent: FakeAgent, post: Get, error: str, description: str
) -> None:
    agent.clock_s = 0
    body = json.dumps({"error": error, "error_description": description})

    def handle(seen: Seen) -> Reply:
        reply = Reply(400, body.encode(), Content_Type="application/json")
        reply.dated = False
        return reply

    with FakeServer(handle) as server:
        assert post(server.origin) == (400, body)


def test_a_body_that_can_not_be_sent_twice_is_not_for_the_clock_either(agent: FakeAgent) -> None:
    agent.clock_s = 90
    with (
        FakeServer(spring()) as server,
        AgentClient(agent.path) as client,
        httpx.Client(transport=signing(client, server.origin)) as http,
    ):
        with pytest.raises(ProofRefused, match="from the next request on"):
            http.post(server.origin, content=iter([b"once"]))
        assert len(server.seen) == 1
        assert http.post(server.origin, content=iter([b"again"])).status_code == 200


class Renewals:
    """Gives a1, a2, …"""

    def __init__(self) -> None:
        self.given = 0

    def __call__(self, old: BoundToken | None) -> BoundToken:
        self.given += 1
        return BoundToken(f"a{self.given}", JKT)

    async def later(self, old: BoundToken | None) -> BoundToken:
        return self(old)


# Each gives the status of a GET by an access token that is renewed where that helps.
By = Callable[[FakeAgent, str, Renewals], int]
HELD = BoundToken("a0", JKT)


def by_httpx(agent: FakeAgent, origin: str, renewals: Renewals) -> int:
    with (
        AgentClient(agent.path) as client,
        httpx.Client(transport=signing(client, origin)) as http,
    ):
        return http.get(origin, auth=DPoPAuth(renewals, token=HELD)).status_code


def by_async_httpx(agent: FakeAgent, origin: str, renewals: Renewals) -> int:
    async def main() -> int:
        async with (
            AsyncAgentClient(agent.path) as client,
            httpx.AsyncClient(transport=asigning(client, origin)) as http,
        ):
            auth = AsyncDPoPAuth(renewals.later, token=HELD)
            return (await http.get(origin, auth=auth)).status_code

    return asyncio.run(main())


def by_requests(agent: FakeAgent, origin: str, renewals: Renewals) -> int:
    with AgentClient(agent.path) as client, requests.Session() as session:
        session.mount("http://", DPoPAdapter(client, origins=[origin]))
        auth = dpop_agent.client.requests.DPoPAuth(renewals, token=HELD)
        # `stream`: of a body without end requests would read all.
        with session.get(origin, auth=auth, timeout=5, stream=True) as response:
            return response.status_code


def by_aiohttp(agent: FakeAgent, origin: str, renewals: Renewals) -> int:
    async def main() -> int:
        async with AsyncAgentClient(agent.path) as client:
            sign = DPoPMiddleware(client, origins=[origin])
            me = sign.presenting(renewals.later, token=HELD)
            async with (
                aiohttp.ClientSession(middlewares=[me]) as http,
                http.get(origin) as response,
            ):
                return response.status

    return asyncio.run(main())


each_auth = pytest.mark.parametrize("by", [by_httpx, by_async_httpx, by_requests, by_aiohttp])


@each_auth
def test_two_access_tokens_refused_by_a_server_with_another_clock_are_blamed_on_the_clock(
    agent: FakeAgent, by: By
) -> None:
    agent.clock_s = -90
    invalid = 'DPoP error="invalid_token"'
    server_of = judge(
        back=60, ahead=60, refusal=lambda: Reply(401, WWW_Authenticate=invalid), dated=True
    )
    renewals = Renewals()
    with FakeServer(server_of) as server, pytest.raises(ProofRefused, match=r"9. s behind"):
        by(agent, server.origin, renewals)
    assert renewals.given == 1


# --- an access token that only the body calls invalid


def only_a1(**refusal: Any) -> Handle:
    def handle(seen: Seen) -> Reply:
        if seen.headers["Authorization"] == "DPoP a1":
            return Reply(200)
        return Reply(refusal["status"], refusal["body"], **refusal["headers"])

    return handle


INVALID = b'{"error":"invalid_token"}'


@each_auth
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (INVALID, {"Content_Type": "application/json"}),
        (INVALID, {"Content_Type": "application/json;charset=UTF-8", "DPoP_Nonce": "n"}),
        (b'{"error_description":"gone","error":"invalid_token"}', {"Content_Type": "a/b+json"}),
        (INVALID, {"Content_Type": "application/json", "WWW_Authenticate": 'DPoP algs="ES256"'}),
        (b"", {"WWW_Authenticate": 'Bearer error="invalid_token"'}),
    ],
)
def test_an_access_token_that_only_the_body_calls_invalid_is_renewed(
    agent: FakeAgent, body: bytes, headers: dict[str, str], by: By
) -> None:
    renewals = Renewals()
    handle = only_a1(status=401, body=body, headers=headers)
    with FakeServer(handle) as server:
        assert by(agent, server.origin, renewals) == 200
    assert renewals.given == 1


@each_auth
@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (401, INVALID, "text/event-stream"),
        (401, INVALID, "text/html"),
        (400, INVALID, "application/json"),
        (403, INVALID, "application/json"),
        (401, b'{"error":"invalid_grant"}', "application/json"),
        (401, b'{"error":["invalid_token"]}', "application/json"),
        (401, INVALID[:-1] + b',"error":"invalid_token"}', "application/json"),
        (401, INVALID[:-1] + b" " * MAX_CHALLENGE_BODY + b"}", "application/json"),
        (401, b"", "application/json"),
    ],
)
def test_what_calls_no_access_token_invalid_renews_none(
    agent: FakeAgent, status: int, body: bytes, content_type: str, by: By
) -> None:
    renewals = Renewals()
    handle = only_a1(status=status, body=body, headers={"Content_Type": content_type})
    with FakeServer(handle) as server:
        assert by(agent, server.origin, renewals) == status
    assert renewals.given == 0


@each_auth
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_a_refusal_without_end_keeps_no_access_token_from_being_renewed(
    agent: FakeAgent, content_type: str, by: By
) -> None:
    sent: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            sent.append(1)
            yield b"x" * 1024

    def handle(seen: Seen) -> Reply:
        if seen.headers["Authorization"] == "DPoP a1":
            return Reply(200)
        invalid = 'DPoP error="invalid_token"'
        return Reply(401, endless(), Content_Type=content_type, WWW_Authenticate=invalid)

    renewals = Renewals()
    with FakeServer(handle) as server:
        assert by(agent, server.origin, renewals) == 200
    assert len(sent) * 1024 < MAX_CHALLENGE_BODY + 8 * 1024 * 1024  # what fits the sockets' buffers


# --- a nonce that is refused, and no other


@pytest.mark.parametrize(
    "refusal",
    [
        {"WWW_Authenticate": 'DPoP error="invalid_dpop_proof"'},
        {"WWW_Authenticate": 'DPoP error="use_dpop_nonce"'},
        {"WWW_Authenticate": 'DPoP error="invalid_token"'},
        {},
    ],
)
def test_a_nonce_that_is_refused_without_another_is_forgotten(
    agent: FakeAgent, post: Get, refusal: dict[str, str]
) -> None:
    with FakeServer(lambda _: Reply(401, b"", **refusal)) as server:
        agent.nonces[server.origin] = "stale"
        assert post(server.origin)[0] == 401
        assert {"htu": f"{server.origin}/", "refused_nonce": "stale"} in agent.observed
        post(server.origin)
    assert agent.nonces == {}


@pytest.mark.parametrize(
    "reply",
    [
        lambda: Reply(200),
        lambda: Reply(403, b"", WWW_Authenticate='DPoP error="insufficient_scope"'),
        lambda: Reply(400, b'{"error":"invalid_grant"}', Content_Type="application/json"),
        lambda: Reply(400, b'{"message":"no such order"}', Content_Type="application/json"),
        lambda: Reply(401, b"", WWW_Authenticate='DPoP error="invalid_token"', DPoP_Nonce="good"),
    ],
)
def test_a_nonce_that_isnt_at_fault_is_kept(
    agent: FakeAgent, post: Get, reply: Callable[[], Reply]
) -> None:
    with FakeServer(lambda _: reply()) as server:
        agent.nonces[server.origin] = "good"
        post(server.origin)
        assert agent.nonces == {server.origin: "good"}


# --- paths


@pytest.mark.parametrize(
    "path", ["/a|b?q=a|b", "/a^b", "/a[b]?x=[1]", "/[|^]/%5b%7C", "/a%20b|", "//|//"]
)
def test_a_path_with_one_reading_is_signed_as_it_goes_over_the_wire(
    agent: FakeAgent, post: Get, path: str
) -> None:
    with FakeServer(lambda _: Reply()) as server:
        assert post(server.origin + path)[0] == 200
        (seen,) = server.seen
        assert agent.proofs[0]["htu"] == server.origin + seen.path.partition("?")[0]
        assert not set("|^[]") & set(agent.proofs[0]["htu"])
        assert ("?" in path) == ("?" in seen.path)
