"""The official MCP SDK over DPoP: a transport for the HTTP client that it is given.

The SDK's OAuth knows Bearer alone, so it is shown handles in place of tokens (`handles`), and what
it sends is turned into what RFC 9449 asks for. Signed are token requests to endpoints that a listed
server leads to (`discovered`), and requests that present a handle to a listed origin.

An exception out of a transport ends an MCP session. So an error of the agent's, or a token response
that bound nothing, becomes an answer that the SDK knows what to do with: one that has it log in
anew where that helps, else one with the error in it, for whoever made the call.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

try:
    import httpx2
    from mcp.shared.auth import OAuthClientMetadata
except ModuleNotFoundError as e:
    raise ImportError(
        "the MCP SDK isn't installed; install it: pip install 'dpop-agent[mcp]'"
    ) from e

from dpop_agent.client.answers import active_generation, require_access_token
from dpop_agent.client.discovered import Discovered
from dpop_agent.client.handles import (
    RefreshToken,
    Refusals,
    access_token_of,
    refresh_token_of,
    shown_access_token,
    shown_refresh_token,
)
from dpop_agent.client.hop import DEFAULT_KEY
from dpop_agent.client.httpx2 import AsyncDPoPTransport
from dpop_agent.client.refusal import challenges
from dpop_agent.client.token import BoundToken
from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    KeyUnusable,
    Locked,
    TokenNotBound,
)
from dpop_agent.jose import b64url, json_object

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self, Unpack

    from dpop_agent.client.aio import AsyncAgentClient
    from dpop_agent.client.answers import Proof
    from dpop_agent.client.httpx2 import Cert

    RedirectHandler = Callable[[str], Awaitable[None]]

TIMEOUT = httpx2.Timeout(30.0, read=300.0)
"""Seconds, as the SDK's own clients have them: a server may hold a stream open."""

MAX_LOGINS = 16
"""Logins under way, each in somebody's browser; of more, the oldest isn't remembered."""

TRY_AGAIN_S = 2
"""Seconds after which the SDK asks for a refresh again that the agent didn't sign."""

_INTERNAL_ERROR = -32603  # JSON-RPC 2.0 section 5.1
_FORM = "application/x-www-form-urlencoded"


class _Options(TypedDict, total=False):
    transport: httpx2.AsyncBaseTransport | None
    verify: ssl.SSLContext | str | bool | None
    cert: Cert | None
    http2: bool | None
    limits: httpx2.Limits | None
    proxy: str | httpx2.URL | httpx2.Proxy | None
    trust_env: bool | None


class DPoPClientMetadata(OAuthClientMetadata):
    """The SDK's client metadata, which asks for bound access tokens (RFC 9449 section 5.2)."""

    dpop_bound_access_tokens: bool = True


class McpDPoPTransport(AsyncDPoPTransport):
    """Has the MCP SDK's requests signed, and its access tokens bound.

    `client` makes the HTTP client that the SDK takes as `http_client`, with one of the SDK's OAuth
    providers as `auth`; `binding` goes around the redirect handler that the provider is given.

    The provider and its storage see handles, never tokens. A handle names the generation that its
    token is bound to, so that one signs, in other processes and after rotations too; once the agent
    no longer signs by it, the SDK is told to log in anew. Storage from before, with Bearer tokens
    in it, is used up as it is.

    Signed are requests with a handle to a listed origin, and token requests: to a listed origin, or
    to the token endpoint in the metadata of an issuer that a listed server's metadata names. A
    refresh token goes to the endpoint that gave it alone. A handle for any other server isn't sent,
    and everything else goes out unsigned, as it came.

    No error of the agent's is raised. Calls under way get MCPError with its text, and its type and
    hint in `data`; the session goes on.

    Args:
        agent: gives the proofs; it isn't closed with the transport.
        key: the key's name; `default` where None. It has to sign for the authorization server too.
        origins: the MCP servers.
        transport: does the sending, in place of httpx2's own with the arguments that follow.
        verify, cert, http2, limits, proxy, trust_env: as for AsyncDPoPTransport.

    Several clients may share it, each in an `async with`; it closes with the last of them.
    """

    def __init__(
        self,
        agent: AsyncAgentClient,
        *,
        key: str | None = None,
        origins: Iterable[str],
        **options: Unpack[_Options],
    ) -> None:
        origins = origins if isinstance(origins, str) else list(origins)
        super().__init__(agent, key=key, origins=origins, **options)
        self._agent: AsyncAgentClient = agent
        self._origins: Discovered = Discovered(origins)
        self._refusals = Refusals()
        self._active: str | None = None
        self._logins: dict[str, str] = {}
        self._clients = 0

    async def __aenter__(self) -> Self:
        self._clients += 1
        if self._clients == 1:
            await super().__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._clients -= 1
        if self._clients == 0:
            await super().__aexit__(exc_type, exc_value, traceback)

    def client(
        self,
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        """An HTTP client for the SDK, on this transport and with the SDK's own timeouts.

        Args:
            headers: for every request.
            timeout: 30 s, and 300 s between two reads, where None.
            auth: one of the SDK's OAuth providers.
        """
        return httpx2.AsyncClient(
            transport=self, headers=headers, timeout=timeout or TIMEOUT, auth=auth
        )

    def binding(self, redirect_handler: RedirectHandler) -> RedirectHandler:
        """The redirect handler to give to the provider, in place of yours.

        Yours gets the authorization URL with `dpop_jkt` in it (RFC 9449 section 10), and the token
        request of that login is signed by the same generation, whatever is rotated meanwhile.
        """

        async def bound(authorization_url: str) -> None:
            # A login begins with a server's refusal, which was seen before.
            jkt = self._active or (await self._active_jkt())
            query = urlsplit(authorization_url).query
            for challenge in parse_qs(query).get("code_challenge", []):
                self._logins[challenge] = jkt
                if len(self._logins) > MAX_LOGINS:
                    del self._logins[next(iter(self._logins))]
            mark = "&" if query else "?"
            await redirect_handler(f"{authorization_url}{mark}{urlencode({'dpop_jkt': jkt})}")

        return bound

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; httpx2 calls this."""
        if (form := await _token_request(request)) is not None:
            return await self._answer_to_token_request(request, form)
        if (handle := _bearer(request)) is not None:
            if self._refusals.has(handle):
                return await self._answer_to_refused(request, self._refusals.error(handle))
            if (access_token := access_token_of(handle)) is not None:
                return await self._answer_to_access_token(request, access_token)
        try:
            response = await self._sent_unsigned(request)
        except DPoPAgentError as e:
            return _error(e)
        if request.method == "GET" and self._origins.expects(str(request.url)):
            response = await self._metadata(request, response)
        return await self._before_login(request, response)

    async def _sent_unsigned(self, request: httpx2.Request) -> httpx2.Response:
        return await self._sends(request.url).handle_async_request(request)

    # --- MCP requests

    async def _answer_to_access_token(
        self, request: httpx2.Request, access_token: BoundToken
    ) -> httpx2.Response:
        try:
            if not self._origins.lists(str(request.url)):
                raise ConfigurationError(
                    f"an access token would go to {_origin(request)}, which isn't among the "
                    "origins",
                    hint="add it to origins=[…] if it may have this access token",
                )
            headers = request.headers.copy()
            headers["Authorization"] = f"DPoP {access_token.access_token}"
            signed = _changed(request, headers, stream=request.stream, jkt=access_token.jkt)
            response = await super().handle_async_request(signed)
            # A redirect has them: no other transport reads the body then.
            request.stream, request.extensions = signed.stream, signed.extensions
        except DPoPAgentError as e:
            helps = isinstance(e, KeyUnusable) and await self._login_helps(e, access_token.jkt)
            return await self._challenge(request) if helps else _error(e)
        return await self._before_login(request, response)

    async def _answer_to_refused(
        self, request: httpx2.Request, error: DPoPAgentError | None
    ) -> httpx2.Response:
        if error is not None:
            return _error(error)
        # An earlier process's, out of storage: nothing is known against another try.
        return await self._challenge(request)

    async def _challenge(self, request: httpx2.Request) -> httpx2.Response:
        """A 401, with what the server itself says of where to log in.

        It is asked by a GET: where it takes requests from anybody, it would do what the call says.
        """
        challenge: dict[str, str] = {}
        if self._origins.lists(str(request.url)):
            asking = httpx2.Request(
                "GET",
                request.url,
                headers={"Accept": "text/event-stream"},
                extensions=request.extensions,
            )
            answer = await self._sent_unsigned(asking)
            await answer.aclose()
            if answer.status_code == 401 and "WWW-Authenticate" in answer.headers:
                challenge = {"WWW-Authenticate": answer.headers["WWW-Authenticate"]}
        return await self._before_login(request, httpx2.Response(401, headers=challenge))

    async def _before_login(
        self, request: httpx2.Request, response: httpx2.Response
    ) -> httpx2.Response:
        """The response, unless a login follows from it that the agent couldn't sign for."""
        said = response.headers.get_list("WWW-Authenticate")
        errors = {params.get("error") for header in said for _, params in challenges(header)}
        if response.status_code != 401 and (
            response.status_code != 403 or "insufficient_scope" not in errors
        ):
            return response
        if not self._origins.lists(str(request.url)):
            return response
        self._origins.heard(str(request.url), said)
        try:
            self._active = await self._active_jkt()
        except DPoPAgentError as e:
            await response.aclose()
            return _error(e)
        return response

    async def _login_helps(self, error: DPoPAgentError, jkt: str | None) -> bool:
        """Whether tokens of another login would fare better than those that `jkt` is for."""
        if not isinstance(error, KeyUnusable):
            return isinstance(error, TokenNotBound | ConfigurationError)
        try:
            return await self._active_jkt() != jkt
        except DPoPAgentError:
            return False

    async def _active_jkt(self) -> str:
        """The generation that a login is for.

        Raises:
            Locked: its store is, so that nobody could be logged in.
            DPoPAgentError: there is none, or no agent.
        """
        name = self._key or DEFAULT_KEY
        keys = await self._agent.keys(name)
        found = active_generation(name, keys)
        if any(key.get("store_state") == "locked" for key in keys):
            raise Locked(f"the store {found.store} is locked", hint="see: dpop-agent status")
        return found.jkt

    async def _metadata(
        self, request: httpx2.Request, response: httpx2.Response
    ) -> httpx2.Response:
        if response.status_code != 200:
            return response
        response = await _read(response)
        try:
            self._origins.learn(str(request.url), json_object(response.content))
        except ValueError:
            pass  # the SDK says so
        return response

    # --- token requests

    async def _answer_to_token_request(
        self, request: httpx2.Request, form: list[tuple[str, str]]
    ) -> httpx2.Response:
        endpoint = str(request.url)
        fields = dict(form)
        refreshes = fields["grant_type"] == "refresh_token"
        jkt = self._login_of(fields)
        try:
            if not self._origins.takes_token_requests(endpoint):
                raise ConfigurationError(
                    f"{_origin(request)} would get a token request, and no server among the "
                    "origins names it as its authorization server",
                    hint="add it to origins=[…] if it is one",
                )
            body = await request.aread()
            refresh_token = refresh_token_of(fields.get("refresh_token", ""))
            if refresh_token is not None:
                jkt = refresh_token.jkt
                if refresh_token.endpoint != endpoint:
                    raise ConfigurationError(
                        f"{_origin(request)} would get another token endpoint's refresh token",
                        hint="log in again",
                    )
                plain = {**fields, "refresh_token": refresh_token.refresh_token}
                body = urlencode([(name, plain[name]) for name, _ in form]).encode()
            headers = request.headers.copy()
            headers.pop("Transfer-Encoding", None)
            headers["Content-Length"] = str(len(body))
            signed = _changed(request, headers, stream=httpx2.ByteStream(body), jkt=jkt)
            response = await super().handle_async_request(signed)
            if not response.is_success:
                return response
            return _shown(await _read(response), endpoint)
        except DPoPAgentError as e:
            if refreshes and await self._login_helps(e, jkt):
                refusal = {"error": "invalid_grant", "error_description": str(e)}
                return httpx2.Response(400, json=refusal)
            # Any other status would be raised, through the session.
            return httpx2.Response(
                200,
                json={
                    "access_token": self._refusals.shown(e),
                    "token_type": "Bearer",
                    # Of a refresh, the SDK keeps the refresh token.
                    "expires_in": TRY_AGAIN_S if refreshes else -1,
                },
            )

    def _login_of(self, fields: Mapping[str, str]) -> str | None:
        """The generation that a code is bound to (RFC 7636 section 4.6 tells which login's)."""
        if "code_verifier" not in fields:
            return None
        digest = hashlib.sha256(fields["code_verifier"].encode()).digest()
        return self._logins.pop(b64url(digest), None)


async def _token_request(request: httpx2.Request) -> list[tuple[str, str]] | None:
    """The form of a token request (RFC 6749 section 3.2); None if it is none."""
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if request.method != "POST" or media_type != _FORM:
        return None
    form = parse_qsl((await request.aread()).decode("utf-8", "replace"), keep_blank_values=True)
    return form if any(name == "grant_type" for name, _ in form) else None


def _bearer(request: httpx2.Request) -> str | None:
    """What the SDK presents (RFC 6750 section 2.1)."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    return credentials if scheme.lower() == "bearer" else None


def _changed(
    request: httpx2.Request, headers: httpx2.Headers, *, stream: Any, jkt: str | None
) -> httpx2.Request:
    """The request as it is to be sent; the SDK's own stays as it is."""
    extensions = {**request.extensions, "dpop_jkt": jkt}
    return httpx2.Request(
        request.method, request.url, headers=headers, stream=stream, extensions=extensions
    )


def _shown(response: httpx2.Response, endpoint: str) -> httpx2.Response:
    """A token response with handles in it.

    Raises:
        TokenNotBound: it bound nothing, or another key; or it can be read in several ways.
        ConfigurationError: its access token isn't one.
    """
    proof: Proof = response.extensions["dpop"]
    try:
        members = json_object(response.content)
    except ValueError as e:
        raise TokenNotBound(f"the token response is no JSON object: {e}") from e
    try:
        json.dumps(members, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as e:
        raise TokenNotBound("the token response has what no JSON text can be made of") from e
    found = BoundToken.from_response(members, jkt=proof.jkt)
    require_access_token(found.access_token)
    members |= {"access_token": shown_access_token(found), "token_type": "Bearer"}
    if found.refresh_token is not None:
        refresh_token = RefreshToken(found.refresh_token, found.jkt, endpoint)
        members["refresh_token"] = shown_refresh_token(refresh_token)
    headers = response.headers.copy()
    headers.pop("Content-Length", None)
    return httpx2.Response(
        response.status_code, headers=headers, json=members, extensions=response.extensions
    )


async def _read(response: httpx2.Response) -> httpx2.Response:
    """The response, with its body read and decoded."""
    try:
        body = await response.aread()
    finally:
        await response.aclose()
    headers = response.headers.copy()
    for name in ("Content-Encoding", "Content-Length", "Transfer-Encoding"):
        headers.pop(name, None)
    return httpx2.Response(
        response.status_code, headers=headers, content=body, extensions=response.extensions
    )


def _error(error: DPoPAgentError) -> httpx2.Response:
    """An answer that the SDK takes for the failure of one request; it has the id by itself."""
    data = error.to_wire()["data"]
    failure = {"code": _INTERNAL_ERROR, "message": str(error), "data": data}
    return httpx2.Response(503, json={"jsonrpc": "2.0", "id": None, "error": failure})


def _origin(request: httpx2.Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
