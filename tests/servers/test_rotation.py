"""Rotation against oidc-provider: no access token and no grant is stranded by it."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    DPoPAgentError,
    JktRequired,
    KeyCompromised,
    KeyRetired,
    NoActive,
)
from dpop_agent.protocol import Event, decode_response, encode_request
from tests.agent.places import until
from tests.processes import Agent, NodeServer
from tests.servers.application import (
    CONFIDENTIAL,
    NATIVE,
    Answer,
    Application,
    Client,
    Http,
    over_aiohttp,
    over_httpx,
    over_requests,
)

DRAIN_S = 5  # counted in whole seconds, so it may end up to a second early
names = (f"key-{number}" for number in itertools.count())


class Key:
    """A key of one test alone."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.name = next(names)
        self.client = agent.client()
        self.first: str = agent.create_key(self.name)["jkt"]

    @property
    def active(self) -> str:
        return self.client.generation(self.name).jkt

    def rotate(self, **settings: Any) -> str:
        """The new generation's jkt."""
        self.agent.admin().call("key.rotate", {"key": self.name, **settings})
        return self.active

    def compromise(self) -> None:
        self.agent.admin().call("key.compromise", {"key": self.name})

    def states(self) -> list[str]:
        (key,) = self.client.keys(self.name)
        return [generation["state"] for generation in key["generations"]]

    def wait_until_retired(self) -> None:
        """Until the first generation's drain has ended."""
        until(lambda: self.states()[0] == "retired")


@pytest.fixture
def key(rotating_agent: Agent) -> Key:
    return Key(rotating_agent)


@pytest.fixture
def over_each(key: Key, authorization_server: NodeServer) -> dict[str, Application]:
    """The same application over each HTTP library."""
    return {
        name: Application(
            over(key.client, key.name, authorization_server.origin), authorization_server
        )
        for name, over in {
            "httpx": over_httpx,
            "requests": over_requests,
            "aiohttp": over_aiohttp,
        }.items()
    }


@pytest.fixture(params=["httpx", "requests", "aiohttp"])
def application(request: pytest.FixtureRequest, over_each: dict[str, Application]) -> Application:
    return over_each[request.param]


# What servers see


def test_an_access_token_works_through_the_whole_drain_and_new_ones_are_the_new_keys(
    key: Key, over_each: dict[str, Application]
) -> None:
    application = over_each["httpx"]
    access_token = application.grant(NATIVE, jkt=key.first)
    new = key.rotate(drain_s=DRAIN_S)
    assert new != key.first
    began = last_used = time.monotonic()

    # Use extends the drain.
    while time.monotonic() < began + 1.5 * DRAIN_S:
        for each in over_each.values():
            answer = each.userinfo(access_token)
            assert (answer.status, answer.jkt) == (200, key.first)
        last_used = time.monotonic()
        issued = application.client_credentials()
        assert application.introspect(issued.body["access_token"])["cnf"] == {"jkt": new}
        time.sleep(0.2)
    key.wait_until_retired()

    assert time.monotonic() > last_used + DRAIN_S - 1.5
    for each in over_each.values():
        with pytest.raises(KeyRetired):
            each.userinfo(access_token)
    # It wasn't the server that ended it.
    assert application.introspect(access_token.access_token)["cnf"] == {"jkt": key.first}


def test_a_public_clients_refresh_works_with_the_old_key_until_the_drain_ends(
    key: Key, over_each: dict[str, Application]
) -> None:
    access_token = over_each["httpx"].grant(NATIVE, jkt=key.first)
    new = key.rotate(drain_s=DRAIN_S)

    assert over_each["httpx"].refresh(NATIVE, access_token, jkt=new).status == 400
    for application in over_each.values():
        answer = application.refresh(NATIVE, access_token, jkt=key.first)
        assert answer.status == 200
        access_token = BoundToken.from_response(answer.body, jkt=key.first)
        assert application.introspect(access_token.access_token)["cnf"] == {"jkt": key.first}

    key.wait_until_retired()
    for application in over_each.values():
        with pytest.raises(KeyRetired):
            application.refresh(NATIVE, access_token, jkt=key.first)


def test_a_confidential_client_can_refresh_with_the_new_key(
    key: Key, application: Application
) -> None:
    access_token = application.grant(CONFIDENTIAL, jkt=key.first)
    new = key.rotate()

    answer = application.refresh(CONFIDENTIAL, access_token, jkt=new)

    assert answer.status == 200
    renewed = BoundToken.from_response(answer.body, jkt=new)
    assert application.introspect(renewed.access_token)["cnf"] == {"jkt": new}
    assert application.userinfo(renewed).status == 200
    assert application.userinfo(access_token).jkt == key.first


@pytest.mark.parametrize("client", [NATIVE, CONFIDENTIAL], ids=lambda client: client.id)
def test_a_rotation_between_the_pushed_request_and_the_token_request_breaks_nothing(
    client: Client, key: Key, application: Application
) -> None:
    jkt = key.active
    fields = application.authorize(client, jkt=jkt)
    key.rotate()

    answer = application.token_request(client, fields, jkt=jkt)

    assert answer.status == 200
    access_token = BoundToken.from_response(answer.body, jkt=answer.jkt)
    assert access_token.jkt == jkt
    assert application.userinfo(access_token).body == {"sub": "alice"}


def test_an_access_token_is_presented_by_no_guessed_key_while_two_generations_sign(
    key: Key, application: Application
) -> None:
    access_token = application.grant(NATIVE, jkt=key.first).access_token
    new = key.rotate()
    before = application.server.log.count("response GET /me ")

    with pytest.raises(JktRequired) as caught:
        application.http("GET", application.at("/me"), access_token=access_token)

    assert caught.value.details["choices"] == [key.first, new]
    assert application.server.log.count("response GET /me ") == before


# Compromise


def test_after_a_compromise_nothing_is_signed_whatever_library_asks(
    key: Key, application: Application
) -> None:
    access_token = application.grant(NATIVE, jkt=key.first)
    key.rotate()
    key.compromise()

    assert key.states() == ["compromised", "compromised"]
    with pytest.raises(KeyCompromised):
        application.userinfo(access_token)
    with pytest.raises(KeyCompromised):
        application.refresh(NATIVE, access_token, jkt=key.first)
    with pytest.raises(NoActive):
        application.client_credentials()


def test_no_proof_follows_the_answer_to_a_compromise_on_its_connection(key: Key) -> None:
    proof = {"htm": "GET", "htu": "https://api.example/", "jkt": key.first}
    compromise = ("key.compromise", {"key": key.name})
    given_up = 0
    for _ in range(3):
        asked = [("proof", proof)] * 30 + [compromise] + [("proof", proof)] * 30

        answers = pipelined(key.agent, asked)

        assert sorted(number for number, _ in answers) == list(range(len(asked)))
        at = [number for number, _ in answers].index(30)
        assert isinstance(answers[at][1], dict)
        after = [answer for _, answer in answers[at + 1 :]]
        assert all(isinstance(answer, KeyCompromised) for answer in after)
        given_up += sum(isinstance(answer, KeyCompromised) for _, answer in answers) - 30
        proof["jkt"] = key.rotate()
    assert given_up > 0  # asked for before, and under way when the compromise came


def pipelined(
    agent: Agent, asked: list[tuple[str, dict[str, Any]]]
) -> list[tuple[int, dict[str, Any] | DPoPAgentError]]:
    """Everything asked at once on one connection; the answers in the order of their coming."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(agent.admin_socket)
        sock.sendall(b"".join(encode_request(i, *request) for i, request in enumerate(asked)))
        answers = []
        with sock.makefile("rb") as lines:
            for _ in asked:
                number, answer = decode_response(lines.readline())
                assert isinstance(number, int)
                assert not isinstance(answer, Event)
                answers.append((number, answer))
    return answers


def test_no_proof_is_handed_out_after_a_compromise_to_whoever_asks_at_that_moment(
    key: Key,
) -> None:
    compromised = threading.Event()
    outcomes: list[tuple[bool, object]] = []
    deadline = time.monotonic() + 20

    def ask_on() -> None:
        with AgentClient(key.agent.socket) as client:
            late = 0
            while late < 20 and time.monotonic() < deadline:
                over = compromised.is_set()
                outcome: object
                try:
                    outcome = client.proof("GET", "https://api.example/", jkt=key.first)
                except DPoPAgentError as e:
                    outcome = e
                outcomes.append((over, outcome))
                late += over

    threads = [threading.Thread(target=ask_on) for _ in range(16)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    key.compromise()
    compromised.set()
    for thread in threads:
        thread.join()

    failures = [outcome for _, outcome in outcomes if isinstance(outcome, DPoPAgentError)]
    assert {type(failure) for failure in failures} == {KeyCompromised}
    assert [outcome for over, outcome in outcomes if over] != []
    assert {type(outcome) for over, outcome in outcomes if over} == {KeyCompromised}


# DPoPAuth, end to end


class Service:
    """An application over DPoPAuth, whose `renew` says nothing about keys.

    `before_code` runs between the pushed request and the token request.
    """

    def __init__(self, key: Key, server: NodeServer, client: Client, *, rebind: bool) -> None:
        self.renewals: list[BoundToken | None] = []
        self.before_code: Callable[[], object] = lambda: None
        self._key = key
        self._client = client
        transport = DPoPTransport(key.client, key=key.name, origins=[server.origin])
        self.http = httpx.Client(transport=transport)
        self.application = Application(self._forgetful(), server)
        self.auth = DPoPAuth(self._renew, rebind=rebind)

    def me(self) -> str:
        """Who the server says that we are; the jkt of the proof."""
        response = self.http.get(self.application.at("/me"), auth=self.auth)
        assert (response.status_code, response.json()) == (200, {"sub": "alice"})
        jkt: str = response.extensions["dpop"].jkt
        return jkt

    def _forgetful(self) -> Http:
        def send(
            method: str,
            uri: str,
            *,
            jkt: str | None = None,
            access_token: str | None = None,
            data: dict[str, str] | None = None,
            auth: tuple[str, str] | None = None,
        ) -> Answer:
            response = self.http.request(method, uri, data=data, auth=auth)
            return Answer(response.status_code, response.json(), response.extensions["dpop"].jkt)

        return send

    def _renew(self, old: BoundToken | None) -> BoundToken:
        self.renewals.append(old)
        if old is None:
            fields = self.application.authorize(self._client, jkt=self._key.active)
            self.before_code()
        else:
            assert old.refresh_token
            fields = {"grant_type": "refresh_token", "refresh_token": old.refresh_token}
        answer = self.application.token_request(self._client, fields, jkt="")
        assert answer.status == 200, answer
        return BoundToken.from_response(answer.body, jkt=answer.jkt)


@pytest.fixture
def start_service(key: Key, authorization_server: NodeServer) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def start(client: Client, *, rebind: bool = False) -> Service:
        services.append(Service(key, authorization_server, client, rebind=rebind))
        return services[-1]

    yield start
    for service in services:
        service.http.close()


def test_a_public_client_on_dpop_auth_lives_through_rotation_and_the_drains_end(
    key: Key, start_service: Callable[..., Service]
) -> None:
    service = start_service(NATIVE)
    assert service.me() == key.first
    new = key.rotate(drain_s=DRAIN_S)

    # It goes on, and renews nothing; the grant stays with its key.
    assert [service.me() for _ in range(4)] == [key.first] * 4
    assert [old and old.jkt for old in service.renewals] == [None]

    key.wait_until_retired()
    assert [service.me() for _ in range(2)] == [new] * 2
    assert [old and old.jkt for old in service.renewals] == [None, key.first, None]


def test_a_confidential_client_on_dpop_auth_that_opted_in_refreshes_with_the_new_key(
    key: Key, start_service: Callable[..., Service]
) -> None:
    service, careful = start_service(CONFIDENTIAL, rebind=True), start_service(CONFIDENTIAL)
    assert {service.me(), careful.me()} == {key.first}
    new = key.rotate(drain_s=LEAVE_BEFORE_S)

    assert [service.me() for _ in range(4)] == [key.first, new, new, new]
    assert [old and old.jkt for old in service.renewals] == [None, key.first]
    assert [careful.me() for _ in range(4)] == [key.first] * 4
    assert careful.renewals == [None]


@pytest.mark.parametrize("rebind", [False, True])
def test_a_rotation_alone_renews_nothing_on_dpop_auth(
    rebind: bool, key: Key, start_service: Callable[..., Service]
) -> None:
    service = start_service(CONFIDENTIAL, rebind=rebind)
    service.me()
    key.rotate()

    assert [service.me() for _ in range(3)] == [key.first] * 3
    assert service.renewals == [None]


@pytest.mark.parametrize("client", [NATIVE, CONFIDENTIAL], ids=lambda client: client.id)
def test_a_rotation_within_a_new_grant_on_dpop_auth_breaks_nothing(
    client: Client, key: Key, start_service: Callable[..., Service]
) -> None:
    service = start_service(client, rebind=True)
    service.before_code = key.rotate

    assert service.me() == key.first
    assert key.states() == ["draining", "active"]


def test_after_a_compromise_dpop_auth_begins_a_new_grant_with_the_next_key(
    key: Key, start_service: Callable[..., Service]
) -> None:
    service = start_service(NATIVE)
    service.me()
    key.compromise()
    with pytest.raises(NoActive):
        service.me()
    new = key.rotate()

    assert service.me() == new


def test_threads_on_dpop_auth_notice_nothing_of_rotations(
    key: Key, start_service: Callable[..., Service]
) -> None:
    service = start_service(CONFIDENTIAL, rebind=True)
    service.me()
    with ThreadPoolExecutor(4) as pool:
        over = threading.Event()
        jkts: list[str] = []

        def work() -> None:
            while not over.is_set():
                jkts.append(service.me())

        def until_more() -> None:
            enough = len(jkts) + 20
            while len(jkts) < enough and not any(future.done() for future in working):
                time.sleep(0.01)

        working = [pool.submit(work) for _ in range(4)]
        try:
            for _ in range(3):
                until_more()
                key.rotate(drain_s=LEAVE_BEFORE_S)
            until_more()
        finally:
            over.set()

    assert [future.exception() for future in working] == [None] * 4
    assert service.me() == key.active
    assert len(service.renewals) == 4


def test_tasks_on_async_dpop_auth_notice_nothing_of_a_rotation(
    key: Key, over_each: dict[str, Application]
) -> None:
    application = over_each["httpx"]
    saved = application.grant(CONFIDENTIAL, jkt=key.first)
    origin = application.server.origin
    renewals: list[BoundToken | None] = []
    jkts: dict[str, list[str]] = {"rebind": [], "pinned": []}

    async def main() -> None:
        async with (
            AsyncAgentClient(key.agent.socket) as agent,
            httpx.AsyncClient(
                transport=AsyncDPoPTransport(agent, key=key.name, origins=[origin])
            ) as http,
            asyncio.TaskGroup() as tasks,
        ):
            over = asyncio.Event()

            async def renew(old: BoundToken | None) -> BoundToken:
                renewals.append(old)
                assert old
                assert old.refresh_token
                response = await http.post(
                    f"{origin}/token",
                    auth=("confidential", CONFIDENTIAL.secret or ""),
                    data={"grant_type": "refresh_token", "refresh_token": old.refresh_token},
                )
                return BoundToken.from_response(
                    response.raise_for_status().json(), jkt=response.extensions["dpop"].jkt
                )

            async def work(auth: httpx.Auth, seen: list[str]) -> None:
                while not over.is_set():
                    response = await http.get(f"{origin}/me", auth=auth)
                    assert (response.status_code, response.json()) == (200, {"sub": "alice"})
                    seen.append(response.extensions["dpop"].jkt)

            async def until_more() -> None:
                enough = {name: len(seen) + 10 for name, seen in jkts.items()}
                while any(len(seen) < enough[name] for name, seen in jkts.items()):
                    await asyncio.sleep(0.01)

            for name, seen in jkts.items():
                auth = AsyncDPoPAuth(renew, token=saved, rebind=name == "rebind")
                for _ in range(3):
                    tasks.create_task(work(auth, seen))
            await until_more()
            await asyncio.to_thread(key.rotate, drain_s=LEAVE_BEFORE_S)
            await until_more()
            over.set()

    asyncio.run(main())
    assert (jkts["rebind"][0], jkts["rebind"][-1]) == (key.first, key.active)
    assert set(jkts["pinned"]) == {key.first}
    assert renewals == [saved]
