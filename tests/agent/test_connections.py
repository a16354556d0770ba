"""Connections: who may connect, how much, how slowly, and what becomes of work half done."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent.descriptors import FURTHER_CONNECTIONS, RESERVED, RETRY_MS
from dpop_agent.agent.descriptors import USUAL_CONNECTIONS as MAX_CONNECTIONS
from dpop_agent.agent.queue import MAX_WINDOW
from dpop_agent.jose import b64url_decode
from dpop_agent.protocol import MAX_REQUESTS
from tests.agent.places import store, until
from tests.agent.wire import Wire, refusal, request
from tests.bench.bars import LATE_LINE, WHILE_ANOTHER
from tests.processes import Agent, Token, new_token, resident_kib
from tests.rows import Reached
from tests.timing import Measured

TARGET = {"htm": "GET", "htu": "https://api.example.com/"}
NOBODY = 65534


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("connections")
    agent = Agent(new_token(folder / "token").config, folder / "state")
    with agent.serving("default"):
        yield agent


@pytest.fixture
def wire(agent: Agent) -> Iterator[Wire]:
    with Wire(agent.socket) as wire:
        yield wire


@contextmanager
def signer_stopped(agent: Agent) -> Iterator[Callable[[], None]]:
    """A signer that hangs until the block ends, or until what is given is called."""
    pid = store(agent)["signer_pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda: os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)


def iat(answer: dict[str, Any]) -> int:
    found: int = json.loads(b64url_decode(answer["result"]["proof"].split(".")[1]))["iat"]
    return found


# Pipelining


def test_pipelined_requests_are_all_answered_with_their_ids(wire: Wire) -> None:
    ids: list[int | str] = [*range(20), -1, 2**53 - 1, "", "a", "Ü", "x" * 64, "1"]
    lines = []
    for n, number in enumerate(ids):
        method, params = [("proof", TARGET), ("status", {}), ("nothing", {})][n % 3]
        lines.append(request(method, params, number=number))
    wire.send(b"".join(lines))
    answers = wire.lines(len(ids))
    assert {(type(a["id"]), a["id"]) for a in answers} == {(type(i), i) for i in ids}
    for answer in answers:
        assert ("error" in answer) == (ids.index(answer["id"]) % 3 == 2)


def test_a_request_in_pieces_is_a_request(wire: Wire) -> None:
    whole = request("proof", TARGET) + request("status")[:-1] + b"\r\n"
    for at in range(0, len(whole), 7):
        wire.send(whole[at : at + 7])
        time.sleep(0.001)
    assert all("result" in answer for answer in wire.lines(2))


def test_an_answer_doesnt_wait_for_a_slower_one_before_it(agent: Agent, wire: Wire) -> None:
    with signer_stopped(agent):
        wire.send(request("proof", TARGET, number="slow") + request("status", number="fast"))
        assert wire.next()["id"] == "fast"
    assert wire.next()["id"] == "slow"


def test_the_65th_request_under_way_waits_for_an_answer_and_all_are_answered(
    agent: Agent, wire: Wire
) -> None:
    numbers = range(MAX_REQUESTS + 6)
    with signer_stopped(agent):
        wire.send(b"".join(request("proof", TARGET, number=n) for n in numbers))
        wire.send(request("status", number="last"))
        with Wire(agent.socket) as other:
            assert "pid" in other.result("status")
        assert not select.select([wire.sock], [], [], 0.3)[0]  # no refusal either
    answers = wire.lines(MAX_REQUESTS + 7)
    assert {a["id"] for a in answers} == {*numbers, "last"}
    assert "last" not in [a["id"] for a in answers[:6]]
    assert all("result" in a for a in answers)


def test_a_client_that_sends_no_more_still_gets_its_answers(agent: Agent, wire: Wire) -> None:
    with signer_stopped(agent):
        wire.send(b"".join(request("proof", TARGET, number=n) for n in range(10)))
        wire.half_close()
        time.sleep(0.05)
    assert sorted(a["id"] for a in wire.lines(10)) == list(range(10))
    assert wire.line() is None


def test_work_for_a_client_that_went_doesnt_reach_the_store(agent: Agent, wire: Wire) -> None:
    before = wire.result("status")["proofs"]
    with signer_stopped(agent):
        with Wire(agent.socket) as going:
            going.send(b"".join(request("proof", TARGET, number=n) for n in range(50)))
            going.send(request("status", number="read"))
            assert going.next()["id"] == "read"
        until(lambda: wire.result("status")["connections"] == 1)
    wire.result("proof", **TARGET)
    assert wire.result("status")["proofs"] - before <= MAX_WINDOW + 1


def test_a_deadline_holds_while_the_store_hangs_and_the_next_request_is_fine(
    agent: Agent, wire: Wire, measured: Measured
) -> None:
    pid = store(agent)["signer_pid"]
    with signer_stopped(agent):
        wire.send(request("proof", {**TARGET, "timeout_ms": 2000}, number="patient"))
        with measured("a proof with a deadline of 0.3 s, from a store that hangs, is refused"):
            error = wire.error("proof", **TARGET, timeout_ms=300)
        assert (error["type"], error["retry"]) == ("timeout", "now")
        patient = wire.next()
        assert (patient["id"], refusal(patient)["type"]) == ("patient", "timeout")
    assert wire.result("proof", **TARGET)["state"] == "active"
    assert store(agent)["signer_pid"] == pid


def test_a_proof_that_grew_old_in_the_store_is_made_anew(agent: Agent, wire: Wire) -> None:
    with signer_stopped(agent) as go_on:
        wire.send(request("proof", TARGET))
        time.sleep(2.2)
        now = math.floor(time.time())
        go_on()
        assert iat(wire.next()) >= now


# Slow and many


@pytest.mark.row(3)
def test_a_line_has_5_seconds_and_an_idle_connection_has_for_ever(
    agent: Agent, measured: Measured
) -> None:
    whole = request("proof", TARGET)
    with (
        Wire(agent.socket) as half,
        Wire(agent.socket) as drop,
        Wire(agent.socket) as begun_later,
        Wire(agent.socket) as ended_late,
        Wire(agent.socket) as idle,
    ):
        with measured(LATE_LINE):
            half.send(request("status") + whole[:-1])
            assert half.next()["id"] == 1
            sent = 0
            while half.silent or drop.silent:
                drop.send(whole[sent : sent + 1])  # no byte puts off the end
                sent += 1
                if sent == 8:
                    begun_later.send(whole[:9])
                    ended_late.send(whole[:9])
                with Wire(agent.socket) as honest, measured(WHILE_ANOTHER):
                    honest.result("proof", **TARGET)
                time.sleep(0.3)
        assert begun_later.silent
        ended_late.send(whole[9:])
        assert "result" in ended_late.next()
        for slow in (half, drop, begun_later):
            answer = slow.next()
            assert answer["id"] is None
            error = refusal(answer)
            assert error["type"] == "timeout"
            assert "after 5 s" in error["message"]
            assert slow.line() is None
        for good in (ended_late, idle):
            assert "proof" in good.result("proof", **TARGET)


@pytest.mark.row(4)
def test_connections_have_a_limit_that_is_told_and_room_is_room_again(
    agent: Agent, reached: Reached
) -> None:
    with ExitStack() as stack:
        open_now = Wire(agent.socket)
        already = open_now.result("status")["connections"]
        open_now.close()
        room = range(MAX_CONNECTIONS - already + 1)
        wires = [stack.enter_context(Wire(agent.socket)) for _ in room]
        until(lambda: wires[0].result("status")["connections"] == MAX_CONNECTIONS)
        with Wire(agent.socket) as one_more:
            answer = one_more.next()
            assert answer["id"] is None
            error = refusal(answer)
            assert (error["type"], error["retry"]) == ("too_many_connections", "later")
            assert one_more.line() is None
            reached("answers too_many_connections to one above the usual limit", 1)
        with Wire(agent.admin_socket) as owner:  # whom no client of the other socket keeps out
            assert "stores" in owner.result("status")
        wires.pop().close()
        until(lambda: wires[0].result("status")["connections"] < MAX_CONNECTIONS)
        with Wire(agent.socket) as again:
            assert "proof" in again.result("proof", **TARGET)
    with Wire(agent.admin_socket) as owner:  # who comes next finds room
        until(lambda: owner.result("status")["connections"] <= already)


def test_whoever_fills_a_further_socket_takes_no_room_on_others(
    make_agent: Callable[..., Agent], token: Token
) -> None:
    text = token.config.read_text()
    token.config.write_text(text.replace("[agent]\n", "[agent]\nmax_socket_connections = 5\n"))
    agent = make_agent(token.config).start()
    agent.create_key("default")
    mount = str(agent.runtime / "mount" / "agent.sock")
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(mount)) for _ in range(5)]
        assert all("stores" in wire.result("status") for wire in wires)
        with Wire(mount) as one_more:
            error = refusal(one_more.next())
            assert (error["type"], error["retry"]) == ("too_many_connections", "later")
            assert error["retry_after_ms"] == RETRY_MS
        for path in (agent.socket, agent.admin_socket):
            with Wire(path) as wire:
                assert "proof" in wire.result("proof", **TARGET)
        wires.pop().close()
        until(lambda: agent.client().status()["connections"] <= 5)
        with Wire(mount) as again:
            assert "proof" in again.result("proof", **TARGET)


def test_however_many_further_sockets_are_full_each_other_one_has_connections_of_its_own(
    make_agent: Callable[..., Agent], token: Token
) -> None:
    text = token.config.read_text()
    token.config.write_text(text.replace("[agent]\n", "[agent]\nmax_socket_connections = 100\n"))
    agent = make_agent(token.config).start()
    agent.create_key("default")

    def fill(stack: ExitStack, path: str) -> int:
        """How many are let in; those stay."""
        let_in = 0
        for _ in range(101):
            wire = stack.enter_context(Wire(path))
            with suppress(BrokenPipeError):  # it was refused already
                wire.send(request("status"))
            if wire.next()["id"] is None:
                break
            let_in += 1
        return let_in

    with Wire(agent.admin_socket) as admin, ExitStack() as stack:

        def add(name: str, **params: Any) -> str:
            (added,) = admin.result("socket.add", socket=name, keys=["default"], **params)[
                "sockets"
            ]
            path: str = added["path"]
            return path

        taken = [
            fill(stack, add("kept")),
            *(fill(stack, add(f"command{n}", with_connection=True)) for n in (1, 2)),
        ]
        assert taken[:2] == [100, 100]  # one command's are not another's
        assert sum(taken) == FURTHER_CONNECTIONS + 3 * RESERVED
        mount = str(agent.runtime / "mount" / "agent.sock")
        for path in (mount, add("another"), add("command3", with_connection=True)):
            assert fill(stack, path) == RESERVED


def test_a_client_that_never_reads_stops_only_itself(agent: Agent) -> None:
    before = resident_kib(agent.pid)
    with Wire(agent.socket) as deaf, Wire(agent.socket) as honest:
        deaf.sock.settimeout(0.3)
        many = b"".join(request("status", number=n) for n in range(500_000))
        with pytest.raises(TimeoutError):
            deaf.send(many)
        assert resident_kib(agent.pid) - before < 16 * 1024
        assert "proof" in honest.result("proof", **TARGET)
    until(lambda: agent.client().status()["connections"] == 1)


# Who


_STRANGER = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for _ in range(int(sys.argv[2])):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(sys.argv[1])
    got = b""
    try:
        sock.sendall(sys.argv[3].encode())
        while data := sock.recv(65536):
            got += data
    except ConnectionError:
        pass
    sys.stdout.write(got.decode() + "|")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="to be another user takes root")
@pytest.mark.parametrize("which", ["agent.sock", "admin.sock"])
@pytest.mark.parametrize("sent", ["no json\n", request("status").decode()])
@pytest.mark.row(18)
def test_another_user_is_refused_before_a_byte_is_parsed(
    agent: Agent, which: str, sent: str, reached: Reached
) -> None:
    path = agent.runtime / which
    log = agent.log.read_text()
    try:
        agent.runtime.chmod(0o755)
        path.chmod(0o666)
        run = subprocess.run(
            [sys.executable, "-I", "-c", _STRANGER, path, "1000", sent],
            check=True,
            timeout=60,
            capture_output=True,
            text=True,
        )
    finally:
        path.chmod(0o600)
        agent.runtime.chmod(0o700)
    assert run.stdout == "|" * 1000
    said = agent.log.read_text().removeprefix(log)
    assert said.count(f"runs as uid {NOBODY}, not as uid {os.getuid()}") == 1000
    assert sent.strip() not in said
    reached("connections of another uid, each refused", 1000)
    reached("bytes that another uid was answered, or that were parsed for it", 0)
    assert agent.client().status()["pid"] == agent.pid


@pytest.mark.row(22)
def test_a_connection_outlives_the_process_that_made_it(agent: Agent, reached: Reached) -> None:
    """Only the uid is asked, and that at connect time."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        code = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b'x'], [s.fileno()])"
        )
        subprocess.run(
            [sys.executable, "-I", "-c", code, agent.socket, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            check=True,
            timeout=30,
        )
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=descriptor) as sock:
        sock.sendall(request("status"))
        assert b'"result"' in sock.recv(65536)
    reached("connections judged by another uid than the one that connected", 0)


_STRANGERS_CHILD = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX)
if not os.fork():
    os.setuid(65534)
    sock.connect(sys.argv[1])
    os._exit(0)
os.wait()
sock.settimeout(10)
try:
    sock.sendall(sys.argv[2].encode())
    sys.stdout.write(sock.recv(65536).decode())
except ConnectionError:
    pass
"""


@pytest.mark.row(22)
@pytest.mark.skipif(os.getuid() != 0, reason="to be another user takes root")
def test_a_connection_that_another_user_made_is_refused_whoever_uses_it(
    agent: Agent, reached: Reached
) -> None:
    try:
        agent.runtime.chmod(0o755)
        Path(agent.socket).chmod(0o666)
        run = subprocess.run(
            [sys.executable, "-I", "-c", _STRANGERS_CHILD, agent.socket, request("status")],
            check=True,
            timeout=30,
            capture_output=True,
        )
    finally:
        Path(agent.socket).chmod(0o600)
        agent.runtime.chmod(0o700)
    assert run.stdout == b""
    reached("connections judged by another uid than the one that connected", 0)
