from __future__ import annotations

import resource

import pytest

from dpop_agent.agent.descriptors import (
    ADMIN_CONNECTIONS,
    FURTHER_CONNECTIONS,
    RESERVED,
    RETRY_MS,
    USUAL_CONNECTIONS,
    Room,
    make_room,
)
from dpop_agent.errors import ConfigurationError, TooManyConnections

EACH = 100


class Limit:
    """The limit of open files, of no process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.soft, self.hard = 1024, 4096
        monkeypatch.setattr("resource.getrlimit", lambda _: (self.soft, self.hard))
        monkeypatch.setattr("resource.setrlimit", lambda _, limit: self._set(*limit))

    def _set(self, soft: int, hard: int) -> None:
        assert self.hard == hard
        assert self.hard == resource.RLIM_INFINITY or soft <= self.hard
        self.soft = soft


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    return Limit(monkeypatch)


def test_a_soft_limit_that_is_enough_stays(limit: Limit) -> None:
    assert make_room(None, each=EACH, signers=3, filtered=0, others=8) == Room(
        USUAL_CONNECTIONS, ADMIN_CONNECTIONS, EACH, FURTHER_CONNECTIONS, RESERVED
    )
    assert limit.soft == 1024


@pytest.mark.parametrize("hard", [4096, resource.RLIM_INFINITY])
def test_a_soft_limit_is_raised_as_far_as_is_needed(limit: Limit, hard: int) -> None:
    limit.soft, limit.hard = 256, hard
    assert make_room(2000, each=EACH, signers=3, filtered=0, others=8) == Room(
        2000, ADMIN_CONNECTIONS, EACH, FURTHER_CONNECTIONS, RESERVED
    )
    needed = 2000 + ADMIN_CONNECTIONS + FURTHER_CONNECTIONS + RESERVED + 8
    assert needed < limit.soft < needed + 128


def test_no_limit_is_enough_for_any_number(limit: Limit) -> None:
    limit.soft = limit.hard = resource.RLIM_INFINITY
    assert make_room(50_000, each=EACH, signers=3, filtered=0, others=8).agent == 50_000
    assert limit.soft == resource.RLIM_INFINITY


@pytest.mark.parametrize("hard", [64, 100, 256, 600])
@pytest.mark.parametrize("stores", [1, 4])
@pytest.mark.parametrize("filtered", [0, 4])
def test_whatever_the_limit_each_socket_and_the_agent_itself_have_their_part(
    limit: Limit, hard: int, stores: int, filtered: int
) -> None:
    limit.soft, limit.hard = 32, hard
    room = make_room(None, each=EACH, signers=stores, filtered=filtered, others=8)
    further = room.further + room.reserved * (filtered + 1)
    assert limit.soft == hard
    assert room.admin >= 1
    assert room.agent >= 4 * room.admin
    assert 1 <= room.each <= room.further + room.reserved
    assert room.reserved <= further <= room.agent
    assert hard - room.agent - room.admin - further >= 8 + 16 + 4 * stores + 2 * filtered


def test_a_number_that_doesnt_fit_is_refused_with_what_does(limit: Limit) -> None:
    limit.hard = 1024
    with pytest.raises(ConfigurationError, match=r"room for ([78][0-9]{2}) connections") as refused:
        make_room(6000, each=EACH, signers=1, filtered=0, others=8)
    assert "LimitNOFILE" in refused.value.hint
    fits = int(refused.value.message.split()[-2])
    assert make_room(fits, each=EACH, signers=1, filtered=0, others=8).agent == fits
    with pytest.raises(ConfigurationError):
        make_room(fits + 1, each=EACH, signers=1, filtered=0, others=8)


@pytest.mark.parametrize("wanted", [None, 1])
def test_a_limit_that_leaves_no_room_at_all_is_refused(limit: Limit, wanted: int | None) -> None:
    limit.soft = limit.hard = 32
    with pytest.raises(ConfigurationError, match="may open 32 files"):
        make_room(wanted, each=EACH, signers=1, filtered=0, others=8)


def test_with_each_filtered_socket_there_is_room_for_those_reserved_for_it(limit: Limit) -> None:
    rooms = [make_room(None, each=EACH, signers=1, filtered=n, others=8) for n in (0, 64)]
    assert rooms[0] == rooms[1]
    assert limit.soft > 1024


ROOM = Room(agent=8, admin=2, each=3, further=3, reserved=1)


@pytest.mark.parametrize(
    ("open_now", "socket"),
    [
        ({"agent": 8}, "agent"),
        ({"admin": 2}, "admin"),
        ({"mount": 3}, "mount"),
        ({"mount": 3, "shop": 2}, "shop"),
        ({"mount": 3, "shop": 2, "new": 1}, "new"),
    ],
)
def test_a_socket_or_all_further_ones_that_are_full_take_nobody_in(
    open_now: dict[str, int], socket: str
) -> None:
    with pytest.raises(TooManyConnections) as refused:
        ROOM.require(open_now, socket)
    assert (refused.value.retry, refused.value.retry_after_ms) == ("later", RETRY_MS)
    assert not any(name in str(refused.value) for name in ("agent", "mount", "shop"))


@pytest.mark.parametrize("socket", ["agent", "admin", "shop"])
def test_whoever_fills_his_socket_takes_no_room_from_another(socket: str) -> None:
    most = {"agent": ROOM.agent, "admin": ROOM.admin, "mount": ROOM.each}
    ROOM.require({name: count for name, count in most.items() if name != socket}, socket)


def test_where_the_shared_ones_are_taken_each_further_socket_has_its_reserved_ones() -> None:
    full = {"mount": ROOM.each, "shop": ROOM.further - ROOM.each + 2 * ROOM.reserved}
    for name in ("new", "another"):
        ROOM.require(full, name)
        full[name] = ROOM.reserved
        with pytest.raises(TooManyConnections):
            ROOM.require(full, name)
