"""What the tutorials on programs say is typed as it stands there, against servers of the tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest

from dpop_agent import verify
from dpop_agent.errors import InvalidProof
from tests.documents import Block
from tests.emulators import need
from tests.newcomer import Shell
from tests.processes import Agent
from tests.reader import follow, terminal
from tests.servers import node
from tests.servers.mcp_server import world
from tests.unit.fake_server import FakeServer, Reply, Seen


@pytest.fixture
def shell(agent: Agent, node_packages: Path, tmp_path: Path) -> Iterable[Shell]:
    """A terminal in an empty home, where the agent is found and `curl` is the browser."""
    need("curl")
    programs = (tmp_path / "bin", node.node().parent)
    with terminal(agent, tmp_path, *programs, BROWSER="curl -sL -o /dev/null %s") as found:
        yield found


def at(origins: dict[str, str], blocks: Iterable[Block]) -> list[Block]:
    """The blocks, with servers of the tests in the place of those that are nobody's."""
    found = []
    for block in blocks:
        text = block.text
        for origin, ours in origins.items():
            text = text.replace(origin, ours)
        found.append(block._replace(text=text))
    return found


@pytest.mark.runs("docs/tutorials/mcp-client.md")
def test_the_tutorials_mcp_client_logs_in_once_and_calls_on_with_a_bound_access_token(
    shell: Shell, tmp_path: Path, blocks: list[Block]
) -> None:
    with world() as servers:
        ours = {
            "https://mcp.example.com": servers.server.origin,
            "https://login.example.com": servers.issuer.origin,
        }
        for block in at(ours, blocks):
            if block.language == "python":
                (tmp_path / "notes.py").write_text(block.text)
            else:
                follow(shell, [block], {})
            if "key suspend" in block.text:
                failed = shell.run("python notes.py", asked={}, serving=None, fails=True)
                assert "notes@1 is suspended" in failed
        assert shell.shown.count("announce") == 3
        assert shell.shown.count("log in, in the browser") == 1
        assert {seen.scheme for seen in servers.server.seen if seen.status < 300} >= {"dpop"}
    assert not (tmp_path / ".local/state/notes.json").exists()


DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


class Bluesky:
    """An account's server and its authorization server in one: it wants a nonce in every proof."""

    def __init__(self) -> None:
        self.origin = ""
        self.signed: list[tuple[str, str]] = []
        self._pushed: dict[str, str] = {}

    def answer(self, seen: Seen) -> Reply:
        path = seen.path.partition("?")[0]
        if path == "/authorize":
            return self._agreed()
        if found := self._metadata(path):
            return _json(200, found)
        (proof,) = seen.proofs
        access_token = seen.headers.get("Authorization", "").removeprefix("DPoP ") or None
        try:
            checked = verify.verify(
                proof,
                htm=seen.method,
                htu=self.origin + path,
                nonce="n-1",
                access_token=access_token,
            )
        except InvalidProof:
            return _json(400, {"error": "use_dpop_nonce"}, DPoP_Nonce="n-1")
        self.signed.append((path, checked.jkt))
        fields = dict(parse_qsl(seen.body.decode()))
        if path == "/par":
            self._pushed = fields
            return _json(201, {"request_uri": "urn:example:1", "expires_in": 60})
        if path == "/token":
            return _json(200, _GRANTED)
        assert access_token == _GRANTED["access_token"]
        return _json(200, {"did": DID, "handle": "alice.bsky.social"})

    def _agreed(self) -> Reply:
        back = {"code": "code-1", "state": self._pushed["state"], "iss": self.origin}
        return Reply(302, Location=f"{self._pushed['redirect_uri']}?{urlencode(back)}")

    def _metadata(self, path: str) -> dict[str, Any] | None:
        if path == "/.well-known/oauth-protected-resource":
            return {"resource": self.origin, "authorization_servers": [self.origin]}
        if path != "/.well-known/oauth-authorization-server":
            return None
        return {
            "issuer": self.origin,
            "authorization_endpoint": f"{self.origin}/authorize",
            "token_endpoint": f"{self.origin}/token",
            "pushed_authorization_request_endpoint": f"{self.origin}/par",
            "require_pushed_authorization_requests": True,
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
            "scopes_supported": ["atproto"],
            "authorization_response_iss_parameter_supported": True,
            "dpop_signing_alg_values_supported": ["ES256"],
            "client_id_metadata_document_supported": True,
            "protected_resources": [self.origin],
        }


_GRANTED = {
    "access_token": "at-1",
    "token_type": "DPoP",
    "refresh_token": "rt-1",
    "sub": DID,
    "scope": "atproto",
    "expires_in": 3600,
}


def _json(status: int, body: object, **headers: str) -> Reply:
    return Reply(status, json.dumps(body).encode(), Content_Type="application/json", **headers)


@pytest.mark.runs("docs/tutorials/bluesky-client.md")
def test_the_tutorials_bluesky_client_logs_in_once_and_its_file_has_no_key(
    shell: Shell, tmp_path: Path, blocks: list[Block]
) -> None:
    modules = tmp_path / "node_modules"
    modules.mkdir()
    (modules / "@atproto").symlink_to(node.packages(node.CLIENT) / "node_modules/@atproto")
    (modules / "dpop-agent").symlink_to(node.CLIENT)
    opener = tmp_path / "bin/xdg-open"
    opener.parent.mkdir()
    opener.write_text('#!/bin/sh\nexec curl -sL -o /dev/null "$1"\n')
    opener.chmod(0o755)
    bluesky = Bluesky()
    with FakeServer(bluesky.answer) as server:
        bluesky.origin = server.origin
        kept = None
        for block in blocks:
            if block.language == "js":
                program = block.text
                # Nobody is asked for the account's server, and plain http is this test's own.
                resolves = "handleResolver: 'https://bsky.social'"
                assert resolves in program
                program = program.replace(resolves, _resolved(server.origin))
                (tmp_path / "bluesky.mjs").write_text(program)
            else:
                follow(shell, [block], {})
            if block.heading == "See that it is bound":
                kept = json.loads((tmp_path / ".local/state/bluesky.json").read_text())
    (jkt,) = {jkt for _, jkt in bluesky.signed}
    paths = [path.rpartition("/")[2] for path, _ in bluesky.signed]
    assert paths == ["par", "token", *["com.atproto.server.getSession"] * 2]
    assert kept
    assert kept[DID]["dpopKey"] == jkt


def _resolved(origin: str) -> str:
    service = {
        "id": "#atproto_pds",
        "type": "AtprotoPersonalDataServer",
        "serviceEndpoint": origin,
    }
    document = {"id": DID, "alsoKnownAs": ["at://alice.bsky.social"], "service": [service]}
    found = {"did": DID, "didDoc": document, "handle": "alice.bsky.social"}
    return f"allowHttp: true, identityResolver: {{ resolve: async () => ({json.dumps(found)}) }}"
