"""How a proof's `htu` differs from the URL of the request, in words."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote

from dpop_agent.client.explaining.messages import has_authority, split

_PORTS = {"https:": "443", "http:": "80"}


class Difference(NamedTuple):
    """How two URLs differ.

    Attributes:
        what: in words.
        is_real: to every server; else only to those that compare bytes.
    """

    what: str
    is_real: bool


def difference(htu: str, url: str) -> Difference | None:
    """How `htu` differs from the URL of a request; None if not at all.

    Args:
        htu: the claim's value.
        url: the request's without its query; `//host/path` where its scheme isn't known.
    """
    if not has_authority(htu):
        return Difference("htu isn't an absolute http or https URI", is_real=True)
    theirs, ours = split(htu), split(url)
    scheme = ours[0] or theirs[0]
    parts = []
    if theirs[0].lower() != scheme.lower():
        parts.append(
            f"the scheme: {theirs[0][:-1]} in the proof, {scheme[:-1]} on the wire, as where a "
            "proxy ends TLS"
        )
    host, port = _authority(theirs[1], theirs[0])
    our_host, our_port = _authority(ours[1], scheme)
    if ours[1] and host != our_host:
        parts.append(
            "the host: the proof names another than the request, as where a client signs for the "
            "address that it was configured with, and a proxy or gateway has another"
        )
    if ours[1] and port != our_port and (theirs[0] == scheme or ":" in theirs[1] + ours[1]):
        parts.append(f"the port: {port} in the proof, {our_port} on the wire")
    if what := _paths(theirs[2] or "/", ours[2] or "/"):
        parts.append(what)
    if parts:
        return Difference("; ".join(parts), is_real=True)
    if "?" in htu or "#" in htu:
        return Difference("the query or fragment: htu has none (section 4.2)", is_real=False)
    if ours[0] and htu != url and htu.rstrip("/") != url.rstrip("/"):
        return Difference(
            "the spelling: a default port or capital letters, which some servers compare",
            is_real=False,
        )
    return None


def _authority(authority: str, scheme: str) -> tuple[str, str]:
    authority = authority.rpartition("@")[2].lower()
    host, colon, port = authority.rpartition(":")
    if not colon or not port.isdecimal():
        host, port = authority.removesuffix(":"), ""
    return host, port or _PORTS.get(scheme.lower(), "")


def _paths(theirs: str, ours: str) -> str:
    if theirs == ours:
        return ""
    if theirs.rstrip("/") == ours.rstrip("/"):
        who = "the proof" if theirs.endswith("/") else "the request"
        return f"the slash at the end, which {who} alone has"
    if unquote(theirs) == unquote(ours):
        return "the escapes: the path is percent-encoded in one and not, or otherwise, in the other"
    if theirs.lower() == ours.lower():
        return "capital letters in the path"
    if ours.endswith(theirs) and theirs != "/":
        return f"the base path: {ours.removesuffix(theirs)} is missing in the proof"
    if theirs.endswith(ours) and ours != "/":
        return f"the base path: {theirs.removesuffix(ours)} is in the proof alone"
    if "/./" in f"{theirs}{ours}/" or "/../" in f"{theirs}{ours}/" or "//" in theirs + ours:
        return "dots or double slashes in the path"
    return "the path"
