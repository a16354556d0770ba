"""What a filtered socket gives: some keys, by rules of its own, for a while. Pure.

A request on one gets a proof if the key's rules and the socket's let it. What its clients see of a
key is what both leave of it, so that they learn nothing of what others may do with that key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from dpop_agent.agent.keys import Key, Keys
from dpop_agent.agent.rules import ANYTHING, Rule, Rules


@dataclass(frozen=True, slots=True)
class Filter:
    """What a filtered socket gives.

    Attributes:
        name: the socket's.
        keys: the names of the keys that it is for.
        created: when it was added, RFC 3339 UTC.
        rules: its own, beside the keys'.
        gone: of its keys those that were forgotten since; another key of that name isn't meant.
        expires_at: until when, in seconds since 1970; None: until it is removed.
        expires_s: the same by the agent's own clock; whichever comes first ends it.
        with_connection: only while the connection is there that added it; not kept over a restart.
    """

    name: str
    keys: tuple[str, ...]
    created: str
    rules: Rules = ANYTHING
    gone: tuple[str, ...] = ()
    expires_at: int | None = None
    expires_s: int | None = None
    with_connection: bool = False

    def is_over(self, now: float, now_s: int) -> bool:
        """Whether its time is over, by the wall clock or by the agent's own."""
        return (self.expires_at is not None and now >= self.expires_at) or (
            self.expires_s is not None and now_s >= self.expires_s
        )

    def keys_of(self, keys: Keys) -> Iterator[Key]:
        """Those of its keys that are there, as they are for everybody."""
        for name in self.keys:
            if name in keys and name not in self.gone:
                yield keys[name]

    def without(self, forgotten: Collection[str]) -> Filter:
        """This one after keys were forgotten."""
        gone = tuple(name for name in self.keys if name in forgotten and name not in self.gone)
        return replace(self, gone=(*self.gone, *gone)) if gone else self

    def of(self, key: Key) -> Key | Rule:
        """A key as it is there, narrowed by this one's rules; or the rule that leaves nothing."""
        rules = key.rules.narrowed(self.rules)
        return rules if isinstance(rules, Rule) else replace(key, rules=rules)
