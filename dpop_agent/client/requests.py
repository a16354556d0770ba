"""requests: an adapter that signs each hop, redirects included."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

try:
    import requests
    from requests.adapters import HTTPAdapter
    from requests.utils import rewind_body
    from urllib3.util import Retry
except ModuleNotFoundError as e:
    raise ImportError(
        "requests isn't installed; install it: pip install 'dpop-agent[requests]'"
    ) from e

from dpop_agent.client.exchange import blocking, exchange
from dpop_agent.client.hop import Origins, hop
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY, Answer
from dpop_agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from dpop_agent.client.answers import Proof
    from dpop_agent.client.sync import AgentClient

_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")


class DPoPAdapter(HTTPAdapter):
    """Signs each hop to a listed origin; others are left unsigned.

    `response.dpop` is the hop's Proof, None where there is none. A request is sent a second time
    only if the server wants a nonce, and only if its body can be rewound: others get
    NonceRequired. Mount it for the origins, or for `https://` altogether:

        session.mount("https://", DPoPAdapter(agent, key="default", origins=[AS, API]))

    Args:
        agent: gives the proofs; it isn't closed with the adapter.
        key: the key's name; `default` where None.
        jkt: the generation that the access token is bound to; the active one signs where None.
        origins: the authorization servers and resource servers that get proofs.
        **arguments: HTTPAdapter's, except max_retries: urllib3 would send a proof twice.

    Requests raise, besides requests' own errors, what `AgentClient.proof` raises, and:
        ConfigurationError: `Authorization: DPoP` to an origin that isn't listed; max_retries.
        NonceRequired: see above.
    """

    __attrs__ = [  # noqa: RUF012  (HTTPAdapter's way to say what a pickle holds)
        *HTTPAdapter.__attrs__,
        "_agent",
        "_key",
        "_jkt",
        "_origins",
    ]

    def __init__(
        self,
        agent: AgentClient,
        *,
        key: str | None = None,
        jkt: str | None = None,
        origins: Iterable[str],
        **arguments: Any,
    ) -> None:
        self._agent = agent
        self._key = key
        self._jkt = jkt
        self._origins = Origins(origins)
        super().__init__(**arguments)
        _refuse_retries(self.max_retries)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send one hop; requests calls this."""
        _refuse_retries(self.max_retries)
        url = urlsplit(request.url or "")
        authorization = request.headers.get("Authorization")
        steps = hop(
            htm=request.method or "",
            authority=f"{url.scheme}://{url.netloc.rpartition('@')[2]}",
            path=_wire_path(self.request_url(request, proxies)),
            authorization=[] if authorization is None else [_text(authorization)],
            origins=self._origins,
            key=self._key,
            jkt=self._jkt,
            replayable=_replayable(request),
        )
        send = partial(
            super().send, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
        )
        response, proof = blocking(exchange(steps, self._agent, _Sender(request, send)))
        response.request = request
        response.dpop = proof  # type: ignore[attr-defined]
        return response


class _Sender:
    """Sends a request by HTTPAdapter."""

    def __init__(
        self,
        request: requests.PreparedRequest,
        send: Callable[[requests.PreparedRequest], requests.Response],
    ) -> None:
        self._request = request
        self._send = send

    def send(self, proof: Proof | None) -> requests.Response:
        # The caller's request stays as it is: a redirect copies its headers.
        signed = self._request.copy()
        signed.headers.pop("DPoP", None)
        if proof is not None:
            signed.headers["DPoP"] = str(proof)
        return self._send(signed)

    def answer(self, response: requests.Response) -> Answer:
        def headers(name: str) -> Sequence[str]:
            values: list[str] = response.raw.headers.getlist(name)
            return values

        return Answer(response.status_code, headers)

    def read(self, response: requests.Response) -> bytes | None:
        # requests keeps a body that was read, for iter_content too.
        length = response.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_CHALLENGE_BODY:
            return None
        return response.content

    def close(self, response: requests.Response) -> None:
        response.close()

    def rewind(self) -> None:
        if self._request.body is not None and not isinstance(self._request.body, str | bytes):
            rewind_body(self._request)


def _refuse_retries(retries: Retry) -> None:
    if retries.total is None or int(retries.total) > 0:
        raise ConfigurationError(
            "max_retries isn't 0: urllib3 would send the same proof again",
            hint="leave max_retries out, and retry the whole request",
        )


def _wire_path(url: str) -> str:
    """The path as urllib3 sends it: with its escapes in upper case."""
    path = url.partition("?")[0] if url.startswith("/") else urlsplit(url).path or "/"
    return _ESCAPE.sub(lambda escape: escape[0].upper(), path)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _replayable(request: requests.PreparedRequest) -> bool:
    return (
        request.body is None
        or isinstance(request.body, str | bytes)
        or (isinstance(request._body_position, int) and hasattr(request.body, "seek"))
    )
