"""When generations signed and for whom, and what time the agent was there to see. Pure.

Time is counted on a clock of the agent's own: the seconds that it was there, in all its runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dpop_agent.agent.keys import Generation

MAX_FIRST = MAX_LAST = 16
"""Origins remembered of one generation, the first that it signed for and the last others: whoever
has it sign for origins that there aren't pushes only the latter out, and that is counted. Together
they fit an answer's line, however long they are."""


@dataclass(frozen=True, slots=True)
class Use:
    """What is remembered of one generation's signatures.

    Attributes:
        at: when the last was, RFC 3339 UTC; None if that isn't known.
        at_s: the same by the agent's own clock.
        first: the origins that it signed for first, with when last.
        last: others, the ones used last, the latest at the end.
        left_out: how often one was pushed out of `last`.
    """

    at: str | None
    at_s: int
    first: Mapping[str, str] = field(default_factory=dict)
    last: Mapping[str, str] = field(default_factory=dict)
    left_out: int = 0

    def is_noted(self, origin: str, at_s: int) -> bool:
        """Whether one more signature then would change nothing: times are whole seconds."""
        if at_s != self.at_s or self.at is None:
            return False
        if self.first.get(origin) == self.at:
            return True
        return self.last.get(origin) == self.at and [*self.last][-1] == origin

    def signed(self, origin: str, at: str, at_s: int) -> Use:
        """After one more signature."""
        if origin in self.first or len(self.first) < MAX_FIRST:
            return replace(self, at=at, at_s=at_s, first={**self.first, origin: at})
        last = {o: t for o, t in self.last.items() if o != origin} | {origin: at}
        if len(last) <= MAX_LAST:
            return replace(self, at=at, at_s=at_s, last=last)
        del last[next(iter(last))]
        return replace(self, at=at, at_s=at_s, last=last, left_out=self.left_out + 1)

    @property
    def origins(self) -> dict[str, str]:
        """All that are remembered, with when last."""
        return {**self.first, **self.last}

    def buried(self) -> Use:
        """What stays when the generation is destroyed."""
        return Use(self.at, self.at_s)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the agent was there to see, until now.

    Attributes:
        now_s: its own clock.
        unclean_s: where that stood at the last start after an end that wasn't in order: for all
            that is known, everything was used until then. None: there was none.
        uses: by jkt, what signed.
    """

    now_s: int
    unclean_s: int | None = None
    uses: Mapping[str, Use] = field(default_factory=dict)

    def in_state_s(self, generation: Generation) -> int:
        """Seconds that a generation was seen to be in its state."""
        return max(0, self.now_s - generation.since_s)

    def idle_s(self, generation: Generation) -> int:
        """Those since it last signed."""
        since = generation.since_s
        if self.unclean_s is not None:
            since = max(since, self.unclean_s)
        use = self.uses.get(generation.jkt)
        if use is not None:
            since = max(since, use.at_s)
        return max(0, self.now_s - since)
