"""Exchanges from what HTTP libraries return, by its shape: none of them is imported.

Nothing is read from the network: a body that nobody read stays unread.
"""

from __future__ import annotations

from typing import Any

from dpop_agent.client.explaining.messages import Exchange, Headers, Unreadable, jws

MAX_BODY = 1024 * 1024
"""Bytes of a body that are looked at."""


def of_response(response: Any) -> list[Exchange]:
    """The exchanges that led to a response, the last one being its own.

    Args:
        response: of httpx, httpx2, requests or aiohttp.

    Raises:
        Unreadable: it is none of theirs.
    """
    return [_exchange(each) for each in [*getattr(response, "history", ()), response]]


def _exchange(response: Any) -> Exchange:
    request = getattr(response, "request_info", None) or getattr(response, "request", None)
    status = getattr(response, "status_code", None) or getattr(response, "status", None)
    if request is None or not isinstance(status, int) or not hasattr(response, "headers"):
        raise Unreadable(
            f"a {type(response).__name__} is no response of an HTTP library known here"
        )
    sent = _sent_headers(response, request)
    return Exchange(
        method=str(request.method),
        url=str(request.url),
        request_headers=sent,
        status=status,
        response_headers=_headers(response.headers),
        request_body=_sent(request),
        response_body=_read(response),
    )


UNSEEN = "[hidden]"
"""In an access token's place where the response doesn't have it."""


def _headers(headers: Any) -> Headers:
    """Each field line by itself, where the library keeps them apart."""
    lines = getattr(headers, "multi_items", headers.items)()
    return tuple((_text(name), _text(value)) for name, value in lines)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _sent_headers(response: Any, request: Any) -> Headers:
    """A request's, with what a transport or an adapter of ours put in by itself."""
    sent = _headers(request.headers)
    proof = getattr(response, "dpop", None) or getattr(response, "extensions", {}).get("dpop")
    if proof is None:
        return sent
    # requests' own request has the scheme alone: the access token goes into a copy.
    ours = (("dpop", None), ("authorization", "dpop"))
    kept = tuple(
        (name, value)
        for name, value in sent
        if not any(name.lower() == n and v in (None, value.strip().lower()) for n, v in ours)
    )
    kept += (("DPoP", str(proof)),)
    is_there = any(name.lower() == "authorization" for name, _ in kept)
    if is_there or jws(str(proof)).claims.get("ath") is None:
        return kept
    return (*kept, ("Authorization", f"DPoP {_presented(request) or UNSEEN}"))


def _presented(request: Any) -> str | None:
    """The access token that an auth of ours named for the request."""
    named = getattr(request, "extensions", {}).get("dpop_agent.presented")
    found = getattr(getattr(named, "access_token", None), "access_token", None)
    return found if isinstance(found, str) else None


def _read(response: Any) -> bytes | None:
    """The body, if it was read already."""
    for name in ("_content", "_body"):  # `content` of requests would read it now
        body = getattr(response, name, None)
        if isinstance(body, bytes):
            return body[:MAX_BODY]
    return None


def _sent(request: Any) -> bytes | None:
    body = getattr(request, "_content", None) or getattr(request, "body", None)
    if isinstance(body, str):
        return body.encode()[:MAX_BODY]
    return body[:MAX_BODY] if isinstance(body, bytes) else None
