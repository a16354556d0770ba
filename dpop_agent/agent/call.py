"""A request on its way: what is asked, who asks, and where the answer goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from dpop_agent.agent.keys import Generation, Key
from dpop_agent.agent.queue import Flow
from dpop_agent.agent.trails import Trace
from dpop_agent.errors import DPoPAgentError
from dpop_agent.protocol import Request

log = logging.getLogger("dpop_agent.call")

Respond = Callable[[dict[str, Any] | bytes | DPoPAgentError], None]


class Peer(Protocol):
    """The connection that a request came on."""

    @property
    def flow(self) -> Flow:
        """Whose turns its requests take."""

    @property
    def client(self) -> str:
        """Who is at its other end, for the log."""

    @property
    def trace(self) -> Trace:
        """What it leaves in the audit."""

    def introduce(self, name: str) -> None:
        """Note who its client says that it is."""

    def subscribe(self, events: Iterable[str]) -> None:
        """Be told of these events, and of no others."""

    def tell(self, event: str, params: Mapping[str, Any]) -> None:
        """Send what answers no request, if it was subscribed to."""


class Call:
    """One request.

    Attributes:
        request: as `protocol.decode_request` checked it.
        params: its parameters.
        owner: the connection that waits for the answer.
        respond: takes the result, as JSON where it is that already, or the error; called once.
        began: when it was taken in, by time.monotonic.
    """

    __slots__ = ("began", "owner", "params", "request", "respond")

    def __init__(self, request: Request, owner: Peer, respond: Respond, began: float) -> None:
        self.request = request
        self.params = request.params
        self.owner = owner
        self.respond = respond
        self.began = began

    def on_touch(self, key: Key, generation: Generation) -> Callable[[], None] | None:
        """What announces that the request waits for a touch; None if it never does."""
        if not key.may_want_touch(generation):
            return None

        def announce() -> None:
            log.info(
                "%s@%d waits for a touch, in the store %s",
                key.name,
                generation.generation,
                key.store,
            )
            self.owner.tell("touch", self._waits_for(key, generation))

        return announce

    def tell_that_a_person_is_asked(self, key: Key, generation: Generation) -> None:
        """Announce that the request waits for a person's consent, or for others' questions."""
        self.owner.tell("touch", self._waits_for(key, generation) | {"consent": True})

    def _waits_for(self, key: Key, generation: Generation) -> dict[str, Any]:
        return {
            "id": self.request.id,
            "key": key.name,
            "jkt": generation.jkt,
            "store": key.store,
        }
