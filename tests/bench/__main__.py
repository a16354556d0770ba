"""Raw `C_Sign` and the agent, side by side: interleaved, same PKCS#11 token, same P-256 key.

Prints medians with their spread over the rounds, ratios, and CPU time a proof. Then it measures
what has a bar, in tests/bench/bars.py, and ends non-zero when one is missed.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from tests.bench.bars import BARS, PROOF, judged
from tests.processes import ROOT, Agent, Token, new_token

ROUNDS = 9
STARTS = 25
RAW, SEQUENTIAL, CONCURRENT = 2000, 1000, 6000
CONNECTIONS = 16

REQUEST = (
    json.dumps(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "proof",
            "params": {"htm": "GET", "htu": "https://api.example.com/v1/me"},
        }
    ).encode()
    + b"\n"
)


class Round:
    """What one round measured; microseconds."""

    def __init__(self) -> None:
        self.p50: dict[str, float] = {}
        self.p99: dict[str, float] = {}
        self.each: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def record(self, name: str, times: list[float], wall: float) -> None:
        times.sort()
        self.p50[name] = times[len(times) // 2] * 1e6
        self.p99[name] = times[len(times) * 99 // 100] * 1e6
        self.each[name] = wall / len(times) * 1e6


def raw_signer(token: Token) -> Callable[[], None]:
    os.environ["SOFTHSM2_CONF"] = str(token.softhsm_conf)
    import pkcs11
    from pkcs11 import Attribute, Mechanism, ObjectClass

    (found,) = (
        slot.get_token()
        for slot in pkcs11.lib(token.module).get_slots(token_present=True)
        if slot.get_token().label.strip("\0 ") == token.label
    )
    session = found.open(user_pin=token.pin)
    key: Any
    (key,) = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
    data = b"x" * 300

    def sign() -> None:
        key.sign(hashlib.sha256(data).digest(), mechanism=Mechanism.ECDSA)

    return sign


def measure_raw(into: Round, sign: Callable[[], None]) -> None:
    times = []
    begin = time.perf_counter()
    for _ in range(RAW):
        start = time.perf_counter()
        sign()
        times.append(time.perf_counter() - start)
    into.record("raw", times, time.perf_counter() - begin)


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


def take(sock: socket.socket) -> None:
    data = sock.recv(65536)
    while not data.endswith(b"\n"):
        data += sock.recv(65536)
    if b'"proof"' not in data:
        raise SystemExit(f"the agent refused: {data[:300]!r}")


def measure_sequential(into: Round, sock: socket.socket) -> None:
    times = []
    begin = time.perf_counter()
    for _ in range(SEQUENTIAL):
        start = time.perf_counter()
        sock.sendall(REQUEST)
        take(sock)
        times.append(time.perf_counter() - start)
    into.record("sequential", times, time.perf_counter() - begin)


def measure_concurrent(into: Round, socks: list[socket.socket]) -> None:
    times: list[float] = []
    started = {}
    left = CONCURRENT
    with selectors.DefaultSelector() as selector:
        begin = time.perf_counter()
        for number, sock in enumerate(socks):
            selector.register(sock, selectors.EVENT_READ, number)
            started[sock] = time.perf_counter()
            sock.sendall(REQUEST)
            left -= 1
        while len(times) < CONCURRENT:
            for event, _ in selector.select():
                sock = socks[event.data]
                take(sock)
                now = time.perf_counter()
                times.append(now - started[sock])
                if left:
                    left -= 1
                    started[sock] = now
                    sock.sendall(REQUEST)
        into.record("concurrent", times, time.perf_counter() - begin)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):8.1f}  ({min(values):.1f} to {max(values):.1f})"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="dpop-bench-") as folder:
        token = new_token(Path(folder) / "token")
        agent = Agent(token.config, Path(folder) / "state")
        try:
            agent.start().create_key("default")
            rounds = measure(agent, raw_signer(token))
            starts = measure_starts(agent)
        finally:
            agent.close()
    report(rounds)
    print()
    tests = Tests()
    ran = pytest.main(["-q", "-m", "not long", "-p", "no:cacheprovider"], plugins=[tests])
    kept = report_bars({PROOF: starts, **tests.measured})
    return 0 if kept and ran == pytest.ExitCode.OK else 1


def measure_starts(agent: Agent) -> list[float]:
    """`dpop-agent proof` ÷ `python -c pass`, as a shell runs them."""
    script = Path(sys.executable).with_name("dpop-agent")
    program = [script] if script.exists() else [sys.executable, "-m", "dpop_agent"]
    env = {name: v for name, v in agent.env.items() if not name.startswith("PYTHON")}

    def seconds(*command: str | Path) -> float:
        start = time.perf_counter()
        # No timeout: waiting with one polls, at intervals longer than what is measured.
        subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - start

    def once() -> float:
        proof = seconds(*program, "proof", "GET", "https://as.example.com/me")
        return proof / seconds(sys.executable, "-c", "pass")

    once()  # writes the bytecode
    return [once() for _ in range(STARTS)]


class Tests:
    """Of all tests those that measure; a plugin of pytest.

    Attributes:
        measured: seconds by bar.
    """

    def __init__(self) -> None:
        self.measured: dict[str, list[float]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "measured" in getattr(item, "fixturenames", ())]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            for _, value in report.user_properties:
                bar, seconds = cast("tuple[str, float]", value)
                self.measured.setdefault(bar, []).append(seconds)


def report_bars(measured: dict[str, list[float]]) -> bool:
    """Print each bar and what was measured; whether all were kept."""
    missed = []
    print(f"\n{'bar':>6}  {'judged':>6}  {'median':>6}  {'least to most':14} {'times':>5}")
    for bar, limit in BARS.items():
        values = measured.get(bar)
        if not values:
            print(f"{limit:6.2f}  {'not measured':>31}        {bar}")
            continue
        found = judged(bar, values)
        if found > limit:
            missed.append(bar)
        print(
            f"{limit:6.2f}  {found:6.2f}  {statistics.median(values):6.2f}  "
            f"{min(values):6.2f} {max(values):6.2f}  {len(values):6}  {bar}"
        )
    for bar in missed:
        print(f"missed: {bar}")
    return not missed


def measure(agent: Agent, sign: Callable[[], None]) -> list[Round]:
    status = agent.client().status()
    pids = {"agent": status["pid"], "signer": status["stores"][0]["signer_pid"]}
    one = connect(agent.socket)
    many = [connect(agent.socket) for _ in range(CONNECTIONS)]
    measure_raw(Round(), sign)
    measure_sequential(Round(), one)
    rounds = []
    for number in range(ROUNDS):
        now = Round()
        steps = [
            ("raw", partial(measure_raw, now, sign)),
            ("sequential", partial(measure_sequential, now, one)),
            ("concurrent", partial(measure_concurrent, now, many)),
        ]
        first = number % len(steps)
        for name, step in steps[first:] + steps[:first]:
            before = {who: cpu_seconds(pid) for who, pid in pids.items()}
            step()
            if name != "raw":
                count = SEQUENTIAL if name == "sequential" else CONCURRENT
                for who, pid in pids.items():
                    now.cpu[f"{who}, {name}"] = (cpu_seconds(pid) - before[who]) / count * 1e6
        rounds.append(now)
    for sock in [one, *many]:
        sock.close()
    return rounds


def report(rounds: list[Round]) -> None:
    print(f"ES256, SoftHSM2, {ROUNDS} rounds, median over rounds (least to most), microseconds")
    for name, title in (
        ("raw", "raw C_Sign, in process"),
        ("sequential", "agent, one connection"),
        ("concurrent", f"agent, {CONNECTIONS} connections"),
    ):
        print(f"{title:24} p50 {spread([r.p50[name] for r in rounds])}")
        print(f"{'':24} p99 {spread([r.p99[name] for r in rounds])}")
        print(
            f"{'':24} per second {spread([1e6 / r.each[name] for r in rounds])}",
        )
    for name in sorted(rounds[0].cpu):
        print(f"CPU a proof: {name:22} {spread([r.cpu[name] for r in rounds])}")
    latency = [r.p50["sequential"] / r.p50["raw"] for r in rounds]
    rate = [r.each["raw"] / r.each["concurrent"] for r in rounds]
    print(
        f"one connection, p50, times raw      {statistics.median(latency):.2f}  "
        f"({min(latency):.2f} to {max(latency):.2f})"
    )
    print(
        f"{CONNECTIONS} connections, rate, times raw  {statistics.median(rate):.2f}  "
        f"({min(rate):.2f} to {max(rate):.2f})"
    )


if __name__ == "__main__":
    sys.exit(main())
