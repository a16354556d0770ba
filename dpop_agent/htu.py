"""Target URIs: the `htu` of a proof from what a client is about to request.

Servers compare bytes, so only the authority is normalised, and query and fragment go (RFC 9449
section 4.2). Whatever two parsers could read differently is refused: a policy must see the host
that the client will connect to.
"""

from __future__ import annotations

import re

from dpop_agent.errors import HtuRefused

MAX_URI = 8 * 1024
"""Characters of a target URI; more than real servers take in a request line."""

MAX_PREFIX = 256
"""Characters of a path that stands for all below it."""

DECODED = 2
"""Times that servers and the proxies before them decode a path between them; more often is none's
honest doing."""

_VISIBLE = frozenset(map(chr, range(0x21, 0x7F)))
_DEFAULT_PORTS = {"https": 443, "http": 80}

# RFC 3986: what may stand in a path, `pchar` and "/"; percent signs only before two hex digits.
_PATH = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*")
_REG_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*\.?"
)
_DOT_SEGMENT = re.compile(r"/(?:\.|%2[Ee]){1,2}(?:/|\Z)")
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)\.?")


class Target:
    """A target URI, normalised.

    Attributes:
        htu: the claim's value.
        origin: scheme, host and port, as in `https://api.example.com` or `https://[::1]:8443`.
        cleartext: http to a host that isn't loopback.
    """

    __slots__ = ("cleartext", "htu", "origin")

    def __init__(self, htu: str, origin: str, *, cleartext: bool) -> None:
        self.htu = htu
        self.origin = origin
        self.cleartext = cleartext

    @property
    def path(self) -> str:
        """The path, as it goes on the wire."""
        return self.htu[len(self.origin) :]


def target(uri: str) -> Target:
    """Normalise `uri` as the client sends it on the wire.

    Raises:
        HtuRefused: not an absolute http or https URI that has one reading alone.
    """
    if len(uri) > MAX_URI:
        raise HtuRefused(
            f"the target URI has {len(uri)} characters, at most {MAX_URI} are accepted",
            hint="leave out the query: it isn't part of htu",
        )
    if not _VISIBLE.issuperset(uri):
        raise HtuRefused(
            "the target URI has white space, control or non-ASCII characters",
            hint="percent-encode the path, and give an international host as xn--…",
        )
    scheme, separator, rest = uri.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        raise HtuRefused(
            "the target URI isn't an absolute https or http URI",
            hint="give it as https://host/path",
        )
    rest = rest.partition("#")[0].partition("?")[0]
    authority, slash, path = rest.partition("/")
    path = slash + path or "/"
    host, loopback = _host(authority)
    port = _port(authority, scheme)
    if not _PATH.fullmatch(path):
        raise _not_a_path(path)
    if _DOT_SEGMENT.search(path):
        raise HtuRefused(
            "the target URI's path has a dot segment", hint="give the path without . and .."
        )
    origin = f"{scheme}://{host}{port}"
    return Target(origin + path, origin, cleartext=scheme == "http" and not loopback)


def _not_a_path(path: str) -> HtuRefused:
    """What is wrong with it, and what to write instead."""
    found = _PATH.match(path)
    assert found
    wrong = path[found.end()]
    if wrong == "%":
        return HtuRefused(
            "the target URI's path has a percent sign that begins no escape",
            hint="write a percent sign as %25",
        )
    if wrong == "\\":
        return HtuRefused(
            "the target URI's path has a backslash, which some parsers take for a slash",
            hint="write / between segments, and %5C where a backslash is meant",
        )
    return HtuRefused(
        f"the target URI's path has the character {wrong}, which RFC 3986 doesn't allow there",
        hint=f"write it as %{ord(wrong):02X}",
    )


def origin_of(uri: str) -> str:
    """The origin that `uri` names, for a list of allowed ones.

    Raises:
        HtuRefused: `uri` has a path, a query or a fragment, or isn't a URI that `target` takes.
    """
    if "://" not in uri:
        raise HtuRefused(
            "an origin begins with https:// or http://", hint="such as https://api.example.com"
        )
    if "*" in uri:
        raise HtuRefused("an origin has no wildcards", hint="name each server")
    found = target(uri)
    if found.htu != found.origin + "/" or "?" in uri or "#" in uri:
        raise HtuRefused(
            "an origin is a scheme, a host and perhaps a port, and nothing more",
            hint=f"give it as {found.origin}",
        )
    return found.origin


def reads_one_way(path: str) -> bool:
    """Whether a path keeps its segments, however a server reads it on.

    Servers and the proxies before them decode a path once or twice, cut parameters (`;…`) off its
    segments, merge slashes, take a backslash for one, end the path at a `?` or `#` that they
    decoded, and drop blanks, control characters or what isn't UTF-8. A path of which any of that
    would make another one doesn't. A slash at the end is fine: no segment follows it.
    """
    if not _keeps_segments(path):
        return False
    slashes = path.count("/")
    for _ in range(DECODED):
        decoded = _decoded(path)
        if decoded == path:
            return True
        if decoded is None or decoded.count("/") != slashes or not _keeps_segments(decoded):
            return False
        path = decoded
    return _decoded(path) == path


def _keeps_segments(path: str) -> bool:
    """Whether none of them is empty or made of dots alone, nothing stands in for a slash, and
    nothing ends the path.
    """
    if not path.isprintable() or any(c in path for c in "\\?#"):
        return False
    segments = path.removesuffix("/").split("/")[1:]
    return all(segment.partition(";")[0].strip(". ") for segment in segments)


def _decoded(path: str) -> str | None:
    """A path with its escapes decoded once; None if that isn't UTF-8.

    Letters that look like others count as those (NFKC): some file systems take them so.
    """
    if "%" not in path:
        return path
    from unicodedata import normalize
    from urllib.parse import unquote_to_bytes

    try:
        return normalize("NFKC", unquote_to_bytes(path).decode("utf-8"))
    except UnicodeDecodeError:
        return None


def path_prefix(text: str) -> str:
    """A path that stands for itself and all below it, as it goes on the wire.

    Raises:
        HtuRefused: no path begins so that has one reading alone.
    """
    if not text.startswith("/"):
        raise HtuRefused(
            "a path begins with a slash",
            hint="write it as in /api/v1; host and port are the origin's"
            if "://" in text
            else f"write it as in /{text if _PATH.fullmatch(text) else 'api/v1'}",
        )
    if len(text) > MAX_PREFIX:
        raise HtuRefused(
            f"the path has {len(text)} characters, at most {MAX_PREFIX} are accepted",
            hint="write the beginning of it: all below it is meant too",
        )
    if "?" in text or "#" in text:
        raise HtuRefused(
            "a path has no query and no fragment: a proof names neither",
            hint="leave out what comes from ? or # on",
        )
    if "*" in text and (text.endswith("/*") or "/*/" in text or "**" in text):
        raise HtuRefused(
            "a path has no wildcards: all below it is meant anyway",
            hint="leave out what comes from * on",
        )
    if not _PATH.fullmatch(text):
        raise _not_a_path(text)
    if text != "/" and text.endswith("/"):
        raise HtuRefused(
            "a path ends with no slash: it stands for itself and all below it",
            hint=f"write it as {text.rstrip('/') or '/'}",
        )
    if not reads_one_way(text):
        raise HtuRefused(
            "the path could be read in another way, so that it would match nothing: it has an "
            "empty segment, . or .., or an encoded slash, ? or #",
            hint="write it as in /api/v1",
        )
    return text


def is_below(path: str, prefix: str) -> bool:
    """Whether a path is the prefix, or below it by whole segments."""
    return path == prefix or path.startswith(prefix if prefix == "/" else f"{prefix}/")


def _host(authority: str) -> tuple[str, bool]:
    """The host in lower case, and whether it is this machine."""
    if "@" in authority:
        raise HtuRefused(
            "the target URI has a user name before its host", hint="leave out user and password"
        )
    if authority.startswith("["):
        literal, bracket, after = authority[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise HtuRefused(
                "the target URI's IPv6 address has no closing bracket", hint="write https://[::1]/"
            )
        return _ipv6(literal)
    host = authority.partition(":")[0].lower()
    if not _REG_NAME.fullmatch(host):
        raise HtuRefused(
            "the target URI's host isn't a plain name or address",
            hint="give the host as the server's certificate names it",
        )
    if _NUMERIC.fullmatch(host.rpartition(".")[2] or host.rstrip(".").rpartition(".")[2]):
        return _ipv4(host)
    return host, host == "localhost"


def _ipv4(host: str) -> tuple[str, bool]:
    # "0177.1", "2130706433" and "127.1" are 127.0.0.1 to some parsers and names to others.
    parts = host.split(".")
    if len(parts) != 4 or any(not p.isdigit() or int(p) > 255 or str(int(p)) != p for p in parts):
        raise HtuRefused(
            "the target URI's host is a number that isn't an IPv4 address",
            hint="write it with four parts, as in 127.0.0.1",
        )
    return host, parts[0] == "127"


def _ipv6(literal: str) -> tuple[str, bool]:
    import ipaddress

    try:
        address = ipaddress.IPv6Address(literal.replace("%", "-"))  # no zone ids
    except ValueError as e:
        raise HtuRefused(
            "the target URI's IPv6 address is malformed, or has a zone id",
            hint="write it as in https://[2001:db8::1]/",
        ) from e
    return f"[{literal.lower()}]", address == ipaddress.IPv6Address("::1")


def _port(authority: str, scheme: str) -> str:
    """`:port` where it isn't the scheme's own."""
    literal, _, after = authority.partition("]")
    digits = (after if literal.startswith("[") else authority).partition(":")[2]
    if not digits:
        return ""
    if not (digits.isascii() and digits.isdigit()) or digits[0] == "0" or int(digits[:6]) > 65535:
        raise HtuRefused(
            "the target URI's port isn't a number from 1 to 65535 without leading zeros",
            hint="write it as in https://host:8443/",
        )
    return "" if int(digits) == _DEFAULT_PORTS[scheme] else f":{digits}"
