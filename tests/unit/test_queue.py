"""What waits for a signer is fair, bounded and answered, whatever the clock says."""

from __future__ import annotations

from dpop_agent.agent.frames import Outcome
from dpop_agent.agent.queue import (
    AHEAD_S,
    FAST_S,
    LOOKING,
    LOOKING_S,
    MAX_ROUNDS,
    MAX_WINDOW,
    MIN_WINDOW,
    TOUCH_AFTER_S,
    FairQueue,
    Flow,
    Job,
    Work,
)
from dpop_agent.errors import Busy, Timeout

Told = list[Outcome | str]


def job(
    told: Told,
    owner: str = "one",
    *,
    deadline: float = 10.0,
    limit_s: float = 10.0,
    touch: bool = False,
) -> Job:
    return Job(
        (owner,),
        dict,
        told.append,
        deadline=deadline,
        again=True,
        limit_s=limit_s,
        on_touch=(lambda: told.append("touch")) if touch else None,
    )


def taken(work: Work, now: float = 0.0) -> list[object]:
    """Whose turn it is, one after the other, each answered at once."""
    owners: list[object] = []
    while (found := work.next_job(now)) is not None:
        owners.extend(found.owner)
        work.answered(work.sent(found, now), now)
    return owners


def test_owners_take_turns_however_much_one_of_them_sends() -> None:
    work = Work("work")
    for _ in range(5):
        work.push(job([], "greedy"))
    work.push(job([], "honest"))
    assert taken(work) == ["greedy", "honest", *["greedy"] * 4]


def given(work: Work, sign_s: float) -> int:
    """How many frames a signer of that speed has in its hands."""
    for _ in range(100):
        work.succeeded(sign_s)
    ids = []
    while (found := work.next_job(0)) is not None:
        ids.append(work.sent(found, 0))
    for frame_id in ids:
        assert work.answered(frame_id, 0) is not None
    return len(ids)


def test_a_signer_has_as_many_frames_as_it_signs_at_once_and_a_slow_one_has_one() -> None:
    work = Work("work")
    for sign_s, window in (
        (AHEAD_S / MAX_WINDOW / 2, MAX_WINDOW),
        (AHEAD_S / 4, 4),
        (AHEAD_S, MIN_WINDOW),
        (FAST_S * 2, 1),
    ):
        for n in range(10):
            work.push(job([], f"{window}-{n}"))
        assert given(work, sign_s) == window
        work.fail_waiting(Busy("over"))


def test_where_somebody_has_more_waiting_than_he_is_given_the_window_is_small() -> None:
    work = Work("work")
    for _ in range(10):
        work.push(job([], "greedy"))
        work.push(job([], "greedier"))
    assert given(work, AHEAD_S / MAX_WINDOW) == MIN_WINDOW


def test_nothing_is_sent_behind_a_signature_that_may_wait_for_a_touch() -> None:
    work = Work("work")
    for touch in (True, False):
        work.push(job([], touch=touch))
    found = work.next_job(0)
    assert found is not None
    work.sent(found, 0)
    assert work.next_job(0) is None


def test_a_frame_that_answers_nothing_is_known() -> None:
    work = Work("work")
    work.push(job([]))
    found = work.next_job(0)
    assert found is not None
    frame_id = work.sent(found, 0)
    assert work.answered(frame_id + 1, 0) is None
    assert work.answered(frame_id, 0) is not None
    assert work.answered(frame_id, 0) is None


def test_who_waits_too_long_is_told_wherever_his_request_is() -> None:
    work = Work("work")
    in_hand: Told = []
    waiting: Told = []
    work.push(job(in_hand, deadline=1, limit_s=60))
    found = work.next_job(0)
    assert found is not None
    work.sent(found, 0)
    work.push(job(waiting, deadline=2))
    assert work.look(1.5) is None
    assert [type(one) for one in in_hand] == [Timeout]
    assert waiting == []
    work.look(2)
    assert [type(one) for one in waiting] == [Timeout]


def test_a_signer_hangs_once_its_first_frame_has_had_its_time_not_the_ones_behind_it() -> None:
    work = Work("work")
    told: list[Told] = [[], []]
    for one in told:
        work.push(job(one, deadline=100, limit_s=10))
    ids = []
    while (found := work.next_job(0)) is not None:
        ids.append(work.sent(found, 0))
    work.answered(ids[0], 9)
    assert work.look(18) is None
    hangs = work.look(19.5)
    assert hangs is not None
    assert [type(one) for one in told[1]] == [Timeout]
    assert not work.again(hangs)


def test_a_touch_is_announced_once_and_gives_the_request_its_own_deadline() -> None:
    work = Work("work")
    told: Told = []
    work.push(job(told, deadline=1, touch=True))
    found = work.next_job(0)
    assert found is not None
    frame_id = work.sent(found, 0)
    for now in (TOUCH_AFTER_S / 2, TOUCH_AFTER_S, 2.0, 30.0):
        assert work.look(now) is None
    assert told == ["touch"]
    answered = work.answered(frame_id, 30.0)
    assert answered is not None
    answered[0].finish({"signed": 1})
    assert told == ["touch", {"signed": 1}]


def test_a_job_is_repeated_once_before_the_others_and_not_for_who_has_gone() -> None:
    work = Work("work")
    work.push(job([], "first"))
    first = work.next_job(0)
    assert first is not None
    work.sent(first, 0)
    work.push(job([], "second"))
    assert work.take_in_hand() == [first]
    assert work.again(first)
    assert taken(work) == ["first", "second"]
    assert not work.again(first)
    gone = job([], "gone")
    gone.done = None
    assert not work.again(gone)


def test_what_a_vanished_connection_waits_for_is_dropped_and_its_signature_is_nobodys() -> None:
    work = Work("work")
    told: Told = []
    work.push(job(told))
    found = work.next_job(0)
    assert found is not None
    frame_id = work.sent(found, 0)
    work.push(job(told))
    work.drop(("one",))
    assert work.next_job(0) is None
    answered = work.answered(frame_id, 0)
    assert answered is not None
    answered[0].finish({"signed": 1})
    assert told == []
    assert not work


def test_everybody_is_told_once_when_there_is_no_store_any_more() -> None:
    work = Work("work")
    told: list[Told] = [[], [], []]
    for one in told:
        work.push(job(one))
    found = work.next_job(0)
    assert found is not None
    work.sent(found, 0)
    error = Busy("over")
    work.fail_all(error)
    work.fail_all(error)
    assert told == [[error], [error], [error]]


def test_time_in_which_the_agent_heard_nobody_isnt_the_signers() -> None:
    work = Work("work")
    told: Told = []
    work.push(job(told, deadline=10, limit_s=10))
    found = work.next_job(0)
    assert found is not None
    work.sent(found, 0)
    work.blocked(45, 46)
    assert work.look(46) is None
    assert told == []
    assert work.look(54.9) is None
    assert work.look(55.1) is found
    assert [type(one) for one in told] == [Timeout]


def test_a_touch_isnt_announced_for_time_in_which_the_agent_heard_nobody() -> None:
    work = Work("work")
    told: Told = []
    work.push(job(told, touch=True))
    found = work.next_job(0)
    assert found is not None
    work.sent(found, 0)
    work.blocked(5, 5.1)
    work.look(5.1)
    assert told == []
    work.look(5.1 + TOUCH_AFTER_S)
    assert told == ["touch"]


def order(queue: FairQueue[str]) -> str:
    """Whose turn it is, one after the other, until nothing waits."""
    return "".join(queue.pop() for _ in range(len(queue)))


def flow(name: str) -> Flow:
    """As in `a1x`: the uid a, its socket 1, there the connection x."""
    return tuple(name)


def queued(*names: str) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for name in names:
        queue.push(flow(name), name[-1])
    return queue


def test_uids_take_turns_then_sockets_then_connections() -> None:
    queue = queued(*["a1x"] * 4, *["a1y"] * 2, *["a2z"] * 2, *["b1v"] * 2)
    assert order(queue) == "xvzvyzxyxx"


def test_one_where_nothing_waited_goes_before_those_that_had_their_turn() -> None:
    queue = queued(*["a1x"] * 3, *["a1y"] * 3)
    assert [queue.pop(), queue.pop()] == ["x", "y"]
    queue.push(flow("a1z"), "z")
    assert order(queue) == "zxyxy"


def test_nobody_waits_more_than_some_rounds_for_those_where_nothing_waited() -> None:
    queue = queued(*(f"a1{name}" for name in "uvwx" * 200), "a1z")
    taken = ""
    while len(taken) < 400:
        taken += queue.pop()
        if taken[-1] == "z":  # which is there again at once, each time
            queue.push(flow("a1z"), "z")
    assert taken.count("z") > 100
    for name in "uvwx":
        assert max(len(between) for between in taken.split(name)) < (MAX_ROUNDS + 1) * 5


def test_connections_by_the_hundred_dont_take_another_uids_turns() -> None:
    queue = queued(*["b1h"] * 3, *(f"a1{chr(0x100 + n)}" for n in range(300)))
    assert [n for n in range(8) if queue.pop() == "h"] == [0, 2, 4]


def test_what_is_dropped_or_taken_out_leaves_the_others_their_turns() -> None:
    queue = queued("a1x", "a1y", "a2z", "b1v", "a1x", "b1v")
    queue.drop(flow("a1x"))
    queue.drop(flow("a1x"))
    assert queue.take(lambda name: name == "z") == ["z"]
    assert len(queue) == 3
    assert flow("a1x") not in queue
    assert order(queue) == "yvv"
    queue.push(flow("a1x"), "x")
    assert order(queue) == "x"


def test_a_look_at_a_store_yields_to_who_has_something_signed_but_not_for_ever() -> None:
    work = Work("work")
    looks = str(*LOOKING)
    work.push(job([], looks))
    assert taken(work, 1.0) == [looks], "nobody else is there"
    now = 1.0 + LOOKING_S / 4
    for _ in range(3):
        work.push(job([], "one"))
        work.push(job([], looks))
    assert taken(work, now) == ["one", "one", "one"], "a look was a moment ago"
    assert taken(work, now + LOOKING_S / 4) == [], "somebody signed a moment ago"
    work.push(job([], "one"))
    assert taken(work, 1.0 + LOOKING_S) == [looks, "one"], "one in so long, under any load"
    assert taken(work, 1.1 + 2 * LOOKING_S) == [looks, looks], "nobody signs any more"


def test_looks_take_a_tenth_of_a_slow_stores_time_however_many_there_are() -> None:
    """One that took longer than they lie apart was once due again at once."""
    work = Work("work")
    now, spent = 1.0, {str(*LOOKING): 0.0, "one": 0.0}
    takes = {str(*LOOKING): 0.5, "one": 0.001}
    while now < 60:
        for owner in spent:
            work.push(job([], owner, deadline=100))
        found = work.next_job(now)
        assert found is not None
        sent = work.sent(found, now)
        owner = str(*found.owner)
        now += takes[owner]
        spent[owner] += takes[owner]
        assert work.answered(sent, now) is not None
    assert 0 < spent[str(*LOOKING)] < spent["one"] / 8


def test_looks_alone_are_no_use_of_a_store() -> None:
    work = Work("work")
    work.push(job([], str(*LOOKING)))
    assert not work.is_wanted
    found = work.next_job(1.0)
    assert found is not None
    work.sent(found, 1.0)
    assert not work.is_wanted
    work.push(job([], "one"))
    assert work.is_wanted


def test_a_look_that_waits_is_told_when_there_is_no_store_any_more() -> None:
    work = Work("work")
    told: Told = []
    work.push(job(told, str(*LOOKING)))
    assert work
    error = Busy("over")
    work.fail_waiting(error)
    assert told == [error]
    assert not work
