"""Filtered sockets around a ledger that fails, and proofs that are under way when they end."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from dpop_agent.agent.background import Background
from dpop_agent.agent.call import Call
from dpop_agent.agent.excerpts import Excerpt
from dpop_agent.agent.filters import Filter
from dpop_agent.agent.keys import Generation, Key, State
from dpop_agent.agent.ledger import Ledger
from dpop_agent.agent.lock import holder_of
from dpop_agent.agent.nonces import Nonces
from dpop_agent.agent.proofs import Proofs
from dpop_agent.agent.queue import Job
from dpop_agent.agent.rates import Rates
from dpop_agent.agent.records import Records, now_text
from dpop_agent.agent.rules import Rules
from dpop_agent.agent.sockets import Sockets
from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    InvalidParams,
    KeyUnknown,
    LimitReached,
    NotDurable,
    RequestIdReused,
    SocketExists,
    SocketUnknown,
)
from dpop_agent.protocol import MAX_LINE, Request, encode_result
from tests.state_folder import new_public_key

API = "https://api.example.com"


class Door:
    """Stands for the server: nobody connects."""

    def __init__(self) -> None:
        self.answering = Mock(return_value=Mock(made=0))
        self.accept = Mock(return_value=AsyncMock())
        self.disconnected = Mock()
        self.ended = Mock()
        self.make_room = Mock()


class Place:
    """Filtered sockets around a ledger with the key shop."""

    def __init__(self, runtime: Path, state: Path) -> None:
        self.runtime = runtime
        self.ledger = Ledger(str(state))
        self.records = Records(self.ledger)
        self.door = Door()
        self.sockets = self.started_anew()

    def started_anew(self) -> Sockets:
        return Sockets(
            self.records,
            Background(),
            cast("Any", self.door),
            agent_socket=str(self.runtime / "agent.sock"),
        )

    async def add(self, name: str = "ci", **params: Any) -> dict[str, Any]:
        return await self.sockets.add({"socket": name, "keys": ["shop"], **params})

    def folder(self, name: str = "ci") -> Path:
        return self.runtime / "sockets" / name

    def disk_is_full(self, full: bool) -> None:
        def write(_: object) -> None:
            raise NotDurable("the ledger can't be written (No space left on device)")

        if full:
            vars(self.ledger)["write"] = write
        else:
            del vars(self.ledger)["write"]


def a_key(name: str = "shop") -> Key:
    generation = Generation(1, State.ACTIVE, "00", now_text(), now_text(), **new_public_key())
    return Key(name, "dict", "ES256", now_text(), generations=(generation,))


@pytest.fixture
def place(tmp_path: Path, short_folder: Path) -> Iterator[Place]:
    found = Place(short_folder, tmp_path / "state")
    asyncio.run(found.records.write(lambda keys: keys.with_(a_key())))
    yield found
    found.ledger.close()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Not below tmp_path: a socket's path has at most 107 bytes."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="dpop-", dir="/tmp") as name:
        yield Path(name)


Story = Callable[[], Coroutine[Any, Any, None]]


def run(place: Place, story: Story) -> None:
    async def to_its_end() -> None:
        try:
            await story()
        finally:
            await place.sockets.stop()
            place.sockets.leave()

    asyncio.run(to_its_end())


def test_one_that_couldnt_be_written_isnt_there(place: Place) -> None:
    async def story() -> None:
        place.disk_is_full(True)
        with pytest.raises(NotDurable):
            await place.add()
        assert place.sockets.page({}) == {"sockets": []}
        assert not place.folder().exists()
        place.disk_is_full(False)
        await place.add()
        assert place.folder().exists()

    run(place, story)


def test_one_whose_removal_couldnt_be_written_is_closed_and_says_that_a_restart_opens_it(
    place: Place,
) -> None:
    async def story() -> None:
        await place.add()
        excerpt = place.door.answering.call_args.args[0]
        assert set(excerpt.keys) == {"shop"}
        place.disk_is_full(True)
        with pytest.raises(NotDurable, match="is closed, but a restart of the agent opens it") as e:
            await place.sockets.remove({"socket": "ci"})
        assert e.value.hint == "free space, then again: dpop-agent socket remove ci"
        assert set(excerpt.keys) == set()
        assert not (place.folder() / "agent.sock").exists()
        (shown,) = place.sockets.page({"socket": "ci"})["sockets"]
        assert shown["state"] == "closed"
        assert shown["reason"] == "it was removed, but that isn't in the ledger yet"
        place.disk_is_full(False)
        await place.sockets.remove({"socket": "ci"})
        assert place.sockets.page({}) == {"sockets": []}
        assert not place.folder().exists()
        assert Records(place.ledger).sockets == {}

    run(place, story)


def test_a_request_that_is_repeated_is_done_once(place: Place) -> None:
    async def story() -> None:
        first = await place.add(request_id="request-1")
        assert await place.add(request_id="request-1") == first
        with pytest.raises(SocketExists):
            await place.add(request_id="request-2")
        with pytest.raises(RequestIdReused):
            await place.add("other", request_id="request-1")
        removal = {"socket": "ci", "request_id": "request-3"}
        assert await place.sockets.remove(removal) == {"sockets": []}
        assert await place.sockets.remove(removal) == {"sockets": []}
        with pytest.raises(SocketUnknown, match="by that very request, and is gone since"):
            await place.add(request_id="request-1")
        await place.add(request_id="request-4")
        assert await place.sockets.remove(removal) == {"sockets": []}
        assert place.sockets.page({})["sockets"], "the new one stays, which wasn't meant"
        assert (place.folder() / "agent.sock").exists()

    run(place, story)


def test_one_is_over_by_the_agents_own_clock_though_the_wall_clock_was_set_back(
    place: Place,
) -> None:
    async def story() -> None:
        await place.add(expires_s=100)
        place.records._before_s += 99
        await place.sockets.look()
        assert place.sockets.page({})["sockets"]
        place.records._before_s += 1
        await place.sockets.look()
        assert place.sockets.page({}) == {"sockets": []}
        await asyncio.sleep(0.2)
        assert Records(place.ledger).sockets == {}, "from the ledger too"

    run(place, story)


def test_one_that_a_request_found_over_isnt_open_once_the_clock_is_set_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await place.add(expires_s=100)
        excerpt: Excerpt = place.door.answering.call_args.args[0]
        assert list(excerpt.keys) == ["shop"]
        later = time.time() + 200
        with monkeypatch.context() as clock:
            clock.setattr("time.time", lambda: later)
            assert not list(excerpt.keys), "as a request finds it"
        await place.sockets.look()
        assert place.sockets.page({}) == {"sockets": []}, "by the clock its time isn't over"
        place.door.ended.assert_called_once_with("ci")
        await asyncio.sleep(0.2)
        assert Records(place.ledger).sockets == {}, "nor has the next agent it"

    run(place, story)


def test_one_that_is_being_removed_isnt_taken_for_one_whose_time_is_over(place: Place) -> None:
    async def story() -> None:
        await place.add(expires_s=100)
        removing = asyncio.ensure_future(place.sockets.remove({"socket": "ci"}))
        await asyncio.sleep(0)
        await place.sockets.look()
        assert await removing == {"sockets": []}
        place.door.ended.assert_not_called()

    run(place, story)


def test_one_whose_time_was_over_while_no_agent_ran_isnt_there_at_the_next_start(
    place: Place,
) -> None:
    async def story() -> None:
        over = Filter("ci", ("shop",), now_text(), expires_at=int(time.time()), expires_s=10**6)
        await place.records.write(sockets=lambda _: {"ci": over})
        await place.sockets.start()
        assert place.sockets.page({}) == {"sockets": []}
        await asyncio.sleep(0.2)
        assert Records(place.ledger).sockets == {}

    run(place, story)


def test_what_other_programs_put_beside_its_sockets_is_left_and_what_a_killed_agent_left_isnt(
    place: Place,
) -> None:
    sockets = place.runtime / "sockets"
    sockets.mkdir(mode=0o700)

    def dead_socket(name: str) -> str:
        path = sockets / name / "agent.sock"
        path.parent.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
        return str(path)

    (sockets / "empty").mkdir(mode=0o700)
    (sockets / ".text.lock").write_text("pid 4711, of another program")
    (sockets / ".folder.lock").mkdir()
    (sockets / ".nothing.lock").touch()
    (sockets / ".link.lock").symlink_to(sockets / ".ours.lock")
    os.mkfifo(sockets / ".fifo.lock")
    dead_socket("dead")
    (sockets / ".another.lock").write_text(f"{holder_of(dead_socket('locked'))}\n")
    others = sorted(path.relative_to(sockets) for path in sockets.rglob("*"))
    (sockets / ".ours.lock").write_text(f"{holder_of(dead_socket('ours'))}\n")

    async def story() -> None:
        await place.sockets.start()
        assert sorted(path.relative_to(sockets) for path in sockets.rglob("*")) == others

    run(place, story)


def test_of_a_key_that_the_ledger_doesnt_have_any_more_a_new_one_isnt_given(place: Place) -> None:
    async def story() -> None:
        kept = Filter("ci", ("shop", "lost"), now_text())
        await place.records.write(sockets=lambda _: {"ci": kept})
        records = Records(place.ledger)
        await records.write(lambda keys: keys.with_(a_key("lost")))
        assert set(Excerpt(records, "ci").keys) == {"shop"}

    run(place, story)


def test_what_goes_with_its_connection_is_kept_in_no_ledger_and_added_once(place: Place) -> None:
    async def story() -> None:
        params = {"socket": "ci", "keys": ["shop"], "with_connection": True}
        with pytest.raises(InvalidParams, match="added once"):
            place.sockets.add_with_connection({**params, "request_id": "request-1"}, (0, "x", 1))
        place.sockets.add_with_connection(params, (0, "x", 1))
        await place.add("two")
        assert set(Records(place.ledger).sockets) == {"two"}
        place.sockets.disconnected((0, "x", 2))
        assert set(place.records.sockets) == {"ci", "two"}
        place.sockets.disconnected((0, "x", 1))
        assert set(place.records.sockets) == {"two"}
        await asyncio.sleep(0.1)
        assert not place.folder().exists()

    run(place, story)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"keys": ["nosuch"]}, KeyUnknown),
        ({"expires": "2001-02-03T04:05:06Z"}, InvalidParams),
        ({"expires": "2027-13-41T00:00:00Z"}, InvalidParams),
        ({"expires": "2037-01-01T00:00:00Z", "expires_s": 5}, InvalidParams),
    ],
)
def test_what_cant_be_leaves_nothing_behind(
    place: Place, params: dict[str, Any], error: type[DPoPAgentError]
) -> None:
    async def story() -> None:
        with pytest.raises(error):
            await place.add(**params)
        assert place.sockets.page({}) == {"sockets": []}
        assert not place.folder().exists()

    run(place, story)


def test_where_no_more_files_may_be_open_none_is_added(place: Place) -> None:
    async def story() -> None:
        place.door.make_room.side_effect = ConfigurationError("too few files")
        with pytest.raises(LimitReached, match="too few files"):
            await place.add()

    run(place, story)


def test_a_page_fits_a_line_however_much_its_sockets_say(place: Place) -> None:
    async def story() -> None:
        long = "x" * 60
        names = [f"{n:02}{long}" for n in range(64)]
        shop = place.records.keys["shop"]
        retired = shop.generations[0].become(State.SUSPENDED, "")
        keys = [replace(shop, name=name, generations=(retired,)) for name in names]
        await place.records.write(lambda before: before.with_(*keys))
        much = {
            "keys": names,
            "origins": [
                f"https://{n:02}.{long}.{long}.{long}.{long[:40]}.example" for n in range(64)
            ],
            "paths": [f"/{n:02}{long * 4}" for n in range(32)],
            "methods": [f"{n:02}{long}"[:32] for n in range(32)],
        }
        for name in ("a", "b", "c"):
            kept = Filter(name, tuple(names), now_text(), Rules().given(much))
            place.records.hold_socket(replace(kept, with_connection=True))
        cursor: str | None = ""
        listed: list[str] = []
        while cursor is not None:
            page = place.sockets.page({"cursor": cursor})
            assert len(encode_result(1, page)) <= MAX_LINE
            listed += [found["socket"] for found in page["sockets"]]
            cursor = page.get("cursor")
        assert listed == ["a", "b", "c"]

    run(place, story)


# What is under way


@pytest.mark.parametrize("ends", ["removed", "over", "key suspended"])
def test_a_proof_in_the_signers_hands_isnt_given_out_once_its_socket_has_ended(
    place: Place, ends: str
) -> None:
    async def story() -> None:
        own = Filter("ci", ("shop",), "", expires_at=2**40, expires_s=50)
        place.records.hold_socket(replace(own, with_connection=True))
        excerpt = Excerpt(place.records, "ci")
        jobs: list[Job] = []
        signers, none = MagicMock(), cast("Any", None)
        signers.__getitem__.return_value.submit = jobs.append
        proofs = Proofs(excerpt, signers, Mock(missing=set()), Nonces(), none, Rates(), own)
        told: list[Any] = []
        params = {"htm": "GET", "htu": f"{API}/", "key": "shop"}
        owner = Mock()
        owner.trace.trail.holds = False
        for _ in range(3):
            proofs.proof(Call(Request(1, "proof", params), owner, told.append, 0.0))
        jobs[0].make()
        jobs[0].finish(bytes(64))
        assert isinstance(told.pop(), bytes)
        jobs[1].make()
        if ends == "removed":
            place.records.drop_socket("ci")
        elif ends == "over":
            place.records._before_s += 50
        else:
            await place.records.write(
                lambda keys: keys.with_(
                    keys["shop"].with_(keys["shop"].generations[0].become(State.SUSPENDED, ""))
                )
            )
        jobs[1].finish(bytes(64))
        assert isinstance(told.pop(), DPoPAgentError)
        with pytest.raises(DPoPAgentError):
            jobs[2].make()
        assert proofs.made == 1

    run(place, story)
