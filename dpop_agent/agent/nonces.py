"""Servers' nonces and clocks by origin (RFC 9449 section 8).

Clients of `agent.sock` share them. A filtered socket has its own: what its clients say of a server
goes into nobody else's proofs, and what others say of one into none of theirs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

MAX_ORIGINS = 1024
"""Origins remembered; the one heard of longest ago goes first."""

MAX_ORIGINS_THERE = 64
"""Those of a filtered socket: as many as it can name."""

NONCE_LIFETIME_S = 24 * 3600.0
"""Seconds: the longest life of a nonce that is known of (Okta's)."""

MAX_BACKDATING_S = 300.0
"""Seconds that `iat` may go back for a server whose clock is behind; never forward: a proof for
later is a proof in stock."""

MIN_BACKDATING_S = 2.0
"""Seconds: a Date header has whole ones and is old when it arrives; less isn't a difference."""


DOUBTFUL_S = 120.0
"""Seconds after which a nonce that nobody heard of since may have run out: the shortest life that
was seen is 165 (Bluesky's), and one that is heard of late is older."""


@dataclass(slots=True)
class Server:
    """What one origin said last; times as `time.monotonic` gives them, offsets in seconds."""

    nonce: str | None = None
    wants_nonce: bool = False
    nonce_at: float = 0.0
    clock_offset_s: float | None = None
    iat_refused_at: float | None = None


class Nonces:
    """What servers said, in memory alone; of so many of them at most."""

    def __init__(self, max_origins: int = MAX_ORIGINS) -> None:
        self._max_origins = max_origins
        self._servers: OrderedDict[str, Server] = OrderedDict()

    def observe(
        self,
        origin: str,
        *,
        nonce: str | None,
        clock_offset_s: float | None,
        now: float,
        refused_nonce: str | None = None,
        iat_refused: bool = False,
    ) -> None:
        """Remember what an origin's answer said.

        Args:
            origin: whose answer.
            nonce: the one for the next request.
            clock_offset_s: seconds that its clock is ahead of this machine's.
            now: when that was heard.
            refused_nonce: one that it takes no more; without a newer one there is none.
            iat_refused: it refused a proof, perhaps for its `iat`.
        """
        server = self._servers.setdefault(origin, Server())
        self._servers.move_to_end(origin)
        if refused_nonce is not None and refused_nonce == server.nonce:
            server.nonce = None
        if iat_refused:
            server.iat_refused_at = now
        if nonce is not None:
            server.nonce, server.nonce_at, server.wants_nonce = nonce, now, True
        if clock_offset_s is not None:
            server.clock_offset_s = clock_offset_s
        if len(self._servers) > self._max_origins:
            self._servers.popitem(last=False)

    def told(self, origin: str, now: float) -> tuple[str | None, float]:
        """The nonce to use there, if there is one, and the seconds to take off `iat`, 0 to 300."""
        server = self._servers.get(origin)
        if server is None:
            return None, 0.0
        nonce = server.nonce if now - server.nonce_at <= NONCE_LIFETIME_S else None
        behind_s = -(server.clock_offset_s or 0.0)
        fits = MIN_BACKDATING_S <= behind_s <= MAX_BACKDATING_S
        return nonce, behind_s if fits else 0.0

    def is_doubtful(self, origin: str, now: float) -> bool:
        """Whether a request there may well be refused for its nonce, or for having none."""
        server = self._servers.get(origin)
        if server is None:
            return True
        if server.nonce is None:
            return server.wants_nonce
        return now - server.nonce_at > DOUBTFUL_S

    def __len__(self) -> int:
        return len(self._servers)

    def __iter__(self) -> Iterator[tuple[str, Server]]:
        return iter(self._servers.items())
