"""An application of ours, over each of the HTTP libraries, and its user's browser."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import aiohttp
import httpx
import requests

from dpop_agent.client import (
    AgentClient,
    AsyncAgentClient,
    BoundToken,
    DPoPAdapter,
    DPoPTransport,
)
from dpop_agent.client.aiohttp import DPoPMiddleware
from dpop_agent.jose import b64url_decode, thumbprint
from tests.processes import NodeServer


@dataclass(frozen=True)
class Client:
    """How the authorization server knows us."""

    id: str
    redirect_uri: str
    secret: str | None = None

    @property
    def auth(self) -> tuple[str, str] | None:
        return (self.id, self.secret) if self.secret else None

    @property
    def fields(self) -> dict[str, str]:
        return {} if self.secret else {"client_id": self.id}


NATIVE = Client("native", "http://127.0.0.1/callback")
CONFIDENTIAL = Client("confidential", "https://client.example/callback", "not-much-of-a-secret")


@dataclass(frozen=True)
class Answer:
    """What the application sees of a response; `jkt` is that of the proof sent last."""

    status: int
    body: dict[str, Any]
    jkt: str


class Http(Protocol):
    """One request through an HTTP library with our signing in it."""

    def __call__(
        self,
        method: str,
        uri: str,
        *,
        jkt: str | None = None,
        access_token: str | None = None,
        data: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Answer: ...


def over_httpx(agent: AgentClient, key: str, origin: str) -> Http:
    def send(
        method: str,
        uri: str,
        *,
        jkt: str | None = None,
        access_token: str | None = None,
        data: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Answer:
        headers = {"Authorization": f"DPoP {access_token}"} if access_token else {}
        extensions = {"dpop_jkt": jkt} if jkt else {}
        with httpx.Client(transport=DPoPTransport(agent, key=key, origins=[origin])) as http:
            response = http.request(
                method, uri, data=data, auth=auth, headers=headers, extensions=extensions
            )
        return Answer(response.status_code, response.json(), response.extensions["dpop"].jkt)

    return send


def over_requests(agent: AgentClient, key: str, origin: str) -> Http:
    def send(
        method: str,
        uri: str,
        *,
        jkt: str | None = None,
        access_token: str | None = None,
        data: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Answer:
        headers = {"Authorization": f"DPoP {access_token}"} if access_token else {}
        with requests.Session() as session:
            session.mount(origin, DPoPAdapter(agent, key=key, jkt=jkt, origins=[origin]))
            response = session.request(method, uri, data=data, auth=auth, headers=headers)
            proof = response.dpop  # type: ignore[attr-defined]  # set by the adapter
        return Answer(response.status_code, response.json(), proof.jkt)

    return send


def over_aiohttp(agent: AgentClient, key: str, origin: str) -> Http:
    def send(
        method: str,
        uri: str,
        *,
        jkt: str | None = None,
        access_token: str | None = None,
        data: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Answer:
        headers = {"Authorization": f"DPoP {access_token}"} if access_token else {}
        if auth:
            headers["Authorization"] = aiohttp.encode_basic_auth(*auth)

        async def main() -> Answer:
            async with AsyncAgentClient(agent.path) as client:
                sign = DPoPMiddleware(client, key=key, origins=[origin])
                async with (
                    aiohttp.ClientSession(
                        middlewares=[sign.pinned(jkt) if jkt else sign], headers=headers
                    ) as http,
                    http.request(method, uri, data=data) as response,
                ):
                    proof = response.dpop  # type: ignore[attr-defined]  # set by the middleware
                    return Answer(response.status, await response.json(), proof.jkt)

        return asyncio.run(main())

    return send


def over_curl(agent: AgentClient, key: str, origin: str) -> Http:
    """By `dpop-agent curl`: `-v` shows the proof but for its signature."""

    def send(
        method: str,
        uri: str,
        *,
        jkt: str | None = None,
        access_token: str | None = None,
        data: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Answer:
        assert uri.startswith(origin)
        words = ["--jkt", jkt] if jkt else ["--key", key]
        words += ["--access-token-file", "-"] if access_token else []
        words += ["--", "-v", "-w", "\n%{http_code}"]
        for name, value in (data or {}).items():
            words += ["--data-urlencode", f"{name}={value}"]
        with tempfile.TemporaryDirectory() as folder:
            if auth:
                netrc = Path(folder) / "netrc"
                host = urlsplit(uri).hostname
                netrc.write_text(f"machine {host} login {auth[0]} password {auth[1]}\n")
                words += ["--netrc-file", str(netrc)]
            done = subprocess.run(
                [sys.executable, "-m", "dpop_agent", "curl", method, uri, *words],
                env={**os.environ, "DPOP_AGENT_SOCK": agent.path},
                input=access_token or "",
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
        body, _, status = done.stdout.rpartition("\n")
        proof = re.findall(r"^> DPoP: ([\w-]+)\.", done.stderr, re.M)[-1]
        jwk = json.loads(b64url_decode(proof))["jwk"]
        return Answer(int(status), json.loads(body), thumbprint(jwk))

    return send


class Application:
    """The grants of OAuth, as an application that wants DPoP asks for them."""

    def __init__(self, http: Http, server: NodeServer) -> None:
        self.http = http
        self.server = server

    def at(self, path: str) -> str:
        return self.server.origin + path

    def client_credentials(self, **fields: str) -> Answer:
        return self.http(
            "POST",
            self.at("/token"),
            data={"grant_type": "client_credentials", **fields},
            auth=CONFIDENTIAL.auth,
        )

    def introspect(self, access_token: str) -> dict[str, Any]:
        answer = self.http(
            "POST",
            self.at("/token/introspection"),
            data={"token": access_token},
            auth=CONFIDENTIAL.auth,
        )
        assert answer.status == 200
        return answer.body

    def userinfo(self, access_token: BoundToken, *, jkt: str | None = None) -> Answer:
        return self.http(
            "GET",
            self.at("/me"),
            access_token=access_token.access_token,
            jkt=jkt or access_token.jkt,
        )

    def authorize(self, client: Client, *, jkt: str, scope: str = "openid") -> dict[str, str]:
        """A code for the key `jkt`: pushed request (RFC 9126), PKCE, dpop_jkt, and the log-in.

        Returns:
            What the token request needs.
        """
        verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
        digest = hashlib.sha256(verifier.encode()).digest()
        pushed = self.http(
            "POST",
            self.at("/request"),
            jkt=jkt,
            data={
                "client_id": client.id,
                "response_type": "code",
                "redirect_uri": client.redirect_uri,
                "scope": scope,
                "state": state,
                "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
                "code_challenge_method": "S256",
                "dpop_jkt": jkt,
            },
            auth=client.auth,
        )
        assert pushed.status == 201, pushed
        query = httpx.QueryParams(client_id=client.id, request_uri=pushed.body["request_uri"])
        answer = log_in(self.at(f"/auth?{query}"), until=client.redirect_uri)
        assert answer["state"] == [state]
        return {
            "grant_type": "authorization_code",
            "code": answer["code"][0],
            "code_verifier": verifier,
            "redirect_uri": client.redirect_uri,
        }

    def token_request(self, client: Client, fields: dict[str, str], *, jkt: str) -> Answer:
        return self.http(
            "POST",
            self.at("/token"),
            jkt=jkt,
            data={**client.fields, **fields},
            auth=client.auth,
        )

    def grant(self, client: Client, *, jkt: str) -> BoundToken:
        """An access token by an authorization code."""
        answer = self.token_request(client, self.authorize(client, jkt=jkt), jkt=jkt)
        assert answer.status == 200, answer
        return BoundToken.from_response(answer.body, jkt=answer.jkt)

    def refresh(self, client: Client, access_token: BoundToken, *, jkt: str) -> Answer:
        assert access_token.refresh_token
        fields = {"grant_type": "refresh_token", "refresh_token": access_token.refresh_token}
        return self.token_request(client, fields, jkt=jkt)


def log_in(uri: str, *, until: str) -> dict[str, list[str]]:
    """What somebody does in a browser; the query with which it comes back to the application."""
    with httpx.Client() as browser:
        response = browser.get(uri)
        for _ in range(10):
            if response.next_request is None:
                prompt = re.search('name="prompt" value="([a-z]+)"', response.text)
                assert prompt, response.text
                form = {"prompt": prompt[1], "login": "alice", "password": "any"}
                response = browser.post(response.url, data=form)
            elif str(response.next_request.url).startswith(until):
                return parse_qs(urlsplit(str(response.next_request.url)).query)
            else:
                response = browser.send(response.next_request)
    raise AssertionError(f"the log-in led to {response.url}")
