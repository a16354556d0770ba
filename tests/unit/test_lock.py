"""One agent at one place."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from dpop_agent.agent import lock


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that tells")
def test_whether_a_lock_is_held_is_told_without_taking_it(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock.lock")
    assert not lock.is_held(path)
    held = lock.take(path, holder=lock.holder_of("/run/agent.sock"))
    assert lock.is_held(path)
    os.close(held)
    assert not lock.is_held(path), "though it says who held it"


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that tells")
def test_a_lock_of_another_than_it_says_isnt_an_agents(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock.lock"
    path.write_text(f"process {os.getppid()}, which serves /run/agent.sock\n")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not lock.is_held(str(path))
