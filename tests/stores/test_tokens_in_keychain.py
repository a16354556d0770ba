"""`TokenStore.in_keychain`: an access token that processes share in a real gnome-keyring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulators import Keyring

# Each number is one access token with its refresh token.
STEPS = """
import sys
from dpop_agent.client import BoundToken, TokenStore
from dpop_agent.errors import DPoPAgentError

store = TokenStore.in_keychain("shop")
for step in sys.argv[1:]:
    try:
        if step == "load":
            found = store.load()
            print(found and (found.access_token, found.jkt, found.refresh_token))
        elif step == "clear":
            store.clear()
        elif step == "begin":
            with store.hold() as held:
                print(held.abandoned)
                held.begin()
        else:
            with store.hold() as held:
                held.keep(BoundToken(f"access-{step}", "j", 1.5, f"canary-{step}"))
    except DPoPAgentError as e:
        print(type(e).__name__)
"""


class Process:
    """What one does with it; a new one each time."""

    def __init__(self, keyring: Keyring, state: Path) -> None:
        self._env = os.environ | keyring.env | {"DPOP_AGENT_STATE_DIR": str(state)}

    def __call__(self, *steps: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", STEPS, *steps],
            env=self._env,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "canary" not in done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def process(keyring: Keyring, tmp_path: Path) -> Process:
    return Process(keyring, tmp_path / "state")


def test_what_one_process_stored_another_finds(process: Process) -> None:
    assert process("load") == ["None"]
    process("1")
    assert process("load") == ["('access-1', 'j', 'canary-1')"]
    process("2", "clear")
    assert process("load", "clear") == ["None"]


def test_what_was_begun_and_not_stored_is_told_to_the_next_process(process: Process) -> None:
    assert process("begin") == ["False"]
    assert process("begin", "1", "begin") == ["True", "False"]


def test_a_locked_keychain_is_a_typed_error_and_loses_nothing(
    process: Process, keyring: Keyring
) -> None:
    process("1")
    keyring.lock()
    assert process("load", "2") == ["Locked", "Locked"]
    keyring.unlock()
    assert process("load") == ["('access-1', 'j', 'canary-1')"]


def test_its_lock_is_beside_the_ledger_and_has_nothing_of_it(
    process: Process, tmp_path: Path
) -> None:
    process("1")
    (lock,) = [found for found in tmp_path.rglob("*") if found.is_file()]
    assert lock == tmp_path / "state" / "tokens" / "shop.lock"
    assert lock.read_bytes() == b""
