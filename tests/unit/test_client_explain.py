"""`explain(response)` takes the responses of every HTTP library here, and reads nothing anew."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

import dpop_agent.client
from dpop_agent.client import AgentClient, BoundToken, BoundTokenAuth, DPoPAdapter, DPoPTransport
from dpop_agent.client import explain as public_explain
from dpop_agent.client.explaining.responses import of_response
from tests.unit import exchanges_by_hand as hand
from tests.unit.fake_agent import FakeAgent
from tests.unit.fake_server import FakeServer, Reply, Seen
from tests.unit.test_layout import among, loaded_by

SAID = json.dumps(hand.error("invalid_dpop_proof", "DPoP proof htm mismatch")).encode()
FORM = {"grant_type": "refresh_token", "refresh_token": "rt-very-secret-refresh"}
CHALLENGE = 'DPoP error="invalid_dpop_proof"'

Ask = Callable[..., Any]


def answer(seen: Seen) -> Reply:
    if seen.path == "/old":
        return Reply(307, Location="/me")
    return Reply(401, SAID, Content_Type="application/json", WWW_Authenticate=CHALLENGE)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(answer) as running:
        yield running


def by_httpx(method: str, url: str, **arguments: Any) -> Any:
    with httpx.Client(trust_env=False, follow_redirects=True) as client:
        return client.request(method, url, **arguments)


def by_httpx2(method: str, url: str, **arguments: Any) -> Any:
    with httpx2.Client(trust_env=False, follow_redirects=True) as client:
        return client.request(method, url, **arguments)


def by_requests(method: str, url: str, **arguments: Any) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, timeout=5, **arguments)


def by_aiohttp(method: str, url: str, **arguments: Any) -> Any:
    async def main() -> Any:
        async with aiohttp.ClientSession() as http, http.request(method, url, **arguments) as r:
            await r.read()
            return r

    return asyncio.run(main())


LIBRARIES = [by_httpx, by_httpx2, by_requests, by_aiohttp]


def headers(url: str, **options: Any) -> dict[str, str]:
    made = hand.proof("PUT", url, access_token=hand.BOUND, **options)
    return {"DPoP": made, "Authorization": f"DPoP {hand.BOUND}"}


@pytest.mark.parametrize("ask", LIBRARIES)
def test_a_response_of_each_library_is_explained(server: FakeServer, ask: Ask) -> None:
    url = f"{server.origin}/me"
    found = public_explain(ask("GET", f"{url}?page=1", headers=headers(url)))
    assert found.findings[0].cause == "htm_mismatch"
    assert "DPoP proof htm mismatch" in found.response
    assert str(found).startswith("The proof is for another method than the request's.")
    assert hand.BOUND not in str(found)
    assert f"GET {url}?page=…" in str(found)


@pytest.mark.parametrize("ask", [by_httpx, by_httpx2, by_requests])
def test_the_form_that_was_sent_says_which_grant_it_was(ask: Ask, server: FakeServer) -> None:
    [exchange] = of_response(ask("POST", f"{server.origin}/token", data=FORM))
    assert exchange.form["grant_type"] == "refresh_token"


@pytest.mark.parametrize("ask", LIBRARIES)
def test_redirects_before_it_are_evidence(server: FakeServer, ask: Ask) -> None:
    url = f"{server.origin}/old"
    found = public_explain(ask("GET", url, headers={"DPoP": hand.proof("GET", url)}))
    assert "htu_mismatch" in {finding.cause for finding in found.findings}
    assert "before the redirect" in str(found)


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_body_that_httpx_has_not_read_stays_unread(server: FakeServer, library: Any) -> None:
    url = f"{server.origin}/me"
    with (
        library.Client(trust_env=False) as client,
        client.stream("GET", url, headers=headers(url)) as response,
    ):
        assert public_explain(response).findings[0].cause == "htm_mismatch"
        assert not response.is_stream_consumed
        assert response.read() == SAID


def test_a_body_that_requests_has_not_read_stays_unread(server: FakeServer) -> None:
    url = f"{server.origin}/me"
    with requests.get(url, headers=headers(url), stream=True, timeout=5) as response:
        assert public_explain(response).findings[0].cause == "htm_mismatch"
        assert response.content == SAID


def test_a_body_that_aiohttp_has_not_read_stays_unread(server: FakeServer) -> None:
    url = f"{server.origin}/me"

    async def main() -> None:
        async with aiohttp.ClientSession() as http, http.get(url, headers=headers(url)) as response:
            assert public_explain(response).findings[0].cause == "htm_mismatch"
            assert await response.read() == SAID

    asyncio.run(main())


def test_the_proof_that_a_transport_of_ours_put_in_is_the_one_explained(
    agent: FakeAgent, client: AgentClient, server: FakeServer
) -> None:
    url = f"{server.origin}/me"
    inherited = {"DPoP": "inherited"}
    with httpx.Client(
        transport=DPoPTransport(client, origins=[server.origin]), trust_env=False
    ) as made:
        [exchange] = of_response(made.get(url, headers=inherited))
    assert exchange.sent("DPoP") == server.seen[-1].proofs
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", DPoPAdapter(client, origins=[server.origin]))
        [exchange] = of_response(session.get(url, headers=inherited, timeout=5))
    assert exchange.sent("DPoP") == server.seen[-1].proofs


def test_an_access_token_that_cannot_be_seen_counts_as_presented(
    client: AgentClient, server: FakeServer, agent: FakeAgent
) -> None:
    """requests' own request has neither: the adapter signs a copy."""
    key = hand.KEY
    bound = BoundToken(hand.BOUND, key.jkt)
    agent.script = [
        {
            "proof": hand.rs(htu=f"{server.origin}/me", iat=int(time.time())),
            "key": "default",
            "generation": 1,
            "jkt": key.jkt,
            "state": "active",
            "nonce": None,
        }
    ]
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", DPoPAdapter(client, origins=[server.origin]))
        response = session.get(f"{server.origin}/me", auth=BoundTokenAuth(bound), timeout=5)
    [exchange] = of_response(response)
    assert exchange.sent("Authorization") == ["DPoP [hidden]"]


def test_the_agent_says_which_generations_there_are(
    agent: FakeAgent, client: AgentClient, server: FakeServer
) -> None:
    old = {"generation": 1, "jkt": hand.GONE.jkt, "state": "destroyed"}
    unmade = {"generation": 3, "jkt": None, "state": "pending"}
    new = {"generation": 2, "jkt": hand.KEY.jkt, "state": "active"}
    agent.script = [{"keys": [{"key": "shop", "generations": [old, new, unmade]}], "cursor": None}]
    url = f"{server.origin}/me"
    now = int(time.time())
    token = hand.access_token(hand.GONE, exp=now + 60)
    proof = hand.proof("GET", url, access_token=token, iat=now)
    sent = {"DPoP": proof, "Authorization": f"DPoP {token}"}
    found = public_explain(by_httpx("GET", url, headers=sent), agent=client).findings
    [evidence] = [dict(f.evidence) for f in found if f.cause == "access_token_of_another_key"]
    assert evidence["access token's key"] == f"{hand.GONE.jkt}, shop@1 (destroyed)"
    assert evidence["proof's key"] == f"{hand.KEY.jkt}, shop@2 (active)"
    assert agent.requests == [("key.list", {"include_destroyed": True})]


def test_metadata_are_taken_as_they_are(server: FakeServer) -> None:
    url = f"{server.origin}/me"
    response = by_httpx("GET", url, headers={"DPoP": hand.proof("GET", url, key=hand.ES384)})
    found = public_explain(response, metadata={"dpop_signing_alg_values_supported": ["ES256"]})
    assert "alg_not_accepted" in {finding.cause for finding in found.findings}


@pytest.mark.parametrize("what", [None, 7, "401", object(), {"status_code": 401}])
def test_what_is_no_response_is_said_to_be_none(what: object) -> None:
    with pytest.raises(ValueError, match="no response of an HTTP library"):
        public_explain(what)


def test_what_it_returns_is_read_only() -> None:
    explanation = dpop_agent.client.explain
    assert explanation is public_explain
    finding = dpop_agent.client.Finding("scope", "x", (), "y")
    with pytest.raises(AttributeError):
        finding.cause = "other"  # type: ignore[misc]


def test_it_imports_no_http_library_and_no_cryptography() -> None:
    loaded = loaded_by("from dpop_agent.client import explain")
    heavy = ("httpx", "httpx2", "requests", "aiohttp", "cryptography", "asyncio", "ssl")
    assert "dpop_agent.client.explaining.verdict" in loaded
    assert not among(loaded, *heavy, "dpop_agent.verify", "dpop_agent.cli")
