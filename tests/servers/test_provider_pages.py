"""The pages on servers that can be started here: what they show is done with the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from joserfc import jwk, jwt
from pydantic import AnyUrl

from dpop_agent.client import BoundToken
from dpop_agent.client.mcp import DPoPClientMetadata
from tests.documents import Block, commands
from tests.processes import Agent, NodeServer
from tests.servers import node
from tests.servers.application import log_in
from tests.servers.mcp_sdk import REDIRECT_URI
from tests.servers.mcp_server import world

# What somebody types is `node server.mjs`; here on a free port, until standard input ends.
STARTED = """
import { once } from 'node:events';
import { connect, createServer } from 'node:net';

console.log = console.info = console.warn = console.error;
const free = createServer().listen(0, '127.0.0.1');
await once(free, 'listening');
const { port } = free.address();
await new Promise((done) => free.close(done));
process.env.PORT = port;
await import('./server.mjs');
for (let open = false; !open; ) {
  const tried = connect(port, '127.0.0.1');
  open = await once(tried, 'connect').then(() => true, () => false);
  tried.destroy();
}
process.stdin.on('end', () => process.exit()).resume();
process.stdout.write(`${JSON.stringify({ port })}\\n`);
"""


class Typing:
    """A shell in a folder, with the agent's socket; what a page calls `shown` is at `meant`."""

    def __init__(self, agent: Agent, folder: Path, shown: str, meant: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{agent.env['PATH']}"
        self._env = {**agent.env, "PATH": path}
        self._folder = folder
        self._names = (shown, meant)

    def all_of(self, block: Block) -> None:
        """Each command; each line that the page shows is among what comes."""
        for line, shows in commands(block):
            done = subprocess.run(
                ["bash", "-c", line.replace(*self._names)],
                cwd=self._folder,
                env=self._env,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            for expected in shows.splitlines():
                assert expected in done.stdout.splitlines(), done.stdout


@pytest.fixture
def from_the_page(node_packages: Path, tmp_path: Path, blocks: list[Block]) -> Iterator[NodeServer]:
    """oidc-provider as its page configures it."""
    (script,) = [block.text for block in blocks if block.language == "js"]
    (tmp_path / "node_modules").symlink_to(node_packages / "node_modules")
    (tmp_path / "server.mjs").write_text(script)
    (tmp_path / "started.mjs").write_text(STARTED)
    server = NodeServer([node.node(), tmp_path / "started.mjs"], log=tmp_path / "log")
    yield server
    server.close()


@pytest.mark.runs("docs/providers/oidc-provider.md")
def test_oidc_provider_as_its_page_sets_it_up_binds_an_access_token_to_the_pages_key(
    agent: Agent,
    from_the_page: NodeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    blocks: list[Block],
) -> None:
    configured, first, client, again = blocks
    assert "client_id: 'shop'" in configured.text
    assert "client_secret: 'change-me'" in configured.text
    secret = tmp_path / "client.conf"
    secret.touch(0o600)
    secret.write_text('user = "shop:change-me"\n')
    shell = Typing(agent, tmp_path, "http://127.0.0.1:3000", from_the_page.origin)

    shell.all_of(first)
    monkeypatch.setenv("DPOP_AGENT_SOCK", agent.socket)
    names: dict[str, Any] = {"AS": from_the_page.origin, "ID": "shop", "SECRET": "change-me"}
    exec(compile(client.text, client.document, "exec", dont_inherit=True), names)
    names["http"].close()
    names["agent"].close()
    shell.all_of(again)

    assert capsys.readouterr().out == "True\n"


@pytest.mark.runs("docs/providers/fapi-2.md", languages=("python",))
def test_the_fapi_pages_client_gets_a_token_by_the_fapi_2_profile_and_moves_it_to_a_new_key(
    agent: Agent,
    node_packages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blocks: list[Block],
) -> None:
    jkt = agent.create_key("bank")["jkt"]
    monkeypatch.setenv("DPOP_AGENT_SOCK", agent.socket)
    authenticating = jwk.ECKey.generate_key("P-256", auto_kid=True)
    script = node.HERE / "fapi_server.mjs"
    public = json.dumps({**authenticating.as_dict(private=False), "alg": "ES256", "use": "sig"})
    server = NodeServer([node.node(), script, node_packages, public], log=tmp_path / "log")
    redirect_uri, verifier = "https://client.example/callback", secrets.token_urlsafe(48)
    pushed, exchanged = blocks

    def assertion() -> str:
        now = int(time.time())
        claims: dict[str, Any] = {"iss": "bank-client", "sub": "bank-client", "aud": server.origin}
        claims |= {"jti": secrets.token_urlsafe(16), "iat": now, "exp": now + 60}
        return jwt.encode({"alg": "ES256", "kid": authenticating.kid}, claims, authenticating)

    names: dict[str, Any] = {
        "AS": server.origin,
        "API": "https://api.bank.example",
        "ID": "bank-client",
        "REDIRECT_URI": redirect_uri,
        "VERIFIER": verifier,
        "CHALLENGE": challenge(verifier),
        "assertion": assertion,
    }
    try:
        exec(compile(pushed.text, pushed.document, "exec", dont_inherit=True), names)
        query = urlencode({"client_id": "bank-client", "request_uri": names["request_uri"]})
        names["CODE"] = log_in(f"{server.origin}/auth?{query}", until=redirect_uri)["code"][0]
        exec(compile(exchanged.text, exchanged.document, "exec", dont_inherit=True), names)
        assert names["token"].jkt == jkt
        assert me(names) == {"sub": "alice"}
        assert server.log.count("client assertion tokens must only be used once") == 1

        agent.run("key", "rotate", "bank", check=True)
        names["jkt"] = agent.client().generation("bank").jkt  # for `ask`
        assert names["jkt"] != jkt
        form = {"grant_type": "refresh_token", "refresh_token": names["token"].refresh_token}
        renewed = names["ask"]("/token", form).json()
        names["token"] = BoundToken.from_response(renewed, jkt=names["jkt"])
        assert me(names) == {"sub": "alice"}
    finally:
        for opened in {"http", "agent"} & names.keys():
            names[opened].close()
        server.close()


def me(names: dict[str, Any]) -> Any:
    """Who the server says that we are, with a proof by the generation that the token names."""
    token: BoundToken = names["token"]
    return (
        names["http"]
        .get(
            f"{names['AS']}/me",
            headers={"Authorization": f"DPoP {token.access_token}"},
            extensions={"dpop_jkt": token.jkt},
        )
        .json()
    )


def challenge(verifier: str) -> str:
    """RFC 7636 section 4.2."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@pytest.mark.runs("docs/providers/mcp.md", languages=("json",))
def test_what_the_mcp_page_has_registered_is_what_our_metadata_registers(
    blocks: list[Block],
) -> None:
    (block,) = blocks
    metadata = DPoPClientMetadata(redirect_uris=[AnyUrl(REDIRECT_URI)]).model_dump(mode="json")
    assert metadata.items() >= json.loads(block.text).items()


@pytest.mark.runs("docs/providers/mcp.md", languages=("console",))
def test_an_mcp_server_answers_as_its_page_shows(
    agent: Agent, tmp_path: Path, blocks: list[Block]
) -> None:
    agent.create_key("mcp")
    with world() as servers:
        shell = Typing(agent, tmp_path, "https://mcp.example.com", servers.server.origin)
        for block in blocks:
            shell.all_of(block)
