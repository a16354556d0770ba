"""Which token endpoints get proofs, and the refresh tokens that they gave. Pure.

A token endpoint can't be listed beforehand: an MCP client finds it out. It is taken if a listed
server's metadata (RFC 9728) names an issuer, and that issuer's own metadata (RFC 8414, or OpenID
Connect's) names the endpoint; both came by the transport that asks here, each from where it has to
come from. A listed origin's own endpoints are taken as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpop_agent.client.hop import Origins
from dpop_agent.client.refusal import challenges
from dpop_agent.errors import HtuRefused
from dpop_agent.htu import target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

MAX_REMEMBERED = 64
"""Of each kind: a server that names ever new ones has the oldest forgotten."""

_WELL_KNOWN = "/.well-known/"  # RFC 8615


class Discovered(Origins):
    """The listed origins, and the token endpoints that they lead to."""

    __slots__ = ("_endpoints", "_issuers", "_places")

    def __init__(self, origins: Iterable[str]) -> None:
        super().__init__(origins)
        self._places: dict[str, None] = {}
        self._issuers: dict[str, None] = {}
        self._endpoints: dict[str, None] = {}

    def lists(self, uri: str) -> bool:
        """Whether that is at a listed origin."""
        return super().has(uri)

    def has(self, authority: str) -> bool:
        """Whether a server gets proofs: a listed one, or that of a token endpoint."""
        origin = _origin(authority)
        return super().has(authority) or origin in map(_origin, self._endpoints)

    def takes_token_requests(self, uri: str) -> bool:
        """Whether that is a token endpoint to sign for."""
        return self.lists(uri) or _htu(uri) in self._endpoints

    def heard(self, uri: str, www_authenticate: Iterable[str]) -> None:
        """Take what a listed server's challenge says of where its metadata is (RFC 9728 5.1)."""
        if not self.lists(uri):
            return
        for header in www_authenticate:
            for _, params in challenges(header):
                if (place := _htu(params.get("resource_metadata", ""))) is not None:
                    _remember(self._places, place)

    def expects(self, uri: str) -> bool:
        """Whether what is there may be such metadata."""
        htu = _htu(uri)
        return htu is not None and (htu in self._places or _WELL_KNOWN in htu)

    def learn(self, uri: str, members: Mapping[str, Any]) -> None:
        """Take the metadata that was at a place.

        Args:
            uri: the place.
            members: the JSON object.
        """
        resource, servers = members.get("resource"), members.get("authorization_servers")
        known_place = self.lists(uri) or _htu(uri) in self._places
        if isinstance(resource, str) and isinstance(servers, list):
            for server in servers if known_place and self.lists(resource) else ():
                if isinstance(server, str):
                    _remember(self._issuers, _issuer(server))
        issuer, endpoint = members.get("issuer"), members.get("token_endpoint")
        if isinstance(issuer, str) and isinstance(endpoint, str):
            named = _issuer(issuer) in self._issuers or self.lists(issuer)
            # RFC 8414 section 3: an issuer's metadata is at its own host.
            at_home = _origin(issuer) == _origin(uri) is not None
            if named and at_home and (htu := _htu(endpoint)) is not None:
                _remember(self._endpoints, htu)


def _issuer(text: str) -> str:
    # Libraries write an issuer without path with a slash at its end, and without.
    return text.removesuffix("/")


def _htu(uri: str) -> str | None:
    try:
        return target(uri).htu
    except HtuRefused:
        return None


def _origin(uri: str) -> str | None:
    try:
        return target(uri).origin
    except HtuRefused:
        return None


def _remember(known: dict[str, None], name: str) -> None:
    known.pop(name, None)
    known[name] = None
    if len(known) > MAX_REMEMBERED:
        del known[next(iter(known))]
