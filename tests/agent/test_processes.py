"""What other programs see of the agent and its signers: no memory, no secret."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.agent.places import descendants, serve_with, until, until_open
from tests.agent.wire import Wire, request
from tests.emulators import need
from tests.processes import ROOT, Agent, Token, new_token
from tests.rows import Reached
from tests.unit.fake_server import FakeServer, Reply, Seen

TARGET = {"htm": "GET", "htu": "https://api.example.com/"}
NOBODY = 65534

# Runs as the agent's own uid: what of each process can it read?
_PEEK = """
import ctypes, json, os, sys
found = {}
libc = ctypes.CDLL(None, use_errno=True)
for pid in sys.argv[1:]:
    read = []
    for name in ("mem", "environ", "maps", "auxv", "stack"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                if name != "mem":
                    file.read(1)
            read.append(name)
        except PermissionError:
            pass
    for name in ("fd", "map_files", "task/%s/fd" % pid):
        try:
            os.listdir(f"/proc/{pid}/{name}")
            read.append(name)
        except PermissionError:
            pass
    for name in ("cwd", "exe", "root"):
        try:
            os.readlink(f"/proc/{pid}/{name}")
            read.append(name)
        except PermissionError:
            pass
    if libc.ptrace(16, int(pid), 0, 0) == 0:  # PTRACE_ATTACH
        read.append("ptrace")
    found[pid] = read
print(json.dumps(found))
"""

_ASK = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(10)
sock.connect(sys.argv[1])
sock.sendall(sys.stdin.buffer.read())
data = b""
while not data.endswith(b"\\n"):
    data += sock.recv(65536)
sys.stdout.buffer.write(data)
"""


def needed_by(name: str) -> Iterator[Distribution]:
    """What a distribution needs to run, all the way down."""
    found, new = set[str](), [name]
    while new:
        for line in distribution(new.pop()).requires or ():
            requirement = Requirement(line)
            wanted = canonicalize_name(requirement.name)
            here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if here and wanted not in found:
                found.add(wanted)
                new.append(wanted)
                yield distribution(wanted)


def copied_python(folder: Path) -> str:
    """An interpreter with the agent and the signer that every user can read."""
    venv = folder / "venv"
    base = str(Path(sys.executable).resolve())
    subprocess.run([base, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    (packages,) = venv.glob("lib/python*/site-packages")
    shutil.copytree(ROOT / "dpop_agent", packages / "dpop_agent")
    for needed in needed_by("dpop-agent"):
        for file in needed.files or ():
            target = packages / file
            if ".." not in file.parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(needed.locate_file(file)), target)
    return str(venv / "bin" / "python")


class Ordinary:
    """An agent of an ordinary user, and what runs as that user."""

    def __init__(self, folder: Path) -> None:
        self.interpreter = copied_python(folder) if os.getuid() == 0 else sys.executable
        self.as_user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        token = new_token(folder / "token")
        instead = ["sh", "-c", 'shift; exec "$0" "$@"', self.interpreter]
        self.agent = Agent(token.config, folder / "state", preexec=[*self._prefix(), *instead])
        if os.getuid() == 0:
            for path in (folder, self.agent.runtime, *folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def _prefix(self) -> list[str]:
        return self.as_user if os.getuid() == 0 else []

    def python(self, code: str, *words: str, stdin: bytes = b"") -> bytes:
        return subprocess.run(
            [*self._prefix(), self.interpreter, "-I", "-c", code, *words],
            input=stdin,
            check=True,
            timeout=30,
            stdout=subprocess.PIPE,
        ).stdout

    def start(self, code: str, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._prefix(), self.interpreter, "-I", "-c", code, *words], stdout=subprocess.PIPE
        )

    def ask(self, line: bytes, path: str) -> dict[str, Any]:
        """The answer to one request of this user's."""
        answer: dict[str, Any] = json.loads(self.python(_ASK, path, stdin=line))
        return answer

    def store(self) -> dict[str, Any]:
        (found,) = self.ask(request("status"), self.agent.socket)["result"]["stores"]
        return dict(found)


@pytest.fixture
def ordinary() -> Iterator[Ordinary]:
    folder = Path(tempfile.mkdtemp(prefix="dpop-ordinary-", dir="/tmp"))
    ordinary = Ordinary(folder)
    try:
        ordinary.agent.start(wait=False)
        until(lambda: Path(ordinary.agent.socket).exists())
        yield ordinary
    finally:
        ordinary.agent.close()
        shutil.rmtree(folder)


_IN_A_SANDBOX = """
mount -t tmpfs -o mode=755 tmpfs /mnt && mkdir /mnt/run && touch /mnt/run/agent.sock
mount --bind "$1" /mnt/run/agent.sock && shift
exec "$@" /mnt/run/agent.sock
"""


@pytest.mark.skipif(os.getuid() != 0, reason="to mount something takes root")
def test_a_client_in_a_user_namespace_reaches_a_socket_mounted_into_a_folder_of_roots(
    ordinary: Ordinary,
) -> None:
    ask = (
        "import os, sys; from dpop_agent.client import AgentClient; path = sys.argv[1];"
        "print(os.stat(os.path.dirname(path)).st_uid, AgentClient(path).status()['pid'])"
    )
    mapped = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    client = [*ordinary.as_user, *mapped, ordinary.interpreter, "-I", "-c", ask]
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", _IN_A_SANDBOX, "sh", ordinary.agent.socket, *client],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.split() == ["65534", str(ordinary.agent.pid)]


@pytest.mark.row(21)
def test_agent_and_signers_are_closed_to_other_programs_of_their_user(
    ordinary: Ordinary, reached: Reached
) -> None:
    until(lambda: ordinary.store()["state"] == "ready")
    pids = [ordinary.agent.pid, *descendants(ordinary.agent.pid)]
    assert len(pids) == 3  # the agent, the process that forks signers, and the signer
    for pid in pids:
        assert Path(f"/proc/{pid}/status").read_text().count(f"\t{ordinary_uid()}\t") >= 1
    open_process = ordinary.python(
        "import os, subprocess, sys;"
        "p = subprocess.Popen(['sleep', '9']);"
        "subprocess.run([sys.executable, '-I', '-c', sys.argv[1], str(p.pid)]);"
        "p.kill()",
        _PEEK,
    )
    (seen,) = json.loads(open_process).values()
    assert {"environ", "maps", "fd"} <= set(seen)  # so that a refusal means something
    found = json.loads(ordinary.python(_PEEK, *map(str, pids)))
    assert found == {str(pid): [] for pid in pids}
    ways = sum(map(len, found.values()))
    reached("ways into agent and signer that another program of the user has", ways)


def ordinary_uid() -> int:
    return os.getuid() or NOBODY


@pytest.mark.row(17)
def test_no_process_leaves_a_core_file(agent: Agent, reached: Reached) -> None:
    until_open(agent)
    for pid in (agent.pid, *descendants(agent.pid)):
        limits = Path(f"/proc/{pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]
    reached("processes that may leave a core file", 0)


@pytest.mark.skipif(os.getuid() != 0, reason="the maps of a closed process are root's to read")
def test_the_agent_process_has_no_module_and_no_cryptography_and_the_signer_has(
    agent: Agent,
) -> None:
    agent.create_key("default")
    agent.client().proof("GET", "https://api.example.com/")
    signer = until_open(agent)["signer_pid"]

    def mapped(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    for name in ("softhsm", "pkcs11", "cryptography", "keyring"):
        assert name not in mapped(agent.pid)
    assert "softhsm" in mapped(signer)
    parent = int(Path(f"/proc/{signer}/stat").read_text().rpartition(")")[2].split()[1])
    assert "softhsm" not in mapped(parent)


def test_importing_the_agent_imports_no_store_and_no_client() -> None:
    code = (
        "import sys, dpop_agent.agent.server;"
        "print(*sorted(n for n in sys.modules if n.split('.')[0] in"
        " ('pkcs11', 'cryptography', 'keyring')"
        " or n.startswith(('dpop_agent.signer', 'dpop_agent.client', 'dpop_agent.verify'))))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        timeout=30,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.strip() == ""


def test_the_most_talkative_log_has_no_secret(
    make_agent: Callable[..., Agent], token: Token
) -> None:
    pin = token.pin
    agent = make_agent(token.config, preexec=serve_with("-v")).start()
    agent.create_key("default", allow_sign_proof=True)
    access_token, nonce = "canary-access-token", "canary-nonce"
    proof = agent.client().proof(
        "GET", "https://api.example.com/canary-path", access_token=access_token, nonce=nonce
    )
    ran = agent.run(
        "proof", "GET", "https://api.example.com/", "--access-token-file", "-", stdin=access_token
    )
    assert ran.returncode == 0, ran.stderr
    with Wire(agent.admin_socket) as admin:
        admin.error("proof", **TARGET, ath=access_token)
        admin.error("proof.sign", signing_input=str(proof), jkt=proof.jkt)
        signer = until_open(agent)["signer_pid"]
        admin.result("key.destroy", key="default", generation=1)
    told = [agent.log.read_text(), ran.stderr]
    told += [file.read_text() for file in agent.state.rglob("*") if file.is_file()]
    for pid in (agent.pid, *descendants(agent.pid)):
        told.append(Path(f"/proc/{pid}/cmdline").read_text())
        if os.getuid() == 0:
            told.append(Path(f"/proc/{pid}/environ").read_text())
    assert "DEBUG" in told[0]
    assert signer in descendants(agent.pid)
    parts = str(proof).split(".")
    for secret in (pin, access_token, nonce, str(proof), parts[1], parts[2], "canary-path"):
        assert all(secret not in text for text in told)
    assert str(proof) not in repr(proof)


_RENEWS = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG)
import httpx
from dpop_agent.client import AgentClient, BoundToken
from dpop_agent.client.httpx import DPoPAuth, DPoPTransport
given = json.loads(sys.stdin.readline())

def renew(old):
    asks = {"grant_type": "refresh_token", "refresh_token": old.refresh_token}
    response = http.post(sys.argv[1] + "/token", data=asks)
    jkt = response.extensions["dpop"].jkt
    return BoundToken.from_response(response.json(), jkt=jkt, refresh_token=old.refresh_token)

with httpx.Client(transport=DPoPTransport(AgentClient(), origins=[sys.argv[1]])) as http:
    old = BoundToken(given["access"], given["jkt"], 1.0, given["refresh"])
    http.get(sys.argv[1] + "/me", auth=DPoPAuth(renew, token=old)).raise_for_status()
"""
_CURL = """
"$1" -m dpop_agent proof GET "$2" --header --access-token-file "$3/access" >"$3/proof"
sed 's/^/Authorization: DPoP /' "$3/access" >"$3/authorization"
exec curl --silent --fail --header "@$3/proof" --header "@$3/authorization" "$2"
"""


@pytest.mark.row(17)
@pytest.mark.skipif(os.getuid() != 0, reason="the environment of a closed process is root's")
def test_pin_access_token_refresh_token_and_proofs_are_nowhere_that_others_read(
    make_agent: Callable[..., Agent], token: Token, tmp_path: Path, reached: Reached
) -> None:
    """While a program renews an access token, and while a script calls curl with one."""
    need("curl")
    secrets = {
        "PIN": token.pin,
        "access": "canary-access-token",
        "renewed": "canary-renewed-access-token",
        "refresh": "canary-refresh-token",
    }
    told, proofs = list[str](), list[str]()

    def look(seen: Seen) -> Reply:
        proofs.extend(seen.proofs)
        for pid in descendants(os.getpid()):
            for name in ("cmdline", "environ"):
                told.append(Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace"))
        body = {"access_token": secrets["renewed"], "token_type": "DPoP", "expires_in": 60}
        return Reply(200, json.dumps(body).encode(), Content_Type="application/json")

    agent = make_agent(token.config, preexec=serve_with("-v")).start()
    jkt = agent.create_key("default")["jkt"]
    with FakeServer(look) as server:
        renews = subprocess.run(
            [sys.executable, "-c", _RENEWS, server.origin],
            input=json.dumps({**secrets, "jkt": jkt}),
            env=agent.env,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert renews.returncode == 0, renews.stderr
        presented = [seen.headers["Authorization"] for seen in server.seen]
        assert presented == [None, f"DPoP {secrets['renewed']}"]
        folder = tmp_path / "curl"
        folder.mkdir(mode=0o700)
        (folder / "access").write_text(secrets["access"])
        words = ["--key", "default", "--", "sh", "-ec", _CURL, "sh", sys.executable]
        asks = agent.run("exec", *words, f"{server.origin}/curl", str(folder), check=True)
        assert server.seen[-1].headers["Authorization"] == f"DPoP {secrets['access']}"
    assert any(text.startswith("curl\0") for text in told)
    assert len(proofs) == 3
    told += [renews.stderr, renews.stdout, asks.stderr, agent.log.read_text()]
    told += [file.read_text() for file in agent.state.rglob("*") if file.is_file()]
    assert "DEBUG" in agent.log.read_text()
    assert "DEBUG" in renews.stderr
    parts = [part for proof in proofs for part in (proof, *proof.split(".")[1:])]
    hits = [secret for secret in (*secrets.values(), *parts) for text in told if secret in text]
    assert hits == []
    reached("kinds of secrets looked for: PIN, access and refresh token, proof", 4)
    reached("secrets in DEBUG logs, state files, command lines and environments", len(hits))


TRACE = """
import ctypes, os, sys
ptrace = ctypes.CDLL(None).ptrace
pid = os.fork()
if not pid:
    ptrace(0, 0, 0, 0)  # PTRACETRACEME
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    stop = os.WSTOPSIG(status)
    ptrace(7, pid, 0, 0 if stop == 5 else stop)  # PTRACE_CONT, but for SIGTRAP with the signal
"""


def test_an_agent_that_is_being_debugged_doesnt_start(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent(preexec=[sys.executable, "-c", TRACE])
    agent.start(wait=False)
    assert agent.process.wait(20) == 1
    assert "is tracing this one; detach the debugger" in agent.log.read_text()
    assert not Path(agent.socket).exists()
