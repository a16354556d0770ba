"""Our client for Node: its own tests, by Node's own runner, on the oldest Node and a newer one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import node

TESTS = sorted((node.CLIENT / "test").glob("*.test.js"))
NEWER = {"atproto.test.js", "pack.test.js", "types.test.js"}
"""For what they need themselves: @atproto/oauth-client wants Node 22, npm and tsc one run."""


@pytest.fixture(scope="module", autouse=True)
def client_packages(node_packages: Path) -> None:
    try:
        node.packages(node.CLIENT)
    except node.MissingError as e:
        pytest.skip(str(e))


@pytest.mark.parametrize(
    ("interpreter", "file"),
    [
        pytest.param(interpreter, file, id=f"{interpreter.__name__}-{file.name}")
        for interpreter in (node.node, node.lowest_node)
        for file in TESTS
        if interpreter is node.node or file.name not in NEWER
    ],
)
def test_each_test_of_the_client_passes(
    interpreter: Callable[[], Path], file: Path, node_packages: Path
) -> None:
    if not interpreter().exists():
        pytest.skip(f"no {interpreter()}: there is none for this machine")
    done = subprocess.run(
        [interpreter(), "--test", "--test-reporter=tap", file],
        cwd=node.CLIENT,
        env={
            **os.environ,
            "DPOP_TEST_PYTHON": sys.executable,
            "npm_execpath": node.npm()[-1],
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    results = re.findall(r"^ *(?:not ok|ok) \d+ - (.*)$", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout
    assert results, done.stdout
    if skipped := [name for name in results if " # SKIP " in name]:
        pytest.skip(", ".join(skipped))
