"""The MCP conformance suite's scenarios for DPoP, with clients on our transports."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, Agent
from tests.servers import node

BIND_LOCAL = f"--import={(node.HERE / 'bind_local.mjs').as_uri()}"


@pytest.mark.parametrize("where", ["0", "0, '0.0.0.0'", "0, '::'", "{ port: 0 }"])
def test_the_suites_servers_listen_on_loopback_alone(where: str, node_packages: Path) -> None:
    script = f"""
        const server = require('node:http').createServer().listen({where}, () => {{
            console.log(server.address().address);
            server.close();
        }});
    """
    done = subprocess.run(
        [node.node(), BIND_LOCAL, "--eval", script], stdout=subprocess.PIPE, text=True, timeout=30
    )
    assert done.stdout == "127.0.0.1\n"


SCENARIOS = pytest.mark.parametrize(
    ("scenario", "checks"),
    [("auth/dpop", 12), ("auth/dpop-nonce", 14)],
    ids=["without nonces", "with nonces"],
)


@SCENARIOS
@pytest.mark.parametrize("client", ["mcp_client.py", "mcp_sdk.py"], ids=["our own", "the SDK"])
def test_an_mcp_client_on_our_transport_passes_every_check(
    client: str,
    scenario: str,
    checks: int,
    shared_agent: Agent,
    node_packages: Path,
    tmp_path: Path,
) -> None:
    done = judged([client], scenario, shared_agent, node_packages, tmp_path)
    said = done.stdout + done.stderr
    assert f"Passed: {checks}/{checks}, 0 failed, 0 warnings" in said, said
    assert done.returncode == 0


@SCENARIOS
def test_the_sdk_on_the_plain_signing_transport_fails(
    scenario: str, checks: int, shared_agent: Agent, node_packages: Path, tmp_path: Path
) -> None:
    words = ["mcp_sdk.py", "--signing-alone"]
    done = judged(words, scenario, shared_agent, node_packages, tmp_path)
    said = done.stdout + done.stderr
    found = re.search(r"Passed: (\d+)/\d+, (\d+) failed", said)
    assert found, said
    assert 0 < int(found[1]) < checks, said
    assert int(found[2]) > 0


def judged(
    words: list[str], scenario: str, agent: Agent, node_packages: Path, folder: Path
) -> subprocess.CompletedProcess[str]:
    """What the suite says of a client: a script of this folder, and its arguments."""
    script, *arguments = words
    client = [sys.executable, "-m", f"tests.servers.{script.removesuffix('.py')}", *arguments]
    return subprocess.run(
        [
            node.node(),
            BIND_LOCAL,
            node_packages / "node_modules/@modelcontextprotocol/conformance/dist/index.js",
            "client",
            f"--scenario={scenario}",
            f"--command={shlex.join(client)}",
            "--force",
        ],
        cwd=folder,
        env={**agent.env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
