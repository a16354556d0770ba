"""The official MCP SDK over DPoP, as the conformance suite starts it: `python mcp_sdk.py URL`.

With `--signing-alone` it has the plain signing transport in place of McpDPoPTransport: the control.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthToken
from pydantic import AnyUrl

from dpop_agent.client import AsyncAgentClient
from dpop_agent.client.httpx2 import AsyncDPoPTransport
from dpop_agent.client.mcp import TIMEOUT, DPoPClientMetadata, McpDPoPTransport

REDIRECT_URI = "http://127.0.0.1/callback"


class Storage:
    """Where the SDK keeps what it has; `tokens` are JSON, as a file would have them."""

    def __init__(self) -> None:
        self.tokens: str | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return None if self.tokens is None else OAuthToken.model_validate_json(self.tokens)

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens.model_dump_json()

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


class Person:
    """Somebody who agrees to everything, without a browser.

    Attributes:
        asked: the authorization URLs' parameters, login by login.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self._came: dict[str, list[str]] = {}

    async def redirect(self, url: str) -> None:
        self.asked.append({name: values[0] for name, values in _query(url).items()})
        async with httpx2.AsyncClient() as browser:
            answer = await browser.get(url)
        self._came = _query(answer.headers["Location"])

    async def callback(self) -> AuthorizationCodeResult:
        first = {name: values[0] for name, values in self._came.items()}
        return AuthorizationCodeResult(
            code=first["code"], state=first.get("state"), iss=first.get("iss")
        )


def _query(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query)


def provider(
    url: str, storage: Storage, person: Person, transport: McpDPoPTransport | None
) -> OAuthClientProvider:
    """The SDK's OAuth for a server."""
    redirect: Any = person.redirect
    return OAuthClientProvider(
        server_url=url,
        client_metadata=DPoPClientMetadata(
            client_name="dpop-agent's test",
            redirect_uris=[AnyUrl(REDIRECT_URI)],
            token_endpoint_auth_method="none",
        ),
        storage=storage,
        redirect_handler=transport.binding(redirect) if transport else redirect,
        callback_handler=person.callback,
    )


async def issuer_origin(url: str) -> str:
    """Where the authorization server of a server is."""
    async with httpx2.AsyncClient() as plain:
        path = urlsplit(url).path
        place = f"{origin(url)}/.well-known/oauth-protected-resource{path}"
        resource = (await plain.get(place)).raise_for_status().json()
    return origin(resource["authorization_servers"][0])


def origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


async def main(url: str, *, signing_alone: bool) -> None:
    agent = AsyncAgentClient()
    ours: McpDPoPTransport | None = None
    storage, person = Storage(), Person()
    if signing_alone:
        origins = [origin(url), await issuer_origin(url)]
        http = httpx2.AsyncClient(
            transport=AsyncDPoPTransport(agent, origins=origins),
            auth=provider(url, storage, person, None),
            timeout=TIMEOUT,
        )
    else:
        ours = McpDPoPTransport(agent, origins=[origin(url)])
        http = ours.client(auth=provider(url, storage, person, ours))
    async with agent, http, Client(streamable_http_client(url, http_client=http)) as client:
        for tool in (await client.list_tools()).tools:
            await client.call_tool(tool.name, {})
        await client.list_tools(cache_mode="bypass")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--signing-alone", action="store_true")
    parser.add_argument("url")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.url, signing_alone=arguments.signing_alone))
