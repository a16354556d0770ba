"""`dpop-agent explain` with curl itself, and an agent: its generations, tombstones, audit."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dpop_agent.client import DPoPTransport, explain
from tests.agent.places import until
from tests.emulators import need
from tests.processes import Agent
from tests.unit.exchanges_by_hand import ASSERTION, error, jwt
from tests.unit.fake_server import FakeServer, Reply, Seen

SAID = json.dumps(error("invalid_token", "invalid token provided")).encode()


def refuse(_: Seen) -> Reply:
    challenge = 'DPoP realm="api", error="invalid_token", algs="ES256"'
    return Reply(401, SAID, Content_Type="application/json", WWW_Authenticate=challenge)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(refuse) as running:
        yield running


def access_token(jkt: str) -> str:
    """A JWT access token that is bound to that key."""
    now = int(time.time())
    claims = {"iss": "https://as.example", "iat": now, "exp": now + 600, "cnf": {"jkt": jkt}}
    return jwt(ASSERTION, {"typ": "at+jwt", "alg": "ES256"}, claims)


def curl(url: str, *headers: str) -> str:
    """What `curl -v` writes on both its outputs, with its progress meter."""
    need("curl")
    done = subprocess.run(
        ["curl", "-q", "--verbose", "--noproxy", "*", "--config", "-", url],
        input="".join(f"header = {json.dumps(header)}\n" for header in headers),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def asked(agent: Agent, url: str, token: str, *words: str) -> str:
    """What curl writes of a request with a proof that the agent made for it."""
    proof = agent.run(
        *("proof", "GET", url, "--header", "--access-token-file", "-", *words),
        stdin=token,
        check=True,
    ).stdout.strip()
    return curl(url, proof, f"Authorization: DPoP {token}")


def found(agent: Agent, text: str) -> list[dict[str, Any]]:
    """The findings, as JSON."""
    done = agent.run("explain", "--json", stdin=text)
    assert done.returncode == 1, done.stderr
    listed: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return listed


def evidence(finding: dict[str, Any]) -> dict[str, str]:
    return {each["of"]: each["is"] for each in finding["evidence"]}


def test_an_access_token_of_the_generation_before_is_named_with_the_command_that_presents_it(
    agent: Agent, server: FakeServer
) -> None:
    old = agent.create_key("default")["jkt"]
    agent.run("key", "rotate", "default", "--drain", "1h", check=True)
    url, token = f"{server.origin}/me", access_token(old)
    wrong = asked(agent, url, token, "--key", "default@2")

    done = agent.run("explain", stdin=wrong)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "The access token is bound to another key than the proof's."
    assert f"{old}, default@1 (draining)" in " ".join(done.stdout.split())
    assert token not in done.stdout

    command = done.stdout[done.stdout.index("dpop-agent proof") :].partition("\n\n")[0]
    words = shlex.split(command.replace("\\\n", "").replace("FILE", "-"))[1:]
    right = agent.run(*words, "--header", stdin=token, check=True).stdout.strip()
    again = found(agent, curl(url, right, f"Authorization: DPoP {token}"))
    assert "access_token_of_another_key" not in {each["cause"] for each in again}


def test_a_tombstone_tells_whose_access_token_it_was(agent: Agent, server: FakeServer) -> None:
    old = agent.create_key("default")["jkt"]
    agent.run("key", "rotate", "default", "--drain", "1h", check=True)
    agent.run("key", "destroy", "default@1", "--yes", check=True)
    text = asked(agent, f"{server.origin}/me", access_token(old), "--key", "default")
    first = found(agent, text)[0]
    assert first["cause"] == "access_token_of_another_key"
    assert evidence(first)["access token's key"] == f"{old}, default@1 (destroyed)"
    assert "Get a new access token" in first["mend"]


def test_the_audit_tells_when_the_agent_made_a_proof(agent: Agent, server: FakeServer) -> None:
    jkt = agent.create_key("default")["jkt"]
    text = asked(agent, f"{server.origin}/me", access_token(jkt))
    text = text.replace("invalid token provided", "DPoP proof has already been used")
    audit: Path = agent.state / "audit" / "agent.jsonl"
    until(lambda: audit.exists() and '"method":"proof"' in audit.read_text())
    here = evidence(found(agent, text)[0])["made by the agent"]
    agent.stop()
    without = found(agent, text)[0]  # the audit's files are read whether or not an agent runs
    assert without["cause"] == "jti_seen"
    assert evidence(without)["made by the agent"] == here
    assert here.endswith(", default@1 (the audit)")


def test_a_good_exchange_with_the_agents_proof_has_nothing_wrong_found(agent: Agent) -> None:
    jkt = agent.create_key("default")["jkt"]
    with FakeServer(lambda _: Reply(200, b'{"sub":"alice"}')) as server:
        text = asked(agent, f"{server.origin}/me", access_token(jkt))
    done = agent.run("explain", stdin=text)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("Nothing wrong found.")


def test_the_python_client_says_the_same(agent: Agent, server: FakeServer) -> None:
    old = agent.create_key("default")["jkt"]
    agent.run("key", "rotate", "default", "--drain", "1h", check=True)
    token = access_token(old)
    with agent.client() as client:
        sign = DPoPTransport(client, origins=[server.origin])
        with httpx.Client(transport=sign, trust_env=False) as http:
            headers = {"Authorization": f"DPoP {token}"}
            new = {"dpop_jkt": client.generation("default").jkt}
            response = http.get(f"{server.origin}/me", headers=headers, extensions=new)
        explanation = explain(response, agent=client)
    assert explanation.findings[0].cause == "access_token_of_another_key"
    assert "default@1 (draining)" in " ".join(str(explanation).split())
    assert token not in str(explanation)
