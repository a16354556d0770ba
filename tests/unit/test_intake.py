"""Lines have a budget in each turn of the event loop, and clients take turns with theirs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from dpop_agent.agent.intake import MAX_UNDER_WAY, TURN_S, Intake
from dpop_agent.agent.queue import Flow
from dpop_agent.protocol import MAX_REQUESTS


class Loop:
    """An event loop whose clock moves with the lines that are taken in."""

    def __init__(self) -> None:
        self.now = 0.0
        self._soon: deque[Callable[[], None]] = deque()

    def time(self) -> float:
        return self.now

    def call_soon(self, what: Callable[[], None]) -> object:
        self._soon.append(what)
        return what

    def turn(self) -> int:
        """What one turn calls."""
        calls = list(self._soon)
        self._soon.clear()
        for call in calls:
            call()
        return len(calls)


class Sender:
    """A client whose lines take so long; what they ask for is answered at once, or never."""

    def __init__(
        self, story: Story, name: str, lines: int, *, answered: bool, takes: float
    ) -> None:
        self.flow: Flow = (1000, "agent.sock", name)
        self.under_way = 0
        self.lines = lines
        self._story = story
        self._answered = answered
        self._takes = takes

    @property
    def has_line(self) -> bool:
        return self.lines > 0

    def take_in(self, now: float) -> bool:
        assert now == self._story.loop.now
        self.lines -= 1
        self._story.loop.now += self._takes
        self._story.taken.append(str(self.flow[-1]))
        self.under_way += 1
        if self.under_way == 1:
            self._story.intake.busy()
        if self._answered:
            self.answer()
        return self.has_line

    def answer(self) -> None:
        self.under_way -= 1
        if not self.under_way:
            self._story.intake.idle()
        self._story.intake.go_on(self)


class Story:
    def __init__(self) -> None:
        self.loop = Loop()
        self.intake = Intake(cast("asyncio.AbstractEventLoop", self.loop), self.loop.time)
        self.taken: list[str] = []

    def send(
        self, name: str, lines: int, *, answered: bool = True, takes: float = TURN_S / 10
    ) -> Sender:
        sender = Sender(self, name, lines, answered=answered, takes=takes)
        self.intake.offer(sender)
        return sender

    def turns(self) -> list[str]:
        """What is taken in, turn by turn, until nothing waits."""
        found: list[str] = []
        while True:
            self.taken.clear()
            if not self.loop.turn():
                return found
            found.append("".join(self.taken))


def test_a_line_that_nobody_is_before_is_taken_in_at_once() -> None:
    story = Story()
    story.send("a", 1)
    assert story.taken == ["a"]
    assert story.turns() == []


def test_lines_wait_for_no_turn_while_other_things_have_half_of_the_time() -> None:
    story = Story()
    for _ in range(200):
        story.send("a", 1, takes=TURN_S / 10)
        story.loop.now += TURN_S / 10
    assert len(story.taken) == 200
    assert story.turns() == []


def test_lines_wait_for_a_turn_once_they_leave_other_things_less() -> None:
    story = Story()
    for n in range(200):
        story.send(f"{n}", 1, takes=TURN_S / 10)
        story.loop.now += TURN_S / 20
    assert 10 < len(story.taken) < 25


def test_a_burst_of_answers_at_once_is_spread_over_turns() -> None:
    story = Story()
    sender = story.send("a", 5000)
    assert story.taken == ["a"]
    turns = story.turns()
    assert sender.lines == 0
    assert max(len(turn) for turn in turns) <= 11
    assert len(turns) >= 450


def test_lines_that_take_long_are_one_a_turn() -> None:
    story = Story()
    story.send("a", 3, takes=10 * TURN_S)
    assert story.turns() == ["a", "a"]


def test_lines_of_many_clients_share_one_budget_and_take_turns() -> None:
    story = Story()
    for n in range(26):
        story.send(chr(ord("a") + n), 2)
    assert len(story.taken) <= 11
    turns = story.turns()
    assert max(len(turn) for turn in turns) <= 11
    everybody = "".join(turns)
    assert sorted(everybody[:26]) == sorted(set(everybody))


def test_a_client_with_nothing_under_way_goes_before_a_flood() -> None:
    story = Story()
    floods = [story.send(name, 1000) for name in "abcdefgh"]
    story.loop.turn()
    story.taken.clear()
    story.send("Z", 1)
    story.loop.turn()
    assert story.taken[0] == "Z"
    assert all(flood.lines > 900 for flood in floods)


def test_a_client_has_so_many_requests_under_way_and_its_next_line_waits() -> None:
    story = Story()
    sender = story.send("a", MAX_REQUESTS + 2, answered=False)
    story.turns()
    assert (sender.under_way, sender.lines) == (MAX_REQUESTS, 2)
    sender.answer()
    assert story.turns() == ["a"]
    assert (sender.under_way, sender.lines) == (MAX_REQUESTS, 1)


def test_all_clients_together_have_so_many_requests_under_way_but_each_has_one() -> None:
    story = Story()
    senders = [story.send(f"{n}", MAX_REQUESTS, answered=False) for n in range(400)]
    story.turns()
    under_way = [sender.under_way for sender in senders]
    assert sum(under_way) <= MAX_UNDER_WAY
    assert min(under_way) == max(under_way) == MAX_UNDER_WAY // 400
    late = story.send("late", 1, answered=False)
    story.turns()
    assert late.under_way == 1


def test_who_has_gone_takes_no_turn() -> None:
    story = Story()
    gone, stays = story.send("a", 50), story.send("b", 50)
    story.intake.leave(gone)
    turns = "".join(story.turns())
    assert gone.lines == 49
    assert stays.lines == 0
    assert set(turns) == {"b"}


def test_the_end_is_waited_for_until_nothing_is_under_way() -> None:
    async def story() -> None:
        intake = Intake(asyncio.get_running_loop())
        await intake.settled()
        intake.busy()
        intake.busy()
        waiting = asyncio.ensure_future(intake.settled())
        await asyncio.sleep(0)
        intake.idle()
        await asyncio.sleep(0)
        assert not waiting.done()
        intake.idle()
        await waiting

    asyncio.run(story())
