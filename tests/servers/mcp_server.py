"""MCP servers on the SDK's server side and an authorization server, which want DPoP with nonces.

What is DPoP is in front of the SDK: a proof is judged, and the SDK sees Bearer. Redirects need no
browser: who asks `/authorize` has agreed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import anyio
import uvicorn
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, MCPServer
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpop_agent import verify
from dpop_agent.errors import InvalidProof

START_S = 20.0


@dataclass
class Seen:
    """A request as it came.

    Attributes:
        scheme: of its Authorization header, in lower case.
        jkt: its proof's, where that was fine.
        rpc: the method in its JSON-RPC message.
    """

    method: str
    path: str
    scheme: str
    jkt: str | None
    rpc: str | None
    status: int = 0


@dataclass(frozen=True)
class _Granted:
    jkt: str
    scope: str
    resource: str
    client_id: str
    expires_at: float


@dataclass(frozen=True)
class _Code:
    client_id: str
    challenge: str
    jkt: str | None
    scope: str
    resource: str


class Nonces:
    """The one nonce that a server takes, and what it refused for want of it."""

    def __init__(self) -> None:
        self.now = secrets.token_urlsafe(12)
        self.refused = 0

    def change(self) -> None:
        self.now = secrets.token_urlsafe(12)


@dataclass
class AuthorizationServer:
    """Issues bound access tokens, and rotates refresh tokens.

    Attributes:
        lives_s: how long access tokens do.
        downgrades: whether it answers as if there were no DPoP.
        registered: what clients said of themselves.
        token_requests: each token request's grant_type and proof's jkt, as granted.
    """

    origin: str
    lives_s: int = 3600
    downgrades: bool = False
    nonces: Nonces = field(default_factory=Nonces)
    registered: list[dict[str, Any]] = field(default_factory=list)
    token_requests: list[tuple[str, str]] = field(default_factory=list)
    granted: dict[str, _Granted] = field(default_factory=dict)
    _codes: dict[str, _Code] = field(default_factory=dict)
    _refresh: dict[str, _Granted] = field(default_factory=dict)
    _jtis: set[str] = field(default_factory=set)

    @property
    def issuer(self) -> str:
        return f"{self.origin}/tenant"  # without a path, the SDK's two sides spell it differently

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/.well-known/oauth-authorization-server/tenant", self._metadata),
                Route("/register", self._register, methods=["POST"]),
                Route("/authorize", self._authorize),
                Route("/oauth/token", self._token, methods=["POST"]),
            ]
        )

    def revoke_access_tokens(self) -> None:
        self.granted.clear()

    async def _metadata(self, request: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.origin}/authorize",
                "token_endpoint": f"{self.origin}/oauth/token",
                "registration_endpoint": f"{self.origin}/register",
                "response_types_supported": ["code"],
                "code_challenge_methods_supported": ["S256"],
                "dpop_signing_alg_values_supported": ["ES256"],
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def _register(self, request: Request) -> Response:
        client = {**await request.json(), "client_id": f"client-{len(self.registered)}"}
        self.registered.append(client)
        return JSONResponse(client, 201)

    async def _authorize(self, request: Request) -> Response:
        asked = request.query_params
        code = secrets.token_urlsafe(12)
        self._codes[code] = _Code(
            asked["client_id"],
            asked["code_challenge"],
            asked.get("dpop_jkt"),
            asked.get("scope", ""),
            asked["resource"],
        )
        answer = {"code": code, "state": asked["state"], "iss": self.issuer}
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(answer)}", 302)

    async def _token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        headers = {"DPoP-Nonce": self.nonces.now, "Cache-Control": "no-store"}
        try:
            jkt = judged(request, f"{self.origin}/oauth/token", self.nonces, self._jtis)
        except RefusedError as e:
            return JSONResponse({"error": e.error}, 400, headers)
        granted = self._grant(form, jkt)
        if granted is None:
            return JSONResponse({"error": "invalid_grant"}, 400, headers)
        self.token_requests.append((form["grant_type"], jkt))
        access_token, refresh_token = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
        self.granted[access_token] = granted
        self._refresh[refresh_token] = granted
        body = {
            "access_token": access_token,
            "token_type": "Bearer" if self.downgrades else "DPoP",
            "expires_in": self.lives_s,
            "refresh_token": refresh_token,
            "scope": granted.scope,
        }
        return JSONResponse(body, headers=headers)

    def _grant(self, form: dict[str, str], jkt: str) -> _Granted | None:
        expires_at = time.time() + self.lives_s
        if form["grant_type"] == "refresh_token":
            old = self._refresh.pop(form["refresh_token"], None)
            if old is None or old.jkt != jkt:
                return None
            return _Granted(jkt, old.scope, old.resource, old.client_id, expires_at)
        code = self._codes.pop(form["code"], None)
        if code is None or code.challenge != s256(form["code_verifier"]):
            return None
        if code.jkt is not None and code.jkt != jkt:  # RFC 9449 section 10
            return None
        return _Granted(jkt, code.scope, code.resource, code.client_id, expires_at)


class McpServer:
    """One MCP server, of the SDK's own.

    Attributes:
        url: its endpoint.
        seen: what came to it.
        nonces: those that it takes.
        heard: the steps of `slow` that its client has heard of.
    """

    def __init__(self, origin: str, authorization_server: AuthorizationServer) -> None:
        self.origin = origin
        self.url = f"{origin}/mcp"
        self.seen: list[Seen] = []
        self.nonces = Nonces()
        self.heard = 0
        self._issuer = authorization_server
        self._jtis: set[str] = set()

    @property
    def metadata(self) -> str:
        return f"{self.origin}/.well-known/oauth-protected-resource/mcp"

    def app(self) -> ASGIApp:
        return _Judging(self._served(), self)

    def _served(self) -> Starlette:
        server = MCPServer(
            "dpop-agent's tests",
            token_verifier=self,
            auth=AuthSettings(
                issuer_url=AnyHttpUrl(self._issuer.issuer),
                resource_server_url=AnyHttpUrl(self.url),
                required_scopes=None,
                validate_token_resource=True,
            ),
        )

        @server.tool()
        async def hello() -> str:
            return "hello"

        @server.tool()
        async def slow(steps: int, ctx: Context[Any]) -> str:
            """Go on once a step was heard of."""
            for step in range(1, steps + 1):
                await ctx.report_progress(step, steps)
                with anyio.fail_after(10):
                    while self.heard < step:
                        await anyio.sleep(0.01)
            return "done"

        @server.tool()
        async def announce(ctx: Context[Any]) -> str:
            """Say something on the stream that belongs to no request."""
            await ctx.session.send_resource_list_changed()
            return "announced"

        @server.tool()
        async def admin() -> str:
            return "admin"

        return server.streamable_http_app()

    async def verify_token(self, token: str) -> AccessToken | None:
        """What the SDK asks of an access token."""
        granted = self._issuer.granted.get(token)
        if granted is None or granted.expires_at < time.time():
            return None
        return AccessToken(
            token=token,
            client_id=granted.client_id,
            scopes=granted.scope.split(),
            resource=granted.resource,
        )

    def judge(self, request: Request, rpc: dict[str, Any]) -> tuple[str, Response | None]:
        """The proof's jkt, and how the request is refused, if it is."""
        access_token = request.headers["Authorization"].partition(" ")[2]
        try:
            jkt = judged(request, self.url, self.nonces, self._jtis, access_token=access_token)
        except RefusedError as e:
            return "", self.refusal(401, e.error)
        granted = self._issuer.granted.get(access_token)
        if granted is None or granted.jkt != jkt or granted.expires_at < time.time():
            return jkt, self.refusal(401, "invalid_token")
        params = rpc.get("params") or {}
        if params.get("name") == "admin" and "admin" not in granted.scope.split():
            return jkt, self.refusal(403, "insufficient_scope", scope="admin")
        return jkt, None

    def refusal(self, status: int, error: str, **more: str) -> Response:
        params = {"error": error, **more, "resource_metadata": self.metadata}
        challenge = ", ".join(f'{name}="{value}"' for name, value in params.items())
        return Response(status_code=status, headers={"WWW-Authenticate": f"DPoP {challenge}"})


class _Judging:
    """Judges proofs, and shows the SDK what it knows."""

    def __init__(self, app: ASGIApp, server: McpServer) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        body = await request.body() if request.method == "POST" else b""
        rpc: dict[str, Any] = json.loads(body) if body else {}
        scheme = request.headers.get("Authorization", "").partition(" ")[0].lower()
        seen = Seen(request.method, request.url.path, scheme, None, rpc.get("method"))
        self._server.seen.append(seen)
        refusal = None
        if scheme == "dpop":
            seen.jkt, refusal = self._server.judge(request, rpc)
        elif scheme:
            refusal = self._server.refusal(401, "invalid_token")
        headers = [
            (name, value.replace(b"DPoP ", b"Bearer ") if name == b"authorization" else value)
            for name, value in scope["headers"]
        ]
        app: ASGIApp = refusal if refusal is not None else self._app
        await app(
            {**scope, "headers": headers},
            _again(body, receive) if body else receive,
            self._noting(seen, send),
        )

    def _noting(self, seen: Seen, send: Send) -> Callable[[Message], Awaitable[None]]:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                nonce = (b"dpop-nonce", self._server.nonces.now.encode())
                message = {**message, "headers": [*message["headers"], nonce]}
            await send(message)

        return noting


def _again(body: bytes, receive: Receive) -> Receive:
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


class RefusedError(Exception):
    """A proof isn't taken."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


def judged(
    request: Request, htu: str, nonces: Nonces, jtis: set[str], *, access_token: str | None = None
) -> str:
    """The jkt of a request's proof.

    Raises:
        RefusedError
    """
    proofs = request.headers.getlist("DPoP")
    try:
        found = verify.verify(
            proofs, htm=request.method, htu=htu, access_token=access_token, seen_jti=jtis
        )
    except InvalidProof as e:
        raise RefusedError("invalid_dpop_proof") from e
    if found.claims.get("nonce") != nonces.now:
        nonces.refused += 1
        raise RefusedError("use_dpop_nonce")
    return found.jkt


def s256(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@dataclass
class World:
    """Two MCP servers and their authorization server."""

    issuer: AuthorizationServer
    server: McpServer
    other: McpServer


@contextlib.contextmanager
def world() -> Iterator[World]:
    """All three, listening on 127.0.0.1 until the block ends."""
    listeners = [_listener() for _ in range(3)]
    first, *rest = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in listeners)
    issuer = AuthorizationServer(first)
    found = World(issuer, *(McpServer(each, issuer) for each in rest))
    apps: list[ASGIApp] = [issuer.app(), found.server.app(), found.other.app()]
    running = [_Running(app, each) for app, each in zip(apps, listeners, strict=True)]
    try:
        for each in running:
            each.wait()
        yield found
    finally:
        for each in running:
            each.server.should_exit = True
        for each in running:
            each.thread.join()


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


class _Running:
    """A server in a thread, which closes its listener."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app, log_level="error", ws="none", timeout_graceful_shutdown=1, lifespan="on"
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        self.thread.start()

    def wait(self) -> None:
        """Until it serves."""
        deadline = time.monotonic() + START_S
        while not self.server.started and self.thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.server.started, "uvicorn doesn't start"
