"""oidc-provider takes our proofs; the key is in SoftHSM2, a real agent signs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import httpx
import jwt
import pytest

from dpop_agent.client import AgentClient, BoundToken
from tests.emulators import need
from tests.processes import Agent, NodeServer
from tests.servers.application import (
    CONFIDENTIAL,
    NATIVE,
    Application,
    Client,
    Http,
    over_aiohttp,
    over_curl,
    over_httpx,
    over_requests,
)

API = "https://api.example/v1"


@pytest.fixture(
    params=[over_httpx, over_requests, over_aiohttp, over_curl],
    ids=["httpx", "requests", "aiohttp", "curl"],
)
def over(request: pytest.FixtureRequest) -> Callable[[AgentClient, str, str], Http]:
    library: Callable[[AgentClient, str, str], Http] = request.param
    if library is over_curl:
        need("curl")
    return library


@pytest.fixture
def application(
    over: Callable[[AgentClient, str, str], Http],
    shared_agent: Agent,
    authorization_server: NodeServer,
) -> Application:
    http = over(shared_agent.client(), "default", authorization_server.origin)
    return Application(http, authorization_server)


@pytest.fixture
def jkt(shared_agent: Agent) -> str:
    found: str = shared_agent.client().generation("default").jkt
    return found


@pytest.fixture
def other(shared_agent: Agent, authorization_server: NodeServer) -> Application:
    """The same application, signing with another key."""
    http = over_httpx(shared_agent.client(), "other", authorization_server.origin)
    return Application(http, authorization_server)


@pytest.fixture
def other_jkt(shared_agent: Agent) -> str:
    found: str = shared_agent.client().generation("other").jkt
    return found


def test_client_credentials_give_an_access_token_bound_to_the_agents_key(
    application: Application, jkt: str
) -> None:
    answer = application.client_credentials()

    assert answer.status == 200
    assert answer.body["token_type"] == "DPoP"
    assert answer.jkt == jkt
    introspected = application.introspect(answer.body["access_token"])
    assert introspected["active"] is True
    assert introspected["cnf"] == {"jkt": jkt}


def test_a_jwt_access_token_names_the_agents_key(application: Application, jkt: str) -> None:
    answer = application.client_credentials(resource=API, scope="read")

    [key] = httpx.get(application.at("/jwks")).json()["keys"]
    claims = jwt.decode(
        answer.body["access_token"], jwt.PyJWK(key), algorithms=["ES256"], audience=API
    )
    assert claims["cnf"] == {"jkt": jkt}
    assert BoundToken.from_response(answer.body, jkt=jkt).jkt == jkt


@pytest.mark.parametrize("client", [NATIVE, CONFIDENTIAL], ids=lambda client: client.id)
def test_an_authorization_code_works_from_the_pushed_request_to_the_refresh(
    client: Client, application: Application, jkt: str
) -> None:
    access_token = application.grant(client, jkt=jkt)

    assert application.userinfo(access_token).body == {"sub": "alice"}

    answer = application.refresh(client, access_token, jkt=jkt)
    assert answer.status == 200
    renewed = BoundToken.from_response(answer.body, jkt=answer.jkt)
    assert renewed.jkt == jkt
    assert renewed.access_token != access_token.access_token
    assert application.userinfo(renewed).body == {"sub": "alice"}
    assert application.introspect(renewed.access_token)["cnf"] == {"jkt": jkt}


def test_the_server_gives_the_code_to_no_key_but_the_one_that_was_announced(
    application: Application, jkt: str, other: Application, other_jkt: str
) -> None:
    fields = application.authorize(NATIVE, jkt=jkt)

    refused = other.token_request(NATIVE, fields, jkt=other_jkt)

    assert refused.jkt == other_jkt
    assert (refused.status, refused.body["error"]) == (400, "invalid_grant")


def test_the_server_takes_an_access_token_with_no_other_keys_proof(
    application: Application, jkt: str, other: Application, other_jkt: str
) -> None:
    access_token = application.grant(NATIVE, jkt=jkt)

    assert other.userinfo(access_token, jkt=other_jkt).status == 401
    unsigned = {"Authorization": f"DPoP {access_token.access_token}"}
    assert httpx.get(application.at("/me"), headers=unsigned).status_code == 400
    assert application.userinfo(access_token).status == 200


def test_a_public_clients_refresh_token_is_of_no_use_with_another_key(
    application: Application, jkt: str, other: Application, other_jkt: str
) -> None:
    access_token = application.grant(NATIVE, jkt=jkt)

    refused = other.refresh(NATIVE, access_token, jkt=other_jkt)

    assert refused.jkt == other_jkt
    assert (refused.status, refused.body["error"]) == (400, "invalid_grant")


def responses(server: NodeServer, path: str) -> list[int]:
    """The status of each response to a request for `path`."""
    words = (line.split() for line in server.log.splitlines() if line.startswith("response "))
    return [int(status) for _, _, requested, status in words if requested == path]


def test_a_nonce_challenge_is_answered_without_the_caller_seeing_it(
    over: Callable[[AgentClient, str, str], Http],
    agent: Agent,
    new_authorization_server: NodeServer,
) -> None:
    agent.create_key("default")
    http = over(agent.client(), "default", new_authorization_server.origin)
    application = Application(http, new_authorization_server)

    assert application.client_credentials().status == 200
    assert responses(new_authorization_server, "/token") == [400, 200]

    assert application.client_credentials().status == 200
    assert responses(new_authorization_server, "/token") == [400, 200, 200]


SECOND_PROCESS = """
import sys
from dpop_agent.client import AgentClient
from tests.servers import application

over, server = getattr(application, sys.argv[1]), sys.argv[2]
answer = over(AgentClient(), "default", server)(
    "POST",
    server + "/token",
    data={"grant_type": "client_credentials"},
    auth=application.CONFIDENTIAL.auth,
)
print(answer.status)
"""


def test_a_second_process_knows_the_nonce_that_the_first_one_was_given(
    over: Callable[[AgentClient, str, str], Http],
    agent: Agent,
    new_authorization_server: NodeServer,
) -> None:
    agent.create_key("default")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SECOND_PROCESS, over.__name__, new_authorization_server.origin],
            env=agent.env,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.stdout, done.stderr) == ("200\n", "")
    assert responses(new_authorization_server, "/token") == [400, 200, 200]


def test_the_command_lines_proof_has_the_servers_nonce_too(
    agent: Agent, new_authorization_server: NodeServer
) -> None:
    agent.create_key("default")
    application = Application(
        over_httpx(agent.client(), "default", new_authorization_server.origin),
        new_authorization_server,
    )
    application.client_credentials()

    proof = json.loads(
        agent.run("proof", "POST", application.at("/token"), "--json", check=True).stdout
    )

    response = httpx.post(
        application.at("/token"),
        data={"grant_type": "client_credentials"},
        auth=CONFIDENTIAL.auth,
        headers={"DPoP": proof["proof"]},
    )
    assert proof["nonce"]
    assert response.status_code == 200
    assert application.introspect(response.json()["access_token"])["cnf"] == {"jkt": proof["jkt"]}
