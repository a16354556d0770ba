"""Each client library at oidc-provider, which wants a nonce in every proof, and its refusals.

An application logs in once, and goes on: through nonces that change, an agent that is restarted, a
key that is rotated, a grant that the server ends, sixteen requests at once.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from requests_oauth2client import InvalidGrant, OAuth2Client

from dpop_agent.client import AsyncAgentClient, BoundToken, DPoPAdapter
from dpop_agent.client.aiohttp import DPoPMiddleware
from dpop_agent.client.requests import DPoPAuth
from dpop_agent.client.requests_oauth2client import AgentDPoPKey, AgentDPoPToken
from tests.agent.places import hurried, until
from tests.processes import Agent, NodeServer
from tests.servers.application import NATIVE, Application, over_httpx

AT_ONCE = 16
KEY = "default"
PATIENT = "trials.TRY_S=60"
OLD = "nonces.DOUBTFUL_S=0"  # each nonce counts as one that nobody has heard of for long


class Grant:
    """What an application asks the authorization server for, whatever the library.

    Attributes:
        begun: how often somebody logged in.
        refused: refreshes that the server refused.
    """

    def __init__(self, agent: Agent, server: NodeServer) -> None:
        self.begun = 0
        self.refused = 0
        self.agent = agent
        self.origin = server.origin
        self.token_endpoint = f"{server.origin}/token"
        self.me = f"{server.origin}/me"
        self._application = Application(over_httpx(agent.client(), KEY, server.origin), server)

    def code(self) -> dict[str, str]:
        """Log in; what the token request needs."""
        self.begun += 1
        jkt = self.agent.client().generation(KEY).jkt
        return {**self._application.authorize(NATIVE, jkt=jkt), **NATIVE.fields}

    def refresh(self, old: BoundToken) -> dict[str, str]:
        """What the token request needs to go on."""
        assert old.refresh_token
        return {
            "grant_type": "refresh_token",
            "refresh_token": old.refresh_token,
            **NATIVE.fields,
        }

    def revoke(self, access_token: str) -> None:
        """Have the server end the grant."""
        done = httpx.post(
            f"{self.origin}/token/revocation", data={"token": access_token, **NATIVE.fields}
        )
        assert done.status_code == 200, done.text


class Refused(Exception):
    """The server takes the refresh token no more."""


class Library:
    """An application over one of the libraries; `access_token` is the one that it has."""

    access_token: BoundToken | None = None

    def __init__(self, grant: Grant) -> None:
        self.grant = grant

    def me(self) -> str:
        """Who the server says that we are; the jkt of the proof."""
        return self.at_once(1)[0]

    def at_once(self, number: int) -> list[str]:
        """That, so many at once."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _keep(self, access_token: BoundToken) -> None:
        self.access_token = access_token


class Threads(Library):
    """A library whose requests block."""

    def at_once(self, number: int) -> list[str]:
        with ThreadPoolExecutor(number) as threads:
            return [*threads.map(lambda _: self._get(), range(number))]

    def _get(self) -> str:
        raise NotImplementedError


class Httpx(Threads):
    """httpx or httpx2."""

    def __init__(self, library: str, grant: Grant) -> None:
        super().__init__(grant)
        ours = importlib.import_module(f"dpop_agent.client.{library}")
        self._agent = grant.agent.client()
        transport = ours.DPoPTransport(self._agent, key=KEY, origins=[grant.origin])
        self._http: Any = importlib.import_module(library).Client(transport=transport)
        self._auth = ours.DPoPAuth(self._renew, on_token=self._keep)

    def _renew(self, old: BoundToken | None) -> BoundToken:
        if old is not None:
            try:
                return self._ask(self.grant.refresh(old))
            except Refused:
                self.grant.refused += 1
        return self._ask(self.grant.code())

    def _ask(self, fields: dict[str, str]) -> BoundToken:
        response = self._http.post(self.grant.token_endpoint, data=fields)
        if response.status_code == 400 and response.json()["error"] == "invalid_grant":
            raise Refused
        response.raise_for_status()
        return BoundToken.from_response(response.json(), jkt=response.extensions["dpop"].jkt)

    def _get(self) -> str:
        response = self._http.get(self.grant.me, auth=self._auth)
        assert (response.status_code, response.json()) == (200, {"sub": "alice"})
        jkt: str = response.extensions["dpop"].jkt
        return jkt

    def close(self) -> None:
        self._http.close()


class Requests(Threads):
    def __init__(self, grant: Grant) -> None:
        super().__init__(grant)
        self._agent = grant.agent.client()
        self.http = self._session()
        adapter = DPoPAdapter(self._agent, key=KEY, origins=[grant.origin], pool_maxsize=AT_ONCE)
        self.http.mount(grant.origin, adapter)
        self._auth = DPoPAuth(self._renew, on_token=self._keep)

    def _session(self) -> requests.Session:
        return requests.Session()

    def _renew(self, old: BoundToken | None) -> BoundToken:
        if old is not None:
            try:
                return self._ask(self.grant.refresh(old))
            except Refused:
                self.grant.refused += 1
        return self._ask(self.grant.code())

    def _ask(self, fields: dict[str, str]) -> BoundToken:
        response = self.http.post(self.grant.token_endpoint, data=fields, timeout=10)
        if response.status_code == 400 and response.json()["error"] == "invalid_grant":
            raise Refused
        response.raise_for_status()
        jkt = response.dpop.jkt  # type: ignore[attr-defined]
        return BoundToken.from_response(response.json(), jkt=jkt)

    def _get(self) -> str:
        response = self.http.get(self.grant.me, auth=self._auth, timeout=10)
        assert (response.status_code, response.json()) == (200, {"sub": "alice"})
        jkt: str = response.dpop.jkt  # type: ignore[attr-defined]
        return jkt

    def close(self) -> None:
        self.http.close()


class Authlib(Requests):
    """authlib's session, which is one of requests'."""

    def _session(self) -> requests.Session:
        session: requests.Session = OAuth2Session(NATIVE.id)
        return session

    def _ask(self, fields: dict[str, str]) -> BoundToken:
        proofs: list[Any] = []
        wanted = {name: value for name, value in fields.items() if name != "client_id"}
        oauth: Any = self.http
        try:
            body = oauth.fetch_token(
                self.grant.token_endpoint,
                hooks={"response": lambda response, **_: proofs.append(response.dpop)},
                **wanted,
            )
        except OAuthError as e:
            if e.error != "invalid_grant":
                raise
            raise Refused from e
        return BoundToken.from_response(body, jkt=proofs[-1].jkt)


class RequestsOAuth2Client(Threads):
    """It renews by expiry alone: a refusal is its caller's to see."""

    def __init__(self, grant: Grant) -> None:
        super().__init__(grant)
        self._agent = grant.agent.client()
        self._http = requests.Session()
        self._oauth = OAuth2Client(
            grant.token_endpoint, NATIVE.id, session=self._http, testing=True
        )
        self._token: Any = None

    def _ask(self, fields: dict[str, str]) -> None:
        key = AgentDPoPKey(self._agent, key=KEY, origins=[self.grant.origin])
        wanted = {name: value for name, value in fields.items() if name != "client_id"}
        self._token = self._oauth.token_request(wanted, dpop=True, dpop_key=key)
        assert isinstance(self._token, AgentDPoPToken)
        self._keep(BoundToken(self._token.access_token, self._token.dpop_key.dpop_jkt))

    def at_once(self, number: int) -> list[str]:
        if self._token is None:
            self._ask(self.grant.code())
        try:
            return super().at_once(number)
        except PermissionError:
            try:
                self._token = self._oauth.refresh_token(self._token)
            except InvalidGrant:
                self.grant.refused += 1
                self._ask(self.grant.code())
            return super().at_once(number)

    def _get(self) -> str:
        response = self._http.get(self.grant.me, auth=self._token, timeout=10)
        if response.status_code == 401:
            raise PermissionError
        assert (response.status_code, response.json()) == (200, {"sub": "alice"})
        jkt: str = self._token.dpop_key.dpop_jkt
        return jkt

    def close(self) -> None:
        self._http.close()


class Aiohttp(Library):
    def __init__(self, grant: Grant) -> None:
        super().__init__(grant)
        self._runner = asyncio.Runner()
        self._runner.run(self._open())

    async def _open(self) -> None:
        self._agent = AsyncAgentClient(self.grant.agent.socket)
        sign = DPoPMiddleware(self._agent, key=KEY, origins=[self.grant.origin])
        self._http = aiohttp.ClientSession(middlewares=[sign])
        self._me = sign.presenting(self._renew, on_token=self._keep)

    async def _renew(self, old: BoundToken | None) -> BoundToken:
        if old is not None:
            try:
                return await self._ask(self.grant.refresh(old))
            except Refused:
                self.grant.refused += 1
        return await self._ask(await asyncio.to_thread(self.grant.code))

    async def _ask(self, fields: dict[str, str]) -> BoundToken:
        async with self._http.post(self.grant.token_endpoint, data=fields) as response:
            body = await response.json()
            if response.status == 400 and body["error"] == "invalid_grant":
                raise Refused
            response.raise_for_status()
            jkt = response.dpop.jkt  # type: ignore[attr-defined]
            return BoundToken.from_response(body, jkt=jkt)

    async def _get(self) -> str:
        async with self._http.get(self.grant.me, middlewares=[self._me]) as response:
            assert (response.status, await response.json()) == (200, {"sub": "alice"})
            jkt: str = response.dpop.jkt  # type: ignore[attr-defined]
            return jkt

    def at_once(self, number: int) -> list[str]:
        async def all_of_them() -> list[str]:
            return await asyncio.gather(*(self._get() for _ in range(number)))

        return self._runner.run(all_of_them())

    def close(self) -> None:
        async def close() -> None:
            await self._http.close()
            await self._agent.aclose()

        self._runner.run(close())
        self._runner.close()


LIBRARIES: dict[str, Callable[[Grant], Library]] = {
    "httpx": partial(Httpx, "httpx"),
    "httpx2": partial(Httpx, "httpx2"),
    "aiohttp": Aiohttp,
    "requests": Requests,
    "authlib": Authlib,
    "requests_oauth2client": RequestsOAuth2Client,
}


class Server:
    """oidc-provider, as it counts and as its clock goes."""

    def __init__(self, process: NodeServer) -> None:
        self._process = process
        self._later_s = 0

    def refusals(self) -> list[str]:
        """What it refused, in order."""
        lines = [line for line in self._process.log.splitlines() if line.startswith("response ")]
        return [line for line in lines if int(line.split()[-1]) >= 400]

    def errors(self) -> list[str]:
        """Where it refused something, and as what."""
        lines = self._process.log.splitlines()
        return [line.removeprefix("error ") for line in lines if line.startswith("error ")]

    def later(self, seconds: int) -> None:
        """Have its clock go forward."""
        self._later_s += seconds
        self._process.tell(str(seconds))
        until(lambda: f"clock {self._later_s}\n" in self._process.log)


@pytest.fixture
def server(new_authorization_server: NodeServer) -> Server:
    return Server(new_authorization_server)


@pytest.fixture
def agent(request: pytest.FixtureRequest, make_agent: Callable[..., Agent]) -> Agent:
    """Patient, since the machine may be slow; a test says what else is otherwise."""
    settings = (PATIENT, *getattr(request, "param", ()))
    return make_agent(preexec=hurried(*settings)).start()


@pytest.fixture(params=LIBRARIES)
def library(
    request: pytest.FixtureRequest, agent: Agent, new_authorization_server: NodeServer
) -> Iterator[Library]:
    agent.create_key(KEY)
    made = LIBRARIES[request.param](Grant(agent, new_authorization_server))
    yield made
    made.close()


def test_the_first_contact_and_one_after_an_agents_restart_are_all_that_a_server_refuses(
    library: Library, server: Server, agent: Agent
) -> None:
    first = library.me()
    assert len(server.refusals()) == 1

    # A nonce is good for some minutes, and the next one comes with an answer.
    for _ in range(6):
        server.later(60)
        library.me()
        library.me()
    agent.admin().call("key.rotate", {"key": KEY})
    assert library.at_once(AT_ONCE) == [first] * AT_ONCE
    assert len(server.refusals()) == 1

    agent.stop()
    agent.start()
    assert [library.me() for _ in range(3)] == [first] * 3
    assert library.at_once(AT_ONCE) == [first] * AT_ONCE
    assert len(server.refusals()) == 2
    assert library.grant.begun == 1


def test_a_nonce_that_ran_out_costs_one_refusal(library: Library, server: Server) -> None:
    library.me()
    before = len(server.refusals())
    server.later(600)
    for _ in range(3):
        library.me()
    assert len(server.refusals()) == before + 1


@pytest.mark.parametrize(
    ("agent", "why"),
    [((), "restart"), ((OLD,), "ran out")],
    indirect=["agent"],
    ids=["restart", "ran out"],
)
def test_of_sixteen_requests_at_once_without_a_nonce_that_is_good_one_is_refused(
    library: Library, server: Server, agent: Agent, why: str
) -> None:
    jkt = library.me()
    before = len(server.refusals())
    if why == "restart":
        agent.stop()
        agent.start()
    else:
        server.later(600)
    assert library.at_once(AT_ONCE) == [jkt] * AT_ONCE
    refused = len(server.refusals()) - before
    if isinstance(library, RequestsOAuth2Client):  # its requests don't wait for each other
        assert 1 <= refused <= AT_ONCE
    else:
        assert refused == 1
    assert library.grant.begun == 1


def test_a_refused_refresh_leads_to_a_new_grant_and_is_tried_once(
    library: Library, server: Server
) -> None:
    jkt = library.me()
    assert library.access_token is not None
    library.grant.revoke(library.access_token.access_token)

    assert library.at_once(AT_ONCE) == [jkt] * AT_ONCE

    assert (library.grant.begun, library.grant.refused) == (2, 1)
    assert server.errors().count("/token invalid_grant") == 1
