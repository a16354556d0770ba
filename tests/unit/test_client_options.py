"""What httpx's and httpx2's clients leave to a transport that they are given: ours does it."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dpop_agent.client import AgentClient, AsyncAgentClient
from dpop_agent.client.proxies import EnvironmentProxies
from dpop_agent.errors import ConfigurationError
from tests.kit.adapter import PROXIES
from tests.unit.certificates import Certificates
from tests.unit.fake_agent import FakeAgent
from tests.unit.fake_server import FakeServer, Reply

Get = Callable[..., list[int]]
LIBRARIES = ("httpx", "httpx2")


@pytest.fixture(params=[*itertools.product(LIBRARIES, ("blocking", "async"))], ids="-".join)
def get(request: pytest.FixtureRequest, agent: FakeAgent) -> Get:
    """Statuses of so many requests by a transport with these options."""
    library: Any = importlib.import_module(request.param[0])
    ours: Any = importlib.import_module(f"dpop_agent.client.{request.param[0]}")

    def blocking(uri: str, times: int = 1, **options: Any) -> list[int]:
        with AgentClient(agent.path) as client:
            transport = ours.DPoPTransport(client, origins=[uri], **options)
            with library.Client(transport=transport) as http:
                return [http.get(uri).status_code for _ in range(times)]

    async def arun(uri: str, times: int, **options: Any) -> list[int]:
        async with AsyncAgentClient(agent.path) as client:
            transport = ours.AsyncDPoPTransport(client, origins=[uri], **options)
            async with library.AsyncClient(transport=transport) as http:
                return [(await http.get(uri)).status_code for _ in range(times)]

    def awaiting(uri: str, times: int = 1, **options: Any) -> list[int]:
        return asyncio.run(arun(uri, times, **options))

    made = blocking if request.param[1] == "blocking" else awaiting
    made.library = library  # type: ignore[attr-defined]
    return made


# --- TLS


class TLSServer:
    """Answers 200; `seen` has of each connection the protocol and the client's name."""

    def __init__(self, certificates: Certificates) -> None:
        self.seen: list[tuple[str | None, str | None]] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificates.server)
        self._context.load_verify_locations(certificates.authority[0])
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._context.set_alpn_protocols(["h2", "http/1.1"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.origin = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(connection, server_side=True) as secured:
                    self._answer(secured)
            except OSError:
                pass  # a client that doesn't trust it

    def _answer(self, secured: ssl.SSLSocket) -> None:
        subject: Any = (secured.getpeercert() or {}).get("subject", ())
        names = [value for part in subject for name, value in part if name == "commonName"]
        self.seen.append((secured.selected_alpn_protocol(), names[0] if names else None))
        if secured.selected_alpn_protocol() != "h2":
            secured.recv(65536)
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secured(certificates: Certificates) -> Iterator[TLSServer]:
    server = TLSServer(certificates)
    yield server
    server.close()


def test_verify_says_which_servers_are_trusted(
    get: Get, secured: TLSServer, certificates: Certificates
) -> None:
    library: Any = get.library  # type: ignore[attr-defined]
    with pytest.raises(library.ConnectError):
        get(secured.origin)
    assert get(secured.origin, verify=certificates.trusted()) == [200]
    assert get(secured.origin, verify=False) == [200]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cert_is_shown_to_the_server(
    get: Get, secured: TLSServer, certificates: Certificates
) -> None:
    get(secured.origin, verify=False)
    try:
        get(secured.origin, verify=False, cert=certificates.client)
    except TypeError:  # a library that takes certificates in `verify` alone
        context = certificates.trusted()
        context.load_cert_chain(*certificates.client)
        get(secured.origin, verify=context)
    assert [name for _, name in secured.seen] == [None, "client"]


def test_http2_is_offered_where_it_is_wanted(
    get: Get, secured: TLSServer, certificates: Certificates
) -> None:
    library: Any = get.library  # type: ignore[attr-defined]
    assert get(secured.origin, verify=certificates.trusted(), http2=False) == [200]
    with pytest.raises(library.HTTPError):  # it hangs up on those who speak it
        get(secured.origin, verify=certificates.trusted(), http2=True)
    assert [protocol for protocol, _ in secured.seen] == ["http/1.1", "h2"]


# --- connections and proxies


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(lambda _: Reply(200, b"here")) as made:
        yield made


@pytest.fixture
def proxy() -> Iterator[FakeServer]:
    with FakeServer(lambda _: Reply(200, b"through")) as made:
        yield made


def test_limits_are_kept(get: Get, server: FakeServer) -> None:
    library: Any = get.library  # type: ignore[attr-defined]
    get(server.origin, 3)
    assert server.connections == 1
    get(server.origin, 3, limits=library.Limits(max_keepalive_connections=0))
    assert server.connections == 4


def test_a_proxy_that_is_given_is_used_and_the_environment_is_not_asked(
    get: Get, server: FakeServer, proxy: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(server.origin, proxy=proxy.origin) == [200]
    assert [seen.path for seen in proxy.seen] == [f"{server.origin}/"]
    assert len(proxy.seen[0].proofs) == 1
    assert server.seen == []


def test_the_environments_proxies_are_used_unless_it_is_not_trusted(
    get: Get, server: FakeServer, proxy: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.origin)
    get(server.origin)
    assert (len(proxy.seen), len(server.seen)) == (1, 0)
    get(server.origin, trust_env=False)
    assert (len(proxy.seen), len(server.seen)) == (1, 1)


@pytest.mark.parametrize("library", LIBRARIES)
def test_options_beside_a_transport_are_refused_for_it_does_the_sending(
    client: AgentClient, library: str
) -> None:
    theirs: Any = importlib.import_module(library)
    ours: Any = importlib.import_module(f"dpop_agent.client.{library}")
    with pytest.raises(ConfigurationError, match="verify, http2 beside transport"):
        ours.DPoPTransport(
            client,
            origins=["https://as.example"],
            transport=theirs.MockTransport(lambda _: theirs.Response(200)),
            verify=False,
            http2=True,
        )


NOT_IN_HTTPX = ("[::1]", "fd00::/8", "10.0.0.0/8", "*.example.com")
ENTRIES = [
    "*.example.com",
    "fd00::/8",
    "",
    "example.com",
    ".example.com",
    "EXAMPLE.com",
    "localhost",
    "127.0.0.1",
    "10.0.0.0/8",
    "::1",
    "[::1]",
    "example.com:8080",
    "http://example.com",
    "https://example.com:8443",
    "all://example.com",
    "other.test, example.com",
    "*",
    "other.test,*",
]
URIS = [
    f"{scheme}://{host}{port}/"
    for scheme in ("http", "https")
    for host in ("example.com", "www.example.com", "wwwexample.com", "localhost", "127.0.0.1")
    for port in ("", ":8080", ":8443")
] + [
    "http://10.0.0.0/",
    "http://10.0.0.1/",
    "http://[::1]/",
    "http://[::1]:8080/",
    "http://[fd00::1]/",
]
SETTINGS = [
    {"HTTP_PROXY": "http://h.test:1"},
    {"http_proxy": "h.test:1", "HTTPS_PROXY": "http://s.test:2"},
    {"ALL_PROXY": "http://a.test:3"},
    {"ALL_PROXY": "http://a.test:3", "HTTPS_PROXY": "http://s.test:2"},
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_environments_proxies_are_those_that_the_library_would_use(
    library: str, setting: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: Any = importlib.import_module(library)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    proxied = 0
    for entry in ENTRIES:
        if library == "httpx" and entry in NOT_IN_HTTPX:
            continue
        monkeypatch.setenv("NO_PROXY", entry)
        proxies = EnvironmentProxies()
        with theirs.Client(verify=False) as http:
            for uri in URIS:
                url = theirs.URL(uri)
                ours = proxies.of(url.scheme, url.host, url.port)
                pool = http._transport_for_url(url)._pool
                used = getattr(pool, "_proxy_url", None)
                host = None if used is None else used.host.decode()
                assert (ours and theirs.URL(ours).host) == host, (entry, uri)
                proxied += host is not None
    assert proxied > 100


@pytest.mark.parametrize(
    ("entry", "left_out"),
    [("*.example.com", "www.example.com"), ("[::1]", "::1"), ("10.0.0.0/8", "10.1.2.3")],
)
def test_entries_that_only_httpx2_knows_are_known_for_httpx_too(
    entry: str, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://p.test")
    monkeypatch.setenv("no_proxy", entry)
    proxies = EnvironmentProxies()
    hosts = ("www.example.com", "example.org", "::1", "10.1.2.3", "11.1.2.3")
    assert [host for host in hosts if proxies.of("http", host, None) is None] == [left_out]
