"""Whatever happens in a folder or to it is told, and nothing else wakes anybody."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from unittest.mock import Mock, patch

import pytest

from dpop_agent.agent.folders import Folders

CHANGES: dict[str, Callable[[Path], object]] = {
    "an entry is made": lambda at: (at / "new").touch(),
    "an entry is removed": lambda at: (at / "agent.sock").unlink(),
    "an entry is moved away": lambda at: (at / "agent.sock").rename(at.parent / "away"),
    "an entry is moved there": lambda at: (at.parent / "other").rename(at / "agent.sock"),
    "it is renamed": lambda at: at.rename(at.with_name("old")),
    "it is removed": shutil.rmtree,
    "a folder above it is renamed": lambda at: at.parent.rename(at.parent.with_name("old")),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "run" / "dpop-agent"
    place.mkdir(parents=True)
    (place / "agent.sock").touch()
    (place.parent / "other").touch()
    return place


def is_told(folder: Path, change: Callable[[Path], object]) -> bool:
    """Whether a change is told of a folder that is watched, and of nothing before."""

    async def story() -> bool:
        changed = asyncio.Event()
        with closing(Folders([str(folder)], changed)) as watched:
            assert not watched.watch()  # something may have happened before
            assert watched.watch()
            await asyncio.sleep(0)
            assert not changed.is_set()
            change(folder)
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await changed.wait()
            return changed.is_set()

    return asyncio.run(story())


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_told(place: Path, what: str) -> None:
    assert is_told(place, CHANGES[what])


def test_a_folder_is_found_by_another_spelling(place: Path) -> None:
    assert is_told(place / ".." / place.name, CHANGES["an entry is made"])


@pytest.mark.parametrize("where", ["it", "one above it"])
def test_somebody_has_to_look_where_a_link_leads_to_a_folder(place: Path, where: str) -> None:
    """The link may lead elsewhere some time, and nothing happens in either folder then."""

    async def story() -> list[bool]:
        with closing(Folders([str(place)], asyncio.Event())) as watched:
            found = [watched.watch(), watched.watch()]
            linked = place if where == "it" else place.parent
            there = linked.rename(linked.with_name("there"))
            linked.symlink_to(there)
            return [*found, watched.watch(), watched.watch(), watched.watch()]

    assert asyncio.run(story()) == [False, True, False, False, False]


def test_what_happens_between_two_calls_has_somebody_look_once_more(place: Path) -> None:
    async def story() -> list[bool]:
        with closing(Folders([str(place)], asyncio.Event())) as watched:
            found = [watched.watch(), watched.watch()]
            (place / "new").touch()
            return [*found, watched.watch(), watched.watch()]

    assert asyncio.run(story()) == [False, True, False, True]


def test_whoever_changes_things_all_the_time_is_heard_once_until_somebody_has_looked(
    place: Path,
) -> None:
    async def story() -> int:
        changed = Mock()
        with closing(Folders([str(place)], changed)) as watched:
            watched.watch()
            for n in range(100):
                (place / f"{n}").touch()
                await asyncio.sleep(0)
        return int(changed.set.call_count)

    assert asyncio.run(story()) == 1


def test_a_folder_that_was_made_again_is_watched_once_somebody_has_looked(place: Path) -> None:
    async def story() -> None:
        changed = asyncio.Event()
        with closing(Folders([str(place)], changed)) as watched:
            watched.watch()
            shutil.rmtree(place)
            assert not watched.watch()
            place.mkdir()
            assert not watched.watch()
            while not watched.watch():  # what was before is still told
                pass
            changed.clear()
            (place / "new").touch()
            async with asyncio.timeout(10):
                await changed.wait()

    asyncio.run(story())


def test_where_the_kernel_watches_no_more_somebody_has_to_look(place: Path) -> None:
    async def story() -> list[bool]:
        with closing(Folders([str(place)], asyncio.Event())) as watched:
            return [watched.watch(), watched.watch()]

    with patch("ctypes.CDLL", return_value=_NoWatches()):
        assert asyncio.run(story()) == [False, False]
    with patch("sys.platform", "darwin"):
        assert asyncio.run(story()) == [False, False]


class _NoWatches:
    """As where as many are watched as may be (inotify(7): max_user_instances)."""

    def inotify_init1(self, _flags: int) -> int:
        return -1


def test_nothing_is_left_open(place: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    assert is_told(place, CHANGES["an entry is made"])
    assert sorted(os.listdir("/proc/self/fd")) == before
