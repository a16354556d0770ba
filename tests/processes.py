"""What tests start: PKCS#11 tokens, agents, servers. Each ends with whoever started it."""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dpop_agent.client import AgentClient
from dpop_agent.errors import AgentUnavailable

ROOT = Path(__file__).parent.parent
START_S = 20.0
STOP_S = 10.0

PR_SET_CHILD_SUBREAPER = 36

HARDWARE_RUN = "DPOP_AGENT_HARDWARE_RUN"
"""The variable that names the folder of a run on somebody's own hardware, which is all removed."""

RUNTIMES = os.environ.get(HARDWARE_RUN, "/tmp")
"""Where agents have their sockets."""


@dataclass(frozen=True)
class Token:
    """A PKCS#11 token of its own, and a configuration that names it."""

    folder: Path
    label: str

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def softhsm_conf(self) -> Path:
        return self.folder / "softhsm2.conf"

    @property
    def module(self) -> str:
        """The PKCS#11 module's path."""
        return str(self._store["module"])

    @property
    def module_args(self) -> str:
        """What its C_Initialize needs."""
        return str(self._store.get("module_args", ""))

    @property
    def env(self) -> dict[str, str]:
        """The variables that the module needs."""
        return {str(name): str(value) for name, value in self._store["env"].items()}

    @property
    def _store(self) -> dict[str, Any]:
        store: dict[str, Any]
        (store,) = tomllib.loads(self.config.read_text())["stores"].values()
        return store

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    @property
    def pin(self) -> str:
        return self.pin_file.read_text().strip()


def new_token(folder: Path, label: str = "dpop-agent") -> Token:
    """A new token below `folder`."""
    subprocess.run(
        [sys.executable, ROOT / "softhsm" / "new_token.py", folder, label], check=True, timeout=60
    )
    return Token(folder, label)


class Agent:
    """`dpop-agent serve` with a configuration, a state folder and sockets of its own.

    Args:
        config: its configuration.
        state: the folder of its ledger.
        env: variables for it and for its signers.
        preexec: words before the command, as in `["prlimit", "--nofile=64"]`.
        python: the interpreter, whose libraries it uses.
    """

    def __init__(
        self,
        config: Path,
        state: Path,
        *,
        env: Mapping[str, str] | None = None,
        preexec: Iterable[str] = (),
        python: str = sys.executable,
    ) -> None:
        self.config = config
        self.state = state
        # Not below tmp_path: a socket's path has at most 107 bytes.
        self.runtime = Path(tempfile.mkdtemp(prefix="dpop-", dir=RUNTIMES))
        self.socket = str(self.runtime / "agent.sock")
        self.admin_socket = str(self.runtime / "admin.sock")
        self.log = self.runtime / "log"
        self.env = {
            **os.environ,
            **(env or {}),
            "DPOP_AGENT_CONFIG": str(config),
            "DPOP_AGENT_STATE_DIR": str(state),
            "DPOP_AGENT_SOCK": self.socket,
        }
        self._command = [*preexec, python, "-m", "dpop_agent", "serve"]
        self._clients: list[AgentClient] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> Self:
        """Start it and wait until it answers."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
            )
        if wait:
            self.wait_until_it_answers()
        return self

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with AgentClient(self.socket) as client:
                    client.hello()
            except (AgentUnavailable, FileNotFoundError):
                ended = self._process is not None and self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise AssertionError(f"no agent: {self.log.read_text()}") from None
                time.sleep(0.02)
            else:
                return

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def client(self, **settings: Any) -> AgentClient:
        """A client on agent.sock."""
        return self._client(self.socket, **settings)

    def admin(self, **settings: Any) -> AgentClient:
        """A client on admin.sock."""
        return self._client(self.admin_socket, **settings)

    def _client(self, path: str, **settings: Any) -> AgentClient:
        client = AgentClient(path, **settings)
        self._clients.append(client)
        return client

    def create_key(self, name: str = "default", **settings: Any) -> dict[str, Any]:
        """A new key's first generation."""
        with AgentClient(self.admin_socket, timeout=30) as admin:
            found: dict[str, Any] = admin.call(
                "key.create", {"key": name, "origins": [], **settings}
            )
        generation: dict[str, Any] = found["keys"][0]["generations"][0]
        return generation

    def run(
        self, *words: str, stdin: str | None = None, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """`dpop-agent WORDS…` as a process of its own, talking to this agent."""
        return subprocess.run(
            [sys.executable, "-m", "dpop_agent", *words],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.env,
            timeout=60,
            check=check,
            start_new_session=True,  # no terminal of whoever runs the tests
        )

    def stop(self) -> int:
        """End it as a service would; its exit status."""
        process, self._process = self.process, None
        for client in self._clients:
            client.close()
        return end(process)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        process, self._process = self.process, None
        process.kill()
        process.wait(STOP_S)

    @contextmanager
    def serving(self, *keys: str) -> Iterator[Self]:
        """Started, with keys of these names, until the block ends."""
        try:
            self.start()
            for key in keys:
                self.create_key(key)
            yield self
        finally:
            self.close()

    def close(self) -> None:
        """Stop it where it still runs, and remove its sockets; a failed test shows its log."""
        try:
            if self._process is not None:
                self.stop()
        finally:
            print(self.log.read_text() if self.log.exists() else "")
            shutil.rmtree(self.runtime, ignore_errors=True)


class NodeServer:
    """A script that listens on a free port of 127.0.0.1 and prints `{"port": …}` first."""

    def __init__(self, command: list[str | Path], *, log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # it ends when its end of file comes, however we end
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        assert self._process.stdout is not None
        started, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline() if started else ""
        if not line:
            self.close()
            raise AssertionError(f"no server: {log.read_text()}")
        self.port: int = json.loads(line)["port"]
        self.origin = f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote to its standard error so far."""
        return self._log.read_text()

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        end(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def end(process: subprocess.Popen[Any]) -> int:
    """Ask a process to end, and insist after a while."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)
            raise AssertionError(f"{process.args!r} didn't end in {STOP_S} s") from None
    return process.wait()


def adopt_orphans() -> None:
    """Whatever is left behind by what we started becomes our child, so that we can find it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def running(pid: int) -> bool:
    """Whether that process runs; one that ended but wasn't waited for doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def resident_kib(pid: int) -> int:
    """How much of a process's memory is in the machine's."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def children() -> dict[int, str]:
    """The running children of this process, and their command lines."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state not in "ZX":
                words = (stat.parent / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                found[int(stat.parent.name)] = os.fsdecode(b" ".join(words))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def end_leftovers(*, grace: float = 3.0) -> dict[int, str]:
    """Kill children that don't end by themselves; which those were."""
    deadline = time.monotonic() + grace
    while (left := children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left
