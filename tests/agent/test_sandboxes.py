"""Clients in containers: a folder with the agent's socket and nothing else, mounted read-only."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.client import AgentClient
from tests.agent.places import refused_to_serve, until, until_logged
from tests.agent.test_processes import Ordinary
from tests.agent.wire import request
from tests.emulators import need
from tests.processes import Agent

MakeAgent = Callable[..., Agent]

_CLIENT = """
import json, os, sys
from dpop_agent.client import AgentClient
from dpop_agent.errors import DPoPAgentError
folder = "/run/dpop-agent"
def attempt(name, run):
    try:
        return name, run()
    except (DPoPAgentError, OSError) as e:
        return name, f"{type(e).__name__}: {e}"
client = AgentClient(f"{folder}/agent.sock", timeout=30)
for line in sys.stdin:
    print(json.dumps(dict([
        attempt("files", lambda: os.listdir(folder)),
        attempt("proof", lambda: client.proof("GET", "https://h.example/").state),
        attempt("admin", lambda: AgentClient(f"{folder}/admin.sock").call("lock", {})),
        attempt("remove", lambda: os.unlink(f"{folder}/agent.sock")),
        attempt("write", lambda: open(f"{folder}/agent.sock.new", "w")),
    ])), flush=True)
"""


class Sandbox:
    """A client in bubblewrap, into which that folder was mounted before it was started."""

    def __init__(self, ordinary: Ordinary, folder: Path, *, uid: int) -> None:
        own = str(Path(ordinary.interpreter).parents[2])
        self._process = subprocess.Popen(
            [
                *ordinary.as_user,
                *("bwrap", "--unshare-all", "--uid", str(uid), "--gid", str(uid)),
                *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
                *("--tmpfs", "/tmp", "--tmpfs", "/run", "--ro-bind", own, own),
                *("--ro-bind", str(folder), "/run/dpop-agent"),
                *(ordinary.interpreter, "-I", "-c", _CLIENT),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tries(self) -> dict[str, Any]:
        """What becomes of each of its tries."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(file=stdin, flush=True)
        tries: dict[str, Any] = json.loads(stdout.readline())
        return tries

    def end(self) -> None:
        self._process.communicate(timeout=10)


@pytest.fixture
def ordinary() -> Iterator[Ordinary]:
    folder = Path(tempfile.mkdtemp(prefix="dpop-ordinary-", dir="/tmp"))
    found = Ordinary(folder)
    try:
        yield found
    finally:
        found.agent.close()
        shutil.rmtree(folder)


def serve(ordinary: Ordinary) -> None:
    ordinary.agent.start(wait=False)
    until(lambda: Path(ordinary.agent.socket).exists())
    until(lambda: ordinary.store()["state"] == "ready")


def test_a_folder_mounted_into_a_sandbox_gives_proofs_and_nothing_else_before_and_after_a_restart(
    ordinary: Ordinary,
) -> None:
    need("bubblewrap")
    serve(ordinary)
    ordinary.ask(
        request("key.create", {"key": "default", "origins": []}), ordinary.agent.admin_socket
    )
    # As itself, and as root, which a container without root's rights often is.
    sandboxes = [Sandbox(ordinary, ordinary.agent.runtime / "mount", uid=uid) for uid in (1000, 0)]
    try:
        for again in (True, False):
            for sandbox in sandboxes:
                tries = sandbox.tries()
                assert (tries["files"], tries["proof"]) == (["agent.sock"], "active")
                assert tries["admin"].startswith("AgentUnavailable")
                assert "Read-only file system" in tries["remove"]
                assert "Read-only file system" in tries["write"]
            if again:
                assert ordinary.agent.stop() == 0
                assert sandboxes[0].tries()["files"] == []
                serve(ordinary)
    finally:
        for sandbox in sandboxes:
            sandbox.end()


def test_the_folder_for_containers_is_the_owners_alone_and_outlives_the_agent(
    make_agent: MakeAgent,
) -> None:
    agent = make_agent().start()
    folder = agent.runtime / "mount"
    before = folder.stat()
    assert before.st_mode & 0o777 == 0o700
    assert [file.name for file in folder.iterdir()] == ["agent.sock"]
    assert (folder / "agent.sock").stat().st_mode & 0o777 == 0o600
    assert agent.stop() == 0
    assert list(folder.iterdir()) == []
    agent.start()
    assert (folder.stat().st_dev, folder.stat().st_ino) == (before.st_dev, before.st_ino)
    with AgentClient(str(folder / "agent.sock")) as client:
        assert client.status()["pid"] == agent.pid


def test_the_socket_for_containers_answers_what_agent_sock_does_and_no_more(
    make_agent: MakeAgent,
) -> None:
    agent = make_agent().start()
    hello = {"jsonrpc": "2.0", "id": 1, "method": "lock"}
    with AgentClient(str(agent.runtime / "mount" / "agent.sock")) as client:
        assert client.hello() == agent.client().hello()
        with pytest.raises(Exception, match="isn't answered on this socket"):
            client.call(str(hello["method"]), {})


def test_a_folder_for_containers_that_others_can_reach_is_refused(make_agent: MakeAgent) -> None:
    agent = make_agent()
    (agent.runtime / "mount").mkdir(mode=0o755)
    line = refused_to_serve(agent)
    assert f"{agent.runtime}/mount has mode 0755: others can reach it" in line


def test_an_agent_whose_path_leaves_no_room_for_it_serves_without_a_socket_for_containers(
    make_agent: MakeAgent,
) -> None:
    agent = make_agent()
    folder = agent.runtime / "x".ljust(107 - len(f"{agent.runtime}//agent.sock"), "x")
    agent.socket = agent.env["DPOP_AGENT_SOCK"] = str(folder / "agent.sock")
    agent.start()
    until_logged(agent, "there is no socket for containers")
    assert agent.client().status()["pid"] == agent.pid
    assert not (folder / "mount").exists()
