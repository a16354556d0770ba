"""softhsm/run: the first command that somebody tries."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpop_agent.client import AgentClient
from tests.processes import ROOT, running

RUN = ROOT / "softhsm" / "run"
VENV = ROOT / ".venv" / "bin" / "python"

pytestmark = pytest.mark.skipif(not VENV.exists(), reason="no .venv: tests/run makes it")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for its keys, so that those of the user aren't touched."""
    folder = tmp_path_factory.mktemp("softhsm") / "a state"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPOP_SOFTHSM_STATE", str(folder))
        yield folder


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RUN, *words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def socket_in(text: str) -> Path:
    [line] = [line for line in text.splitlines() if line.startswith("export DPOP_AGENT_SOCK=")]
    return Path(line.partition("=")[2])


def test_once_shows_a_verified_proof_and_leaves_nothing_but_its_state(
    state: Path, tmp_path: Path
) -> None:
    """It exports no socket that is dead by then."""
    first, second = run("--once", cwd=tmp_path), run("--once", cwd=tmp_path)

    for done in (first, second):
        assert done.returncode == 0, done.stderr
        assert "ok jkt=" in done.stderr
        assert done.stdout == ""
        (socket,) = re.findall(r" serving (\S+)/agent.sock[ ,]", done.stderr)
        assert not Path(socket).exists()
        assert "export DPOP_AGENT_SOCK" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "pin").stat().st_mode) == 0o600
    proven = [
        next(line for line in done.stderr.splitlines() if line.startswith("ok jkt=")).split()[1]
        for done in (first, second)
    ]
    assert proven[0] == proven[1], "the second run has the first one's key"


def test_a_command_gets_the_socket_and_gives_its_exit_status(state: Path) -> None:
    script = "dpop-agent proof GET https://api.example.com/ && dpop-agent status >&2; exit 7"
    done = run("--", "sh", "-c", script)

    assert done.returncode == 7
    assert done.stdout.count(".") == 2, "the command's output alone, one proof"
    assert done.stderr.startswith("dpop-agent "), "its status, and nothing before"
    assert "serving" not in done.stderr
    assert " is open: 'dpop-agent'" in (state / "log").read_text()


def test_beside_a_command_nothing_is_shown_but_why_it_came_to_nothing(
    state: Path, tmp_path: Path
) -> None:
    quiet = run("--", "true")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    ledger = state / "ledger"
    ledger.rename(tmp_path / "ledger")
    try:
        ledger.write_text("no folder")
        failed = run("--", "echo", "not run")
    finally:
        ledger.unlink()
        (tmp_path / "ledger").rename(ledger)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert str(ledger) in failed.stderr
    assert failed.stderr.endswith("the agent ended; what it said is above\n")


@pytest.mark.parametrize("words", [["--nonsense"], ["--"], ["--once", "more"], ["once"]])
def test_what_it_does_not_know_gets_the_usage(words: list[str], state: Path) -> None:
    done = run(*words)

    assert done.returncode == 2
    assert done.stderr.startswith("usage: softhsm/run")
    assert done.stdout == ""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_interrupted_and_takes_the_agent_along(
    how: signal.Signals, state: Path
) -> None:
    process = subprocess.Popen(
        [RUN],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        path = socket_in(process.stdout.readline())
        with AgentClient(str(path)) as agent:
            status = agent.status()

        refused = run("--once")
        assert refused.returncode == 1
        assert f"served already: export DPOP_AGENT_SOCK={path}" in refused.stderr

        os.kill(process.pid, how)
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 128 + how
    assert not running(status["pid"])
    assert not any(running(store["signer_pid"]) for store in status["stores"])
    assert not path.parent.exists()


def test_two_first_runs_at_once_end_up_with_one_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPOP_SOFTHSM_STATE", str(tmp_path / "fresh"))
    both = [
        subprocess.Popen(
            [RUN, "--", "dpop-agent", "key", "list", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]

    assert sorted(process.returncode for process in both)[0] == 0, outputs
    for process, (_, errors) in zip(both, outputs, strict=True):
        assert process.returncode == 0 or "served already" in errors
    assert len(list((tmp_path / "fresh" / "tokens").iterdir())) == 1
