"""What the agent does when its own places change under it: sockets, folders, terminal, log."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from shlex import quote

import pytest

from dpop_agent.agent.server import PLACE_TRIES
from dpop_agent.client import AgentClient
from dpop_agent.errors import DPoPAgentError
from tests.agent.places import refused_to_serve, serve_with, until, until_logged
from tests.agent.wire import Wire, refusal, request
from tests.bench.bars import DESCRIPTORS_BACK
from tests.processes import Agent, Token, running
from tests.rows import Reached
from tests.timing import Measured

MakeAgent = Callable[..., Agent]


def answers(path: str, pid: int) -> bool:
    """Whether that agent answers there."""
    try:
        with AgentClient(path) as client:
            return bool(client.status()["pid"] == pid)
    except DPoPAgentError:
        return False


def until_served(agent: Agent) -> None:
    """Wait until its sockets are the agent's."""
    sockets = agent.socket, agent.admin_socket, str(agent.runtime / "mount" / "agent.sock")
    until(lambda: all(answers(path, agent.pid) for path in sockets))


def ended_with(agent: Agent, line: str) -> None:
    """Wait until the agent has ended by itself, not without a word."""
    assert agent.process.wait(10) == 1
    assert line in agent.log.read_text().splitlines()[-1]
    agent.stop()


@pytest.fixture
def outside(agent: Agent, tmp_path: Path) -> Agent:
    """A running agent whose log isn't in the folder of its sockets."""
    os.link(agent.log, tmp_path / "log")
    agent.log = tmp_path / "log"
    return agent


# Its sockets


@pytest.mark.parametrize(
    "which",
    [["agent.sock"], ["admin.sock"], ["mount/agent.sock"], ["agent.sock", "admin.sock"]],
)
def test_a_socket_that_was_removed_is_served_anew(outside: Agent, which: list[str]) -> None:
    with Wire(outside.socket) as before:
        for name in which:
            (outside.runtime / name).unlink()
        until_served(outside)
        assert before.result("status")["pid"] == outside.pid  # whoever was connected stays so
    assert outside.log.read_text().count("had gone, and is served again") == len(which)
    assert (outside.runtime / which[0]).stat().st_mode & 0o777 == 0o600


def test_an_agent_at_rest_is_woken_by_nothing(make_agent: MakeAgent) -> None:
    agent = make_agent(preexec=["nohup"]).start()  # one that looks after its terminal never rests
    agent.create_key("default")
    agent.client().proof("GET", "https://api.example.com/")
    woken = 0

    def rests() -> bool:
        """Whether it slept through two seconds."""
        nonlocal woken
        before, woken = woken, _woken(agent.pid)
        time.sleep(2)
        return before == woken

    until(rests)


def _woken(pid: int) -> int:
    """How often a process went on after it had slept, all its threads together."""
    statuses = Path(f"/proc/{pid}/task").glob("*/status")
    lines = [line for status in statuses for line in status.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def _removed(folder: Path) -> None:
    shutil.rmtree(folder)


def _renamed(folder: Path) -> None:
    folder.rename(folder.with_name(f"{folder.name}.old"))


def _remade(folder: Path) -> None:
    _removed(folder)
    folder.mkdir(mode=0o700)


def _emptied(folder: Path) -> None:
    for file in folder.iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()


@pytest.mark.parametrize("change", [_removed, _renamed, _remade, _emptied])
def test_sockets_whose_folder_was_changed_are_served_anew(
    outside: Agent, change: Callable[[Path], None]
) -> None:
    old = outside.runtime.with_name(f"{outside.runtime.name}.old")
    try:
        change(outside.runtime)
        until_served(outside)
        assert outside.runtime.stat().st_mode & 0o777 == 0o700
        assert outside.stop() == 0
        assert not Path(outside.socket).exists()
    finally:
        if old.exists():
            _removed(old)


def test_an_agent_whose_folder_was_remade_for_others_to_reach_ends_with_a_line(
    outside: Agent,
) -> None:
    _removed(outside.runtime)
    outside.runtime.mkdir()
    outside.runtime.chmod(0o755)
    ended_with(outside, "has mode 0755: others can reach it")


def test_an_agent_whose_folder_cant_be_made_anew_ends_with_a_line_and_lets_its_ledger_go(
    outside: Agent, make_agent: MakeAgent
) -> None:
    """As after a logout, which removes the user's runtime folder."""
    _removed(outside.runtime)
    outside.runtime.write_text("")
    try:
        ended_with(outside, f"the socket's folder {outside.runtime} can't be used")
        assert make_agent(state=outside.state).start().client().keys() == []
    finally:
        outside.runtime.unlink()


def test_an_agent_whose_socket_became_something_else_ends_with_a_line_and_leaves_that(
    agent: Agent,
) -> None:
    Path(agent.socket).unlink()
    Path(agent.socket).write_text("a diary")
    ended_with(agent, f"{agent.socket} is there and isn't a socket")
    assert Path(agent.socket).read_text() == "a diary"


def test_an_agent_that_cant_serve_mount_serves_its_other_sockets_and_mount_once_it_can(
    agent: Agent,
) -> None:
    agent.create_key("default")
    agent.run("socket", "add", "ci", "--key", "default", check=True)
    mount, filtered = agent.runtime / "mount", agent.runtime / "sockets" / "ci" / "agent.sock"
    _removed(mount)
    mount.write_text("a diary")
    until_logged(agent, f"nobody can connect to {mount}/agent.sock: ")
    for _ in range(PLACE_TRIES + 1):  # in each look one comes back
        filtered.unlink()
        until(filtered.exists)
    assert answers(agent.socket, agent.pid)
    assert agent.log.read_text().count("nobody can connect to") == 1
    assert mount.read_text() == "a diary"
    mount.unlink()
    until(lambda: answers(str(mount / "agent.sock"), agent.pid))


def test_an_agent_whose_place_another_took_ends_with_a_line_and_leaves_it_its_sockets(
    make_agent: MakeAgent,
) -> None:
    first, second = make_agent().start(), make_agent()
    second.env["DPOP_AGENT_SOCK"] = first.socket
    second.socket, second.admin_socket = first.socket, first.admin_socket
    first.process.send_signal(signal.SIGSTOP)
    for name in ("agent.sock", "admin.sock", "mount/agent.sock"):
        (first.runtime / name).unlink()
    for lock in first.runtime.glob("*.lock"):
        lock.unlink()
    second.start()
    first.process.send_signal(signal.SIGCONT)
    ended_with(first, f"another agent serves {first.socket}: process {second.pid}")
    assert answers(second.socket, second.pid)
    assert answers(second.admin_socket, second.pid)


def test_an_agent_that_ends_leaves_a_newer_socket_in_the_place_of_its_own(agent: Agent) -> None:
    agent.process.send_signal(signal.SIGSTOP)
    Path(agent.socket).unlink()
    with socket.socket(socket.AF_UNIX) as newer:
        newer.bind(agent.socket)
        newer.listen()
        agent.process.terminate()
        agent.process.send_signal(signal.SIGCONT)
        assert agent.process.wait(30) == 0  # a second SIGTERM would end it at once
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(agent.socket)
    assert not Path(agent.admin_socket).exists()


def test_a_listener_whose_backlog_is_full_is_told_at_once(make_agent: MakeAgent) -> None:
    agent = make_agent()
    with socket.socket(socket.AF_UNIX) as other, ExitStack() as waiting:
        other.bind(agent.socket)
        other.listen(0)
        while True:
            client = waiting.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(agent.socket)
            except BlockingIOError:
                break
        assert f"some other program listens at {agent.socket}" in refused_to_serve(agent)
    assert Path(agent.socket).is_socket()


def test_only_dead_sockets_of_its_own_are_tidied_up(make_agent: MakeAgent) -> None:
    agent = make_agent()

    def bound(name: str, mode: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(agent.runtime / name))
        (agent.runtime / name).chmod(mode)
        return sock

    bound("pin-000001", 0o600).close()
    bound("key-000002", 0o600).close()
    left = {"key-000003", "key-000004", "key-000005", "pin-000006", "pin-000007", "pin-8"}
    (agent.runtime / "key-000003").write_text("a diary")
    (agent.runtime / "key-000004").mkdir()
    (agent.runtime / "key-000005").symlink_to("pin-8")
    bound("pin-000006", 0o755).close()
    bound("pin-8", 0o600).close()
    with bound("pin-000007", 0o600) as live:
        live.listen()
        agent.start()
        found = {file.name for file in agent.runtime.iterdir()}
    assert {name for name in found if name.startswith(("pin", "key"))} == left


# Its descriptors


def limits(soft: int, hard: int) -> list[str]:
    return ["prlimit", f"--nofile={soft}:{hard}"]


def open_files(agent: Agent) -> int:
    return len(list(Path(f"/proc/{agent.pid}/fd").iterdir()))


def test_a_low_soft_limit_of_descriptors_is_raised(make_agent: MakeAgent) -> None:
    agent = make_agent(preexec=limits(256, 4096)).start()
    with ExitStack() as idle:
        wires = [idle.enter_context(Wire(agent.socket)) for _ in range(300)]
        assert all("pid" in wire.result("status") for wire in wires)
        assert answers(agent.admin_socket, agent.pid)


@pytest.mark.parametrize("limit", [64, 256])
def test_idle_connections_leave_room_for_admin_and_for_stores_and_fill_no_log(
    make_agent: MakeAgent, limit: int
) -> None:
    agent = make_agent(preexec=limits(limit, limit)).start()
    agent.create_key("default")
    before = len(agent.log.read_text().splitlines())
    with ExitStack() as idle:
        refused = 0
        wires = [idle.enter_context(Wire(agent.socket)) for _ in range(2 * limit)]
        for wire in wires:
            with suppress(BrokenPipeError):  # it was refused already
                wire.send(request("status"))
            answer = wire.next()
            if answer["id"] is None:
                assert refusal(answer)["type"] == "too_many_connections"
                refused += 1
        assert limit <= refused < 2 * limit
        assert open_files(agent) < limit
        assert answers(agent.admin_socket, agent.pid)
        agent.create_key("second")  # its ledger can be written
        admin = agent.admin()
        killed = admin.status()["stores"][0]["signer_pid"]
        os.kill(killed, signal.SIGKILL)
        until(lambda: admin.status()["stores"][0]["signer_pid"] not in (None, killed))
    until(lambda: answers(agent.socket, agent.pid))
    assert len(agent.log.read_text().splitlines()) - before < 20


def test_descriptors_that_whoever_started_it_left_open_are_counted(make_agent: MakeAgent) -> None:
    inherit = "import os, sys; [os.set_inheritable(os.dup(0), True) for _ in range(50)]"
    command = f"{inherit}; os.execvp(sys.argv[1], sys.argv[1:])"
    agent = make_agent(preexec=[*limits(128, 128), sys.executable, "-c", command]).start()
    assert open_files(agent) > 50
    with ExitStack() as idle:
        wires = [idle.enter_context(Wire(agent.socket)) for _ in range(150)]
        assert refusal(wires[-1].next())["type"] == "too_many_connections"
        assert open_files(agent) < 128
        agent.create_key("default")


@pytest.mark.row(5)
def test_200_connections_to_an_agent_with_64_descriptors_neither_end_it_nor_keep_it_busy(
    make_agent: MakeAgent, measured: Measured, reached: Reached
) -> None:
    agent = make_agent(preexec=limits(64, 64)).start()
    agent.create_key("default")
    with ExitStack() as idle:
        for _ in range(200):
            idle.enter_context(Wire(agent.socket))
        cores = _cores(agent)
        assert cores < 0.5
    with measured(DESCRIPTORS_BACK):
        until(lambda: gives_a_proof(agent))
    assert agent.process.poll() is None
    reached("connections to an agent that may have 64 descriptors", 200)
    reached("agents that ended for want of descriptors", 0)
    reached("cores that an agent without descriptors keeps busy", cores)


@pytest.mark.row(5)
def test_running_out_of_descriptors_all_the_same_is_told_once_and_over_when_it_is_over(
    make_agent: MakeAgent, measured: Measured, reached: Reached
) -> None:
    agent = make_agent().start()
    agent.create_key("default")
    used = open_files(agent)
    subprocess.run(["prlimit", f"--pid={agent.pid}", f"--nofile={used + 3}"], check=True)
    with ExitStack() as idle:
        for _ in range(100):
            idle.enter_context(Wire(agent.socket))
        until_logged(agent, "no connection can be taken in for now")
        cores = _cores(agent)
        assert cores < 0.5
    with measured(DESCRIPTORS_BACK):
        until(lambda: gives_a_proof(agent))
    assert answers(agent.socket, agent.pid)
    reached("cores that an agent without descriptors keeps busy", cores)
    reached("agents that ended for want of descriptors", 0)
    assert agent.log.read_text().count("no connection can be taken in for now") == 1


def gives_a_proof(agent: Agent) -> bool:
    """Whether it takes a connection in, and gives a proof on it."""
    with Wire(agent.socket) as wire:
        with suppress(BrokenPipeError):
            wire.send(request("proof", {"htm": "GET", "htu": "https://api.example.com/"}))
        answer = wire.line()
    return answer is not None and "result" in answer


def _cores(agent: Agent) -> float:
    """How much of a core it keeps busy in a second of its doing nothing."""
    before = _cpu_ticks(agent)
    time.sleep(1)
    return (_cpu_ticks(agent) - before) / os.sysconf("SC_CLK_TCK")


def _cpu_ticks(agent: Agent) -> int:
    fields = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def with_connections(token: Token, number: int) -> Path:
    text = token.config.read_text()
    token.config.write_text(text.replace("[agent]\n", f"[agent]\nmax_connections = {number}\n"))
    return token.config


def test_the_number_of_connections_is_a_setting(make_agent: MakeAgent, token: Token) -> None:
    agent = make_agent(with_connections(token, 2)).start()
    with Wire(agent.socket), Wire(agent.socket):
        with Wire(agent.socket) as third:
            assert refusal(third.next())["type"] == "too_many_connections"
        text = token.config.read_text()
        token.config.write_text(text.replace("max_connections = 2", "max_connections = 3"))
        agent.run("reload", check=True)
        assert answers(agent.socket, agent.pid)


def test_more_connections_than_there_can_be_files_are_refused_with_how_many_fit(
    make_agent: MakeAgent, token: Token
) -> None:
    config = with_connections(token, 600)
    agent = make_agent(config, preexec=limits(64, 640)).start(wait=False)
    ended_with(agent, "agent.max_connections is 600, and this process may open 640 files: room for")


# Its terminal, its log, what it was started with

_BLOCKING = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32));"
    "signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
)


def test_signals_that_were_blocked_by_whoever_started_it_are_taken(make_agent: MakeAgent) -> None:
    agent = make_agent(preexec=[sys.executable, "-c", _BLOCKING]).start()
    agent.create_key("default")
    agent.process.send_signal(signal.SIGHUP)
    assert answers(agent.socket, agent.pid)
    assert agent.stop() == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_it_runs_without_standard_descriptors(make_agent: MakeAgent, closed: str) -> None:
    agent = make_agent(preexec=serve_with(closed)).start()
    agent.create_key("default")
    assert agent.client().proof("GET", "https://h.example/").state == "active"
    for number in range(3):
        opened = Path(f"/proc/{agent.pid}/fd/{number}").readlink()
        assert str(opened) in ("/dev/null", str(agent.log))
    assert agent.stop() == 0


@pytest.fixture
def full_pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A pipe that nobody reads: its path, and a descriptor to read what is in it."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    yield tmp_path / "pipe", descriptor
    os.close(descriptor)


def drained(descriptor: int) -> bytes:
    """All that is in a pipe now."""
    found = b""
    try:
        while data := os.read(descriptor, 65536):
            found += data
    except BlockingIOError:
        pass
    return found


def test_a_log_that_nobody_reads_keeps_nobody_waiting(
    make_agent: MakeAgent, full_pipe: tuple[Path, int]
) -> None:
    path, descriptor = full_pipe
    agent = make_agent(preexec=serve_with(f"-v 2>{path}")).start()
    with Wire(agent.socket) as wire:
        for _ in range(100):
            wire.send(b"".join(request("status", number=n) for n in range(50)))
            assert len(wire.lines(50)) == 50
        assert drained(descriptor).count(b"DEBUG status") < 5000
        wire.result("key.list")
        said = drained(descriptor)
    assert b"lines of the log couldn't be written" in said
    assert b"DEBUG key.list, asked by pid " in said.splitlines()[-1]
    assert agent.stop() == 0


def test_an_agent_whose_log_nobody_reads_ends_when_it_is_asked_to(
    make_agent: MakeAgent, full_pipe: tuple[Path, int]
) -> None:
    agent = make_agent(preexec=serve_with(f"-v 2>{full_pipe[0]}")).start()
    with Wire(agent.socket) as wire:
        for _ in range(100):
            wire.send(b"".join(request("status", number=n) for n in range(50)))
            wire.lines(50)
    assert agent.stop() == 0


def test_a_log_on_a_full_disk_keeps_nobody_waiting(make_agent: MakeAgent) -> None:
    agent = make_agent(preexec=serve_with("-v 2>/dev/full")).start()
    agent.create_key("default")
    assert agent.client().proof("GET", "https://h.example/").state == "active"
    assert agent.stop() == 0


class Shell:
    """A shell in a terminal of its own, which started an agent and does what else it is told."""

    def __init__(self, agent: Agent, words: str, then: str) -> None:
        self.terminal, theirs = pty.openpty()
        name = os.ttyname(theirs)

        def take() -> None:
            os.close(os.open(name, os.O_RDWR))
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it

        command = f"{words} {quote(sys.executable)} -m dpop_agent serve >>{agent.log} 2>&1 & {then}"
        self.process = subprocess.Popen(
            ["bash", "-c", command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=agent.env,
            start_new_session=True,
            preexec_fn=take,
        )
        os.close(theirs)
        self._open = True
        agent.wait_until_it_answers()
        with AgentClient(agent.socket) as client:
            self.agent_pid: int = client.status()["pid"]

    def close(self) -> None:
        """Close the terminal's window."""
        if self._open:
            os.close(self.terminal)
            self._open = False

    def end(self) -> None:
        """End what still runs."""
        self.close()
        for pid in (self.process.pid, self.agent_pid):
            if running(pid):
                os.kill(pid, signal.SIGTERM)
        self.process.wait(10)
        until(lambda: not running(self.agent_pid))


@pytest.fixture
def in_a_shell(make_agent: MakeAgent) -> Iterator[Callable[..., tuple[Agent, Shell]]]:
    """`in_a_shell("nohup", then="exec cat")`: an agent that a shell started, and that shell."""
    with ExitStack() as shells:

        def start(words: str = "", *, then: str = "exec cat") -> tuple[Agent, Shell]:
            agent = make_agent()
            shell = Shell(agent, words, then)
            shells.callback(shell.end)
            return agent, shell

        yield start


def test_closing_the_terminal_ends_an_agent_in_it(
    in_a_shell: Callable[..., tuple[Agent, Shell]],
) -> None:
    agent, shell = in_a_shell()
    shell.close()
    until(lambda: not running(shell.agent_pid))
    assert "the terminal has gone, so the agent ends" in agent.log.read_text()
    assert not Path(agent.socket).exists()


def test_the_end_of_the_terminals_session_ends_an_agent_in_it(
    in_a_shell: Callable[..., tuple[Agent, Shell]],
) -> None:
    """No signal tells a background job of that."""
    agent, shell = in_a_shell(then="read line")
    os.write(shell.terminal, b"\n")
    until(lambda: not running(shell.agent_pid))
    assert "the terminal has gone, so the agent ends" in agent.log.read_text()


@pytest.mark.parametrize("words", ["nohup", "setsid"])
def test_an_agent_that_was_told_to_outlive_its_terminal_goes_on(
    in_a_shell: Callable[..., tuple[Agent, Shell]], words: str
) -> None:
    agent, shell = in_a_shell(words)
    shell.close()
    until(lambda: not running(shell.process.pid))
    os.kill(shell.agent_pid, signal.SIGHUP)
    time.sleep(1.5)
    assert answers(agent.socket, shell.agent_pid)


def test_a_sighup_at_a_terminal_that_is_there_reads_the_configuration_again(
    in_a_shell: Callable[..., tuple[Agent, Shell]],
) -> None:
    agent, shell = in_a_shell()
    agent.config.write_text("nonsense")
    os.kill(shell.agent_pid, signal.SIGHUP)
    until_logged(agent, "the old configuration stays")
    assert answers(agent.socket, shell.agent_pid)
