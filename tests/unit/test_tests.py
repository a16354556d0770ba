"""What all tests rely on."""

from __future__ import annotations

import ast
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import keyring.util.platform_
import platformdirs
import pytest

from dpop_agent import paths
from tests.processes import ROOT, children, running

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
    deadline = time.monotonic() + 15
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pid not in children()


CLOCKS = ("monotonic", "perf_counter", "process_time")


def asserts_seconds(tree: ast.Module) -> list[int]:
    """The lines of assertions that a time is less than something.

    A time is what is computed from a clock, by itself or under a name.
    """
    named: set[str] = set()

    def reads_clock(node: ast.AST) -> bool:
        return any(
            (isinstance(part, ast.Name) and part.id in CLOCKS)
            or (isinstance(part, ast.Attribute) and part.attr in CLOCKS)
            for part in ast.walk(node)
        )

    def is_time(node: ast.AST) -> bool:
        return reads_clock(node) or any(
            isinstance(part, ast.Name) and part.id in named for part in ast.walk(node)
        )

    known = -1
    while known != len(named):
        known = len(named)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and is_time(node.value):
                named |= {
                    n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)
                }
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(part, ast.Return) and part.value and is_time(part.value)
                for part in ast.walk(node)
            ):
                named.add(node.name)
    return [
        compare.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        for compare in ast.walk(node.test)
        if isinstance(compare, ast.Compare)
        for left, op, right in zip(
            [compare.left, *compare.comparators], compare.ops, compare.comparators, strict=False
        )
        for less, more in [(left, right) if isinstance(op, ast.Lt | ast.LtE) else (right, left)]
        if isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE)
        if is_time(less) and not reads_clock(more)  # "not before" always holds on a busy machine
    ]


@pytest.mark.parametrize(
    "text",
    [
        "assert time.monotonic() - began < 2",
        "took = perf_counter() - began\nassert 0 < took <= LIMIT",
        "slowest = max(slowest, time.monotonic() - began)\nassert LIMIT > slowest",
        "def took():\n    return time.monotonic() - began\nassert max([took()]) < 2",
    ],
)
def test_an_assertion_on_seconds_is_found(text: str) -> None:
    assert asserts_seconds(ast.parse(text)) != []


def test_no_test_asserts_that_something_is_over_within_seconds() -> None:
    """On a busy machine it isn't; `tests/bench` judges seconds, tests compare and count."""
    files = {*ROOT.glob("tests/**/test_*.py"), ROOT / "tests/stores/conformance.py"}
    assert len(files) > 40
    assert {
        str(file): lines
        for file in files
        if (lines := asserts_seconds(ast.parse(file.read_text("utf-8"))))
    } == {}
