"""Where tests look at an agent from outside: its configuration, its log, its processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.agent.wire import Wire
from tests.processes import Agent, Token
from tests.stores.on_token import MODULE


def write_config(
    token: Token,
    *,
    module: str = MODULE,
    uri: str | None = None,
    pin_source: str | None = None,
    more: str = "",
) -> Path:
    """Write the PKCS#11 token's configuration anew, with other settings."""
    token.config.write_text(
        f"""\
[stores.softhsm]
type = "pkcs11"
module = {json.dumps(module)}
uri = {json.dumps(uri or f"pkcs11:token={token.label}")}
pin_source = {json.dumps(pin_source or f"file:{token.pin_file}")}
env = {{ SOFTHSM2_CONF = {json.dumps(str(token.softhsm_conf))} }}
{more}
"""
    )
    return token.config


def changed_config(token: Token, *, env: Mapping[str, str] | None = None, **settings: str) -> Path:
    """Another configuration, as the PKCS#11 token's, but with other settings and more in `env`."""
    text = token.config.read_text()
    for name, value in settings.items():
        old = re.search(f"^{name} = .*$", text, flags=re.M)
        assert old, name
        text = text.replace(old[0], f"{name} = {json.dumps(value)}")
    for name, value in (env or {}).items():
        text = text.replace("env = {", f"env = {{ {name} = {json.dumps(value)},")
    config = token.folder / "changed.toml"
    config.write_text(text)
    return config


def add_store(config: Path, name: str, token: Token) -> None:
    """Let a configuration name another PKCS#11 token too."""
    settings = token.config.read_text().partition("[stores.")[2].partition("]\n")[2]
    config.write_text(f"{config.read_text()}\n[stores.{name}]\n{settings}")


def store(agent: Agent) -> dict[str, Any]:
    """The agent's one store, as `status` has it."""
    with Wire(agent.socket) as wire:
        (found,) = wire.result("status")["stores"]
    return dict(found)


def until(holds: Callable[[], object], *, seconds: float = 30.0) -> None:
    """Wait until something holds; longer than it takes on the busiest machine."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.005)


def until_open(agent: Agent) -> dict[str, Any]:
    """Wait until the agent's store is open."""
    return until_state(agent, "ready")


def until_state(agent: Agent, state: str) -> dict[str, Any]:
    """Wait until the agent's store is in that state."""
    until(lambda: store(agent)["state"] == state)
    return store(agent)


def until_logged(agent: Agent, text: str, *, times: int = 1) -> None:
    """Wait until the agent has said something so often."""
    until(lambda: agent.log.read_text().count(text) >= times)


def serve_with(*words: str) -> list[str]:
    """Before `python -m dpop_agent serve`: the same with more words after it."""
    return ["sh", "-c", f'exec "$@" {" ".join(words)}', "sh"]


def hurried(*settings: str) -> list[str]:
    """Before `python -m dpop_agent serve`: the same with times such as `signers.TICK_S=0.1`."""
    return [sys.executable, "-m", "tests.hurried_agent", *settings]


def descendants(pid: int) -> set[int]:
    """The processes below a process that still run."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            parents[int(stat.parent.name)] = int(parent)
    found: set[int] = set()
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def signers_of(agent: Agent) -> set[int]:
    """The signers of an agent that run, in whichever state."""
    with Wire(agent.socket) as wire:
        return descendants(agent.pid) - {wire.result("status")["forking_pid"]}


def memory_of(pid: int) -> bytes:
    """All of a process's private memory, as root alone may read it."""
    found = b""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, modes, *_ = line.split()
            start, end = (int(x, 16) for x in span.split("-"))
            if "rw" in modes and "[v" not in line:
                memory.seek(start)
                try:
                    found += memory.read(end - start)
                except OSError:
                    continue
    return found


def refused_to_serve(agent: Agent) -> str:
    """What `serve` says instead of serving: one line on standard error, and status 1."""
    run: subprocess.CompletedProcess[str] = agent.run("serve")
    assert run.returncode == 1, run.stderr
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("dpop-agent: ")
    assert "; " in line  # what and why; what next
    assert "Traceback" not in line
    return line
