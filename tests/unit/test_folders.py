"""Whatever happens in a folder or to it is told, and nothing else wakes anybody."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

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


def told_of(place: Path, change: Callable[[Path], object]) -> tuple[bool, bool]:
    """Whether it was told, and whether all was watched afterwards."""

    async def story() -> tuple[bool, bool]:
        changed = asyncio.Event()
        with closing(Folders([str(place)], changed)) as watched:
            assert not watched.watch()  # something may have happened before
            assert watched.watch()
            await asyncio.sleep(0)
            assert not changed.is_set()
            change(place)
            try:
                async with asyncio.timeout(10):
                    await changed.wait()
            except TimeoutError:
                return False, watched.watch()
            return True, watched.watch()

    return asyncio.run(story())


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_told(place: Path, what: str) -> None:
    told, _ = told_of(place, CHANGES[what])
    assert told


def test_a_folder_that_was_made_again_is_watched_once_somebody_has_looked(place: Path) -> None:
    async def story() -> None:
        changed = asyncio.Event()
        with closing(Folders([str(place)], changed)) as watched:
            watched.watch()
            shutil.rmtree(place)
            assert not watched.watch()
            place.mkdir()
            assert not watched.watch()
            assert watched.watch()
            await asyncio.sleep(0.1)  # until what was before is told
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
    told_of(place, CHANGES["an entry is made"])
    assert sorted(os.listdir("/proc/self/fd")) == before
