"""A person's consent to proofs of keys that want it: asked for, kept for a while, refused for one.

One question at a time, whoever asks. After any answer but yes nobody is asked by that socket's
clients for a while, whatever they want: else somebody who asks often enough gets a yes by mistake.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from math import ceil
from typing import Literal, NamedTuple

from dpop_agent import durations
from dpop_agent.agent.asking import NotAgreed, asker
from dpop_agent.agent.background import Background
from dpop_agent.agent.keys import Key
from dpop_agent.agent.queue import Flow
from dpop_agent.agent.rules import Rule
from dpop_agent.errors import AgentUnavailable, ConsentRefused, DPoPAgentError, ProtocolError

log = logging.getLogger("dpop_agent.consent")

ANSWER_S = 55.0
"""Seconds that somebody has for an answer: less than clients wait for a person (60), so that there
is time left for the signature."""

TURN_S = 55.0
"""Seconds that a request waits for others' questions to be answered."""

QUIET_S = 30.0
"""Seconds after any answer but yes in which nobody is asked on that socket's behalf."""

Ask = Callable[[str], Awaitable[None]]
"""Puts a question to a person; raises NotAgreed for any answer but yes."""


class Wish(NamedTuple):
    """What somebody is asked for.

    Attributes:
        key: the key that is to sign, as it is now: once it changed, no consent holds for it.
        locks: its store, and how often that was locked: after one more, none holds either.
        origin: which server the proof is for.
        htm: with which method.
        pid: who asks; 0 where that can't be told.
        flow: on which connection.
    """

    key: Key
    locks: tuple[Hashable, int]
    origin: str
    htm: str
    pid: int
    flow: Flow

    @property
    def question(self) -> str:
        """As a person is asked it, in lines."""
        holds = ""
        if self.key.rules.confirm_s:
            holds = (
                f"\n\nA yes holds for {durations.text(self.key.rules.confirm_s)}, for every method."
            )
        return (
            f"Sign a proof with the key {self.key.name}?\n\n"
            f"{self.htm} at {self.origin}\n"
            f"It seems to be asked for by {asker(self.pid)}. That is a hint alone: programs can "
            f"pose as others.{holds}"
        )


class _Held(NamedTuple):
    key: Key
    locks: tuple[Hashable, int]
    until: float


class _Quiet(NamedTuple):
    why: str
    until: float


class Consents:
    """Which consents hold, and who is asked next.

    Args:
        ask: puts a question to a person.
        background: holds what waits for the answer.
        now: the time, in seconds that never go back.
    """

    def __init__(self, ask: Ask, background: Background, now: Callable[[], float]) -> None:
        self._ask = ask
        self._background = background
        self._now = now
        self._held: dict[tuple[str, str, Flow], _Held] = {}
        self._quiet: dict[Flow, _Quiet] = {}
        self._asking = asyncio.Lock()
        self._tasks: dict[Flow, set[asyncio.Task[None]]] = {}

    def holds(self, wish: Wish) -> bool:
        """Whether somebody agreed to that before, for long enough."""
        held = self._held.get(_matter(wish))
        return (
            held is not None
            and held.key is wish.key
            and held.locks == wish.locks
            and self._now() < held.until
        )

    def start(
        self,
        wish: Wish,
        *,
        announce: Callable[[], None],
        then: Callable[[DPoPAgentError | None], None],
    ) -> None:
        """Have a person asked, unless the connection goes meanwhile.

        Args:
            wish: what for.
            announce: called when it begins to wait for others' questions, and for its own.
            then: called with None for a yes, or with the refusal.
        """
        task = self._background.start(self._agree(wish, announce))
        tasks = self._tasks.setdefault(wish.flow, set())
        tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not tasks:
                self._tasks.pop(wish.flow, None)
            then(_outcome(task))

        task.add_done_callback(ended)

    def drop(self, connection: Flow) -> None:
        """A connection has gone: nobody is asked on its behalf any more."""
        for task in self._tasks.get(connection, ()):
            task.cancel()

    async def _agree(self, wish: Wish, announce: Callable[[], None]) -> None:
        self._require_not_quiet(wish)
        announce()
        try:
            async with asyncio.timeout(TURN_S):
                await self._asking.acquire()
        except TimeoutError:
            why = "others were being asked all the time"
            raise _refused(wish, why, hint="try again", retry="later") from None
        try:
            if self.holds(wish):  # since somebody agreed who was asked before
                return
            self._require_not_quiet(wish)
            announce()
            log.info("asking for consent to a proof by %s for %s", wish.key.name, wish.origin)
            await self._ask(wish.question)
        except NotAgreed as e:
            self._quiet[_socket(wish.flow)] = _Quiet(e.why, self._now() + QUIET_S)
            raise _refused(wish, e.why, hint=e.hint) from e
        else:
            self._agreed(wish)
        finally:
            self._asking.release()

    def _agreed(self, wish: Wish) -> None:
        now = self._now()
        self._held = {matter: held for matter, held in self._held.items() if held.until > now}
        if wish.key.rules.confirm_s:
            until = now + wish.key.rules.confirm_s
            self._held[_matter(wish)] = _Held(wish.key, wish.locks, until)

    def _require_not_quiet(self, wish: Wish) -> None:
        quiet, now = self._quiet.get(_socket(wish.flow)), self._now()
        if quiet is None or quiet.until <= now:
            return
        left_s = quiet.until - now
        raise _refused(
            wish,
            f"nobody is asked again for {ceil(left_s)} s: last time {quiet.why}",
            hint="try again then",
            retry="later",
            retry_after_ms=ceil(left_s * 1000),
        )


def _outcome(task: asyncio.Task[None]) -> DPoPAgentError | None:
    """The refusal that a question came to, or None for a yes."""
    if task.cancelled():
        return AgentUnavailable("the agent is ending")
    error = task.exception()
    if error is None or isinstance(error, DPoPAgentError):
        return error
    log.error("unexpected error while asking for consent", exc_info=error)
    return ProtocolError("the agent met an unexpected error")


def _refused(
    wish: Wish,
    why: str,
    *,
    hint: str,
    retry: Literal["no", "later"] = "no",
    retry_after_ms: int | None = None,
) -> ConsentRefused:
    return ConsentRefused(
        f"the key {wish.key.name} wants a person's consent, and {why}",
        hint=hint,
        retry=retry,
        retry_after_ms=retry_after_ms,
        details={"rule": Rule.CONFIRM.value},
    )


def changed_meanwhile(key: Key) -> ConsentRefused:
    """The refusal where a key isn't any more what somebody was asked about."""
    return ConsentRefused(
        f"the key {key.name} was changed meanwhile, and wants a person's consent anew",
        hint="try again",
        retry="now",
        details={"rule": Rule.CONFIRM.value},
    )


def _matter(wish: Wish) -> tuple[str, str, Flow]:
    return wish.key.name, wish.origin, _socket(wish.flow)


def _socket(flow: Flow) -> Flow:
    """Whose uid's and which socket's a connection is."""
    return flow[:-1]
