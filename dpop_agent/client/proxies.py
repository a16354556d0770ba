"""Which proxy the environment names for a URL, by the rules that httpx's clients have.

A client that is given a transport asks the environment no more, so a transport has to.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple


class _Excluded(NamedTuple):
    """What an entry of NO_PROXY leaves out; None and "" stand for any."""

    scheme: str
    host: str | IPv4Network | IPv6Network
    port: int | None
    below: bool  # whether hosts below that one are left out too

    def has(self, scheme: str, host: str, port: int | None) -> bool:
        if self.scheme not in ("", "all", scheme) or self.port not in (None, port):
            return False
        if not isinstance(self.host, str):
            return _is_ip(host) and ip_address(host) in self.host
        if self.below and host.endswith("." + self.host.removeprefix(".")):
            return True
        return host == self.host


class EnvironmentProxies:
    """HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, as they were when this was made.

    Attributes:
        urls: of all proxies.
    """

    def __init__(self) -> None:
        from urllib.request import getproxies

        found = getproxies()
        entries = [entry.strip().lower() for entry in found.get("no", "").split(",")]
        self._by_scheme = {
            scheme: url if "://" in url else f"http://{url}"
            for scheme in ("http", "https", "all")
            if (url := found.get(scheme)) and "*" not in entries
        }
        self._excluded = [_excluded(entry) for entry in entries if entry]
        self.urls = set(self._by_scheme.values())

    def of(self, scheme: str, host: str, port: int | None) -> str | None:
        """The proxy for a server; None where there is none.

        Args:
            scheme: `http` or `https`.
            host: without brackets.
            port: None for the scheme's own.
        """
        if any(each.has(scheme, host, port) for each in self._excluded):
            return None
        return self._by_scheme.get(scheme) or self._by_scheme.get("all")


def _excluded(entry: str) -> _Excluded:
    try:
        return _Excluded("", ip_network(entry, strict=False), None, below=False)
    except ValueError:
        pass
    scheme, separator, rest = entry.rpartition("://")
    address = rest.partition("/")[0]
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdigit()):
        host, port = address, ""
    host = host.removeprefix("[").removesuffix("]")
    exact = _is_ip(host) or host == "localhost" or (bool(separator) and not host.startswith("*"))
    host = host.removeprefix("*")
    return _Excluded(scheme, host, int(port) if port else None, below=not exact)


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
