"""requests: an adapter that signs each hop, and auths that name the access token.

Which adapter sends a request, or a redirect of it, requests decides by the URL. What only a
DPoPAdapter may send stands in a header whose value no other one can: an access token that was
named, and the length of a body that a listed server was sent. On a redirect requests replaces the
Authorization header by what netrc has for that server; the request's hooks stay, so the name stands
there too.
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
from dpop_agent.client.grant import BlockingGrant
from dpop_agent.client.hop import Origins, dpop_access_token, hop, merged_cookies
from dpop_agent.client.presenting import present, sign
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY, Answer, decoded
from dpop_agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from dpop_agent.client.answers import Proof
    from dpop_agent.client.exchange import Calls
    from dpop_agent.client.hop import Done
    from dpop_agent.client.stores import TokenStore
    from dpop_agent.client.sync import AgentClient
    from dpop_agent.client.token import BoundToken

_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")

_DEFAULT_PORTS = {"http": 80, "https": 443}


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
    """Stands for an access token in the Authorization header; one of a grant stays out of pickles.

    Attributes:
        held: the access token, or the grant that has it.
    """

    held: BoundToken | BlockingGrant | None

    def __new__(cls, held: BoundToken | BlockingGrant | None) -> _Named:
        named = super().__new__(cls, "DPoP")
        named.held = held
        return named

    def __reduce__(self) -> tuple[Any, ...]:
        return _Named, (None if isinstance(self.held, BlockingGrant) else self.held,)


class _NamedFor:
    """A request's hook that only looks: what was named for it, and for the server that it is to.

    Attributes:
        named: what stands in its Authorization header until netrc's credentials do.
    """

    def __init__(self, named: _Named, url: str | None) -> None:
        self.named = named
        self._origin = _origin(url)
        self._left = False

    def __call__(self, response: requests.Response, **_: Any) -> None:
        self._left = not self.is_for(response.request)

    def is_for(self, request: requests.PreparedRequest) -> bool:
        """False for a redirect to another server, and for whatever that one redirects to."""
        begins = request.headers.get("Authorization") is self.named
        return _origin(request.url) == self._origin and (begins or not self._left)


def _name(
    request: requests.PreparedRequest, held: BoundToken | BlockingGrant
) -> requests.PreparedRequest:
    named = _Named(held)
    request.headers["Authorization"] = named
    request.register_hook("response", _NamedFor(named, request.url))
    return request


def _named_for(request: requests.PreparedRequest) -> _Named | None:
    """What was named for this very server."""
    for field in _fields(request, "authorization"):
        if isinstance(named := request.headers[field], _Named):
            return named
    for hook in request.hooks.get("response", ()):
        if isinstance(hook, _NamedFor) and hook.is_for(request):
            return hook.named
    return None


class BoundTokenAuth(AuthBase):
    """Presents an access token, which DPoPAdapter alone sends, beside a proof by its generation.

        session.auth = BoundTokenAuth(token)

    Where no DPoPAdapter is mounted for a URL, requests to it raise ConfigurationError, and nothing
    is sent. A header of one's own, `Authorization: DPoP …`, would go there as it is, and netrc's
    credentials in its place. DPoPAuth renews the access token as well.
    """

    def __init__(self, token: BoundToken) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return _name(request, self.token)


class DPoPAuth(AuthBase):
    """Presents an access token, and renews it: one renewal at a time, other threads wait for it.

        session.auth = DPoPAuth(renew, token=saved, on_token=save)

    What it does, and what its arguments are, is as with `dpop_agent.client.DPoPAuth`, httpx's. It
    goes with DPoPAdapter, which sends the access token: no other adapter does, and a request
    that is sent by one raises ConfigurationError. Neither netrc nor a redirect within the server
    puts other credentials in its place.

    Args:
        renew: gets the old access token, or None for a new grant; returns a BoundToken. Where the
            session has this auth for all requests, its token request needs another, `auth=(ID,
            SECRET)`: requests takes `auth=None` for none given.
        token: one from earlier.
        on_token: gets each new one, to save it.
        rebind: refresh with the active generation. For confidential clients at servers that follow
            RFC 9449 section 5; others refuse, and a Bluesky server ends the whole session.
        store: where it is, in place of `token`, if other processes have it too.
    """

    def __init__(
        self,
        renew: Callable[[BoundToken | None], BoundToken],
        *,
        token: BoundToken | None = None,
        on_token: Callable[[BoundToken], object] | None = None,
        rebind: bool = False,
        store: TokenStore | None = None,
    ) -> None:
        self._grant = BlockingGrant(
            renew, token=token, on_token=on_token, rebind=rebind, store=store
        )

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return _name(request, self._grant)


class DPoPAdapter(HTTPAdapter):
    """Signs each hop to a listed origin; others are left unsigned.

    `response.dpop` is the hop's Proof, None where there is none. A request is sent a second time
    only if the server wants a nonce, or its clock is behind the agent's, and only if its body can
    be rewound: others get NonceRequired. Mount it for the origins, or for `https://` altogether:

        session.mount("https://", DPoPAdapter(agent, key="default", origins=[AS, API]))

    Args:
        agent: gives the proofs; it isn't closed with the adapter.
        key: the key's name; `default` where None.
        jkt: the generation that signs, the active one where None; where an auth presents an access
            token, the one that it is bound to does, and in its renewal the grant's, where None.
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
        send = partial(
            super().send, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
        )
        path = _wire_path(self.request_url(request, proxies))
        response, done = blocking(self._hop(request, _Sender(request, send), path))
        response.request = request
        response.dpop = done.proof  # type: ignore[attr-defined]
        if done.proof is not None:
            _keep_body(request)
        return response

    def _hop(
        self, request: requests.PreparedRequest, sender: _Sender, path: str
    ) -> Calls[tuple[requests.Response, Done]]:
        named = _named_for(request)
        held = None if named is None else named.held
        if named is not None and held is None:
            raise ConfigurationError(
                "the request comes from a pickle, which has no access token of DPoPAuth's: nothing "
                "was sent",
                hint="prepare the request anew, with its auth",
            )
        url = urlsplit(request.url or "")
        values = [request.headers[field] for field in _fields(request, "authorization")]
        authorization = [_text(value) for value in values]
        replayable = _replayable(request)
        carried = [name for name in _OF_A_BODY if isinstance(request.headers.get(name), _Ours)]

        def hop_by(
            key: str | None, jkt: str | None, access_token: str | None = None
        ) -> Calls[tuple[requests.Response, Done]]:
            steps = hop(
                htm=request.method or "",
                authority=f"{url.scheme}://{url.netloc.rpartition('@')[2]}",
                path=path,
                authorization=authorization,
                access_token=access_token,
                origins=self._origins,
                key=key,
                jkt=jkt,
                replayable=replayable,
                redirected_body=bool(carried),
            )
            return exchange(steps, self._agent, sender)

        def hop_with(bound: BoundToken) -> Calls[tuple[requests.Response, Done]]:
            return hop_by(self._key, bound.jkt, bound.access_token)

        if isinstance(held, BlockingGrant):
            return present(held, hop_with, sender, replayable=replayable)
        if held is not None:
            return hop_with(held)
        return sign(
            hop_by,
            agent=self._agent.path,
            key=self._key,
            jkt=self._jkt,
            pinned=self._jkt is not None or dpop_access_token(authorization) is not None,
        )


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


def _origin(url: str | None) -> tuple[str, str, int | None]:
    parts = urlsplit(url or "")
    return parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme)


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
