"""requests: an adapter that signs each hop, and an auth that names the access token.

Which adapter sends a request, or a redirect of it, requests decides by the URL. What only a
DPoPAdapter may send stands in a header whose value no other one can: an access token that was
named, and the length of a body that a listed server was sent.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

try:
    import requests
    from requests.adapters import HTTPAdapter
    from requests.auth import AuthBase
    from requests.cookies import RequestsCookieJar, extract_cookies_to_jar, get_cookie_header
    from requests.utils import rewind_body
    from urllib3 import HTTPResponse
    from urllib3.exceptions import HTTPError
    from urllib3.util import Retry
except ModuleNotFoundError as e:
    raise ImportError(
        "requests isn't installed; install it: pip install 'dpop-agent[requests]'"
    ) from e

from dpop_agent.client.exchange import blocking, exchange
from dpop_agent.client.hop import Origins, hop, merged_cookies
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY, Answer, decoded
from dpop_agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from dpop_agent.client.answers import Proof
    from dpop_agent.client.hop import Done
    from dpop_agent.client.sync import AgentClient
    from dpop_agent.client.token import BoundToken

_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")


class _Ours(str):
    """A header's value that other adapters fail to send, before they have sent anything."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        if encoding != "latin-1":  # http.client's, for what it sends
            return super().encode(encoding, errors)
        raise ConfigurationError(
            "an access token, or the body of a signed request, was to go out by an adapter that "
            "isn't DPoPAdapter: nothing was sent",
            hint="mount a DPoPAdapter for that URL; http:// and https:// are mounted apart",
        )


_NONE = _Ours("")
"""Stands for a Content-Type that there is none of."""


class _Named(_Ours):
    """Stands for an access token in the Authorization header."""

    bound: BoundToken

    def __new__(cls, bound: BoundToken) -> _Named:
        named = super().__new__(cls, "DPoP")
        named.bound = bound
        return named

    def __reduce__(self) -> tuple[Any, ...]:
        return _Named, (self.bound,)


class BoundTokenAuth(AuthBase):
    """Presents an access token, which DPoPAdapter alone sends, beside a proof by its generation.

        session.auth = BoundTokenAuth(token)

    Where no DPoPAdapter is mounted for a URL, requests to it raise ConfigurationError, and nothing
    is sent. A header of one's own, `Authorization: DPoP …`, would go there as it is.
    """

    def __init__(self, token: BoundToken) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = _Named(self.token)
        return request


class DPoPAdapter(HTTPAdapter):
    """Signs each hop to a listed origin; others are left unsigned.

    `response.dpop` is the hop's Proof, None where there is none. A request is sent a second time
    only if the server wants a nonce, or its clock is behind the agent's, and only if its body can
    be rewound: others get NonceRequired. Mount it for the origins, or for `https://` altogether:

        session.mount("https://", DPoPAdapter(agent, key="default", origins=[AS, API]))

    Args:
        agent: gives the proofs; it isn't closed with the adapter.
        key: the key's name; `default` where None.
        jkt: the generation that signs, the active one where None; where BoundTokenAuth presents an
            access token, the one that it is bound to does.
        origins: the authorization servers and resource servers that get proofs.
        **arguments: HTTPAdapter's, except max_retries: urllib3 would send a proof twice.

    Requests raise, besides requests' own errors, what `AgentClient.proof` raises, and:
        ConfigurationError: an access token, or by a redirect the body of a signed request, would go
            to an origin that isn't listed; the access token isn't one; max_retries.
        NonceRequired: see above.
        ProofRefused: the server refuses the proof, and the agent's clock may be to blame.
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
        authorization = [request.headers[field] for field in _fields(request, "authorization")]
        named = next((value for value in authorization if isinstance(value, _Named)), None)
        carried = [name for name in _OF_A_BODY if isinstance(request.headers.get(name), _Ours)]
        steps = hop(
            htm=request.method or "",
            authority=f"{url.scheme}://{url.netloc.rpartition('@')[2]}",
            path=_wire_path(self.request_url(request, proxies)),
            authorization=[_text(value) for value in authorization],
            access_token=None if named is None else named.bound.access_token,
            origins=self._origins,
            key=self._key,
            jkt=self._jkt if named is None else named.bound.jkt,
            replayable=_replayable(request),
            redirected_body=bool(carried),
        )
        send = partial(
            super().send, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
        )
        response: requests.Response
        done: Done
        response, done = blocking(exchange(steps, self._agent, _Sender(request, send)))
        response.request = request
        response.dpop = done.proof  # type: ignore[attr-defined]
        if done.proof is not None:
            _keep_body(request)
        return response


# A redirect has them if it has the body, but Content-Length is made anew with credentials of netrc.
_OF_A_BODY = ("Content-Length", "Content-Type", "Transfer-Encoding")


def _keep_body(request: requests.PreparedRequest) -> None:
    """Have a redirect of it, which copies its headers, carry its body by a DPoPAdapter alone."""
    if request.body is not None:
        request.headers.setdefault("Content-Type", _NONE)
        for name in _OF_A_BODY:
            if name in request.headers and request.headers[name] is not _NONE:
                request.headers[name] = _Ours(_text(request.headers[name]))


class _Sender:
    """Sends a request by HTTPAdapter."""

    def __init__(
        self,
        request: requests.PreparedRequest,
        send: Callable[[requests.PreparedRequest], requests.Response],
    ) -> None:
        self._request = request
        self._send = send
        self._with_cookies: list[requests.Response] = []

    def send(self, proof: Proof | None, access_token: str | None) -> requests.Response:
        # The caller's request stays as it is: a redirect copies its headers.
        signed = self._request.copy()
        for name in _OF_A_BODY:
            if signed.headers.get(name) is _NONE:
                del signed.headers[name]
            elif name in signed.headers:
                signed.headers[name] = _text(signed.headers[name])
        for field in _fields(signed, "dpop"):
            del signed.headers[field]
        if proof is not None:
            signed.headers["DPoP"] = str(proof)
        if access_token is not None:
            for field in _fields(signed, "authorization"):
                del signed.headers[field]
            signed.headers["Authorization"] = f"DPoP {access_token}"
        self._add_cookies(signed)
        response = self._send(signed)
        # As after HTTPDigestAuth's first answer: a session takes cookies from there.
        response.history = [*self._with_cookies]
        return response

    def _add_cookies(self, signed: requests.PreparedRequest) -> None:
        jar = RequestsCookieJar()
        for response in self._with_cookies:
            extract_cookies_to_jar(jar, response.request, response.raw)
        before = signed.headers.pop("Cookie", None)
        newer = get_cookie_header(jar, signed)
        if newer is not None:
            signed.headers["Cookie"] = merged_cookies(
                None if before is None else _text(before), newer
            )
        elif before is not None:
            signed.headers["Cookie"] = before

    def answer(self, response: requests.Response) -> Answer:
        def headers(name: str) -> Sequence[str]:
            values: list[str] = response.raw.headers.getlist(name)
            return values

        return Answer(response.status_code, headers)

    def read(self, response: requests.Response) -> bytes | None:
        raw: HTTPResponse = response.raw
        beginning = _Beginning(raw)
        whole = beginning.read_ahead()
        body: Any = beginning  # urllib3 takes whatever can be read
        response.raw = HTTPResponse(
            body,
            headers=raw.headers,
            status=raw.status,
            version=raw.version,
            reason=raw.reason,
            preload_content=False,
            original_response=raw._original_response,  # requests takes cookies from it
            enforce_content_length=False,  # `raw` does
        )
        encoding = raw.headers.getlist("Content-Encoding")
        return None if whole is None else decoded(whole, encoding)

    def close(self, response: requests.Response) -> None:
        response.close()

    def again(self, response: requests.Response) -> None:
        if self._request.body is not None and not isinstance(self._request.body, str | bytes):
            rewind_body(self._request)
        if "Set-Cookie" in response.raw.headers:
            response.request = self._request  # the one that was sent has a proof
            self._with_cookies.append(response)


class _Beginning:
    """A response's raw body as a file, whose beginning was read before."""

    def __init__(self, raw: HTTPResponse) -> None:
        self._raw = raw
        self._begun = b""
        self._error: HTTPError | None = None

    def read_ahead(self) -> bytes | None:
        """The whole body; None where it is too long, or breaks off."""
        parts: list[bytes] = []
        size = 0
        try:
            while size <= MAX_CHALLENGE_BODY and (
                part := self._raw.read(MAX_CHALLENGE_BODY, decode_content=False)
            ):
                parts.append(part)
                size += len(part)
        except HTTPError as e:
            self._error = e  # for who reads so far
        self._begun = b"".join(parts)
        return self._begun if self._error is None and size <= MAX_CHALLENGE_BODY else None

    def read(self, amount: int | None = None) -> bytes:
        if self._begun:
            end = len(self._begun) if amount is None else amount
            part, self._begun = self._begun[:end], self._begun[end:]
            if amount is not None:
                return part
            return part + self.read()
        if self._error is not None:
            raise self._error
        return self._raw.read(amount, decode_content=False)

    def isclosed(self) -> bool:
        return not self._begun and self._error is None and self._raw.closed

    def close(self) -> None:
        self._begun, self._error = b"", None
        self._raw.close()
        self._raw.release_conn()


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


def _fields(request: requests.PreparedRequest, name: str) -> list[str]:
    """A header's names as they are spelt: http.client sends bytes too, and one with a space."""
    return [field for field in request.headers if _text(field).strip().lower() == name]


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _replayable(request: requests.PreparedRequest) -> bool:
    return (
        request.body is None
        or isinstance(request.body, str | bytes)
        or (isinstance(request._body_position, int) and hasattr(request.body, "seek"))
    )
