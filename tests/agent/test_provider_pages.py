"""What the pages on single servers show, with a real agent.

Their Python meets a server of the tests' own; the pages whose server can be started are in
tests/servers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpop_agent import verify
from tests.documents import Block, commands
from tests.processes import Agent
from tests.unit.fake_server import FakeServer, Reply, Seen


@pytest.mark.runs("docs/providers/auth0.md", languages=("sh",))
@pytest.mark.runs("docs/providers/better-auth.md", languages=("sh",))
@pytest.mark.runs("docs/providers/bluesky.md", languages=("sh",))
@pytest.mark.runs("docs/providers/entra-id.md", languages=("sh",))
@pytest.mark.runs("docs/providers/fapi-2.md", languages=("sh",))
@pytest.mark.runs("docs/providers/keycloak.md", languages=("sh",))
@pytest.mark.runs("docs/providers/mcp.md", languages=("sh",))
@pytest.mark.runs("docs/providers/okta.md", languages=("sh",))
@pytest.mark.runs("docs/providers/spring-security.md", languages=("sh",))
def test_the_commands_of_each_page_make_a_key_and_a_proof_for_that_server(
    agent: Agent, blocks: list[Block]
) -> None:
    for block in blocks:
        lines = [line for line, _ in commands(block)]
        made = [shlex.split(line) for line in lines if " key create " in line]
        assert made, block.document
        *creations, proof = lines
        for line in creations:
            typed(agent, line)
        words = shlex.split(proof)
        _, _, method, uri, *_ = words
        found = keys(agent)
        verify.verify(
            typed(agent, proof).removeprefix("DPoP: ").strip(),
            htm=method,
            htu=uri,
            jkt=found[words[words.index("--key") + 1]]["generations"][0]["jkt"],
        )
        for creation in made:
            alg = creation[creation.index("--alg") + 1] if "--alg" in creation else "ES256"
            assert found[creation[3]]["alg"] == alg


def typed(agent: Agent, line: str) -> str:
    """What a line shows, typed where this environment's commands are found."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{agent.env['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line], env={**agent.env, "PATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), line
    return done.stdout


def keys(agent: Agent) -> dict[str, Any]:
    """By their names."""
    listed = json.loads(agent.run("key", "list", "--json", check=True).stdout)
    return {key["key"]: key for key in listed["keys"]}


@pytest.mark.runs("docs/providers/auth0.md", languages=("python",))
@pytest.mark.runs("docs/providers/better-auth.md", languages=("python",))
@pytest.mark.runs("docs/providers/bluesky.md", languages=("python",))
@pytest.mark.runs("docs/providers/keycloak.md", languages=("python",))
@pytest.mark.runs("docs/providers/okta.md", languages=("python",))
@pytest.mark.runs("docs/providers/spring-security.md", languages=("python",))
def test_the_python_of_each_page_signs_each_request_by_the_pages_key(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, blocks: list[Block]
) -> None:
    monkeypatch.setenv("DPOP_AGENT_SOCK", agent.socket)
    for block in blocks:
        name = re.search(r'key="([\w-]+)"', block.text)
        assert name, block.document
        jkt = agent.create_key(name[1])["jkt"]
        names: dict[str, Any] = {
            **dict.fromkeys(("ID", "SECRET", "CODE", "VERIFIER", "CHALLENGE", "REDIRECT_URI"), "x"),
            "assertion": lambda: "an.assertion.here",
            "FILE": tmp_path / "access-token",
        }
        with FakeServer(answer) as server, FakeServer(answer) as api:
            names |= {"AS": server.origin, "API": api.origin, "PDS": api.origin}
            try:
                exec(compile(block.text, block.document, "exec", dont_inherit=True), names)
            finally:
                for opened in {"http", "agent"} & names.keys():
                    names[opened].close()
            assert server.seen, block.document
            for seen in (*server.seen, *api.seen):
                origin = (api if seen in api.seen else server).origin
                verify.verify(seen.proofs, htm=seen.method, htu=origin + seen.path, jkt=jkt)
                if seen.method == "GET":
                    assert seen.headers["Authorization"] == "DPoP at-1"


def answer(seen: Seen) -> Reply:
    """A token endpoint, a pushed request's, and a resource."""
    if seen.method == "POST":
        body = {"access_token": "at-1", "token_type": "DPoP", "expires_in": 300}
        return Reply(200, json.dumps(body).encode(), Content_Type="application/json")
    return Reply(200, b"{}", Content_Type="application/json")
