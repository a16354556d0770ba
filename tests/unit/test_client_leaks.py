"""What no HTTP client may send: an access token without a proof, or what isn't for that server."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from dpop_agent.client import (
    AgentClient,
    AsyncAgentClient,
    AsyncDPoPAuth,
    AsyncDPoPTransport,
    BoundToken,
    BoundTokenAuth,
    DPoPAdapter,
    DPoPAuth,
    DPoPTransport,
)
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY, decoded
from dpop_agent.errors import ConfigurationError
from tests.unit.fake_agent import JKT, OTHER_JKT, FakeAgent
from tests.unit.fake_server import FakeServer, Reply, Seen

SECRET = "geheim"
HELD = BoundToken(SECRET, OTHER_JKT)
FORM = {"refresh_token": SECRET}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(redirecting) as made:
        yield made


@pytest.fixture
def other() -> Iterator[FakeServer]:
    """A server that isn't listed; the one that is redirects to it."""
    with FakeServer(lambda _: Reply(200, b"there")) as made:
        yield made


def redirecting(seen: Seen) -> Reply:
    """`/307/http://…` redirects there."""
    _, status, *location = seen.path.split("/", 2)
    return Reply(int(status), Location=location[0]) if status.isdigit() else Reply()


def never(old: BoundToken | None) -> BoundToken:
    raise AssertionError("no renewal is due")


async def anever(old: BoundToken | None) -> BoundToken:
    raise AssertionError("no renewal is due")


def shown(error: BaseException) -> str:
    """All that a traceback would show of an error, and what its objects hold."""
    told = ""
    seen: BaseException | None = error
    while seen is not None:
        told += f"{seen!r} {seen} {vars(seen)}"
        seen = seen.__cause__ or seen.__context__
    return told


def refused(call: Callable[[], object]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert SECRET not in shown(caught.value)
    assert caught.value.hint
    return caught.value


# --- httpx: another transport takes over


def signing(client: AgentClient, *origins: str) -> DPoPTransport:
    # Whoever speaks plain http needs no certificates, and loading them takes its time.
    return DPoPTransport(client, origins=origins, transport=httpx.HTTPTransport(verify=False))


def asigning(client: AsyncAgentClient, *origins: str) -> AsyncDPoPTransport:
    inner = httpx.AsyncHTTPTransport(verify=False)
    return AsyncDPoPTransport(client, origins=origins, transport=inner)


def unsigned_ways(client: AgentClient, server: FakeServer) -> dict[str, Callable[[], httpx.Client]]:
    origin = server.origin
    return {
        "none": lambda: httpx.Client(trust_env=False, verify=False),
        "of httpx's own": lambda: httpx.Client(
            transport=httpx.HTTPTransport(verify=False), trust_env=False
        ),
        "a proxy's": lambda: httpx.Client(
            transport=signing(client, origin), proxy=origin, verify=False
        ),
        "a mounted one": lambda: httpx.Client(
            transport=signing(client, origin), mounts={"all://": httpx.HTTPTransport(verify=False)}
        ),
        "one mounted for the host": lambda: httpx.Client(
            transport=signing(client, origin),
            mounts={"http://127.0.0.1": httpx.HTTPTransport(verify=False)},
        ),
    }


@pytest.mark.parametrize(
    "way",
    ["none", "of httpx's own", "a proxy's", "a mounted one", "one mounted for the host"],
)
def test_an_access_token_goes_by_no_transport_but_ours_and_nothing_is_sent(
    client: AgentClient, server: FakeServer, way: str
) -> None:
    auth = DPoPAuth(never, token=HELD)
    with unsigned_ways(client, server)[way]() as http:
        error = refused(lambda: http.post(server.origin, data=FORM, auth=auth))
        assert "DPoPTransport" in error.message
        http.get(server.origin)  # the connection is kept, and used by the next request
        refused(lambda: http.get(server.origin, auth=auth))
    assert [seen.method for seen in server.seen] == ["GET"]


def test_the_other_transports_connection_serves_on(server: FakeServer) -> None:
    with httpx.Client(
        trust_env=False, verify=False, timeout=2, limits=httpx.Limits(max_connections=1)
    ) as http:
        for _ in range(3):
            http.get(server.origin)
            refused(lambda: http.get(server.origin, auth=DPoPAuth(never, token=HELD)))

    async def main() -> None:
        async with httpx.AsyncClient(
            trust_env=False, verify=False, timeout=2, limits=httpx.Limits(max_connections=1)
        ) as http:
            for _ in range(3):
                await http.get(server.origin)
                with pytest.raises(ConfigurationError):
                    await http.get(server.origin, auth=AsyncDPoPAuth(anever, token=HELD))

    asyncio.run(main())
    assert len(server.seen) == 6


@pytest.mark.parametrize("mounted", [False, True])
def test_an_access_token_goes_by_no_async_transport_but_ours_and_nothing_is_sent(
    agent: FakeAgent, server: FakeServer, mounted: bool
) -> None:
    async def main() -> None:
        async with (
            AsyncAgentClient(agent.path) as client,
            httpx.AsyncClient(
                transport=asigning(client, server.origin) if mounted else None,
                mounts={"all://": httpx.AsyncHTTPTransport(verify=False)} if mounted else None,
                trust_env=False,
                verify=False,
            ) as http,
        ):
            for _ in range(2):
                with pytest.raises(ConfigurationError, match="DPoPTransport") as caught:
                    await http.get(server.origin, auth=AsyncDPoPAuth(anever, token=HELD))
                assert SECRET not in shown(caught.value)

    asyncio.run(main())
    assert server.seen == []


def test_a_transport_that_knows_no_trace_gets_no_access_token_either(
    agent: FakeAgent, client: AgentClient
) -> None:
    sent: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    with httpx.Client(transport=httpx.MockTransport(handle)) as http:
        refused(lambda: http.get("https://api.example.com", auth=DPoPAuth(never, token=HELD)))

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
            with pytest.raises(ConfigurationError):
                await http.get("https://api.example.com", auth=AsyncDPoPAuth(anever, token=HELD))

    asyncio.run(main())
    assert [request.headers.get("Authorization") for request in sent] == [None, None]
    assert SECRET not in repr([request.headers for request in sent])


def test_a_proxy_within_our_transport_gets_both(client: AgentClient, server: FakeServer) -> None:
    inner = httpx.HTTPTransport(proxy=server.origin, verify=False)
    transport = DPoPTransport(client, origins=["http://as.example"], transport=inner)
    with httpx.Client(transport=transport) as http:
        http.get("http://as.example/me", auth=DPoPAuth(never, token=HELD))
    (seen,) = server.seen
    assert seen.proofs == ["e30.e30.proof-1"]
    assert seen.headers["Authorization"] == f"DPoP {SECRET}"


def test_a_callers_own_trace_is_called_as_ever(client: AgentClient, server: FakeServer) -> None:
    steps: list[str] = []
    trace = {"trace": lambda step, info: steps.append(step)}
    with httpx.Client(transport=signing(client, server.origin), follow_redirects=True) as http:
        http.post(
            f"{server.origin}/307/{server.origin}/",
            data=FORM,
            auth=DPoPAuth(never, token=HELD),
            extensions=trace,
        )
    assert steps.count("http11.send_request_headers.started") == 2


def test_the_request_that_the_caller_sees_has_no_access_token(
    client: AgentClient, server: FakeServer
) -> None:
    with httpx.Client(transport=signing(client, server.origin)) as http:
        request = http.get(server.origin, auth=DPoPAuth(never, token=HELD)).request
    assert SECRET not in f"{request.headers!r} {request.extensions!r}"


def test_a_named_access_token_goes_to_its_own_server_alone(
    client: AgentClient, server: FakeServer, other: FakeServer
) -> None:
    transport = signing(client, server.origin, other.origin)
    with httpx.Client(transport=transport, follow_redirects=True) as http:
        for there in (server.origin, other.origin):
            http.get(f"{server.origin}/302/{there}/", auth=DPoPAuth(never, token=HELD))
    assert [seen.headers["Authorization"] for seen in server.seen] == [f"DPoP {SECRET}"] * 3
    (elsewhere,) = other.seen
    assert elsewhere.headers["Authorization"] is None
    assert len(elsewhere.proofs) == 1


# --- an Authorization header in another spelling, or an access token that isn't one


@pytest.mark.parametrize(
    "authorization",
    [
        f"DPoP\t{SECRET}",
        f"dpop\t {SECRET}",
        f"\tDPoP {SECRET}",
        f" DPOP\x0b{SECRET}",
        f"DPoP\xa0{SECRET}",
        f"\xa0DPoP {SECRET}",
        f"DPoP,{SECRET}",
        f"DPoP={SECRET}",
        f'"DPoP" {SECRET}',
        f"Bearer x, DPoP {SECRET}",
        f"Bearer x,DPoP\t{SECRET}",
        f"DPoP {SECRET}, Bearer x",
        f"DPoP {SECRET}\n",
        f"DPoP {SECRET}\r\nX: y",
        f"DPoP {SECRET}\x00",
        f"DPoP {SECRET} {SECRET}",
        f"DPoP ={SECRET}",
        f"DPoP {SECRET}é",
        f"Bearer {SECRET}\n",
        "DPoP",
        "DPoP ",
    ],
)
def test_an_authorization_with_two_readings_is_refused_everywhere(
    client: AgentClient, server: FakeServer, other: FakeServer, authorization: str
) -> None:
    headers = {b"Authorization": authorization.encode("latin-1")}
    with httpx.Client(transport=signing(client, server.origin), trust_env=False) as http:
        for there in (server, other):
            refused(lambda at=there.origin: http.get(at, headers=headers))  # type: ignore[misc]
    adapter = DPoPAdapter(client, origins=[server.origin])
    for there in (server, other):
        request = requests.Request("GET", there.origin).prepare()
        request.headers["Authorization"] = authorization  # past requests' own check
        refused(lambda r=request: adapter.send(r, proxies={}))  # type: ignore[misc]
    assert server.seen == other.seen == []


@pytest.mark.parametrize("name", ["Authorization", b"authorization", "AUTHORIZATION "])
def test_a_header_name_in_another_spelling_is_seen_as_what_it_is(
    client: AgentClient, other: FakeServer, name: Any
) -> None:
    request = requests.Request("GET", other.origin).prepare()
    request.headers[name] = f"DPoP {SECRET}"
    adapter = DPoPAdapter(client, origins=["https://as.example"])
    refused(lambda: adapter.send(request, proxies={}))
    assert other.seen == []


def test_several_authorization_headers_are_refused(client: AgentClient, server: FakeServer) -> None:
    both = [("Authorization", "Bearer x"), ("authorization", f"dpop {SECRET}")]
    with httpx.Client(transport=signing(client, server.origin), trust_env=False) as http:
        refused(lambda: http.get(server.origin, headers=both))
        refused(lambda: http.get(server.origin, headers=both[::-1]))
    assert server.seen == []


NO_ACCESS_TOKENS = [f"{SECRET}\n", f"{SECRET}\r\nX: y", f" {SECRET}", f"{SECRET} x", f"{SECRET}é"]


@pytest.mark.parametrize(
    "text", [*NO_ACCESS_TOKENS, f"{SECRET}\x00", f"={SECRET}", "", "=", "\u2028"]
)
def test_an_access_token_that_is_none_is_refused_before_anything_is_sent_and_not_shown(
    agent: FakeAgent, client: AgentClient, server: FakeServer, text: str
) -> None:
    held = BoundToken(text, JKT)
    with httpx.Client(transport=signing(client, server.origin), trust_env=False) as http:
        refused(lambda: http.get(server.origin, auth=DPoPAuth(never, token=held)))
    with requests.Session() as session:
        session.mount("http://", DPoPAdapter(client, origins=[server.origin]))
        refused(lambda: session.get(server.origin, auth=BoundTokenAuth(held), timeout=5))
    refused(lambda: client.proof("GET", server.origin, access_token=text))

    async def main() -> None:
        async with (
            AsyncAgentClient(agent.path) as asking,
            httpx.AsyncClient(transport=asigning(asking, server.origin), trust_env=False) as http,
        ):
            with pytest.raises(ConfigurationError) as caught:
                await http.get(server.origin, auth=AsyncDPoPAuth(anever, token=held))
            assert SECRET not in shown(caught.value)

    asyncio.run(main())
    assert server.seen == []
    assert agent.proofs == []


# --- redirects that carry a body


@pytest.mark.parametrize(
    ("method", "status"),
    [("POST", 307), ("POST", 308), ("PUT", 301), ("PUT", 307), ("DELETE", 308)],
)
@pytest.mark.parametrize("other_transport", [False, True])
def test_a_redirect_carries_no_body_of_a_signed_request_to_an_unlisted_server(
    client: AgentClient,
    server: FakeServer,
    other: FakeServer,
    method: str,
    status: int,
    other_transport: bool,
) -> None:
    if other_transport:  # httpx's own is asked for what isn't the server's
        http = httpx.Client(mounts={server.origin: signing(client, server.origin)}, verify=False)
    else:
        http = httpx.Client(transport=signing(client, server.origin), trust_env=False)
    uri = f"{server.origin}/{status}/{other.origin}/"
    with http:
        refused(lambda: http.request(method, uri, data=FORM, follow_redirects=True))
        streamed = iter([b"refresh_token=", SECRET.encode()])
        refused(lambda: http.request(method, uri, content=streamed, follow_redirects=True))
        held = DPoPAuth(never, token=HELD)
        refused(lambda: http.request(method, uri, data=FORM, auth=held, follow_redirects=True))
        # Whoever follows it by hand is refused as well; whoever doesn't has the answer.
        response = http.request(method, uri, data=FORM)
        assert response.status_code == status
        assert response.next_request is not None
        refused(lambda: http.send(response.next_request))  # type: ignore[arg-type]
    assert other.seen == []


def test_a_transport_that_calls_no_trace_is_given_no_body_of_a_signed_request(
    client: AgentClient, server: FakeServer
) -> None:
    read: list[bytes] = []

    def reads(request: httpx.Request) -> httpx.Response:
        read.append(request.read())
        return httpx.Response(200)

    with httpx.Client(
        transport=signing(client, server.origin),
        mounts={"http://other.example": httpx.MockTransport(reads)},
        trust_env=False,
        follow_redirects=True,
    ) as http:
        uri = f"{server.origin}/307/http://other.example/"
        refused(lambda: http.post(uri, data=FORM))
        refused(lambda: http.post(uri, content=iter([SECRET.encode()])))
        assert http.get(uri).status_code == 200
        response = http.post(uri, data=FORM, follow_redirects=False)
        assert response.request.content == b"refresh_token=geheim"
    assert read == [b""]


def test_an_async_transport_that_calls_no_trace_is_given_no_body_either(
    agent: FakeAgent, server: FakeServer
) -> None:
    read: list[bytes] = []

    async def reads(request: httpx.Request) -> httpx.Response:
        read.append(await request.aread())
        return httpx.Response(200)

    async def main() -> None:
        async with (
            AsyncAgentClient(agent.path) as client,
            httpx.AsyncClient(
                transport=asigning(client, server.origin),
                mounts={"http://other.example": httpx.MockTransport(reads)},
                trust_env=False,
                follow_redirects=True,
            ) as http,
        ):
            uri = f"{server.origin}/307/http://other.example/"
            with pytest.raises(ConfigurationError):
                await http.post(uri, data=FORM)
            assert (await http.get(uri)).status_code == 200

    asyncio.run(main())
    assert read == [b""]


@pytest.mark.parametrize("mounted", [False, True])
def test_an_async_redirect_carries_no_body_of_a_signed_request_to_an_unlisted_server(
    agent: FakeAgent, server: FakeServer, other: FakeServer, mounted: bool
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield SECRET.encode()

    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            ours = asigning(client, server.origin)
            if mounted:
                http = httpx.AsyncClient(
                    mounts={server.origin: ours}, follow_redirects=True, verify=False
                )
            else:
                http = httpx.AsyncClient(transport=ours, follow_redirects=True, trust_env=False)
            async with http:
                for arguments in ({"data": FORM}, {"content": body()}):
                    with pytest.raises(ConfigurationError, match="a redirect"):
                        await http.post(f"{server.origin}/307/{other.origin}/", **arguments)
                got = await http.get(f"{server.origin}/307/{other.origin}/")
                assert got.text == "there"

    asyncio.run(main())
    assert [seen.method for seen in other.seen] == ["GET"]


@pytest.mark.parametrize("status", [302, 303])
@pytest.mark.parametrize("other_transport", [False, True])
def test_a_redirect_that_leaves_the_body_behind_is_followed(
    client: AgentClient, server: FakeServer, other: FakeServer, status: int, other_transport: bool
) -> None:
    if other_transport:
        http = httpx.Client(mounts={server.origin: signing(client, server.origin)}, verify=False)
    else:
        http = httpx.Client(transport=signing(client, server.origin), trust_env=False)
    with http:
        uri = f"{server.origin}/{status}/{other.origin}/"
        assert http.post(uri, data=FORM, follow_redirects=True).text == "there"
    (seen,) = other.seen
    assert (seen.method, seen.body, seen.proofs) == ("GET", b"", [])


def test_a_redirect_carries_the_body_to_a_listed_server_beside_a_proof(
    client: AgentClient, server: FakeServer, other: FakeServer
) -> None:
    uri = f"{server.origin}/307/{other.origin}/"
    transport = signing(client, server.origin, other.origin)
    with httpx.Client(transport=transport, follow_redirects=True) as http:
        http.post(uri, data=FORM)
    with requests.Session() as session:
        session.mount("http://", DPoPAdapter(client, origins=[server.origin, other.origin]))
        session.post(uri, data=FORM, timeout=5)
    assert [(seen.body, len(seen.proofs)) for seen in other.seen] == [
        (f"refresh_token={SECRET}".encode(), 1)
    ] * 2


def test_what_was_never_signed_is_redirected_as_ever(
    client: AgentClient, server: FakeServer, other: FakeServer
) -> None:
    uri = f"{server.origin}/307/{other.origin}/"
    transport = signing(client, "https://as.example")
    with httpx.Client(transport=transport, follow_redirects=True) as http:
        http.post(uri, data={"a": "b"})
    with requests.Session() as session:
        session.mount("http://", DPoPAdapter(client, origins=["https://as.example"]))
        session.post(uri, data={"a": "b"}, timeout=5)
    assert [(seen.body, seen.proofs) for seen in other.seen] == [(b"a=b", [])] * 2


# --- requests


@pytest.fixture
def session(client: AgentClient, server: FakeServer) -> Iterator[requests.Session]:
    """Its adapter is mounted for the one server alone."""
    with requests.Session() as made:
        made.mount(server.origin, DPoPAdapter(client, jkt=JKT, origins=[server.origin]))
        yield made


def test_an_access_token_goes_by_no_adapter_but_ours_and_nothing_is_sent(
    session: requests.Session, other: FakeServer
) -> None:
    session.auth = BoundTokenAuth(HELD)
    error = refused(lambda: session.get(other.origin, timeout=5))
    assert "DPoPAdapter" in error.message
    refused(lambda: session.post(other.origin, data=FORM, timeout=5))
    refused(lambda: session.get("http://as.example", proxies={"http": other.origin}, timeout=5))
    assert other.seen == []


def test_a_named_access_token_is_sent_beside_a_proof_by_its_own_generation(
    agent: FakeAgent, session: requests.Session, server: FakeServer
) -> None:
    session.auth = BoundTokenAuth(HELD)
    response = session.get(f"{server.origin}/302/{server.origin}/", timeout=5)
    assert [seen.headers["Authorization"] for seen in server.seen] == [f"DPoP {SECRET}"] * 2
    assert [len(seen.proofs) for seen in server.seen] == [1, 1]
    assert [params["jkt"] for params in agent.proofs] == [OTHER_JKT] * 2
    assert SECRET not in repr(response.request.headers)
    assert pickle.loads(pickle.dumps(session)).auth.token == HELD


def test_a_named_access_token_isnt_replaced_by_netrcs(
    session: requests.Session, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    session.auth = BoundTokenAuth(HELD)
    session.get(server.origin, timeout=5)
    assert server.seen[0].headers["Authorization"] == f"DPoP {SECRET}"


def test_a_redirect_takes_no_named_access_token_elsewhere(
    session: requests.Session, server: FakeServer, other: FakeServer
) -> None:
    session.auth = BoundTokenAuth(HELD)
    session.get(f"{server.origin}/302/{other.origin}/", timeout=5)
    assert other.seen[0].headers["Authorization"] is None
    assert other.seen[0].proofs == []


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("body", ["form", "file", "stream"])
def test_requests_carries_no_body_of_a_signed_request_to_an_unlisted_server(
    session: requests.Session,
    client: AgentClient,
    server: FakeServer,
    other: FakeServer,
    status: int,
    ours: bool,
    body: str,
) -> None:
    if ours:
        session.mount("http://", DPoPAdapter(client, origins=[server.origin]))
    uri = f"{server.origin}/{status}/{other.origin}/"

    def data() -> Any:
        file = io.BytesIO(SECRET.encode())
        return {"form": FORM, "file": file, "stream": iter([SECRET.encode()])}[body]

    refused(lambda: session.post(uri, data=data(), timeout=5))
    response = session.post(uri, data=data(), timeout=5, allow_redirects=False)
    assert response.status_code == status
    if body != "stream":
        refused(lambda: session.send(response.next))  # type: ignore[arg-type]
        assert response.request.headers["Content-Length"].isdigit()
    assert session.get(uri, timeout=5).text == "there"
    assert [seen.method for seen in other.seen] == ["GET"]


@pytest.mark.parametrize("ours", [False, True])
def test_a_netrc_that_has_credentials_for_every_server_makes_no_difference(
    session: requests.Session,
    client: AgentClient,
    server: FakeServer,
    other: FakeServer,
    ours: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if ours:
        session.mount("http://", DPoPAdapter(client, origins=[server.origin]))
    uri = f"{server.origin}/307/{other.origin}/"
    refused(lambda: session.post(uri, data=FORM, auth=BoundTokenAuth(HELD), timeout=5))
    refused(lambda: session.post(uri, json=FORM, timeout=5))
    # Without a Content-Type requests keeps no header but the one that it makes anew.
    refused(lambda: session.post(uri, data=SECRET.encode(), timeout=5))
    refused(lambda: session.put(uri, data=io.BytesIO(SECRET.encode()), timeout=5))
    refused(lambda: session.post(uri, data=iter([SECRET.encode()]), timeout=5))
    assert other.seen == []
    assert all("Content-Type" not in seen.headers for seen in server.seen[2:])


def _utf8(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8")


def test_what_was_sent_can_be_looked_at(session: requests.Session, server: FakeServer) -> None:
    sent = session.post(server.origin, data=FORM, auth=BoundTokenAuth(HELD), timeout=5).request
    assert str(sent.headers["Content-Length"]) == "20"
    assert [_utf8(value) for value in sent.headers.values()]
    assert sent.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert _utf8(sent.headers["Authorization"]) == b"DPoP"


def test_a_prepared_request_can_be_sent_again(
    session: requests.Session, server: FakeServer
) -> None:
    request = session.prepare_request(requests.Request("POST", server.origin, data=FORM))
    for _ in range(2):
        session.send(request, timeout=5)
    assert [seen.body for seen in server.seen] == [f"refresh_token={SECRET}".encode()] * 2


# --- a refusal without end


def endless(sent: list[int], beginning: bytes) -> Iterator[bytes]:
    yield beginning
    while True:
        sent.append(1)
        yield b"x" * 1024


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_refusal_without_end_is_read_no_further_than_an_error_goes(
    client: AgentClient, encoding: str
) -> None:
    sent: list[int] = []

    def handle(seen: Seen) -> Reply:
        head = b'{"error":"use_dpop_nonce","pad":"'
        head = gzip.compress(head)[:-8] if encoding == "gzip" else head
        return Reply(
            401,
            endless(sent, head),
            Content_Type="application/json",
            DPoP_Nonce="n1",
            Content_Encoding=encoding,
        )

    with (
        FakeServer(handle) as server,
        requests.Session() as session,
        httpx.Client(transport=signing(client, server.origin), trust_env=False) as http,
    ):
        session.mount("http://", DPoPAdapter(client, origins=[server.origin]))
        with session.get(server.origin, stream=True, timeout=5) as response:
            assert response.status_code == 401
            assert response.raw.read(10, decode_content=False)[:2] in (b'{"', b"\x1f\x8b")
        with http.stream("GET", server.origin) as streamed:
            assert next(streamed.iter_raw())[:2] in (b'{"', b"\x1f\x8b")
        assert len(server.seen) == 2
    # What was read ahead, and what fits the sockets' buffers.
    assert len(sent) * 1024 < 2 * (MAX_CHALLENGE_BODY + 8 * 1024 * 1024)


def test_a_connection_serves_on_after_a_refusal_that_was_read(client: AgentClient) -> None:
    error = json.dumps({"error": "other", "pad": "é" * 3000}).encode()

    def handle(seen: Seen) -> Reply:
        if seen.path == "/ok":
            return Reply(200, b"here")
        body = [error[:7], error[7:]] if seen.path == "/chunked" else error
        return Reply(401, body, Content_Type="application/json", Set_Cookie="a=b")

    with FakeServer(handle) as server, requests.Session() as session:
        session.mount("http://", DPoPAdapter(client, origins=[server.origin], pool_maxsize=1))
        for path in ("/chunked", "/whole"):
            assert session.get(server.origin + path, timeout=5).content == error
            with session.get(server.origin + path, stream=True, timeout=5) as response:
                assert b"".join(response.iter_content(1000)) == error
            assert session.cookies["a"] == "b"
        assert session.get(f"{server.origin}/ok", timeout=5).text == "here"
        assert server.connections == 1


def test_a_refusal_that_breaks_off_breaks_off_for_its_reader(client: AgentClient) -> None:
    def broken() -> Iterator[bytes]:
        yield b'{"error":'
        raise ConnectionResetError

    def handle(seen: Seen) -> Reply:
        return Reply(401, broken(), Content_Type="application/json")

    with FakeServer(handle) as server, requests.Session() as session:
        session.mount("http://", DPoPAdapter(client, origins=[server.origin]))
        with session.get(server.origin, stream=True, timeout=5) as response:
            assert response.status_code == 401
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                list(response.iter_content(4))


def test_a_few_bytes_become_no_gigabytes() -> None:
    bomb = gzip.compress(b"{" + b" " * 50_000_000)
    assert decoded(bomb, ["gzip"]) is None
    assert decoded(gzip.compress(bomb), ["gzip, gzip"]) is None
    assert decoded(gzip.compress(gzip.compress(b"{}")), ["gzip", "x-gzip"]) == b"{}"
    assert decoded(b"{}", []) == decoded(b"{}", ["identity"]) == b"{}"
    assert decoded(b"{}", ["gzip"]) is decoded(b"{}", ["br"]) is decoded(b"{}", ["zstd"]) is None
    assert decoded(b" " * MAX_CHALLENGE_BODY, []) is not None
    assert decoded(b" " * (MAX_CHALLENGE_BODY + 1), []) is None
