"""A small MCP client: `python mcp_client.py URL` finds out how to be let in, and calls the tools.

Discovery, registration and the grant follow MCP's authorization specification; all that DPoP asks
for is done by the transport.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from dpop_agent.client import AgentClient, BoundToken, DPoPTransport

REDIRECT_URI = "http://127.0.0.1/callback"
VERSION = "2025-06-18"


def main(url: str) -> None:
    agent = AgentClient()
    jkt = agent.generation("default").jkt
    with httpx.Client() as plain:
        resource, metadata = discover(plain, url)
        client_id = register(plain, metadata)
    origins = [origin(url), origin(metadata["token_endpoint"])]
    transport = DPoPTransport(agent, key="default", origins=origins)
    with httpx.Client(transport=transport) as http:
        access_token = grant(http, metadata, client_id=client_id, resource=resource, jkt=jkt)
        http.headers["Authorization"] = f"DPoP {access_token.access_token}"
        server = McpServer(http, url, jkt)
        server.start()
        for tool in server.call("tools/list", {})["tools"]:
            server.call("tools/call", {"name": tool["name"], "arguments": {}})
        server.call("tools/list", {})


def discover(plain: httpx.Client, url: str) -> tuple[str, dict[str, Any]]:
    """The resource's identifier (RFC 9728) and its authorization server's metadata (RFC 8414)."""
    refused = plain.post(url, json={"jsonrpc": "2.0", "id": 0, "method": "ping"})
    assert refused.status_code == 401, refused
    found = re.search('resource_metadata="([^"]+)"', refused.headers["WWW-Authenticate"])
    assert found
    resource = plain.get(found[1]).raise_for_status().json()
    issuer = urlsplit(resource["authorization_servers"][0])
    metadata = plain.get(
        f"{issuer.scheme}://{issuer.netloc}/.well-known/oauth-authorization-server"
        f"{issuer.path.rstrip('/')}"
    )
    return resource["resource"], metadata.raise_for_status().json()


def register(plain: httpx.Client, metadata: dict[str, Any]) -> str:
    """A new client's identifier (RFC 7591)."""
    answer = plain.post(
        metadata["registration_endpoint"],
        json={
            "client_name": "dpop-agent's test",
            "redirect_uris": [REDIRECT_URI],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
            "application_type": "native",
            "dpop_bound_access_tokens": True,
        },
    )
    client_id: str = answer.raise_for_status().json()["client_id"]
    return client_id


def grant(
    http: httpx.Client, metadata: dict[str, Any], *, client_id: str, resource: str, jkt: str
) -> BoundToken:
    """An access token by an authorization code with PKCE; the redirect is read, not followed."""
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
    digest = hashlib.sha256(verifier.encode()).digest()
    redirect = httpx.get(
        metadata["authorization_endpoint"],
        params={
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": REDIRECT_URI,
            "state": state,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            "resource": resource,
            "dpop_jkt": jkt,
        },
    )
    answer = parse_qs(urlsplit(redirect.headers["Location"]).query)
    assert answer["state"] == [state]
    assert answer["iss"] == [metadata["issuer"]]  # RFC 9207
    response = http.post(
        metadata["token_endpoint"],
        data={
            "grant_type": "authorization_code",
            "client_id": client_id,
            "code": answer["code"][0],
            "code_verifier": verifier,
            "redirect_uri": REDIRECT_URI,
            "resource": resource,
        },
        extensions={"dpop_jkt": jkt},
    )
    return BoundToken.from_response(response.raise_for_status().json(), jkt=jkt)


class McpServer:
    """MCP over streamable HTTP, as much of it as is needed here."""

    def __init__(self, http: httpx.Client, url: str, jkt: str) -> None:
        self._http = http
        self._url = url
        self._jkt = jkt
        self._headers = {"Accept": "application/json, text/event-stream"}
        self._id = 0

    def start(self) -> None:
        """Agree on a version."""
        agreed = self.call(
            "initialize",
            {
                "protocolVersion": VERSION,
                "capabilities": {},
                "clientInfo": {"name": "dpop-agent's test", "version": "0"},
            },
        )
        self._headers["MCP-Protocol-Version"] = agreed["protocolVersion"]
        self._post({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The result of a method."""
        self._id += 1
        response = self._post(
            {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        )
        if response.headers["Content-Type"].startswith("text/event-stream"):
            data = "".join(re.findall("^data: ?(.*)$", response.text, re.MULTILINE))
        else:
            data = response.text
        result: dict[str, Any] = json.loads(data)["result"]
        return result

    def _post(self, message: dict[str, Any]) -> httpx.Response:
        response = self._http.post(
            self._url, json=message, headers=self._headers, extensions={"dpop_jkt": self._jkt}
        ).raise_for_status()
        if session := response.headers.get("Mcp-Session-Id"):
            self._headers["Mcp-Session-Id"] = session
        return response


def origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


if __name__ == "__main__":
    main(sys.argv[1])
