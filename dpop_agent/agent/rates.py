"""How often proofs are given out: what is left of each rate. Pure: knows no clock."""

from __future__ import annotations

from collections.abc import Hashable

from dpop_agent.agent.rules import Rate


class Allowance:
    """What is left of a rate: its burst at first, filled up evenly (a token bucket).

    Attributes:
        rate: whose it is.
    """

    __slots__ = ("_at", "_left", "rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self._left = float(rate.burst)
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until a proof may be given out; 0 for now."""
        per_second = self.rate.per_minute / 60
        self._left = min(self.rate.burst, self._left + (now - self._at) * per_second)
        self._at = now
        return max(0.0, (1 - self._left) / per_second)

    def take(self) -> None:
        """One is given out, which was to be had right now."""
        self._left -= 1


class Rates:
    """The allowances of keys, or of sockets, by their names."""

    def __init__(self) -> None:
        self._allowances: dict[Hashable, Allowance] = {}

    def allowance(self, name: Hashable, rate: Rate, now: float) -> Allowance:
        """What is left of a rate; another rate than before begins full."""
        found = self._allowances.get(name)
        if found is None or found.rate != rate:
            found = self._allowances[name] = Allowance(rate, now)
        return found
