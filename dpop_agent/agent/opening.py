"""What opening a store takes: its settings as a frame, who types its PIN, when the next try is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from dpop_agent import __version__
from dpop_agent.config import StoreConfig
from dpop_agent.errors import Cancelled, DPoPAgentError, SignerFailed

log = logging.getLogger("dpop_agent.opening")

MIN_BACK_OFF_S, MAX_BACK_OFF_S = 0.25, 1.0
"""Seconds between restarts, doubled each time; the first restart is at once, and all of them come
with a request. A token that is back is used again within two seconds."""


class PinEntry(NamedTuple):
    """What somebody has to do for a store to open; nothing without a socket.

    `socket` is the path where the PIN is to be sent, or, with a `pad`, where the outcome is told of
    what is typed there.
    """

    socket: str | None = None
    pad: bool = False


class Unlocking(NamedTuple):
    """A start for which somebody may have to type.

    Attributes:
        folder: where the signer may make a socket.
        entry: who types, and where; known as soon as the place was found.
    """

    folder: str
    entry: asyncio.Future[PinEntry]

    @property
    def is_typed(self) -> bool:
        """Whether whoever asked was sent to type: what came of it, no answer says."""
        entry = self.entry
        failed = not entry.done() or entry.cancelled() or entry.exception() is not None
        return not failed and entry.result().socket is not None

    def interrupt(self) -> None:
        """Tell whoever waits that the start is over, if it didn't come so far."""
        if not self.entry.done():
            self.entry.set_exception(Cancelled("the unlocking was interrupted"))


class BackOff:
    """How long it is until the next try.

    `longest_s` is the longest pause, in seconds; None for what whoever waits can bear.
    """

    def __init__(self, longest_s: float | None = None) -> None:
        self._longest_s = longest_s
        self._failures = 0
        self._until = 0.0

    def __bool__(self) -> bool:
        return self._failures > 0

    def failed(self, now: float, *, at_least_s: float = 0.0) -> None:
        """One more try came to nothing."""
        longest_s = MAX_BACK_OFF_S if self._longest_s is None else self._longest_s
        wait_s = max(at_least_s, min(longest_s, MIN_BACK_OFF_S * 2**self._failures))
        self._failures = min(self._failures + 1, 16)
        self._until = now + wait_s

    def left_s(self, now: float) -> float:
        """Seconds until the next try may be made; not positive if it may now."""
        return self._until - now

    def over(self) -> None:
        """It works."""
        self._failures = 0


def open_frame(
    config: StoreConfig, *, lock_file: str, attended: bool, heir: bool = False
) -> dict[str, Any]:
    """The frame that has a signer open its store.

    Args:
        config: the store.
        lock_file: keeps it apart from an earlier agent's signers of the store.
        attended: a person asked for it.
        heir: another signer of the store hands it what opens that.
    """
    pin = config.pin_source
    settings = {
        "name": config.name,
        "type": config.type,
        "backend": config.backend,
        "module": config.module,
        "module_args": config.module_args,
        "verify": config.verify,
        "uri": str(config.uri),
        "pin_kind": pin and pin.kind,
        "pin_argument": pin and pin.argument,
        "login_retries": config.login_retries,
        "signers": config.signers,
    }
    return {
        "op": "open",
        "attended": attended,
        "version": __version__,
        "lock": lock_file,
        "heir": heir,
        "store": settings,
    }


def why_not_open(e: Exception, store: str) -> DPoPAgentError:
    """What is told where a store couldn't be opened; what nobody foresaw goes to the log."""
    if isinstance(e, DPoPAgentError):
        return e
    if isinstance(e, OSError):
        return SignerFailed(f"no signer process could be started ({e.strerror})")
    log.error("unexpected error while opening the store %s", store, exc_info=e)
    return SignerFailed("the agent met an unexpected error", hint="see its log")


@asynccontextmanager
async def at_most(seconds: float, lock: asyncio.Lock) -> AsyncIterator[None]:
    """Hold a lock; after waiting for so long, go on without."""
    try:
        # Not wait_for: on Python 3.11 it may swallow the cancelling of whoever waits.
        async with asyncio.timeout(seconds):
            await lock.acquire()
    except TimeoutError:
        yield
        return
    try:
        yield
    finally:
        lock.release()
