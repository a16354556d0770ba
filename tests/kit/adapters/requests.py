"""requests: an adapter that is mounted, and auths that name the access token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from requests.auth import AuthBase

from dpop_agent.client import AgentClient, BoundToken, BoundTokenAuth, DPoPAdapter
from dpop_agent.client.requests import DPoPAuth
from tests.kit.adapter import (
    BlockingAdapter,
    Came,
    Case,
    Request,
    bound,
    file_of,
    generated,
    token_form,
)

SHOWN = "the library refuses the caller's header by itself, and shows it"


class Client:
    """Sessions of one case: a generation is pinned where the adapter is made."""

    def __init__(self, agent: AgentClient, wanted: dict[str, Any]) -> None:
        self._agent = agent
        self._wanted = wanted
        self._sessions: dict[str | None, requests.Session] = {}
        self.grant = DPoPAuth(self._renew, token=bound(wanted.get("grant")))

    def session(self, jkt: str | None) -> requests.Session:
        if jkt not in self._sessions:
            made = self._sessions[jkt] = requests.Session()
            key, origins = self._wanted["key"], self._wanted["origins"]
            adapter = DPoPAdapter(self._agent, key=key, jkt=jkt, origins=origins)
            made.mount("http://", adapter)
            made.mount("https://", adapter)
        return self._sessions[jkt]

    def _renew(self, old: BoundToken | None) -> BoundToken:
        with self.session(None).post(
            self._wanted["token_endpoint"], data=token_form(old), timeout=10
        ) as response:
            response.raise_for_status()
            jkt = response.dpop.jkt  # type: ignore[attr-defined]
            return BoundToken.from_response(response.json(), jkt=jkt)

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()


class RequestsWithAuth(BlockingAdapter):
    name = "requests-auth"
    http_errors = (requests.RequestException,)
    cannot = {  # noqa: RUF012
        "repeated headers": "the library's headers are a dictionary",
        "an_authorization_header_with_a_newline_is_refused": SHOWN,
        "an_authorization_header_with_an_injected_header_is_refused": SHOWN,
    }

    def _presenting(self, token: BoundToken) -> AuthBase:
        return DPoPAuth(_no_renewal, token=token)

    @contextmanager
    def client(self, agent: AgentClient, case: Case) -> Iterator[Client]:
        client = Client(agent, case["client"])
        try:
            yield client
        finally:
            client.close()

    def send(self, client: Client, request: Request, release: Callable[[], None]) -> Came:
        auth: AuthBase | None = client.grant if request.get("grant") else None
        if (token := bound(request.get("access_token"))) is not None:
            auth = self._presenting(token)
        with client.session(request.get("jkt")).request(
            request.get("method", "GET"),
            request["url"],
            headers=dict(request.get("headers", [])),
            auth=auth,
            allow_redirects=request.get("follow", True),
            timeout=10,
            stream=True,
            **body_of(request.get("body")),
        ) as response:
            came: Came = {"status": response.status_code, "body": ""}
            read = request.get("read", "all")
            if read == "all":
                came["body"] = response.content.decode()
            elif read == "first":
                parts = response.iter_content(None)
                came["body"] = next(parts).decode()
                release()
                came["body"] += b"".join(parts).decode()
            return came


class Requests(RequestsWithAuth):
    """With one access token, and nothing that renews it."""

    name = "requests"
    cannot = {  # noqa: RUF012
        **RequestsWithAuth.cannot,
        "renewal": "BoundTokenAuth has one access token and renews none",
    }

    def _presenting(self, token: BoundToken) -> AuthBase:
        return BoundTokenAuth(token)


def _no_renewal(old: BoundToken | None) -> BoundToken:
    raise AssertionError("no renewal is due")


def body_of(body: dict[str, Any] | None) -> dict[str, Any]:
    if body is None:
        return {}
    if "multipart" in body:
        return {"files": {"file": (body["filename"], file_of({"file": body["multipart"]}))}}
    if "form" in body:
        return {"data": body["form"]}
    if "text" in body:
        return {"data": body["text"].encode()}
    return {"data": file_of(body) if "file" in body else generated(body)}
