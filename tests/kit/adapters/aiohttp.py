"""aiohttp: a middleware of the session's, and others of single requests in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from dpop_agent.client import AsyncAgentClient, BoundToken
from dpop_agent.client.aiohttp import DPoPMiddleware
from tests.kit.adapter import (
    AsyncAdapter,
    Came,
    Case,
    Request,
    agenerated,
    bound,
    file_of,
    token_form,
)

AGAIN = "the library sends a GET again by itself, by way of the middleware: with another proof"


@dataclass
class Client:
    """A session, what signs in it, and what presents the case's grant."""

    http: aiohttp.ClientSession
    sign: DPoPMiddleware
    grant: DPoPMiddleware


class Aiohttp(AsyncAdapter):
    name = "aiohttp"
    http_errors = (aiohttp.ClientError,)
    cannot = {  # noqa: RUF012
        "a_connection_that_breaks_is_an_error_and_no_proof_goes_out_twice": AGAIN,
        "a_kept_connection_that_breaks_sends_no_proof_twice": AGAIN,
        "a_proxy_of_the_environment_is_used_all_proxy": "the library doesn't know all_proxy",
        "a_proxy_of_the_environment_is_used_http_proxy_without_a_scheme": (
            "the library wants a scheme there"
        ),
    }

    @asynccontextmanager
    async def client(self, agent: AsyncAgentClient, case: Case) -> AsyncIterator[Client]:
        wanted = case["client"]
        sign = DPoPMiddleware(agent, key=wanted["key"], origins=wanted["origins"])

        async def renew(old: BoundToken | None) -> BoundToken:
            async with http.post(wanted["token_endpoint"], data=token_form(old)) as response:
                response.raise_for_status()
                jkt = response.dpop.jkt  # type: ignore[attr-defined]
                return BoundToken.from_response(await response.json(), jkt=jkt)

        async with aiohttp.ClientSession(
            middlewares=[sign],
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # for servers without a name too
            timeout=aiohttp.ClientTimeout(10),
            trust_env="environment" in case["client"],
        ) as http:
            yield Client(http, sign, sign.presenting(renew, token=bound(wanted.get("grant"))))

    async def send(self, client: Client, request: Request, release: Callable[[], None]) -> Came:
        arguments: dict[str, Any] = {}
        if "jkt" in request:
            arguments["middlewares"] = [client.sign.pinned(request["jkt"])]
        if request.get("grant"):
            arguments["middlewares"] = [client.grant]
        if (token := bound(request.get("access_token"))) is not None:
            arguments["middlewares"] = [client.sign.presenting(_no_renewal, token=token)]
        async with client.http.request(
            request.get("method", "GET"),
            request["url"],
            headers=[(name, value) for name, value in request.get("headers", [])],
            allow_redirects=request.get("follow", True),
            **arguments,
            **_body(request.get("body")),
        ) as response:
            came: Came = {"status": response.status, "body": ""}
            read = request.get("read", "all")
            if read == "all":
                came["body"] = (await response.read()).decode()
            elif read == "first":
                came["body"] = (await response.content.readany()).decode()
                release()
                came["body"] += (await response.content.read()).decode()
            return came


def _body(body: dict[str, Any] | None) -> dict[str, Any]:
    if body is None:
        return {}
    if "multipart" in body:
        form = aiohttp.FormData()
        form.add_field("file", file_of({"file": body["multipart"]}), filename=body["filename"])
        return {"data": form}
    if "form" in body:
        return {"data": body["form"]}
    if "text" in body:
        return {"data": body["text"].encode()}
    return {"data": file_of(body) if "file" in body else agenerated(body)}


async def _no_renewal(old: BoundToken | None) -> BoundToken:
    raise AssertionError("no renewal is due")
