"""The servers of MCP's conformance suite, which wait for a client while we ask them by curl."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from tests.agent.places import until
from tests.exchanges.exchange import Curl, Exchange, Keys, access_token, header
from tests.exchanges.proofs import Key, ath, other_signature, proof
from tests.processes import STOP_S, end
from tests.servers import node

SERVER = "@modelcontextprotocol/conformance 0.2.0-alpha.12"
SUITE = "node_modules/@modelcontextprotocol/conformance/dist/index.js"
CLIENT = """
import pathlib, sys, time
pathlib.Path("new").write_text(sys.argv[-1])
pathlib.Path("new").rename("uri")
while pathlib.Path("uri").exists():
    time.sleep(0.05)
"""
REDIRECT = "http://127.0.0.1/callback"


def exchanges(folder: Path, keys: Keys, curl: Curl) -> Iterator[Exchange]:
    with suite(folder, "auth/dpop-nonce") as uri:
        server = Suite(uri, curl)
        yield from at_the_token_endpoint(server, keys)
        yield from at_the_server(server, keys)


@contextmanager
def suite(folder: Path, scenario: str) -> Iterator[str]:
    """The suite, until the block ends; where its MCP server is."""
    command: list[str | Path] = [
        *(node.node(), "--import", node.HERE / "bind_local.mjs", node.packages() / SUITE),
        *("client", f"--scenario={scenario}", "--force", "--timeout=60000"),
        f"--command={shlex.join([sys.executable, '-c', CLIENT])}",
    ]
    with (folder / "suite.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        until(lambda: (folder / "uri").exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "suite.log").read_text()
        yield (folder / "uri").read_text()
    finally:
        (folder / "uri").unlink(missing_ok=True)  # which ends the client, and so the suite
        try:
            process.wait(STOP_S)
        finally:
            end(process)


class Suite:
    """Its two servers, a client of theirs, and curl to them."""

    def __init__(self, uri: str, curl: Curl) -> None:
        self.uri = uri
        parts = urlsplit(uri)
        at = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-protected-resource{parts.path}"
        (issuer,) = httpx.get(at).json()["authorization_servers"]
        found = httpx.get(f"{issuer}/.well-known/oauth-authorization-server").json()
        self.token, self._authorize = found["token_endpoint"], found["authorization_endpoint"]
        asked = {
            "client_name": "app",
            "redirect_uris": [REDIRECT],
            "token_endpoint_auth_method": "none",
            "dpop_bound_access_tokens": True,
        }
        self._client = httpx.post(found["registration_endpoint"], json=asked).json()["client_id"]
        self._curl = curl

    def code(self) -> dict[str, str]:
        """A token request."""
        asked = {
            "client_id": self._client,
            "response_type": "code",
            "redirect_uri": REDIRECT,
            "code_challenge": ath("v" * 43),
            "code_challenge_method": "S256",
            "state": "any",
            "resource": self.uri,
        }
        answer = httpx.get(f"{self._authorize}?{urlencode(asked)}")
        query = parse_qs(urlsplit(answer.headers["Location"]).query)
        return {
            "client_id": self._client,
            "grant_type": "authorization_code",
            "code": query["code"][0],
            "code_verifier": "v" * 43,
            "redirect_uri": REDIRECT,
            "resource": self.uri,
        }

    def ask(self, *values: str) -> str:
        return self._curl(
            "POST", self.token, [("DPoP", value) for value in values], form=self.code()
        )

    def post(self, *headers: tuple[str, str]) -> str:
        """A message to the MCP server."""
        kind = [
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
        ]
        message = '{"jsonrpc":"2.0","id":1,"method":"ping"}'
        return self._curl("POST", self.uri, [*kind, *headers], "--data", message)


def at_the_token_endpoint(server: Suite, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, server.token

    def signed(made: Key = key, **wrong: Any) -> str:
        return proof(made, wrong.pop("htm", "POST"), wrong.pop("htu", uri), **wrong)

    for name, cause, note, values in (
        ("two-proofs", "several_proofs", "two DPoP headers", [signed(), signed()]),
        ("typ", "proof_malformed", "the header's typ is JWT", [signed(header={"typ": "JWT"})]),
        ("signature", "proof_signature", "64 random bytes", [other_signature(signed())]),
        ("htm", "htm_mismatch", "htm is GET in a POST", [signed(htm="GET")]),
        ("htu", "htu_mismatch", "htu is the MCP server's", [signed(htu=server.uri)]),
        ("iat-old", "iat_old", "iat is 15 minutes old", [signed(age_s=900)]),
        ("nonce-missing", "nonce_missing", "no nonce", [signed()]),
    ):
        yield Exchange(f"token-{name}", cause, note, server.ask(*values))
    nonce = header(server.ask(signed()), "DPoP-Nonce")
    yield Exchange("good-token", None, "a token", server.ask(signed(nonce=nonce)))


def at_the_server(server: Suite, keys: Keys) -> Iterator[Exchange]:
    key, uri = keys.active, server.uri
    challenge = server.ask(proof(key, "POST", server.token))
    theirs = header(challenge, "DPoP-Nonce")
    granted = server.ask(proof(key, "POST", server.token, nonce=theirs))
    token = access_token(granted)

    def post(**more: Any) -> str:
        value = proof(key, "POST", uri, access_token=token, **more)
        return server.post(("Authorization", f"DPoP {token}"), ("DPoP", value))

    first = post()
    yield Exchange("mcp-nonce-missing", "nonce_missing", "no nonce, at the MCP server", first)
    yield Exchange(
        "mcp-nonce-of-another",
        "nonce_of_another_server",
        "the authorization server's challenge, then its nonce at the MCP server",
        challenge + post(nonce=theirs),
    )
    nonce = header(first, "DPoP-Nonce")
    yield Exchange("good-mcp", None, "a message that is answered", post(nonce=nonce))
