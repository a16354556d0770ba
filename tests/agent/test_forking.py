"""No moment in which another program of the user can open a signer, and what follows from that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.signer import forking as forking_process
from tests.agent.places import hurried, store, until, until_open
from tests.agent.test_processes import Ordinary
from tests.agent.wire import Wire, request
from tests.bench.bars import REPLACED
from tests.processes import Agent, Token, running
from tests.rows import Reached
from tests.timing import Measured

TARGET = {"htm": "GET", "htu": "https://api.example.com/"}
HURRIED = hurried("opening.MIN_BACK_OFF_S=0.01", "opening.MAX_BACK_OFF_S=0.01")

needs_root = pytest.mark.skipif(
    os.getuid() != 0, reason="the maps of a closed process are root's to read"
)


def forking_pid(agent: Agent) -> int:
    with Wire(agent.socket) as wire:
        pid: int = wire.result("status")["forking_pid"]
    return pid


def layout(pid: int) -> dict[str, str]:
    """Where libc, the interpreter and the stack lie in a process."""
    found: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        for name in ("libc.so", "/python3", "[stack]", "[vdso]"):
            if name in line:
                found.setdefault(name, line.partition("-")[0])
    return found


def another_signer(agent: Agent, pid: int) -> int:
    """Kill a signer; the pid of the one that comes in its place, with a request."""
    os.kill(pid, signal.SIGKILL)
    with Wire(agent.socket) as wire:
        until(lambda: "proof" in wire.ask("proof", **TARGET).get("result", {}))
    found: int = store(agent)["signer_pid"]
    assert found != pid
    return found


@needs_root
def test_no_signer_comes_by_exec(make_agent: Callable[..., Agent], measured: Measured) -> None:
    agent = make_agent(preexec=HURRIED).start()
    agent.create_key("default")
    forking = layout(forking_pid(agent))
    assert {"libc.so", "[stack]"} <= set(forking)
    other = make_agent().start()
    assert layout(forking_pid(other))["libc.so"] != forking["libc.so"], "layouts tell processes"
    pid = until_open(agent)["signer_pid"]
    seen = {pid}
    for _ in range(100):
        assert layout(pid) == forking
        with measured(REPLACED):
            pid = another_signer(agent, pid)
        seen.add(pid)
    assert len(seen) == 101


@needs_root
def test_the_forking_process_and_its_signers_hold_no_descriptor_of_the_agents(
    agent: Agent,
) -> None:
    until_open(agent)

    def held(pid: int) -> list[str]:
        found = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since
                found.append(os.readlink(entry))
        return sorted(found)

    agents = set(held(agent.pid))
    log = str(agent.log)
    for pid in (forking_pid(agent), store(agent)["signer_pid"]):
        # Both ends of a pair of sockets have names of their own; pidfds share theirs.
        assert set(held(pid)) & agents <= {log, os.devnull, "anon_inode:[pidfd]"}
    assert "anon_inode:[pidfd]" not in held(store(agent)["signer_pid"])
    others = [
        what
        for what in held(forking_pid(agent))
        if not what.startswith(("socket:", "anon_inode:[pidfd]"))
    ]
    assert others == sorted([log, os.devnull, os.devnull])


@needs_root
def test_what_systemd_gave_the_agent_reaches_no_signer(make_agent: Callable[..., Agent]) -> None:
    given = {
        "NOTIFY_SOCKET": "/run/none",
        "WATCHDOG_USEC": "1000000",
        "LISTEN_FDNAMES": "agent",
    }
    agent = make_agent(env=given).start()
    assert "NOTIFY_SOCKET" in Path(f"/proc/{agent.pid}/environ").read_text()
    # What a process changes in its own environment isn't seen in /proc: its child tells.
    script = agent.runtime / "program"
    script.write_text(f"#!/bin/sh\nenv > {agent.runtime}/seen\n")
    script.chmod(0o700)
    code = (
        "import os, socket, sys\n"
        "from dpop_agent import forking, systemd\n"
        "systemd.take()\n"
        "from dpop_agent.signer import serving\n"
        "serving.serve = lambda channel, line: os._exit(os.system(sys.argv[1]))\n"
        "from dpop_agent.signer import forking as process\n"
        "pid, channel = forking.fork(process.serve)\n"
        "order = {'env': {'OF_THE_STORE': 'is there'}, 'heir_of': None}\n"
        "forking.send(channel, order, channel.fileno())\n"
        "print(forking.receive(channel)[0]['pid'])\n"
        "channel.close()\n"
        "os.waitpid(pid, 0)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(script)],
        env={**agent.env, **given},
        check=True,
        timeout=60,
    )
    seen = (agent.runtime / "seen").read_text()
    assert "OF_THE_STORE=is there" in seen
    assert "DPOP_AGENT_CONFIG" in seen
    for name in given:
        assert name not in seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_for_the_whole_group_ends_neither_the_forking_process_nor_a_signer(
    agent: Agent, number: signal.Signals
) -> None:
    agent.create_key("default")
    forking, signer = forking_pid(agent), until_open(agent)["signer_pid"]
    for pid in (forking, signer):
        os.kill(pid, number)
    for _ in range(20):
        agent.client().proof("GET", "https://api.example.com/")
    assert (forking_pid(agent), store(agent)["signer_pid"]) == (forking, signer)


def test_without_the_forking_process_open_stores_serve_on_and_the_agent_ends_after_the_last(
    agent: Agent,
) -> None:
    agent.create_key("default")
    forking, signer = forking_pid(agent), until_open(agent)["signer_pid"]
    os.kill(forking, signal.SIGKILL)
    until(lambda: forking_pid(agent) is None)
    assert "the process that starts signers has ended" in agent.run("status").stdout
    for _ in range(20):
        assert agent.client().proof("GET", "https://api.example.com/").key == "default"
    assert store(agent)["signer_pid"] == signer
    os.kill(signer, signal.SIGKILL)
    assert agent.process.wait(30) == 1
    log = agent.log.read_text()
    assert "the process that starts signers has ended: open stores keep working" in log
    assert "and so did the last signer" in log
    assert "Traceback" not in log


def test_without_the_forking_process_an_agent_ends_with_the_last_store_that_is_locked(
    agent: Agent,
) -> None:
    until_open(agent)
    os.kill(forking_pid(agent), signal.SIGKILL)
    until(lambda: forking_pid(agent) is None)
    agent.run("lock", check=True)
    assert agent.process.wait(30) == 1


def test_an_agent_whose_forking_process_cant_start_says_so_and_ends(
    make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    (tmp_path / "pkcs11.py").write_text("raise ImportError('broken', name='pkcs11')\n")
    agent = make_agent(env={"PYTHONPATH": str(tmp_path)}).start(wait=False)
    assert agent.process.wait(30) == 1
    log = agent.log.read_text()
    assert "the process that starts signers failed (ImportError pkcs11)" in log
    assert "Traceback" not in log


def test_a_signer_that_hangs_doesnt_outlive_an_agent_that_was_killed(agent: Agent) -> None:
    forking, signer = forking_pid(agent), until_open(agent)["signer_pid"]
    os.kill(signer, signal.SIGSTOP)
    agent.kill()
    until(lambda: not running(signer) and not running(forking))


def test_a_vendors_module_that_prints_prints_into_nothing_of_ours(
    make_agent: Callable[..., Agent], token: Token
) -> None:
    # Without standard streams the agent's first sockets would be in their places.
    agent = make_agent(token.config, preexec=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]).start()
    agent.create_key("default")
    signer = until_open(agent)["signer_pid"]
    if os.getuid() == 0:
        for number in (0, 1):
            assert os.readlink(f"/proc/{signer}/fd/{number}") == os.devnull
    assert agent.client().proof("GET", "https://api.example.com/").key == "default"


# Runs as the agent's own uid, and tries for as long as it is told to: it watches for new processes
# below the forking one, and does to each what a thief would.
_THIEF = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
forking, wanted = int(sys.argv[1]), int(sys.argv[2])
tried, seen, opened = 0, set(), []

def attempt(what, work):
    global tried
    tried += 1
    try:
        if work():
            opened.append(what)
    except OSError:
        pass

def read(pid, name):
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return name == "mem" or file.read(1)

def steal(pid):
    pidfd = os.pidfd_open(pid)
    try:
        return any(libc.syscall(438, pidfd, number, 0) >= 0 for number in range(2, 6))
    finally:
        os.close(pidfd)

def trace(pid):
    return libc.ptrace(0x4206, pid, 0, 0) == 0  # PTRACE_SEIZE

def peek(pid):
    class Span(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    to, at = ctypes.create_string_buffer(8), Span(id(sys) & ~7, 8)
    ours = Span(ctypes.addressof(to), 8)
    return libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(at), 1, 0) > 0

print("ready", flush=True)
while tried < wanted:
    # Pids are given in turn: whatever was started a moment ago is among the next ones.
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        try:
            with open(f"/proc/{pid}/stat") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent != forking:
            continue
        seen.add(pid)
        for name in ("mem", "environ", "maps"):
            attempt(name, lambda: read(pid, name))
        attempt("pidfd_getfd", lambda: steal(pid))
        attempt("ptrace", lambda: trace(pid))
        attempt("process_vm_readv", lambda: peek(pid))
print(json.dumps({"tried": tried, "signers": len(seen), "opened": opened}))
"""


@pytest.fixture
def ordinary() -> Iterator[Ordinary]:
    with tempfile.TemporaryDirectory(prefix="dpop-ordinary-", dir="/tmp") as name:
        found = Ordinary(Path(name))
        try:
            found.agent.start(wait=False)
            until(lambda: Path(found.agent.socket).exists())
            yield found
        finally:
            found.agent.close()


def thieves(ordinary: Ordinary, tries: int) -> dict[str, Any]:
    """What another program of the user opens of signers that come and go meanwhile."""
    until(lambda: ordinary.store()["state"] == "ready")
    ordinary.ask(
        request("key.create", {"key": "default", "origins": []}), ordinary.agent.admin_socket
    )
    first = ordinary.store()["signer_pid"]
    forking = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    thief = ordinary.start(_THIEF, str(forking), str(tries))
    assert thief.stdout is not None
    assert thief.stdout.readline() == b"ready\n"
    while thief.poll() is None:
        ordinary.ask(request("proof", dict(TARGET)), ordinary.agent.socket)
        signer = ordinary.store()["signer_pid"]
        if signer is not None:
            os.kill(signer, signal.SIGKILL)
    found: dict[str, Any] = json.loads(thief.stdout.read())
    thief.stdout.close()
    return found


def test_another_program_of_the_user_opens_no_signer_at_any_moment(ordinary: Ordinary) -> None:
    found = thieves(ordinary, 1_000)
    assert found["tried"] >= 1_000
    assert found["signers"] > 1
    assert found["opened"] == []


@pytest.mark.long
@pytest.mark.row(21)
def test_ten_thousand_tries_to_open_a_new_signer_fail(ordinary: Ordinary, reached: Reached) -> None:
    found = thieves(ordinary, 10_000)
    assert found["tried"] >= 10_000
    assert found["opened"] == []
    reached("tries at new signers, from their first moment on", found["tried"])
    reached("tries at new signers that opened something", len(found["opened"]))


def test_the_thief_opens_what_isnt_closed(ordinary: Ordinary) -> None:
    """So that a refusal means something."""
    code = f"""
import os, subprocess, sys
if os.fork() == 0:
    os.execvp("sleep", ["sleep", "60"])
parent = os.getpid()
done = subprocess.run([sys.executable, "-I", "-c", {_THIEF!r}, str(parent), "40"],
                      stdout=subprocess.PIPE)
os.kill(int(open(f"/proc/{{parent}}/task/{{parent}}/children").read().split()[0]), 9)
sys.stdout.buffer.write(done.stdout)
"""
    found = json.loads(ordinary.python(code).splitlines()[-1])
    assert {"mem", "environ", "maps", "pidfd_getfd", "ptrace"} <= set(found["opened"])


def test_a_signer_that_reads_nothing_keeps_the_forking_process_from_nothing() -> None:
    """Until its line is full there is an heir for each order; then an error, at once."""
    line, unread = forking_process._line(None)
    giver = forking_process._Signer(os.getpid(), line)
    refused: list[OSError] = []

    def order_many() -> None:
        try:
            for _ in range(10_000):
                for end in forking_process._line(giver):
                    end.close()
        except OSError as e:
            refused.append(e)

    ordering = threading.Thread(target=order_many, daemon=True)
    with line, unread:
        ordering.start()
        ordering.join(30)
    assert [type(e) for e in refused] == [BlockingIOError]
