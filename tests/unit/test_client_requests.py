"""requests: what goes over the wire, hop by hop."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util import Retry

from dpop_agent.client import AgentClient, BoundToken, BoundTokenAuth, DPoPAdapter
from dpop_agent.client.requests import DPoPAuth
from dpop_agent.errors import ConfigurationError, KeyRetired, NonceRequired
from tests.unit.fake_agent import JKT, OTHER_JKT, FakeAgent
from tests.unit.fake_server import FakeServer, Reply, Seen

API = "https://api.example.com"
CHALLENGE = {
    "WWW_Authenticate": 'DPoP algs="ES256", error="use_dpop_nonce"',
    "DPoP_Nonce": "n1",
}


def session(client: AgentClient, *origins: str, **arguments: Any) -> requests.Session:
    made = requests.Session()
    made.trust_env = False
    made.mount("http://", DPoPAdapter(client, key="default", origins=origins, **arguments))
    return made


def test_a_request_carries_one_proof_and_the_response_tells_which(
    agent: FakeAgent, client: AgentClient
) -> None:
    with FakeServer(lambda _: Reply(200, b"here")) as server, session(client, server.origin) as s:
        response = s.get(
            f"{server.origin}/me?q=1",
            headers={
                "DPoP": "inherited",
                "Authorization": "DPoP Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU",
            },
            timeout=5,
        )
        assert response.text == "here"
        assert server.seen[0].proofs == ["e30.e30.proof-1"]
    assert response.dpop.jkt == JKT  # type: ignore[attr-defined]
    assert response.request.headers["DPoP"] == "inherited"
    (params,) = agent.proofs
    assert params["htu"] == f"{server.origin}/me"
    assert params["ath"] == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"


def test_a_pinned_adapter_signs_by_its_jkt(agent: FakeAgent, client: AgentClient) -> None:
    with (
        FakeServer(lambda _: Reply()) as server,
        session(client, server.origin, jkt=OTHER_JKT) as s,
    ):
        s.get(server.origin, timeout=5)
    assert agent.proofs[0]["jkt"] == OTHER_JKT


def test_htu_is_what_went_over_the_wire(agent: FakeAgent, client: AgentClient) -> None:
    with FakeServer(lambda _: Reply()) as server, session(client, server.origin) as s:
        for path in ("/a%2fb/%7euser/%c3%a9", "/j%40x.io/é", "//a//b/", "/a'(b)", "", "/x?y#z"):
            s.get(server.origin + path, timeout=5)
        s.get(server.origin.replace("://", "://user:geheim@") + "/in", timeout=5)
        sent = [server.origin + seen.path.partition("?")[0] for seen in server.seen]
    assert [params["htu"] for params in agent.proofs] == sent
    assert sent[0].endswith("/a%2Fb/~user/%C3%A9")
    assert "geheim" not in repr(agent.requests)


def test_htu_is_the_servers_through_a_proxy_too(agent: FakeAgent, client: AgentClient) -> None:
    with FakeServer(lambda _: Reply()) as proxy, session(client, "http://as.example") as s:
        s.get("http://as.example/a%2fb?x=1", proxies={"http": proxy.origin}, timeout=5)
        assert proxy.seen[0].path == "http://as.example/a%2Fb?x=1"
    assert agent.proofs[0]["htu"] == "http://as.example/a%2Fb"


def test_a_same_origin_redirect_carries_a_fresh_proof(client: AgentClient) -> None:
    def handle(seen: Seen) -> Reply:
        return Reply(302, Location="/new") if seen.path == "/old" else Reply(200, b"here")

    with FakeServer(handle) as server, session(client, server.origin) as s:
        response = s.get(f"{server.origin}/old", headers={"Authorization": "DPoP a"}, timeout=5)
        assert response.text == "here"
        assert [seen.proofs for seen in server.seen] == [["e30.e30.proof-1"], ["e30.e30.proof-2"]]
        assert server.seen[1].headers["Authorization"] == "DPoP a"


@pytest.mark.parametrize("plain", [False, True])
def test_a_cross_origin_redirect_carries_no_proof_and_no_access_token(
    client: AgentClient, plain: bool
) -> None:
    with (
        FakeServer(lambda _: Reply(200, b"there")) as other,
        FakeServer(lambda _: Reply(302, Location=f"{other.origin}/new")) as server,
        session(client, server.origin) as s,
    ):
        if plain:  # another adapter strips no proof
            s.mount(other.origin, HTTPAdapter())
        response = s.get(
            f"{server.origin}/old", headers={"Authorization": "DPoP geheim"}, timeout=5
        )
        assert response.text == "there"
        assert other.seen[0].proofs == []
        assert other.seen[0].headers["Authorization"] is None


def test_an_unlisted_server_gets_neither_proof_nor_access_token(
    agent: FakeAgent, client: AgentClient
) -> None:
    with FakeServer(lambda _: Reply()) as server, session(client, API) as s:
        response = s.get(server.origin, headers={"DPoP": "inherited"}, timeout=5)
        assert response.dpop is None  # type: ignore[attr-defined]
        with pytest.raises(ConfigurationError) as caught:
            s.get(server.origin, headers={"Authorization": "DPoP geheim"}, timeout=5)
        assert "geheim" not in str(caught.value)
        assert [seen.proofs for seen in server.seen] == [[]]
    assert agent.requests == []


def test_the_agents_refusal_reaches_the_caller_and_nothing_is_sent(
    agent: FakeAgent, client: AgentClient
) -> None:
    agent.refuse[JKT] = KeyRetired("default@1 is retired")
    with FakeServer(lambda _: Reply()) as server, session(client, server.origin) as s:
        with pytest.raises(KeyRetired):
            s.get(server.origin, timeout=5)
        assert server.seen == []


@pytest.mark.parametrize("body", [None, b"bytes", "text", {"form": "1"}, "file"])
def test_a_challenge_is_answered_with_the_nonce_a_new_proof_and_the_same_body(
    agent: FakeAgent, client: AgentClient, body: Any, tmp_path: Path
) -> None:
    def handle(seen: Seen) -> Reply:
        return Reply(401, b"", **CHALLENGE) if seen.proofs == ["e30.e30.proof-1"] else Reply(200)

    data = body
    if body == "file":
        data = io.BytesIO(b"skipped" + b"file" * 1000)
        data.seek(7)
    with FakeServer(handle) as server, session(client, server.origin) as s:
        response = s.post(server.origin, data=data, timeout=5)
        assert response.status_code == 200
        assert response.dpop.nonce == "n1"  # type: ignore[attr-defined]
        first, second = server.seen
        assert first.body == second.body
        assert (first.proofs, second.proofs) == (["e30.e30.proof-1"], ["e30.e30.proof-2"])
    assert agent.proofs[1]["nonce"] == "n1"


def test_a_body_that_can_not_be_replayed_is_sent_once(
    agent: FakeAgent, client: AgentClient
) -> None:
    def body() -> Iterator[bytes]:
        yield b"part 1,"
        yield b"part 2"

    with (
        FakeServer(lambda _: Reply(401, b"", **CHALLENGE)) as server,
        session(client, server.origin) as s,
    ):
        with pytest.raises(NonceRequired) as caught:
            s.post(server.origin, data=body(), timeout=5)
        assert [seen.body for seen in server.seen] == [b"part 1,part 2"]
    assert caught.value.nonce == "n1"
    assert agent.nonces[server.origin] == "n1"


def test_a_repeated_nonce_header_is_ignored(agent: FakeAgent, client: AgentClient) -> None:
    with (
        FakeServer(lambda _: Reply(200, b"", DPoP_Nonce="n1", dpop_nonce="n2")) as server,
        session(client, server.origin) as s,
    ):
        s.get(server.origin, timeout=5)
    assert agent.observed == []


def test_an_event_stream_stays_a_stream(agent: FakeAgent, client: AgentClient) -> None:
    ended = threading.Event()

    def events() -> Iterator[bytes]:
        yield b"data: 1\n"
        ended.wait(5)
        yield b"data: 2\n"

    def handle(seen: Seen) -> Reply:
        return Reply(401, events(), Content_Type="text/event-stream", DPoP_Nonce="n1")

    with (
        FakeServer(handle) as server,
        session(client, server.origin) as s,
        s.get(server.origin, stream=True, timeout=5) as response,
    ):
        lines = response.iter_lines(chunk_size=1)
        assert next(lines) == b"data: 1"
        ended.set()
        assert list(lines) == [b"data: 2"]
    assert agent.observed[-1]["nonce"] == "n1"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("challenged", [False, True])
def test_a_json_refusal_is_read_and_stays_readable(
    client: AgentClient, stream: bool, challenged: bool
) -> None:
    error = {"error": "use_dpop_nonce" if challenged else "other", "more": "é" * 2000}
    body = json.dumps(error).encode()

    def handle(seen: Seen) -> Reply:
        packed = gzip.compress(body)
        return Reply(
            400,
            [packed[:10], packed[10:]],
            Content_Type="application/json",
            Content_Encoding="gzip",
            DPoP_Nonce="n1",
        )

    with FakeServer(handle) as server, session(client, server.origin) as s:
        response = s.get(server.origin, stream=stream, timeout=5)
        if stream:
            assert b"".join(response.iter_content(100)) == body
        else:
            assert response.json() == error
        assert len(server.seen) == 1 + challenged


def test_a_streamed_answer_that_is_no_refusal_is_not_read(client: AgentClient) -> None:
    with (
        FakeServer(lambda _: Reply(200, b"{}", Content_Type="application/json")) as server,
        session(client, server.origin) as s,
    ):
        response = s.get(server.origin, stream=True, timeout=5)
        assert response.raw.read() == b"{}"


def test_a_long_json_refusal_is_not_read_ahead(client: AgentClient) -> None:
    big = b'{"error":"use_dpop_nonce","pad":"' + b"x" * 50_000 + b'"}'

    def handle(seen: Seen) -> Reply:
        return Reply(401, big, Content_Type="application/json", DPoP_Nonce="n1")

    with FakeServer(handle) as server, session(client, server.origin) as s:
        response = s.get(server.origin, stream=True, timeout=5)
        assert response.raw.read() == big
        assert len(server.seen) == 1


@pytest.mark.parametrize("retries", [1, Retry(3), Retry(total=None, connect=1)])
def test_retries_below_the_adapter_are_refused(client: AgentClient, retries: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_retries"):
        DPoPAdapter(client, origins=[API], max_retries=retries)
    adapter = DPoPAdapter(client, origins=[API], max_retries=Retry(0))
    adapter.max_retries = Retry(2)
    with requests.Session() as s:
        s.mount("https://", adapter)
        with pytest.raises(ConfigurationError, match="max_retries"):
            s.get(API, timeout=5)


def test_no_retries_are_fine(client: AgentClient) -> None:
    for retries in (0, Retry(0), False):
        assert DPoPAdapter(client, origins=[API], max_retries=retries).max_retries.total in (
            0,
            False,
        )


def test_a_pickled_session_has_no_connection_and_works(
    agent: FakeAgent, client: AgentClient
) -> None:
    with FakeServer(lambda _: Reply()) as server, session(client, server.origin) as s:
        s.get(server.origin, timeout=5)
        with pickle.loads(pickle.dumps(s)) as again:
            again.get(server.origin, timeout=5)
        assert [seen.proofs for seen in server.seen] == [["e30.e30.proof-1"], ["e30.e30.proof-2"]]
    assert agent.connections == 2


# --- DPoPAuth


def _never(old: BoundToken | None) -> BoundToken:
    raise AssertionError("no renewal is due")


AUTHS: list[Callable[[BoundToken], AuthBase]] = [
    BoundTokenAuth,
    lambda held: DPoPAuth(_never, token=held),
]
HELD = BoundToken("at-1", OTHER_JKT)


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.usefixtures("netrc")
@pytest.mark.parametrize("auth", AUTHS)
def test_netrc_replaces_no_access_token_behind_a_redirect_either(
    client: AgentClient, auth: Callable[[BoundToken], AuthBase]
) -> None:
    def handle(seen: Seen) -> Reply:
        return Reply(302, Location="/new") if seen.path == "/old" else Reply()

    with FakeServer(handle) as server, session(client, server.origin) as s:
        s.trust_env = True
        s.get(f"{server.origin}/old", auth=auth(HELD), timeout=5)
        seen = [(each.path, each.headers.get_all("Authorization")) for each in server.seen]
    assert seen == [("/old", ["DPoP at-1"]), ("/new", ["DPoP at-1"])]


@pytest.mark.usefixtures("netrc")
@pytest.mark.parametrize("auth", AUTHS)
@pytest.mark.parametrize("ours", [False, True])
def test_behind_a_redirect_elsewhere_there_is_netrc_and_no_access_token(
    client: AgentClient, auth: Callable[[BoundToken], AuthBase], ours: bool
) -> None:
    with (
        FakeServer(lambda _: Reply()) as other,
        FakeServer(lambda _: Reply(302, Location=other.origin)) as server,
        session(client, server.origin, other.origin) as s,
    ):
        s.trust_env = True
        if not ours:
            s.mount(other.origin, HTTPAdapter())
        s.get(server.origin, auth=auth(HELD), timeout=5)
        (seen,) = other.seen
        assert seen.headers["Authorization"].startswith("Basic ")
        assert len(seen.proofs) == ours


def test_an_access_token_of_dpop_auth_goes_by_no_adapter_but_ours(client: AgentClient) -> None:
    with FakeServer(lambda _: Reply()) as server, requests.Session() as s:
        with pytest.raises(ConfigurationError, match="DPoPAdapter"):
            s.get(server.origin, auth=DPoPAuth(_never, token=HELD), timeout=5)
        assert server.seen == []


def test_a_renewal_by_a_session_that_has_the_auth_for_all_says_what_to_do(
    client: AgentClient,
) -> None:
    with FakeServer(lambda _: Reply()) as server, session(client, server.origin) as s:

        def renew(old: BoundToken | None) -> BoundToken:
            s.post(server.origin, timeout=5)
            raise AssertionError("the request was refused")

        s.auth = DPoPAuth(renew)
        with pytest.raises(ConfigurationError, match="needs the access token") as caught:
            s.get(server.origin, timeout=5)
        assert "an auth of its own" in caught.value.hint
        assert server.seen == []


def test_a_renewals_requests_are_signed_by_the_grants_generation(
    agent: FakeAgent, client: AgentClient
) -> None:
    old = BoundToken("at-0", OTHER_JKT, expires_at=1.0, refresh_token="rt")
    with FakeServer(lambda _: Reply()) as server, session(client, server.origin) as s:

        def renew(held: BoundToken | None) -> BoundToken:
            assert held == old
            s.post(f"{server.origin}/token", timeout=5)
            return HELD

        response = s.get(server.origin, auth=DPoPAuth(renew, token=old), timeout=5)
        s.post(f"{server.origin}/token", timeout=5)
        assert response.dpop.jkt == OTHER_JKT  # type: ignore[attr-defined]
    jkts = [params.get("jkt") for params in agent.proofs]
    assert jkts == [OTHER_JKT, OTHER_JKT, None]


def test_a_pickled_response_has_no_access_token_of_the_auths_and_its_request_says_so(
    client: AgentClient,
) -> None:
    with FakeServer(lambda _: Reply()) as server, session(client, server.origin) as s:
        response = s.get(server.origin, auth=DPoPAuth(_never, token=HELD), timeout=5)
        pickled = pickle.dumps(response)
        assert b"at-1" not in pickled
        again = pickle.loads(pickled).request
        with pytest.raises(ConfigurationError, match="pickle"):
            s.send(again, timeout=5)
        assert len(server.seen) == 1
