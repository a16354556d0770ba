"""Which request finds out whether a server still takes a nonce, and which wait for that.

When a nonce has run out, each request that carries it costs a challenge and a second request. So
where one is doubtful (`Nonces.is_doubtful`), one request tries it, and others for that origin wait
until its client tells what the server's headers said: TRY_S at the most. Only clients that
promised to tell take part (`shares_nonce`), so nobody waits for one that never does.

What waits here has no turn yet anywhere, so it is in nobody's way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic

from dpop_agent.agent.call import Call
from dpop_agent.agent.queue import SIGN_TIMEOUT_S, Flow

TRY_S = 1.0
"""Seconds for which others wait; no longer than half of their own time."""

AGAIN_S = 10.0
"""Seconds after which another request tries, where nothing was heard: a server that is slow, or
away, keeps nobody waiting all the time."""

MAX_TRIALS = 1024
"""Origins with a request that tries, as many as nonces are remembered of."""

GoOn = Callable[[bool], None]
"""Goes on with a request; whether it is the one that tries."""


class _Waiting:
    """A request that waits."""

    __slots__ = ("call", "end", "go_on")

    def __init__(self, call: Call, go_on: GoOn, end: asyncio.TimerHandle) -> None:
        self.call = call
        self.go_on = go_on
        self.end = end


class _Trial:
    """The request that tries, and those that wait for it."""

    __slots__ = ("began", "call", "waiting")

    def __init__(self, call: Call, began: float, waiting: deque[_Waiting]) -> None:
        self.call = call
        self.began = began
        self.waiting = waiting


class Trials:
    """Those under way, by origin."""

    def __init__(self) -> None:
        self._by_origin: dict[str, _Trial] = {}

    def take(self, origin: str, call: Call, go_on: GoOn) -> None:
        """A request comes whose nonce is doubtful: it tries, waits, or goes on as it is."""
        now = monotonic()
        trial = self._by_origin.get(origin)
        if trial is None or now - trial.began >= AGAIN_S:
            if trial is None and not self._has_room(now):
                go_on(False)
                return
            # An agent that was stopped for so long has some whose own time is about to end.
            waiting = deque() if trial is None else trial.waiting
            self._by_origin[origin] = _Trial(call, now, waiting)
            go_on(True)
            return
        own_s = call.params.get("timeout_ms", SIGN_TIMEOUT_S * 1000) / 1000
        left_s = min(trial.began + TRY_S - now, own_s / 2)
        if left_s <= 0:
            go_on(False)
            return
        end = asyncio.get_running_loop().call_later(left_s, self._waited_enough, origin, call)
        trial.waiting.append(_Waiting(call, go_on, end))

    def _has_room(self, now: float) -> bool:
        if len(self._by_origin) < MAX_TRIALS:
            return True
        over = [
            origin
            for origin, trial in self._by_origin.items()
            if now - trial.began >= AGAIN_S and not trial.waiting
        ]
        for origin in over:
            del self._by_origin[origin]
        return bool(over)

    def heard(self, origin: str) -> None:
        """Something was told of that server: nobody waits any more."""
        trial = self._by_origin.pop(origin, None) if self._by_origin else None
        if trial is not None:
            for waiting in trial.waiting:
                waiting.end.cancel()
                waiting.go_on(False)

    def failed(self, origin: str, call: Call) -> None:
        """The request that was to try has no proof: the next one does."""
        trial = self._by_origin.get(origin)
        if trial is not None and trial.call is call:
            self._next(origin, trial)

    def drop(self, flow: Flow) -> None:
        """A connection has gone: what it tried the next one tries, and it waits for nothing."""
        for origin, trial in list(self._by_origin.items()):
            for waiting in [one for one in trial.waiting if one.call.owner.flow == flow]:
                waiting.end.cancel()
                trial.waiting.remove(waiting)
            if trial.call.owner.flow == flow:
                self._next(origin, trial)

    def _next(self, origin: str, trial: _Trial) -> None:
        if not trial.waiting:
            del self._by_origin[origin]
            return
        first = trial.waiting.popleft()
        first.end.cancel()
        trial.call, trial.began = first.call, monotonic()
        # Later: it may fail at once, and so may all that wait.
        asyncio.get_running_loop().call_soon(first.go_on, True)

    def _waited_enough(self, origin: str, call: Call) -> None:
        trial = self._by_origin[origin]
        waiting = next(one for one in trial.waiting if one.call is call)
        trial.waiting.remove(waiting)
        waiting.go_on(False)
