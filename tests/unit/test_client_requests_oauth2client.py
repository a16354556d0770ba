"""requests_oauth2client with the agent's key: what the library does with it, and what it can't."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from requests_oauth2client import (
    DPoPToken,
    InvalidDPoPKey,
    InvalidTokenResponse,
    OAuth2AccessTokenAuth,
    OAuth2Client,
    TokenSerializer,
)

from dpop_agent.client import AgentClient
from dpop_agent.client.requests_oauth2client import AgentDPoPKey, AgentDPoPToken
from dpop_agent.errors import ConfigurationError, KeyUnknown, NonceRequired
from tests.unit.agent_in_process import AgentInProcess
from tests.unit.fake_server import FakeServer, Reply, Seen

BOUND = {"token_type": "DPoP", "access_token": "at-1", "refresh_token": "rt-1", "expires_in": 300}
CHALLENGE = {"WWW_Authenticate": 'DPoP error="use_dpop_nonce"', "DPoP_Nonce": "n1"}


@pytest.fixture(scope="module")
def running() -> Iterator[AgentInProcess]:
    with AgentInProcess() as agent:
        with AgentClient(agent.admin_socket) as admin:
            admin.call("key.create", {"key": "default", "store": "dict", "origins": []})
        yield agent


@pytest.fixture
def client(running: AgentInProcess) -> Iterator[AgentClient]:
    with AgentClient(running.socket) as made:
        yield made


@pytest.fixture
def make(client: AgentClient) -> Callable[..., AgentDPoPKey]:
    def key(*origins: str, **arguments: Any) -> AgentDPoPKey:
        return AgentDPoPKey(client, origins=origins, **arguments)

    return key


def claims_of(seen: Seen) -> dict[str, Any]:
    from tests.kit.wire import Seen as Wire

    (value,) = seen.proofs
    proof = Wire("as", seen.method, seen.path, [("dpop", value)], b"", 1).proof
    assert proof is not None
    return {**proof.claims, "jkt": proof.jkt}


def token_endpoint(seen: Seen) -> Reply:
    return Reply(200, json.dumps(BOUND).encode(), Content_Type="application/json")


@pytest.fixture
def oauth(make: Callable[..., AgentDPoPKey]) -> Iterator[Callable[..., OAuth2Client]]:
    with requests.Session() as session:

        def client(server: FakeServer, *others: FakeServer) -> OAuth2Client:
            origins = [each.origin for each in (server, *others)]
            return OAuth2Client(
                f"{server.origin}/token",
                ("id", "secret"),
                session=session,
                testing=True,  # the library's word for plain http
                dpop_bound_access_tokens=True,
                dpop_key_generator=lambda alg: make(*origins),
            )

        yield client


def test_token_requests_and_requests_have_the_agents_proofs(
    client: AgentClient, oauth: Callable[..., OAuth2Client]
) -> None:
    jkt = client.generation("default").jkt
    with FakeServer(lambda seen: token_endpoint(seen)) as server:
        token = oauth(server).client_credentials()
        assert isinstance(token, AgentDPoPToken)
        assert token.dpop_key.dpop_jkt == jkt
        requests.get(f"{server.origin}/me?q=1", auth=token, timeout=5)
        asked, presented = (claims_of(seen) for seen in server.seen)
        assert server.seen[1].headers["Authorization"] == "DPoP at-1"
        assert (asked["htu"], presented["htu"]) == (f"{server.origin}/token", f"{server.origin}/me")
    assert (asked["jkt"], presented["jkt"]) == (jkt, jkt)
    assert ("ath" in asked, "ath" in presented) == (False, True)


def test_a_refresh_stays_with_the_generation_that_the_grant_was_made_with(
    running: AgentInProcess, client: AgentClient, oauth: Callable[..., OAuth2Client]
) -> None:
    with FakeServer(token_endpoint) as server:
        library = oauth(server)
        token = library.client_credentials()
        assert isinstance(token, DPoPToken)
        old = token.dpop_key.dpop_jkt
        with AgentClient(running.admin_socket) as admin:
            admin.call("key.rotate", {"key": "default"})
        library.refresh_token(token)
        library.client_credentials()
        jkts = [claims_of(seen)["jkt"] for seen in server.seen]
    new = client.generation("default").jkt
    assert new != old
    assert jkts == [old, old, new]


def test_a_token_of_before_goes_on_by_its_jkt(
    client: AgentClient, make: Callable[..., AgentDPoPKey]
) -> None:
    jkt = client.generation("default").jkt
    with FakeServer(lambda _: Reply()) as server:
        token = AgentDPoPToken("at-0", _dpop_key=make(server.origin, jkt=jkt))
        requests.get(server.origin, auth=token, timeout=5)
        assert claims_of(server.seen[0])["jkt"] == jkt
    with pytest.raises(KeyUnknown):
        make("https://api.example", jkt="0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I")
    with pytest.raises(ConfigurationError):
        make(jkt=jkt)


def test_nothing_that_the_library_writes_of_a_token_has_a_private_key(
    make: Callable[..., AgentDPoPKey],
) -> None:
    token = AgentDPoPToken("at-0", _dpop_key=make("https://api.example"))
    written = token.as_dict()["dpop_key"]["private_key"]
    assert set(written) >= {"kty", "crv", "x", "y"}
    assert "d" not in written
    serializer = TokenSerializer()
    with pytest.raises(InvalidDPoPKey):
        serializer.loads(serializer.dumps(token))


def test_each_server_has_nonces_of_its_own_and_the_agent_keeps_them(
    oauth: Callable[..., OAuth2Client],
) -> None:
    def server_of(nonce: str) -> Callable[[Seen], Reply]:
        def handle(seen: Seen) -> Reply:
            if seen.path == "/token" and claims_of(seen).get("nonce") != nonce:
                body = json.dumps({"error": "use_dpop_nonce"}).encode()
                return Reply(400, body, Content_Type="application/json", DPoP_Nonce=nonce)
            if claims_of(seen).get("nonce") != nonce:
                return Reply(401, b"", **{**CHALLENGE, "DPoP_Nonce": nonce})
            return token_endpoint(seen)

        return handle

    with FakeServer(server_of("as-1")) as server, FakeServer(server_of("api-1")) as api:

        def used(fake: FakeServer) -> list[str | None]:
            return [claims_of(seen).get("nonce") for seen in fake.seen]

        library = oauth(server, api)
        for _ in range(3):
            token = library.client_credentials()
            assert requests.get(api.origin, auth=token, timeout=5).status_code == 200
        assert used(server) == [None, "as-1", "as-1", "as-1"]
        assert used(api) == [None, "api-1", "api-1", "api-1"]


@pytest.mark.parametrize("hooks", [{}, {"response": lambda response, **_: response}])
def test_an_access_token_that_is_refused_is_no_error_of_the_librarys_and_sent_twice_at_most(
    make: Callable[..., AgentDPoPKey], hooks: dict[str, Any]
) -> None:
    invalid = 'DPoP error="invalid_token"'
    with FakeServer(lambda _: Reply(401, WWW_Authenticate=invalid)) as server:
        token = AgentDPoPToken("at-0", _dpop_key=make(server.origin))
        response = requests.get(server.origin, auth=token, hooks=hooks, timeout=5)
        assert response.status_code == 401
        assert len(server.seen) == 2


def test_a_server_that_asks_for_nonces_without_end_is_given_up(
    oauth: Callable[..., OAuth2Client],
) -> None:
    body = json.dumps({"error": "use_dpop_nonce"}).encode()

    def handle(seen: Seen) -> Reply:
        nonce = f"n{len(server.seen)}"
        return Reply(400, body, Content_Type="application/json", DPoP_Nonce=nonce)

    with FakeServer(handle) as server:
        with pytest.raises(InvalidTokenResponse):
            oauth(server).client_credentials()
        assert len(server.seen) == 3


def test_a_redirect_to_an_unlisted_server_that_asks_for_a_nonce_gets_no_access_token(
    make: Callable[..., AgentDPoPKey],
) -> None:
    with (
        FakeServer(lambda _: Reply(401, b"", **CHALLENGE)) as other,
        FakeServer(lambda _: Reply(302, Location=other.origin)) as server,
    ):
        token = AgentDPoPToken("at-secret", _dpop_key=make(server.origin))
        with pytest.raises(ConfigurationError, match="origins"):
            requests.get(server.origin, auth=token, timeout=5)
        with pytest.raises(ConfigurationError, match="origins"):
            requests.get(other.origin, auth=token, timeout=5)
        assert [seen.headers["Authorization"] for seen in other.seen] == [None]


def test_a_body_that_can_be_read_once_is_sent_once(make: Callable[..., AgentDPoPKey]) -> None:
    with FakeServer(lambda _: Reply(401, b"", **CHALLENGE)) as server:
        token = AgentDPoPToken("at-0", _dpop_key=make(server.origin))
        with pytest.raises(NonceRequired) as caught:
            requests.post(server.origin, data=iter([b"body"]), auth=token, timeout=5)
        assert caught.value.nonce == "n1"
        assert [seen.body for seen in server.seen] == [b"body"]


def test_the_librarys_own_renewal_goes_by_the_agents_key(
    oauth: Callable[..., OAuth2Client],
) -> None:
    with FakeServer(token_endpoint) as server:
        library = oauth(server)
        token = library.client_credentials(expires_in=1)
        old = AgentDPoPToken("at-0", _dpop_key=token.dpop_key, expires_in=1, refresh_token="rt-0")
        requests.get(server.origin, auth=OAuth2AccessTokenAuth(library, old), timeout=5)
        assert [len(seen.proofs) for seen in server.seen] == [1, 1, 1]
        assert server.seen[-1].headers["Authorization"] == "DPoP at-1"
