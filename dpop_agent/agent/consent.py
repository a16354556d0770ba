"""A person's consent to proofs of keys that want it: asked for, kept for a while, refused for one.

One question at a time, whoever asks; sockets take turns. After any answer but yes nobody is asked
by that socket's clients for a while, whatever they want: else somebody who asks often enough gets a
yes by mistake. A question that is withdrawn while it is shown counts as a no.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Literal, NamedTuple

from dpop_agent import durations
from dpop_agent.agent.asking import NotAgreed, asker
from dpop_agent.agent.background import Background
from dpop_agent.agent.keys import Key
from dpop_agent.agent.queue import FairQueue, Flow, socket_part
from dpop_agent.agent.records import boottime
from dpop_agent.agent.rules import Rule
from dpop_agent.errors import (
    AgentUnavailable,
    Cancelled,
    ConsentRefused,
    DPoPAgentError,
    ProtocolError,
)

log = logging.getLogger("dpop_agent.consent")

ANSWER_S = 55.0
"""Seconds that somebody has for an answer: less than clients wait for a person (60), so that there
is time left for the signature."""

TURN_S = 55.0
"""Seconds that a request waits for others' questions to be answered."""

QUIET_S = 30.0
"""Seconds after any answer but yes in which nobody is asked on that socket's behalf."""

MAX_QUESTIONS = 8
"""Questions of one socket's clients, the one that is asked among them: nobody answers more in
TURN_S. Those who want what one yes is good for share one."""

Ask = Callable[[str], Awaitable[None]]
"""Puts a question to a person; raises NotAgreed for any answer but yes."""


class Wish(NamedTuple):
    """What somebody is asked for.

    Attributes:
        key: the key that is to sign, as it is now: once it changed, no consent holds for it.
        locks: its store, and how often that was locked: after one more, none holds either.
        origin: which server the proof is for.
        htm: with which method.
        process: gives the pid of who asks; 0 where that can't be told, or once it has ended.
        flow: on which connection.
        socket: the name of the filtered socket that it came by, if it was one.
    """

    key: Key
    locks: tuple[Hashable, int]
    origin: str
    htm: str
    process: Callable[[], int]
    flow: Flow
    socket: str | None = None

    @property
    def question(self) -> str:
        """As a person is asked it, in lines."""
        holds = ""
        if self.key.rules.confirm_s:
            holds = (
                f"\n\nA yes holds for {durations.text(self.key.rules.confirm_s)}, for every method."
            )
        by = "" if self.socket is None else f"by the filtered socket {self.socket}\n"
        return (
            f"Sign a proof with the key {self.key.name}?\n\n"
            f"{self.htm} at {self.origin}\n{by}"
            f"It seems to be asked for by {asker(self.process())}. That is a hint alone: programs "
            f"can pose as others.{holds}"
        )


class _Held(NamedTuple):
    key: Key
    locks: tuple[Hashable, int]
    until: float


class _Quiet(NamedTuple):
    why: str
    until: float


class _Turn(NamedTuple):
    """A wish that waits: `came` is set to True once it is its turn, to False once it needs none."""

    wish: Wish
    came: asyncio.Future[bool]


class Consents:
    """Which consents hold, and who is asked next.

    Args:
        ask: puts a question to a person.
        background: holds what waits for the answer.
        now: the time, in seconds that never go back, and go on while the machine sleeps.
    """

    def __init__(
        self, ask: Ask, background: Background, now: Callable[[], float] = boottime
    ) -> None:
        self._ask = ask
        self._background = background
        self._now = now
        self._held: dict[tuple[str, str, Flow], _Held] = {}
        self._quiet: dict[Flow, _Quiet] = {}
        self._is_asking = False
        self._waiting: FairQueue[_Turn] = FairQueue()
        self._questions: dict[Flow, Counter[Hashable]] = {}  # by socket, how many want each
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
        self._tasks.setdefault(wish.flow, set()).add(task)

        def ended(task: asyncio.Task[None]) -> None:
            tasks = self._tasks.get(wish.flow, set())
            has_gone = task not in tasks
            tasks.discard(task)
            if not tasks:
                self._tasks.pop(wish.flow, None)
            then(_outcome(wish, task, has_gone=has_gone))

        task.add_done_callback(ended)

    def drop(self, connection: Flow) -> None:
        """A connection has gone: nobody is asked on its behalf any more."""
        self._waiting.drop(connection)
        for task in self._tasks.pop(connection, ()):
            task.cancel()

    async def _agree(self, wish: Wish, announce: Callable[[], None]) -> None:
        self._require_not_quiet(wish)
        with self._one_of_few(wish):
            announce()
            is_turn = await self._turn(wish)
            try:
                if self.holds(wish):  # since somebody agreed who was asked before
                    return
                self._require_not_quiet(wish)
                if not is_turn:  # what decided it was over at that very moment
                    raise changed_meanwhile(wish.key)
                announce()
                await self._put(wish)
            finally:
                if is_turn:
                    self._pass_on()

    @contextmanager
    def _one_of_few(self, wish: Wish) -> Iterator[None]:
        """Count its question, unless the socket has as many as it may.

        Raises:
            ConsentRefused
        """
        socket = socket_part(wish.flow)
        questions = self._questions.setdefault(socket, Counter())
        question = _matter(wish) if wish.key.rules.confirm_s else object()
        if len(questions) >= MAX_QUESTIONS and question not in questions:
            why = f"{MAX_QUESTIONS} other questions from this socket wait for one"
            hint = "try again later, with fewer at once"
            raise _refused(wish, why, hint=hint, retry="later")
        questions[question] += 1
        try:
            yield
        finally:
            questions[question] -= 1
            if not questions[question]:
                del questions[question]
            if not questions:
                del self._questions[socket]

    async def _turn(self, wish: Wish) -> bool:
        """Wait until it can be asked; False: an answer to somebody else decided it.

        Raises:
            ConsentRefused: its turn didn't come.
        """
        if not self._is_asking:
            self._is_asking = True
            return True
        came: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.push(wish.flow, _Turn(wish, came), fresh=False)
        try:
            async with asyncio.timeout(TURN_S):
                return await came
        except (TimeoutError, asyncio.CancelledError) as e:
            if came.done() and not came.cancelled() and came.result():  # at that very moment
                self._pass_on()
            if isinstance(e, asyncio.CancelledError):
                raise
            why = "others were being asked all the time"
            raise _refused(wish, why, hint="try again", retry="later") from None

    def _pass_on(self) -> None:
        """Whoever is next can be asked, and whoever needn't be any more goes on."""
        over = self._waiting.take(lambda turn: turn.came.done() or self._is_decided(turn.wish))
        for turn in over:
            if not turn.came.done():
                turn.came.set_result(False)
        if self._waiting.size:
            self._waiting.pop().came.set_result(True)
        else:
            self._is_asking = False

    async def _put(self, wish: Wish) -> None:
        """Have a person asked.

        Raises:
            ConsentRefused
        """
        log.info("asking for consent to a proof by %s for %s", wish.key.name, wish.origin)
        try:
            await self._ask(wish.question)
        except NotAgreed as e:
            self._be_quiet(wish, e.why)
            raise _refused(wish, e.why, hint=e.hint) from e
        except asyncio.CancelledError:
            self._be_quiet(wish, "the question was withdrawn")
            raise
        self._agreed(wish)

    def _be_quiet(self, wish: Wish, why: str) -> None:
        now = self._now()
        self._quiet = {socket: quiet for socket, quiet in self._quiet.items() if quiet.until > now}
        self._quiet[socket_part(wish.flow)] = _Quiet(why, now + QUIET_S)

    def _agreed(self, wish: Wish) -> None:
        now = self._now()
        self._held = {matter: held for matter, held in self._held.items() if held.until > now}
        if wish.key.rules.confirm_s:
            until = now + wish.key.rules.confirm_s
            self._held[_matter(wish)] = _Held(wish.key, wish.locks, until)

    def _is_decided(self, wish: Wish) -> bool:
        return self.holds(wish) or self._quiet_left_s(wish) > 0

    def _quiet_left_s(self, wish: Wish) -> float:
        quiet = self._quiet.get(socket_part(wish.flow))
        return 0.0 if quiet is None else quiet.until - self._now()

    def _require_not_quiet(self, wish: Wish) -> None:
        left_s = self._quiet_left_s(wish)
        if left_s <= 0:
            return
        quiet = self._quiet[socket_part(wish.flow)]
        raise _refused(
            wish,
            f"nobody is asked again for {ceil(left_s)} s: last time {quiet.why}",
            hint="try again then",
            retry="later",
            retry_after_ms=ceil(left_s * 1000),
        )


def _outcome(wish: Wish, task: asyncio.Task[None], *, has_gone: bool) -> DPoPAgentError | None:
    """The refusal that a question came to, or None for a yes.

    Args:
        wish: what it was for.
        task: which asked.
        has_gone: whether its connection has.
    """
    if task.cancelled():
        if not has_gone:
            return AgentUnavailable("the agent is ending")
        return Cancelled(
            f"whoever wanted a proof by the key {wish.key.name} went before a person agreed",
            details={"rule": Rule.CONFIRM.value},
        )
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
    return wish.key.name, wish.origin, socket_part(wish.flow)
