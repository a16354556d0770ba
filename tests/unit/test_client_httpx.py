"""httpx: what goes over the wire, hop by hop, and which access token a request presents."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from dpop_agent.client import (
    AgentClient,
    AsyncAgentClient,
    AsyncDPoPAuth,
    AsyncDPoPTransport,
    BoundToken,
    DPoPAuth,
    DPoPTransport,
)
from dpop_agent.client.grant import LEAVE_BEFORE_S
from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    KeyCompromised,
    KeyDestroyed,
    KeyMismatch,
    KeyRetired,
    KeyUnknown,
    Locked,
    NonceRequired,
)
from tests.unit.fake_agent import HANG_UP, JKT, OTHER_JKT, FakeAgent
from tests.unit.fake_server import FakeServer, Reply, Seen

AS = "https://as.example"
API = "https://api.example.com"
WANTED = json.dumps({"error": "use_dpop_nonce"}).encode()
CHALLENGE = {"WWW-Authenticate": 'DPoP algs="ES256", error="use_dpop_nonce"', "DPoP-Nonce": "n1"}
INVALID = {"WWW-Authenticate": 'DPoP error="invalid_token"'}

Handler = Callable[[httpx.Request], httpx.Response]


class Wire:
    """A mocked server side: `sent` is what the transport handed on."""

    def __init__(self, handle: Handler) -> None:
        self.sent: list[httpx.Request] = []
        self._handle = handle

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        return self._handle(request)

    def proofs(self) -> list[str | None]:
        return [request.headers.get("DPoP") for request in self.sent]

    def authorizations(self) -> list[str | None]:
        return [request.headers.get("Authorization") for request in self.sent]


def mocked(
    client: AgentClient, wire: Handler, *, key: str | None = "default", **arguments: Any
) -> httpx.Client:
    transport = DPoPTransport(
        client, key=key, origins=[AS, API], transport=httpx.MockTransport(wire)
    )
    return httpx.Client(transport=transport, **arguments)


def ok(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"path": request.url.path})


# --- the transport


def test_a_request_carries_one_proof_and_the_response_tells_which(
    agent: FakeAgent, client: AgentClient
) -> None:
    wire = Wire(ok)
    with mocked(client, wire) as http:
        response = http.get(f"{API}/me?q=1", headers={"DPoP": "inherited"})
    assert wire.proofs() == ["e30.e30.proof-1"]
    assert response.extensions["dpop"].jkt == JKT
    assert response.json() == {"path": "/me"}
    assert agent.proofs == [
        {
            "htm": "GET",
            "htu": f"{API}/me",
            "key": "default",
            "shares_nonce": True,
            "timeout_ms": 10_000,
        }
    ]


def test_the_proof_stays_out_of_the_request_that_the_caller_sees(client: AgentClient) -> None:
    with mocked(client, Wire(ok)) as http:
        assert "DPoP" not in http.get(f"{API}/me").request.headers


def test_an_unlisted_server_gets_neither_proof_nor_access_token(
    agent: FakeAgent, client: AgentClient
) -> None:
    wire = Wire(ok)
    with mocked(client, wire) as http:
        response = http.get("https://other.example/", headers={"DPoP": "inherited"})
        with pytest.raises(ConfigurationError, match=r"https://other\.example"):
            http.get("https://other.example/", headers={"Authorization": "DPoP geheim"})
    assert wire.proofs() == [None]
    assert "dpop" not in response.extensions
    assert agent.requests == []


def test_an_access_token_is_hashed_into_its_proof_and_stays_here(
    agent: FakeAgent, client: AgentClient
) -> None:
    with mocked(client, Wire(ok)) as http:
        http.get(
            f"{API}/me",
            headers={"Authorization": "DPoP Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"},
            extensions={"dpop_jkt": OTHER_JKT},
        )
    (params,) = agent.proofs
    assert params["ath"] == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"
    assert params["jkt"] == OTHER_JKT
    assert "Kz~8" not in repr(agent.requests)


def test_a_user_name_in_the_uri_is_not_signed(agent: FakeAgent, client: AgentClient) -> None:
    with mocked(client, Wire(ok)) as http:
        http.get("https://user:geheim@as.example:443/token")
    assert agent.proofs[0]["htu"] == f"{AS}/token"
    assert "geheim" not in repr(agent.requests)


def test_the_agents_refusal_reaches_the_caller_and_nothing_is_sent(
    agent: FakeAgent, client: AgentClient
) -> None:
    agent.refuse[JKT] = Locked("the PKCS#11 token 'work' is locked")
    wire = Wire(ok)
    with mocked(client, wire) as http, pytest.raises(Locked, match="work"):
        http.get(f"{API}/me")
    assert wire.sent == []


def test_a_response_survives_an_agent_that_is_gone_by_then(
    agent: FakeAgent, client: AgentClient
) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        agent.stop()
        return httpx.Response(200, headers={"DPoP-Nonce": "n1"}, text="worth it")

    with mocked(client, handle) as http:
        assert http.get(f"{API}/me").text == "worth it"


@pytest.mark.parametrize("status", [400, 401])
def test_a_challenge_is_answered_with_the_nonce_and_a_new_proof(
    agent: FakeAgent, client: AgentClient, status: int
) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.headers["DPoP"] == "e30.e30.proof-1":
            return httpx.Response(status, headers=CHALLENGE)
        return ok(request)

    wire = Wire(handle)
    with mocked(client, wire) as http:
        response = http.post(f"{AS}/token", data={"a": "b"})
    assert response.status_code == 200
    assert response.history == []
    assert response.extensions["dpop"].nonce == "n1"
    assert [request.content for request in wire.sent] == [b"a=b", b"a=b"]
    assert agent.proofs[1]["seen"] == [{"htu": f"{AS}/token", "nonce": "n1"}]


def test_a_second_challenge_is_given_back(client: AgentClient) -> None:
    wire = Wire(lambda _: httpx.Response(401, headers=CHALLENGE))
    with mocked(client, wire) as http:
        assert http.get(f"{API}/me").status_code == 401
    assert wire.proofs() == ["e30.e30.proof-1", "e30.e30.proof-2"]


def test_a_pin_goes_along_with_a_redirect(agent: FakeAgent, client: AgentClient) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/old":
            return httpx.Response(307, headers={"Location": "/new"})
        return ok(request)

    wire = Wire(handle)
    with mocked(client, wire, follow_redirects=True) as http:
        http.post(f"{API}/old", content=b"x", extensions={"dpop_jkt": OTHER_JKT})
    assert wire.proofs() == ["e30.e30.proof-1", "e30.e30.proof-2"]
    assert [params["jkt"] for params in agent.proofs] == [OTHER_JKT, OTHER_JKT]
    assert [params["htu"] for params in agent.proofs] == [f"{API}/old", f"{API}/new"]


def test_closing_closes_the_transport_within(client: AgentClient) -> None:
    closed = []

    class Inner(httpx.MockTransport):
        def close(self) -> None:
            closed.append(1)

    transport = DPoPTransport(client, origins=[API], transport=Inner(ok))
    with httpx.Client(transport=transport) as http:
        http.get(API)
    assert closed


# --- over a real connection


def real(client: AgentClient, *origins: str, **arguments: Any) -> httpx.Client:
    return httpx.Client(
        transport=DPoPTransport(client, origins=origins), timeout=5, trust_env=False, **arguments
    )


def test_htu_is_what_went_over_the_wire(agent: FakeAgent, client: AgentClient) -> None:
    with FakeServer(lambda _: Reply()) as server, real(client, server.origin) as http:
        for path in ("/a%2fb/%7euser", "/users/j%40x.io", "//a//b/", "/a'(b)", "/x?y=1#z"):
            http.get(server.origin + path)
        http.get(server.origin + "/", extensions={"target": b"/else/where?x"})
        sent = [server.origin + seen.path.partition("?")[0] for seen in server.seen]
    assert [params["htu"] for params in agent.proofs] == sent
    assert sent[0].endswith("/a%2fb/%7euser")
    assert sent[-1].endswith("/else/where")


def test_a_same_origin_redirect_carries_a_fresh_proof_and_the_access_token(
    client: AgentClient,
) -> None:
    def handle(seen: Seen) -> Reply:
        return Reply(302, Location="/new") if seen.path == "/old" else Reply(200, b"here")

    with (
        FakeServer(handle) as server,
        real(client, server.origin, follow_redirects=True) as http,
    ):
        response = http.get(f"{server.origin}/old", headers={"Authorization": "DPoP a"})
        assert response.text == "here"
        assert [seen.proofs for seen in server.seen] == [["e30.e30.proof-1"], ["e30.e30.proof-2"]]
        assert server.seen[1].headers["Authorization"] == "DPoP a"


def test_a_cross_origin_redirect_carries_no_proof_and_no_access_token(
    agent: FakeAgent, client: AgentClient
) -> None:
    with (
        FakeServer(lambda _: Reply(200, b"there")) as other,
        FakeServer(lambda _: Reply(302, Location=f"{other.origin}/new")) as server,
        real(client, server.origin, follow_redirects=True) as http,
    ):
        held = BoundToken("geheim", JKT)
        plain = http.get(f"{server.origin}/old", headers={"Authorization": "DPoP geheim"})
        chosen = http.get(f"{server.origin}/old", auth=DPoPAuth(_never, token=held))
        assert plain.text == chosen.text == "there"
        for seen in other.seen:
            assert seen.proofs == []
            assert seen.headers["Authorization"] is None
    assert len(agent.proofs) == 2


def _never(old: BoundToken | None) -> BoundToken:
    raise AssertionError("no renewal is due")


@pytest.mark.parametrize("status", [200, 401])
def test_an_event_stream_stays_a_stream(agent: FakeAgent, client: AgentClient, status: int) -> None:
    ended = threading.Event()

    def events() -> Iterator[bytes]:
        yield b"data: 1\n\n"
        ended.wait(5)
        yield b"data: 2\n\n"

    def handle(seen: Seen) -> Reply:
        return Reply(status, events(), Content_Type="text/event-stream", DPoP_Nonce="n1")

    with (
        FakeServer(handle) as server,
        real(client, server.origin) as http,
        http.stream("GET", server.origin) as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == "data: 1"
        ended.set()
        assert [line for line in lines if line] == ["data: 2"]
    assert agent.observed[-1]["nonce"] == "n1"


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("challenged", [False, True])
def test_a_json_refusal_is_read_and_stays_readable(
    client: AgentClient, encoding: str, stream: bool, challenged: bool
) -> None:
    error = {"error": "use_dpop_nonce" if challenged else "other", "more": "é" * 2000}
    body = json.dumps(error).encode()
    packed = gzip.compress(body) if encoding == "gzip" else body

    def handle(seen: Seen) -> Reply:
        parts = [packed[:10], packed[10:]]
        headers = {"Content_Encoding": encoding} if encoding == "gzip" else {}
        return Reply(400, parts, Content_Type="application/json", DPoP_Nonce="n1", **headers)

    with FakeServer(handle) as server, real(client, server.origin) as http:
        if stream:
            with http.stream("GET", server.origin) as response:
                assert b"".join(response.iter_bytes()) == body
        else:
            response = http.get(server.origin)
            assert response.json() == error
        assert len(server.seen) == 1 + challenged


def test_a_json_refusal_that_is_long_or_broken_is_handed_on(client: AgentClient) -> None:
    big = b'{"error":"use_dpop_nonce","pad":"' + b"x" * 300_000 + b'"}'
    bodies = {"/big": big, "/broken": b"not gzip"}

    def handle(seen: Seen) -> Reply:
        headers = {"Content_Encoding": "gzip"} if seen.path == "/broken" else {}
        return Reply(
            401, bodies[seen.path], Content_Type="application/json", DPoP_Nonce="n1", **headers
        )

    with FakeServer(handle) as server, real(client, server.origin) as http:
        assert http.get(f"{server.origin}/big").content == big
        with http.stream("GET", f"{server.origin}/broken") as response:
            assert b"".join(response.iter_raw()) == b"not gzip"
        assert len(server.seen) == 2


class _Pipe(io.BytesIO):
    """A file that can't seek."""

    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0) -> int:
        raise io.UnsupportedOperation("it is a pipe")


def test_a_body_that_can_not_be_replayed_is_sent_once(
    agent: FakeAgent, client: AgentClient
) -> None:
    def body() -> Iterator[bytes]:
        yield b"part 1,"
        yield b"part 2"

    def handle(seen: Seen) -> Reply:
        return Reply(401, WANTED, DPoP_Nonce="n1", WWW_Authenticate='DPoP error="use_dpop_nonce"')

    with FakeServer(handle) as server, real(client, server.origin) as http:
        with pytest.raises(NonceRequired) as caught:
            http.post(server.origin, content=body())
        with pytest.raises(NonceRequired):
            http.post(server.origin, files={"f": _Pipe(b"file")})
        assert server.seen[0].body == b"part 1,part 2"
        assert len(server.seen) == 2
    assert caught.value.nonce == "n1"
    assert agent.observed[0]["nonce"] == "n1"
    assert agent.proofs[1].get("seen") is None
    assert agent.nonces[server.origin] == "n1"


# --- the auth


def grant(name: str, *, jkt: str = JKT, expires_in: float | None = None) -> BoundToken:
    return BoundToken(name, jkt, None if expires_in is None else time.time() + expires_in)


class Renewals:
    """Gives a1, a2, …; `old` is what it was given."""

    def __init__(self, *, expires_in: float | None = None) -> None:
        self.old: list[str | None] = []
        self.jkt = JKT
        self._expires_in = expires_in

    def __call__(self, old: BoundToken | None) -> BoundToken:
        self.old.append(old.access_token if old else None)
        return grant(f"a{len(self.old)}", jkt=self.jkt, expires_in=self._expires_in)


def test_the_documented_example_works(agent: FakeAgent, client: AgentClient) -> None:
    saved: BoundToken | None = None
    kept: list[BoundToken] = []
    client_id, client_secret = "me", "secret"

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            assert request.headers["Authorization"].startswith("Basic ")
            return httpx.Response(
                200, json={"access_token": "at", "token_type": "DPoP", "expires_in": 300}
            )
        assert request.headers["Authorization"] == "DPoP at"
        return ok(request)

    wire = Wire(handle)
    http = mocked(client, wire)

    def renew(old: BoundToken | None) -> BoundToken:
        r = http.post(
            f"{AS}/token",
            auth=(client_id, client_secret),
            data={"grant_type": "client_credentials"},
        )
        return BoundToken.from_response(r.raise_for_status().json(), jkt=r.extensions["dpop"].jkt)

    auth = DPoPAuth(renew, token=saved, on_token=kept.append)
    for _ in range(2):
        assert http.get(f"{API}/me", auth=auth).status_code == 200
    http.close()
    assert [request.url.path for request in wire.sent] == ["/token", "/me", "/me"]
    assert [token.access_token for token in kept] == ["at"]
    assert [params.get("jkt") for params in agent.proofs] == [None, JKT, JKT]
    assert ["ath" in params for params in agent.proofs] == [False, True, True]


def test_a_saved_access_token_is_presented_until_near_its_expiry(client: AgentClient) -> None:
    wire = Wire(ok)
    renewals = Renewals(expires_in=300)
    with mocked(client, wire) as http:
        for left in (60, 20, -5):
            http.get(f"{API}/me", auth=DPoPAuth(renewals, token=grant("old", expires_in=left)))
    assert wire.authorizations() == ["DPoP old", "DPoP a1", "DPoP a2"]
    assert renewals.old == ["old", "old"]


def test_a_short_lived_access_token_serves_more_than_one_request(client: AgentClient) -> None:
    renewals = Renewals(expires_in=20)
    auth = DPoPAuth(renewals)
    with mocked(client, Wire(ok), auth=auth) as http:
        for _ in range(3):
            http.get(f"{API}/me")
    assert renewals.old == [None]


def _accepts(*good: str) -> Handler:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.headers.get("Authorization") in [f"DPoP {name}" for name in good]:
            return ok(request)
        return httpx.Response(401, headers=INVALID)

    return handle


def test_a_refused_access_token_is_renewed_and_the_request_sent_again(
    client: AgentClient,
) -> None:
    wire = Wire(_accepts("a1"))
    renewals = Renewals()
    with mocked(client, wire, auth=DPoPAuth(renewals, token=grant("old"))) as http:
        assert http.post(f"{API}/me", content=b"body").status_code == 200
        assert http.get(f"{API}/me").status_code == 200
    assert wire.authorizations() == ["DPoP old", "DPoP a1", "DPoP a1"]
    assert wire.sent[1].content == b"body"
    assert wire.proofs() == ["e30.e30.proof-1", "e30.e30.proof-2", "e30.e30.proof-3"]
    assert renewals.old == ["old"]


def test_a_request_is_sent_again_once_at_most(client: AgentClient) -> None:
    wire = Wire(_accepts())
    renewals = Renewals()
    with mocked(client, wire, auth=DPoPAuth(renewals)) as http:
        assert http.get(f"{API}/me").status_code == 401
    assert wire.authorizations() == ["DPoP a1", "DPoP a2"]


@pytest.mark.parametrize(
    ("status", "headers"),
    [(403, INVALID), (401, {}), (401, {"WWW-Authenticate": 'DPoP error="insufficient_scope"'})],
)
def test_other_refusals_are_given_back(
    client: AgentClient, status: int, headers: dict[str, str]
) -> None:
    wire = Wire(lambda _: httpx.Response(status, headers=headers))
    with mocked(client, wire, auth=DPoPAuth(_never, token=grant("old"))) as http:
        assert http.get(f"{API}/me").status_code == status
        assert http.get(f"{API}/me").status_code == status
    assert len(wire.sent) == 2


def test_a_refused_request_that_can_not_be_replayed_is_given_back_and_renewed_later(
    client: AgentClient,
) -> None:
    wire = Wire(_accepts("a1"))
    renewals = Renewals()
    with mocked(client, wire, auth=DPoPAuth(renewals, token=grant("old"))) as http:
        assert http.post(f"{API}/me", content=iter([b"x"])).status_code == 401
        assert renewals.old == []
        assert http.get(f"{API}/me").status_code == 200
    assert wire.authorizations() == ["DPoP old", "DPoP a1"]


@pytest.mark.parametrize("error", [KeyRetired("retired"), KeyDestroyed("destroyed")])
def test_a_generation_that_signs_no_more_leads_to_a_new_access_token(
    agent: FakeAgent, client: AgentClient, error: DPoPAgentError
) -> None:
    agent.refuse[OTHER_JKT] = error
    wire = Wire(ok)
    renewals = Renewals()
    auth = DPoPAuth(renewals, token=grant("old", jkt=OTHER_JKT))
    with mocked(client, wire, auth=auth) as http:
        response = http.post(f"{API}/me", content=iter([b"a ", b"stream"]))
    assert response.status_code == 200
    assert response.history == []
    assert "Authorization" not in response.request.headers  # the caller's has no secret in it
    assert wire.authorizations() == ["DPoP a1"]
    assert wire.sent[0].extensions["dpop_jkt"] == JKT
    assert renewals.old == ["old"]


def test_a_generation_that_signs_no_more_is_a_typed_error_the_second_time(
    agent: FakeAgent, client: AgentClient
) -> None:
    agent.refuse[JKT] = KeyRetired("default@1 is retired")
    wire = Wire(ok)
    renewals = Renewals()
    auth = DPoPAuth(renewals, token=grant("old"))
    with mocked(client, wire, auth=auth) as http, pytest.raises(KeyRetired):
        http.get(f"{API}/me")
    assert renewals.old == ["old"]
    assert wire.sent == []


def test_a_redirect_elsewhere_gets_no_access_token_even_if_its_key_is_gone(
    agent: FakeAgent, client: AgentClient
) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        agent.refuse[JKT] = KeyRetired("default@1 is retired")
        return httpx.Response(302, headers={"Location": f"{AS}/elsewhere"})

    wire = Wire(handle)
    auth = DPoPAuth(_never, token=grant("geheim"))
    with (
        mocked(client, wire, auth=auth, follow_redirects=True) as http,
        pytest.raises(KeyRetired),
    ):
        http.get(f"{API}/me")
    assert len(wire.sent) == 1


@pytest.mark.parametrize(
    ("refresh_token", "rebind"), [(None, False), (None, True), ("refresh", True)]
)
def test_a_generation_about_to_stop_leads_to_one_renewal_where_the_grant_may_leave_it(
    agent: FakeAgent, client: AgentClient, refresh_token: str | None, rebind: bool
) -> None:
    agent.drain_left_s = LEAVE_BEFORE_S
    wire = Wire(ok)
    renewals = Renewals()
    old = BoundToken("old", JKT, refresh_token=refresh_token)
    with mocked(client, wire, auth=DPoPAuth(renewals, token=old, rebind=rebind)) as http:
        for _ in range(4):
            http.get(f"{API}/me")
    assert wire.authorizations() == ["DPoP old", "DPoP a1", "DPoP a1", "DPoP a1"]
    assert renewals.old == ["old"]


@pytest.mark.parametrize(
    ("left_s", "old", "rebind"),
    [
        (None, BoundToken("old", JKT), True),  # an agent that doesn't say
        (LEAVE_BEFORE_S + 1, BoundToken("old", JKT), False),
        (LEAVE_BEFORE_S + 1, BoundToken("old", JKT, refresh_token="refresh"), True),
        # It stays with its generation, which a refresh doesn't change.
        (LEAVE_BEFORE_S + 1, BoundToken("old", JKT, refresh_token="refresh"), False),
        (0, BoundToken("old", JKT, refresh_token="refresh"), False),
    ],
)
def test_after_a_rotation_a_grant_goes_on_while_its_generation_signs_or_it_stays_with_it(
    agent: FakeAgent, client: AgentClient, left_s: int | None, old: BoundToken, rebind: bool
) -> None:
    agent.state, agent.drain_left_s = "draining", left_s
    wire = Wire(ok)
    with mocked(client, wire, auth=DPoPAuth(_never, token=old, rebind=rebind)) as http:
        for _ in range(3):
            http.get(f"{API}/me")
    assert wire.authorizations() == ["DPoP old"] * 3


def test_requests_under_way_when_an_access_token_is_replaced_renew_it_no_second_time(
    client: AgentClient,
) -> None:
    under_way = threading.Barrier(7)

    def handle(request: httpx.Request) -> httpx.Response:
        if request.headers["Authorization"] == "DPoP a1":
            return ok(request)
        under_way.wait(5)  # all seven are refused, some after the first one's renewal
        if threading.current_thread().name != "first":
            assert replaced.wait(5)
        return httpx.Response(401, headers=INVALID)

    replaced = threading.Event()
    renewals = Renewals()
    auth = DPoPAuth(renewals, token=grant("old"), on_token=lambda _: replaced.set())
    statuses: list[int] = []
    with mocked(client, handle, auth=auth) as http:
        threads = [
            threading.Thread(
                target=lambda: statuses.append(http.get(f"{API}/me").status_code), name=name
            )
            for name in ("first", *"234567")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 7
    assert renewals.old == ["old"]


def test_a_draining_generation_is_left_though_renewing_failed_once(
    agent: FakeAgent, client: AgentClient
) -> None:
    agent.drain_left_s = 0

    def renew(old: BoundToken | None) -> BoundToken:
        raise OSError("the authorization server is down")

    wire = Wire(ok)
    with mocked(client, wire, auth=DPoPAuth(renew, token=grant("old"))) as http:
        http.get(f"{API}/me")
        with pytest.raises(OSError, match="is down"):
            http.get(f"{API}/me")
        assert http.get(f"{API}/me").status_code == 200


def test_threads_wait_for_one_renewal(client: AgentClient) -> None:
    calls: list[int] = []

    def renew(old: BoundToken | None) -> BoundToken:
        calls.append(1)
        time.sleep(0.05)
        return grant("a1")

    wire = Wire(_accepts("a1"))
    with mocked(client, wire, auth=DPoPAuth(renew, token=grant("old"))) as http:
        threads = [threading.Thread(target=http.get, args=(f"{API}/me",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(calls) == 1
    assert wire.authorizations().count("DPoP a1") == 8


def test_a_renewal_that_wants_its_own_result_is_refused_rather_than_stuck(
    client: AgentClient,
) -> None:
    def renew(old: BoundToken | None) -> BoundToken:
        http.post(f"{AS}/token")
        return grant("a1")

    with mocked(client, Wire(ok)) as http:
        http.auth = DPoPAuth(renew)
        with pytest.raises(ConfigurationError, match="being renewed"):
            http.get(f"{API}/me")


def test_a_renewal_may_use_another_auth_of_its_kind(client: AgentClient) -> None:
    wire = Wire(ok)
    with mocked(client, wire) as http:
        inner = DPoPAuth(lambda _: grant("inner"))

        def renew(old: BoundToken | None) -> BoundToken:
            http.get(f"{AS}/exchange", auth=inner)
            return grant("outer")

        http.get(f"{API}/me", auth=DPoPAuth(renew))
    assert wire.authorizations() == ["DPoP inner", "DPoP outer"]


def test_renew_has_to_return_a_bound_token(client: AgentClient) -> None:
    auth = DPoPAuth(lambda _: {"access_token": "geheim"})  # type: ignore[arg-type,return-value]
    with mocked(client, Wire(ok)) as http, pytest.raises(ConfigurationError) as caught:
        http.get(f"{API}/me", auth=auth)
    assert "geheim" not in str(caught.value)


def test_each_kind_of_client_has_its_own_auth(client: AgentClient) -> None:
    async def renew(old: BoundToken | None) -> BoundToken:
        return grant("a1")

    with mocked(client, Wire(ok)) as http, pytest.raises(ConfigurationError, match="DPoPAuth"):
        http.get(f"{API}/me", auth=AsyncDPoPAuth(renew))

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(ok)) as http:
            with pytest.raises(ConfigurationError, match="AsyncDPoPAuth"):
                await http.get(f"{API}/me", auth=DPoPAuth(_never))

    asyncio.run(main())


# --- which generation signs a renewal


def bound(name: str, *, jkt: str = OTHER_JKT) -> BoundToken:
    """An access token with a refresh token: the agent's active generation is JKT."""
    return BoundToken(name, jkt, refresh_token=f"refresh-{name}")


def renewed(
    client: AgentClient,
    renew: Callable[[httpx.Client, BoundToken | None], object],
    *,
    old: BoundToken | None,
    key: str | None = "default",
    rebind: bool = False,
) -> list[BoundToken | None]:
    """Have a refused access token renewed; what `renew` was given each time."""
    given: list[BoundToken | None] = []

    with mocked(client, Wire(_accepts("new")), key=key) as http:

        def grant_new(old: BoundToken | None) -> BoundToken:
            given.append(old)
            renew(http, old)
            return BoundToken("new", JKT)

        auth = DPoPAuth(grant_new, token=old, rebind=rebind)
        assert http.get(f"{API}/me", auth=auth).status_code == 200
    return given


def ask(http: httpx.Client, old: BoundToken | None = None, **arguments: Any) -> httpx.Response:
    """A token request."""
    return http.post(f"{AS}/token", **{"auth": ("me", "secret"), **arguments})


def signers(agent: FakeAgent, path: str = "/token") -> list[str | None]:
    """The jkt that was asked for in each proof for that path."""
    return [params.get("jkt") for params in agent.proofs if params["htu"].endswith(path)]


def test_a_refresh_is_signed_by_the_grants_generation(
    agent: FakeAgent, client: AgentClient
) -> None:
    old = bound("old")
    assert renewed(client, ask, old=old) == [old]
    assert signers(agent) == [OTHER_JKT]
    assert signers(agent, "/me") == [OTHER_JKT, JKT]


def test_a_refresh_is_signed_by_the_active_generation_where_that_was_opted_in(
    agent: FakeAgent, client: AgentClient
) -> None:
    renewed(client, ask, old=bound("old"), rebind=True)
    assert signers(agent) == [None]


def test_without_a_refresh_token_the_active_generation_signs_a_new_grant(
    agent: FakeAgent, client: AgentClient
) -> None:
    renewed(client, ask, old=grant("old", jkt=OTHER_JKT))
    renewed(client, ask, old=None)
    assert signers(agent) == [None, None]


def test_a_request_that_names_its_generation_is_not_pinned(
    agent: FakeAgent, client: AgentClient
) -> None:
    def renew(http: httpx.Client, old: BoundToken | None) -> None:
        ask(http, extensions={"dpop_jkt": "another"})
        ask(http, extensions={"dpop_jkt": None})
        ask(http)

    renewed(client, renew, old=bound("old"))
    assert signers(agent) == ["another", None, OTHER_JKT]


def test_an_access_token_within_a_renewal_gets_no_guessed_generation(
    agent: FakeAgent, client: AgentClient
) -> None:
    def renew(http: httpx.Client, old: BoundToken | None) -> None:
        http.get(f"{AS}/else", headers={"Authorization": "DPoP else"})

    renewed(client, renew, old=bound("old"))
    assert signers(agent, "/else") == [None]


def test_every_request_of_a_renewal_is_pinned_redirects_and_second_attempts_too(
    agent: FakeAgent, client: AgentClient
) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            return httpx.Response(307, headers={"Location": "/moved"})
        if request.headers["DPoP"] == "e30.e30.proof-2":
            return httpx.Response(400, headers=CHALLENGE)
        return ok(request)

    with mocked(client, handle, follow_redirects=True) as http:

        def renew(old: BoundToken | None) -> BoundToken:
            ask(http)
            return BoundToken("new", JKT)

        expired = BoundToken("old", OTHER_JKT, expires_at=1.0, refresh_token="r")
        http.get(f"{API}/me", auth=DPoPAuth(renew, token=expired))
    assert signers(agent) == [OTHER_JKT]
    assert signers(agent, "/moved") == [OTHER_JKT, OTHER_JKT]


def test_a_new_grant_stays_with_the_generation_that_signed_its_first_request(
    agent: FakeAgent, client: AgentClient
) -> None:
    def renew(http: httpx.Client, old: BoundToken | None) -> None:
        http.post(f"{AS}/par")
        agent.jkt = OTHER_JKT  # rotated
        ask(http)

    renewed(client, renew, old=None)
    assert signers(agent, "/par") == [None]
    assert signers(agent) == [JKT]


def test_a_pin_is_not_for_another_keys_transport(agent: FakeAgent, client: AgentClient) -> None:
    def renew(http: httpx.Client, old: BoundToken | None) -> None:
        with mocked(client, ok, key="shop") as shop:
            agent.script = [KeyMismatch("the key shop has no generation with that jkt")]
            ask(shop)
            ask(shop)
        ask(http)

    renewed(client, renew, old=bound("old"))
    asked = [(params["key"], params.get("jkt")) for params in agent.proofs]
    assert asked[1:-1] == [
        ("shop", OTHER_JKT),  # refused: it isn't shop's
        ("shop", None),
        ("shop", JKT),
        ("default", OTHER_JKT),
    ]


def test_a_transport_without_a_key_pins_the_default_keys_generations_alone(
    agent: FakeAgent, client: AgentClient
) -> None:
    renewed(client, ask, old=bound("old"), key=None)
    assert [params.get("key") for params in agent.proofs] == [None, "default", None]


def test_nested_renewals_pin_their_own_generations(agent: FakeAgent, client: AgentClient) -> None:
    def renew(http: httpx.Client, old: BoundToken | None) -> None:
        def renew_inner(old: BoundToken | None) -> BoundToken:
            http.post(f"{AS}/inner")
            return BoundToken("new", JKT)

        ask(http)
        for inner in (bound("inner", jkt="inner"), grant("inner")):
            http.get(f"{API}/me", auth=DPoPAuth(renew_inner, token=inner))
        ask(http)

    renewed(client, renew, old=bound("old"))
    assert signers(agent, "/inner") == ["inner", None]
    assert signers(agent) == [OTHER_JKT, OTHER_JKT]


def test_other_threads_are_not_pinned_while_a_renewal_runs(
    agent: FakeAgent, client: AgentClient
) -> None:
    def renew(http: httpx.Client, old: BoundToken | None) -> None:
        thread = threading.Thread(target=ask, args=(http,))
        thread.start()
        thread.join()

    renewed(client, renew, old=bound("old"))
    assert signers(agent) == [None]


@pytest.mark.parametrize(
    "refusal", [KeyRetired("it is retired"), KeyCompromised("it is"), KeyUnknown("lost")]
)
def test_a_grant_whose_generation_signs_no_more_is_begun_anew(
    agent: FakeAgent, client: AgentClient, refusal: DPoPAgentError
) -> None:
    agent.refuse[OTHER_JKT] = refusal
    old = bound("old")
    assert renewed(client, ask, old=old) == [old, None]
    assert signers(agent) == [OTHER_JKT, None]


def test_a_new_grant_has_one_chance(agent: FakeAgent, client: AgentClient) -> None:
    agent.refuse = {OTHER_JKT: KeyRetired("the old one"), JKT: KeyRetired("the new one")}
    with pytest.raises(KeyRetired, match="the new one"):
        renewed(client, ask, old=bound("old"))
    assert signers(agent) == [OTHER_JKT, None]


def test_no_new_grant_is_begun_for_a_failure_that_is_not_the_grants(
    agent: FakeAgent, client: AgentClient
) -> None:
    agent.refuse["another"] = KeyRetired("another one")

    def with_another(http: httpx.Client, old: BoundToken | None) -> None:
        ask(http, extensions={"dpop_jkt": "another"})

    with pytest.raises(KeyRetired, match="another one"):
        renewed(client, with_another, old=bound("old"))
    agent.refuse = {JKT: KeyRetired("the active one")}
    with pytest.raises(KeyRetired, match="the active one"):
        renewed(client, ask, old=bound("old"), rebind=True)
    agent.refuse = {OTHER_JKT: Locked("the PKCS#11 token 'work' is locked")}
    with pytest.raises(Locked):
        renewed(client, ask, old=BoundToken("old", OTHER_JKT, 1.0, "refresh"))


# --- the same, async


def amocked(client: AsyncAgentClient, wire: Handler, **arguments: Any) -> httpx.AsyncClient:
    transport = AsyncDPoPTransport(
        client, key="default", origins=[AS, API], transport=httpx.MockTransport(wire)
    )
    return httpx.AsyncClient(transport=transport, **arguments)


def test_async_requests_follow_the_same_rules(agent: FakeAgent) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.headers.get("DPoP") == "e30.e30.proof-1":
            return httpx.Response(401, headers=CHALLENGE)
        return ok(request)

    async def body() -> AsyncIterator[bytes]:
        yield b"part"

    wire = Wire(handle)

    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client, amocked(client, wire) as http:
            response = await http.post(f"{AS}/token", content=b"x")
            assert response.status_code == 200
            assert response.extensions["dpop"].nonce == "n1"
            assert (await http.get("https://other.example")).status_code == 200
            with pytest.raises(ConfigurationError):
                await http.get("https://other.example", headers={"Authorization": "DPoP a"})
            agent._proofs = 0
            with pytest.raises(NonceRequired):
                await http.post(f"{AS}/token", content=body())
            agent.refuse[JKT] = KeyRetired("default@1 is retired")
            with pytest.raises(KeyRetired):
                await http.get(f"{API}/me")

    asyncio.run(main())
    assert wire.proofs() == ["e30.e30.proof-1", "e30.e30.proof-2", None, "e30.e30.proof-1"]


def test_async_renewals_happen_one_at_a_time(agent: FakeAgent) -> None:
    wire = Wire(
        lambda request: (
            httpx.Response(200, json={"access_token": "a1", "token_type": "DPoP"})
            if request.url.path == "/token"
            else _accepts("a1")(request)
        )
    )
    kept: list[str] = []

    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client, amocked(client, wire) as http:

            async def renew(old: BoundToken | None) -> BoundToken:
                r = await http.post(f"{AS}/token", auth=("me", "secret"))
                return BoundToken.from_response(r.json(), jkt=r.extensions["dpop"].jkt)

            async def keep(token: BoundToken) -> None:
                kept.append(token.access_token)

            auth = AsyncDPoPAuth(renew, token=grant("old"), on_token=keep)
            responses = await asyncio.gather(*(http.get(f"{API}/me", auth=auth) for _ in range(8)))
            assert {response.status_code for response in responses} == {200}
            agent.refuse[OTHER_JKT] = KeyRetired("default@1 is retired")
            auth = AsyncDPoPAuth(renew, token=grant("b", jkt=OTHER_JKT), on_token=lambda _: None)
            assert (await http.get(f"{API}/me", auth=auth)).status_code == 200

    asyncio.run(main())
    assert kept == ["a1"]
    assert [request.url.path for request in wire.sent].count("/token") == 2


def test_an_async_renewal_that_wants_its_own_result_is_refused_rather_than_stuck(
    agent: FakeAgent,
) -> None:
    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client, amocked(client, Wire(ok)) as http:

            async def renew(old: BoundToken | None) -> BoundToken:
                await asyncio.gather(http.post(f"{AS}/token", auth=auth))
                return grant("a1")

            auth = AsyncDPoPAuth(renew)
            with pytest.raises(ConfigurationError, match="being renewed"):
                await asyncio.wait_for(http.get(f"{API}/me", auth=auth), 5)

    asyncio.run(main())


def test_an_async_event_stream_stays_a_stream_and_a_json_refusal_readable(
    agent: FakeAgent,
) -> None:
    ended = threading.Event()

    def events() -> Iterator[bytes]:
        yield b"data: 1\n\n"
        ended.wait(5)
        yield b"data: 2\n\n"

    body = json.dumps({"error": "other", "more": "x" * 50_000}).encode()

    def handle(seen: Seen) -> Reply:
        if seen.path == "/events":
            return Reply(200, events(), Content_Type="text/event-stream")
        packed = gzip.compress(body, 0 if seen.path == "/big" else 9)
        return Reply(
            400,
            packed,
            Content_Type="application/json",
            Content_Encoding="gzip",
            DPoP_Nonce="n1",
        )

    async def main(origin: str) -> None:
        async with (
            AsyncAgentClient(agent.path) as client,
            httpx.AsyncClient(
                transport=AsyncDPoPTransport(client, origins=[origin]), trust_env=False
            ) as http,
        ):
            async with http.stream("GET", f"{origin}/events") as response:
                lines = response.aiter_lines()
                assert await anext(lines) == "data: 1"
                ended.set()
                assert [line async for line in lines if line] == ["data: 2"]
            for path in ("/big", "/small"):
                assert (await http.get(origin + path)).content == body

    with FakeServer(handle) as server:
        asyncio.run(main(server.origin))
        assert [seen.proofs for seen in server.seen] == [
            ["e30.e30.proof-1"],
            ["e30.e30.proof-2"],
            ["e30.e30.proof-3"],
        ]


def test_a_response_is_closed_when_its_request_is_given_up(
    agent: FakeAgent, client: AgentClient
) -> None:
    closed: list[str] = []

    class Body(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"x"

        def close(self) -> None:
            closed.append("closed")

    def handle(request: httpx.Request) -> httpx.Response:
        agent.script = [HANG_UP, HANG_UP]
        return httpx.Response(401, headers=CHALLENGE, stream=Body())

    with mocked(client, handle) as http, pytest.raises(DPoPAgentError):
        http.get(f"{API}/me")
    assert closed


def test_an_async_renewal_is_pinned_in_the_tasks_that_it_starts_while_it_runs(
    agent: FakeAgent,
) -> None:
    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client, amocked(client, Wire(ok)) as http:
            over = asyncio.Event()

            async def ask(path: str, *after: asyncio.Event) -> None:
                for event in after:
                    await event.wait()
                await http.post(f"{AS}/{path}")

            async def renew(old: BoundToken | None) -> BoundToken:
                given.append(old)
                if old is not None:
                    late.append(asyncio.create_task(ask("late", over)))
                await asyncio.gather(ask("gathered"), asyncio.create_task(ask("started")))
                begun.set()
                await ask("token")
                return BoundToken("new", JKT)

            begun = asyncio.Event()
            given: list[BoundToken | None] = []
            late: list[asyncio.Task[None]] = []
            other = asyncio.create_task(ask("other", begun))
            auth = AsyncDPoPAuth(renew, token=BoundToken("old", OTHER_JKT, 1.0, "refresh"))
            await http.get(f"{API}/me", auth=auth)
            over.set()
            await asyncio.gather(other, *late)
            assert len(given) == 1

    asyncio.run(main())
    assert {path: signers(agent, path) for path in ("gathered", "started", "token")} == {
        "gathered": [OTHER_JKT],
        "started": [OTHER_JKT],
        "token": [OTHER_JKT],
    }
    assert signers(agent, "other") == signers(agent, "late") == [None]


def test_an_async_grant_whose_generation_signs_no_more_is_begun_anew(agent: FakeAgent) -> None:
    given: list[BoundToken | None] = []

    async def main(rebind: bool) -> None:
        async with AsyncAgentClient(agent.path) as client, amocked(client, Wire(ok)) as http:

            async def renew(old: BoundToken | None) -> BoundToken:
                given.append(old)
                await http.post(f"{AS}/token")
                return BoundToken("new", JKT)

            auth = AsyncDPoPAuth(renew, token=bound("old"), rebind=rebind)
            assert (await http.get(f"{API}/me", auth=auth)).status_code == 200

    agent.refuse[OTHER_JKT] = KeyRetired("default@1 is retired")
    asyncio.run(main(rebind=False))
    assert given == [bound("old"), None]
    asyncio.run(main(rebind=True))
    assert given[2:] == [bound("old")]
    assert signers(agent) == [OTHER_JKT, None, None]


def test_an_async_pin_is_not_for_another_keys_transport(agent: FakeAgent) -> None:
    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client, amocked(client, Wire(ok)) as http:

            async def renew(old: BoundToken | None) -> BoundToken:
                agent.script = [KeyMismatch("the key default has no generation with that jkt")]
                await http.post(f"{AS}/token")
                return BoundToken("new", JKT)

            auth = AsyncDPoPAuth(renew, token=BoundToken("old", OTHER_JKT, 1.0, "refresh"))
            await http.get(f"{API}/me", auth=auth)

    asyncio.run(main())
    assert signers(agent) == [OTHER_JKT, None]


def test_a_refresh_token_is_kept_where_the_server_gives_no_new_one() -> None:
    body = {"access_token": "a2", "token_type": "DPoP"}
    assert BoundToken.from_response(body, jkt=JKT).refresh_token is None
    kept = BoundToken.from_response(body, jkt=JKT, refresh_token="r1")
    assert kept.refresh_token == "r1"
    new = BoundToken.from_response({**body, "refresh_token": "r2"}, jkt=JKT, refresh_token="r1")
    assert new.refresh_token == "r2"
