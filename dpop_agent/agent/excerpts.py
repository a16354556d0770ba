"""The records as a filtered socket shows them: its keys, what it allows of them, its own uses."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from dpop_agent.agent.filters import Filter
from dpop_agent.agent.keys import Key, Keys
from dpop_agent.agent.records import Records
from dpop_agent.agent.rules import Rule
from dpop_agent.agent.uses import Seen, Use


class _Keys(Keys):
    def way_to_one(self, name: str) -> str:  # noqa: ARG002  (one signature)
        return "its owner can add another socket: dpop-agent socket add NAME --key KEY"


_NONE: Keys = _Keys()


class Excerpt:
    """What proofs and views of a filtered socket have instead of the records.

    Once its socket is removed or its time is over there is no key in it, so nothing that is under
    way leaves the agent either.

    Attributes:
        uses: of its keys, on this socket, since it opened.
        has_expired: its socket's time was over when somebody looked, whatever a clock says since.
    """

    def __init__(self, records: Records, name: str) -> None:
        self._records = records
        self._name = name
        self._filter: Filter | None = None
        self._sockets: Mapping[str, Filter] = {}
        self._whole = _NONE
        self._shown: dict[str, tuple[Key, Key | Rule]] = {}
        self._keys: Keys = _NONE
        self._closed = False
        self.has_expired = False
        self.uses: dict[str, Use] = {}

    @property
    def keys(self) -> Keys:
        """Its keys; the same object until one of them changes."""
        records = self._records
        if records.keys is not self._whole or records.sockets is not self._sockets:
            self._look()
        return _NONE if self.is_over else self._keys

    @property
    def is_over(self) -> bool:
        """Whether its socket gives nothing any more, whatever a clock says later."""
        if self._closed:
            return True
        found = self._filter
        if found is not None and found.expires_at is not None:
            self._closed = self.has_expired = found.is_over(time.time(), self._records.now_s)
        return self._closed

    def close(self) -> None:
        """There is no key in it from now on."""
        self._closed = True

    def _look(self) -> None:
        records = self._records
        self._whole, self._sockets = records.keys, records.sockets
        found = self._filter = self._sockets.get(self._name)
        before, shown = self._shown, dict[str, tuple[Key, Key | Rule]]()
        if found is not None:
            for key in found.keys_of(self._whole):
                known = before.get(key.name)
                shown[key.name] = known if known and known[0] is key else (key, found.of(key))
        self._shown = shown
        if len(shown) != len(before) or any(before.get(n) is not it for n, it in shown.items()):
            self._keys = _Keys(key for _, key in shown.values() if isinstance(key, Key))

    @property
    def seen(self) -> Seen:
        """What the agent was there to see, until now: drains are everybody's."""
        return self._records.seen

    @property
    def rotations_due(self) -> Sequence[str]:
        """Those of its keys whose rotation was due when somebody looked last."""
        return [name for name in self._records.rotations_due if name in self.keys]

    @property
    def destroyed(self) -> Sequence[str]:
        """Those of its keys that were destroyed then."""
        return [name for name in self._records.destroyed if name in self.keys]

    def used(self, jkt: str, origin: str) -> None:
        """Note that a generation signed for an origin."""
        self._records.used(jkt, origin)
        self._records.note(self.uses, jkt, origin)
