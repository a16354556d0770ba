"""The MCP conformance suite's scenarios for DPoP, with a client on DPoPTransport."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import Agent
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


@pytest.mark.parametrize(
    ("scenario", "outcome"),
    [
        ("auth/dpop", "Passed: 12/12, 0 failed, 0 warnings"),
        ("auth/dpop-nonce", "Passed: 14/14, 0 failed, 0 warnings"),
    ],
    ids=["without nonces", "with nonces"],
)
def test_an_mcp_client_on_the_transport_passes_every_check(
    scenario: str, outcome: str, shared_agent: Agent, node_packages: Path, tmp_path: Path
) -> None:
    client = [sys.executable, str(node.HERE / "mcp_client.py")]
    done = subprocess.run(
        [
            node.node(),
            BIND_LOCAL,
            node_packages / "node_modules/@modelcontextprotocol/conformance/dist/index.js",
            "client",
            f"--scenario={scenario}",
            f"--command={shlex.join(client)}",
            "--force",
        ],
        cwd=tmp_path,
        env=shared_agent.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.returncode == 0
