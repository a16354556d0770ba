"""What all tests rely on."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import keyring.util.platform_
import platformdirs

from dpop_agent import paths
from tests.processes import children, running

PLACES = """
import os
from pathlib import Path
from dpop_agent import paths
print(Path.home(), paths.config_file(), paths.state_folder(), paths.agent_socket(), sep="\\n")
"""


def test_no_place_that_a_test_finds_is_the_users_own(private_places: Path) -> None:
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    here = [
        Path.home(),
        paths.config_file(),
        paths.state_folder(),
        paths.agent_socket(),
        platformdirs.user_config_dir("dpop-agent"),
        platformdirs.user_state_dir("dpop-agent"),
        platformdirs.user_runtime_dir("dpop-agent"),
        keyring.util.platform_.data_root(),
    ]
    child = subprocess.run(
        [sys.executable, "-c", PLACES], capture_output=True, text=True, check=True
    ).stdout.splitlines()

    assert len(child) == 4
    for place in map(Path, here + child):
        assert place.is_relative_to(private_places)
        assert not place.is_relative_to(home)
    assert "SOFTHSM2_CONF" not in os.environ
    assert "DBUS_SESSION_BUS_ADDRESS" not in os.environ


def test_a_process_that_lost_its_parent_is_found_as_ours() -> None:
    shell = subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null & echo $!"], stdout=subprocess.PIPE, text=True, check=True
    )
    pid = int(shell.stdout)
    try:
        assert children()[pid] == "sleep 60"
    finally:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pid not in children()
