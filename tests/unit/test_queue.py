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
    CallbackJob,
    FairQueue,
    Flow,
    Hands,
    Job,
    Work,
    _Turns,
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
    return CallbackJob(
        (owner,),
        dict,
        told.append,
        deadline=deadline,
        again=True,
        limit_s=limit_s,
        on_touch=(lambda: told.append("touch")) if touch else None,
    )


class Store:
    """A store's work, and the one process that takes from it."""

    def __init__(self) -> None:
        self.work: Work[Hands] = Work("work")
        self.hands = Hands()
        self.work.begin(self.hands)
        self.work.take(self.hands)

    def next_job(self, now: float) -> Job | None:
        found = self.work.next_job(now)
        if found is None:
            return None
        assert found[1] is self.hands
        return found[0]

    def sent(self, job: Job, now: float) -> int:
        return self.work.sent(job, self.hands, now)

    def answered(self, frame_id: int, now: float) -> tuple[Job, float] | None:
        return self.work.answered(frame_id, self.hands, now)

    def look(self, now: float) -> Job | None:
        """The job that the process hangs in."""
        hanging = self.work.look(now)
        return hanging[0][1] if hanging else None


def taken(store: Store, now: float = 0.0) -> list[object]:
    """Whose turn it is, one after the other, each answered at once."""
    owners: list[object] = []
    while (found := store.next_job(now)) is not None:
        owners.extend(found.owner)
        store.answered(store.sent(found, now), now)
    return owners


def test_owners_take_turns_however_much_one_of_them_sends() -> None:
    store = Store()
    for _ in range(5):
        store.work.push(job([], "greedy"))
    store.work.push(job([], "honest"))
    assert taken(store) == ["greedy", "honest", *["greedy"] * 4]


def frames_given(store: Store, sign_s: float) -> int:
    """How many frames a signer of that speed has in its hands."""
    for _ in range(100):
        store.hands.succeeded(sign_s)
    ids = []
    while (found := store.next_job(0)) is not None:
        ids.append(store.sent(found, 0))
    for frame_id in ids:
        assert store.answered(frame_id, 0) is not None
    return len(ids)


def test_a_signer_has_as_many_frames_as_it_signs_at_once_and_a_slow_one_has_one() -> None:
    store = Store()
    for sign_s, window in (
        (AHEAD_S / MAX_WINDOW / 2, MAX_WINDOW),
        (AHEAD_S / 4, 4),
        (AHEAD_S, MIN_WINDOW),
        (FAST_S * 2, 1),
    ):
        for n in range(MAX_WINDOW + 2):
            store.work.push(job([], f"{window}-{n}"))
        assert frames_given(store, sign_s) == window
        store.work.fail_waiting(Busy("over"))


def test_where_somebody_has_more_waiting_than_he_is_given_the_window_is_small() -> None:
    store = Store()
    for _ in range(10):
        store.work.push(job([], "greedy"))
        store.work.push(job([], "greedier"))
    assert frames_given(store, AHEAD_S / MAX_WINDOW) == MIN_WINDOW


def test_nothing_is_sent_behind_a_signature_that_may_wait_for_a_touch() -> None:
    store = Store()
    for touch in (True, False):
        store.work.push(job([], touch=touch))
    found = store.next_job(0)
    assert found is not None
    store.sent(found, 0)
    assert store.next_job(0) is None


def test_a_frame_that_answers_nothing_is_known() -> None:
    store = Store()
    store.work.push(job([]))
    found = store.next_job(0)
    assert found is not None
    frame_id = store.sent(found, 0)
    assert store.answered(frame_id + 1, 0) is None
    assert store.answered(frame_id, 0) is not None
    assert store.answered(frame_id, 0) is None


def test_who_waits_too_long_is_told_wherever_his_request_is() -> None:
    store = Store()
    in_hand: Told = []
    waiting: Told = []
    store.work.push(job(in_hand, deadline=1, limit_s=60))
    found = store.next_job(0)
    assert found is not None
    store.sent(found, 0)
    store.work.push(job(waiting, deadline=2))
    assert store.look(1.5) is None
    assert [type(one) for one in in_hand] == [Timeout]
    assert waiting == []
    store.look(2)
    assert [type(one) for one in waiting] == [Timeout]


def test_a_signer_hangs_once_its_first_frame_has_had_its_time_not_the_ones_behind_it() -> None:
    store = Store()
    told: list[Told] = [[], []]
    for one in told:
        store.work.push(job(one, deadline=100, limit_s=10))
    ids = []
    while (found := store.next_job(0)) is not None:
        ids.append(store.sent(found, 0))
    store.answered(ids[0], 9)
    assert store.look(18) is None
    hangs = store.look(19.5)
    assert hangs is not None
    assert [type(one) for one in told[1]] == [Timeout]
    assert not store.work.again(hangs)


def test_a_touch_is_announced_once_and_gives_the_request_its_own_deadline() -> None:
    store = Store()
    told: Told = []
    store.work.push(job(told, deadline=1, touch=True))
    found = store.next_job(0)
    assert found is not None
    frame_id = store.sent(found, 0)
    for now in (TOUCH_AFTER_S / 2, TOUCH_AFTER_S, 2.0, 30.0):
        assert store.look(now) is None
    assert told == ["touch"]
    answered = store.answered(frame_id, 30.0)
    assert answered is not None
    answered[0].finish({"signed": 1})
    assert told == ["touch", {"signed": 1}]


def test_a_job_is_repeated_once_before_the_others_and_not_for_who_has_gone() -> None:
    store = Store()
    store.work.push(job([], "first"))
    first = store.next_job(0)
    assert first is not None
    store.sent(first, 0)
    store.work.push(job([], "second"))
    assert store.work.end(store.hands) == [first]
    store.work.take(store.hands)
    assert store.work.again(first)
    assert taken(store) == ["first", "second"]
    assert not store.work.again(first)
    gone = job([], "gone")
    gone.is_wanted = False
    assert not store.work.again(gone)


def test_what_a_vanished_connection_waits_for_is_dropped_and_its_signature_is_nobodys() -> None:
    store = Store()
    told: Told = []
    store.work.push(job(told))
    found = store.next_job(0)
    assert found is not None
    frame_id = store.sent(found, 0)
    store.work.push(job(told))
    store.work.drop(("one",))
    assert store.next_job(0) is None
    answered = store.answered(frame_id, 0)
    assert answered is not None
    answered[0].finish({"signed": 1})
    assert told == []
    assert not store.work


def test_everybody_is_told_once_when_there_is_no_store_any_more() -> None:
    store = Store()
    told: list[Told] = [[], [], []]
    for one in told:
        store.work.push(job(one))
    found = store.next_job(0)
    assert found is not None
    store.sent(found, 0)
    error = Busy("over")
    store.work.fail_all(error)
    store.work.fail_all(error)
    assert told == [[error], [error], [error]]


def test_time_in_which_the_agent_heard_nobody_isnt_the_signers() -> None:
    store = Store()
    told: Told = []
    store.work.push(job(told, deadline=10, limit_s=10))
    found = store.next_job(0)
    assert found is not None
    store.sent(found, 0)
    store.work.blocked(45, 46)
    assert store.look(46) is None
    assert told == []
    assert store.look(54.9) is None
    assert store.look(55.1) is found
    assert [type(one) for one in told] == [Timeout]


def test_a_touch_isnt_announced_for_time_in_which_the_agent_heard_nobody() -> None:
    store = Store()
    told: Told = []
    store.work.push(job(told, touch=True))
    found = store.next_job(0)
    assert found is not None
    store.sent(found, 0)
    store.work.blocked(5, 5.1)
    store.look(5.1)
    assert told == []
    store.look(5.1 + TOUCH_AFTER_S)
    assert told == ["touch"]


def test_where_as_many_wait_as_may_only_who_has_his_part_waiting_is_refused() -> None:
    store, told = Store(), Told()
    flooding: list[Flow] = [(1, "filtered", number) for number in range(8)]
    owner: Flow = (1, "admin", 99)

    def let_in(flow: Flow, most: int = 40) -> bool:
        if store.work.full(most, flow) is not None:
            return False
        store.work.push(CallbackJob(flow, dict, told.append, deadline=10.0, again=True))
        return True

    flooded = sum(let_in(flow) for _ in range(20) for flow in flooding)
    assert flooded == 40
    assert sum(let_in(owner) for _ in range(100)) == 20  # half: two sockets have something waiting
    assert not any(let_in(flow) for flow in flooding)
    assert let_in((1, "filtered", 100))  # nothing of it waits
    assert not let_in((1, "filtered", 100))


def order(queue: FairQueue[str]) -> str:
    """Whose turn it is, one after the other, until nothing waits."""
    return "".join(queue.pop() for _ in range(queue.size))


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
    assert queue.size == 3
    assert flow("a1x") not in queue
    assert order(queue) == "yvv"
    queue.push(flow("a1x"), "x")
    assert order(queue) == "x"


def test_nothing_is_kept_of_the_sockets_of_connections_that_have_gone() -> None:
    def kept(queue: FairQueue[str]) -> int:
        found, turns = 0, [queue._turns]
        while turns:
            below = turns.pop()._below.values()
            found += len(below)
            turns += [part for part in below if isinstance(part, _Turns)]
        return found

    queue = queued("a1x", "a1y", "b1v")
    order(queue)
    for socket in range(100):
        gone: Flow = ("a", f"exec-{socket}", socket)
        queue.push(gone, "z")
        if socket % 2:
            queue.pop()
        queue.drop(gone)
    assert kept(queue) <= 4
    for name in ("a1x", "a1y", "b1v"):
        queue.push(flow(name), name[-1])
    queue.drop(flow("a1x"))
    assert order(queue) == "yv"
    for name in ("a1y", "b1v"):
        queue.drop(flow(name))
    assert kept(queue) == 0


def test_a_look_at_a_store_yields_to_who_has_something_signed_but_not_for_ever() -> None:
    store = Store()
    looks = str(*LOOKING)
    store.work.push(job([], looks))
    assert taken(store, 1.0) == [looks], "nobody else is there"
    now = 1.0 + LOOKING_S / 4
    for _ in range(3):
        store.work.push(job([], "one"))
        store.work.push(job([], looks))
    assert taken(store, now) == ["one", "one", "one"], "a look was a moment ago"
    assert taken(store, now + LOOKING_S / 4) == [], "somebody signed a moment ago"
    store.work.push(job([], "one"))
    assert taken(store, 1.0 + LOOKING_S) == [looks, "one"], "one in so long, under any load"
    assert taken(store, 1.1 + 2 * LOOKING_S) == [looks, looks], "nobody signs any more"


def test_looks_take_a_tenth_of_a_slow_stores_time_however_many_there_are() -> None:
    """One that took longer than they lie apart was once due again at once."""
    store = Store()
    now, spent = 1.0, {str(*LOOKING): 0.0, "one": 0.0}
    takes = {str(*LOOKING): 0.5, "one": 0.001}
    while now < 60:
        for owner in spent:
            store.work.push(job([], owner, deadline=100))
        found = store.next_job(now)
        assert found is not None
        sent = store.sent(found, now)
        owner = str(*found.owner)
        now += takes[owner]
        spent[owner] += takes[owner]
        assert store.answered(sent, now) is not None
    assert 0 < spent[str(*LOOKING)] < spent["one"] / 8


def test_looks_alone_are_no_use_of_a_store() -> None:
    store = Store()
    store.work.push(job([], str(*LOOKING)))
    assert not store.work.is_wanted
    found = store.next_job(1.0)
    assert found is not None
    store.sent(found, 1.0)
    assert not store.work.is_wanted
    store.work.push(job([], "one"))
    assert store.work.is_wanted


def test_a_look_that_waits_is_told_when_there_is_no_store_any_more() -> None:
    store = Store()
    told: Told = []
    store.work.push(job(told, str(*LOOKING)))
    assert store.work
    error = Busy("over")
    store.work.fail_waiting(error)
    assert told == [error]
    assert not store.work


def several(count: int) -> tuple[Work[Hands], list[Hands]]:
    """A store's work, and the processes that take from it."""
    work: Work[Hands] = Work("work")
    hands = [Hands() for _ in range(count)]
    for one in hands:
        work.begin(one)
        work.take(one)
    return work, hands


def given(work: Work[Hands]) -> list[tuple[object, Hands]]:
    """Whose turn it is and who gets it, until nobody takes any more."""
    found = []
    while (turn := work.next_job(0)) is not None:
        work.sent(*turn, 0)
        found.append((turn[0].owner[0], turn[1]))
    return found


def test_several_processes_take_from_one_queue_whose_owners_take_turns() -> None:
    work, hands = several(3)
    for _ in range(20):
        work.push(job([], "greedy"))
    for name in ("one", "two"):
        work.push(job([], name))
    turns = given(work)
    assert [owner for owner, _ in turns] == ["greedy", "one", "two", *["greedy"] * 3]
    assert [taker for _, taker in turns] == hands * MIN_WINDOW, "the emptiest first"


def test_what_isnt_a_signature_is_the_firsts_and_keeps_the_others_from_nothing() -> None:
    work, (first, other) = several(2)
    operation = job([], "op")
    operation.only_first = True
    assert work.taken_by(operation) is first
    work.sent(operation, first, 0)
    for _ in range(3):
        work.push(job([], "one"))
    assert given(work) == [("one", other)] * MIN_WINDOW, "none waits behind an operation"
    behind = job([], "op")
    behind.only_first = True
    work.push(behind)
    work.answered(next(iter(first.jobs)), first, 0)
    assert given(work) == [("op", first)]
    work.answered(next(iter(other.jobs)), other, 0)
    assert given(work) == [("one", other)]


def test_an_operation_that_waits_for_the_first_lets_signatures_go_and_comes_next() -> None:
    work, (first, other) = several(2)
    for _ in range(2 * MIN_WINDOW):
        work.push(job([], "full"))
    given(work)
    operation = job([], "op")
    operation.only_first = True
    work.push(operation)
    work.push(job([], "one"))
    number = next(iter(other.jobs))
    work.answered(number, other, 0)
    assert given(work) == [("one", other)]
    work.push(job([], "two"))
    work.answered(next(iter(first.jobs)), first, 0)
    assert given(work) == [("op", first)]


def test_a_death_takes_along_what_was_in_those_hands_alone() -> None:
    work, (first, other) = several(2)
    for name in ("a", "b", "c", "d", "e"):
        work.push(job([], name))
    assert [owner for owner, _ in given(work)] == ["a", "b", "c", "d"]
    lost = work.end(first)
    assert [one.owner for one in lost] == [("a",), ("c",)]
    for one in reversed(lost):
        assert work.again(one)
    for number in list(other.jobs):
        assert work.answered(number, other, 0) is not None
    assert given(work) == [("a", other), ("c", other)], "before those who wait"


def test_each_process_hangs_by_itself() -> None:
    work, (first, other) = several(2)
    told: list[Told] = [[], []]
    for one in told:
        work.push(job(one, deadline=100, limit_s=10))
    given(work)
    work.answered(next(iter(first.jobs)), first, 5)
    (hanging,) = work.look(11)
    assert hanging[0] is other
    assert [len(one) for one in told] == [0, 1]


def test_several_processes_wait_for_one_touch_at_a_time() -> None:
    work, (first, other) = several(2)
    for _ in range(2):
        work.push(job([], "one", touch=True))
    work.push(job([], "two"))
    assert given(work) == [("one", first), ("two", other)]
    work.answered(next(iter(first.jobs)), first, 0)
    assert given(work) == [("one", first)]
