"""Clients in containers: a folder with the agent's socket and nothing else, mounted read-only."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.client import AgentClient
from dpop_agent.jose import b64url
from dpop_agent.proof import header as proof_header
from tests.agent.places import refused_to_serve, until, until_logged
from tests.agent.test_processes import Ordinary
from tests.agent.wire import Wire, request
from tests.emulators import need
from tests.processes import Agent
from tests.rows import Reached

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


# Sends what it is told to, line by line, and says what is answered.
_RELAY = """
import json, socket, sys
from dpop_agent.client import AgentClient
path = "/run/dpop-agent/agent.sock"
for line in sys.stdin:
    answers = []
    for text in json.loads(line or "[]"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(path)
            sock.sendall(text.encode() + b"\\n")
            data = b""
            while not data.endswith(b"\\n"):
                data += sock.recv(65536)
        answers.append(data.decode())
    client = AgentClient(path, timeout=30)  # which checks folder and listener
    state = client.proof("GET", "https://api.example.com/api/me", key="shop").state
    print(json.dumps({"answers": answers, "state": state}), flush=True)
"""


class Sandbox:
    """A client in bubblewrap, into which that folder was mounted before it was started."""

    def __init__(
        self, ordinary: Ordinary, folder: Path, *, uid: int, program: str = _CLIENT
    ) -> None:
        own = str(Path(ordinary.interpreter).parents[2])
        self._process = subprocess.Popen(
            [
                *ordinary.as_user,
                *("bwrap", "--unshare-all", "--uid", str(uid), "--gid", str(uid)),
                *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
                *("--tmpfs", "/tmp", "--tmpfs", "/run", "--ro-bind", own, own),
                *("--ro-bind", str(folder), "/run/dpop-agent"),
                *(ordinary.interpreter, "-I", "-c", program),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tries(self, told: object = None) -> dict[str, Any]:
        """What becomes of each of its tries."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print("" if told is None else json.dumps(told), file=stdin, flush=True)
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


# A filtered socket

API = "https://api.example.com"
SECRET = "https://secret.example"
NOBODYS = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"

OTHER_TARGETS = [
    f"{SECRET}/api",
    "HTTPS://Secret.Example:443/api",
    f"{API}@secret.example/api",
    f"{SECRET}#@api.example.com/api",
    f"{SECRET}?@api.example.com/api",
    f"{SECRET}\\@api.example.com/api",
    f"{API}\\@secret.example/api",
    f"{API}.secret.example/api",
    f"{API}./api",
    f"{API}:8443/api",
    "http://api.example.com/api",
    "https://apiXexample.com/api",
    "https://api%2eexample.com/api",
    f"{API}%00.secret.example/api",
    f"{API}\t.secret.example/api",
    "https://[::1]/api",
    "https://[fe80::1%25eth0]/api",
    "http://localhost/api",
    "https://2130706433/api",
    "//secret.example/api",
    "ftp://api.example.com/api",
    f"{API}/",
    f"{API}/apix",
    f"{API}/admin",
    f"{API}/api/..;/admin",
    f"{API}/api/../admin",
    f"{API}/api/%2E%2e/admin",
    f"{API}/api/a%2f..%2fb",
    f"{API}/a%2f..%2fb",
    f"{API}/%252e%252e/x",
    f"{API}/api/%252e%252e/x",
    f"{API}/api//admin",
    f"{API}/api/..%5cadmin",
    f"{API}/api/%ef%bc%8e%ef%bc%8e/admin",
]
"""What the socket isn't for: other origins, and paths that aren't below its own, or may not be."""


def attempts(own: dict[str, Any], other_jkts: list[str]) -> list[dict[str, Any]]:
    """Requests for more than the socket gives.

    Args:
        own: the generation of its key.
        other_jkts: of keys that it isn't for, if there are any.
    """

    def signed(jwk: dict[str, str], jkt: str, htu: str, htm: str = "GET") -> tuple[str, Any]:
        claims = {"jti": "x" * 22, "htm": htm, "htu": htu, "iat": int(time.time())}
        text = f"{proof_header('ES256', jwk)}.{b64url(json.dumps(claims).encode())}"
        return "proof.sign", {"signing_input": text, "jkt": jkt}

    get = {"key": "shop", "htm": "GET", "htu": f"{API}/api"}
    seen = [{"htu": f"{SECRET}/", "nonce": "poison", "date": "2001-01-01T00:00:00Z"}]
    jwk, jkt = own["jwk"], own["jkt"]
    asked: list[tuple[str, Any]] = [
        *(("proof", {**get, "htu": htu}) for htu in OTHER_TARGETS),
        *(signed(jwk, jkt, htu) for htu in OTHER_TARGETS),
        *(("proof", {**get, "htm": htm}) for htm in ("POST", "get", "DELETE")),
        signed(jwk, jkt, f"{API}/api", "POST"),
        signed({**jwk, "x": jwk["y"]}, jkt, f"{API}/api"),
        *(("proof", {**get, "key": key}) for key in ("secret", "default", "retired")),
        ("proof", {"htm": "GET", "htu": f"{API}/api"}),
        *(("key.list", {"key": key}) for key in ("secret", "default", "retired")),
        ("key.list", {}),
        ("key.list", {"include_destroyed": True}),
        ("key.list", {"cursor": "1:secret@1"}),
        ("key.list", {"include_destroyed": True, "cursor": "2:a@1"}),
        ("hello", {}),
        ("status", {}),
        ("status", {"look": True}),
        ("subscribe", {"events": ["touch"]}),
        ("subscribe", {"events": ["everything"]}),
        ("observe", {"seen": seen}),
        ("proof", {**get, "htu": f"{SECRET}/", "seen": seen}),
        ("status", {}),
        ("key.create", {"key": "mine", "origins": []}),
        ("key.set", {"key": "shop", "origins": [], "methods": [], "paths": []}),
        ("key.rotate", {"key": "shop"}),
        ("key.compromise", {"key": "secret"}),
        ("key.destroy", {"key": "secret", "generation": 1}),
        ("key.forget", {"key": "retired"}),
        ("key.adopt_all", {}),
        ("store.authorize", {"store": "softhsm"}),
        ("socket.list", {}),
        ("socket.list", {"socket": "theirs"}),
        ("socket.add", {"socket": "mine", "keys": ["secret"]}),
        ("socket.remove", {"socket": "theirs"}),
        ("lock", {}),
        ("unlock", {"store": "softhsm"}),
        ("reload", {}),
        ("no.such", {}),
    ]
    for foreign in [*other_jkts, NOBODYS]:
        asked += [
            ("proof", {**get, "jkt": foreign}),
            ("proof", {"htm": "GET", "htu": f"{API}/api", "jkt": foreign}),
            ("proof", {**get, "key": "secret", "jkt": foreign}),
            signed(jwk, foreign, f"{API}/api"),
        ]
    return [
        {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        for number, (method, params) in enumerate(asked)
    ]


def told(answer: str, own: dict[str, Any]) -> Any:
    """What an answer says, without what is another with each agent and each moment."""
    jwk = own["jwk"]
    for value, instead in ((own["jkt"], "JKT"), (jwk["x"], "X"), (jwk["y"], "Y")):
        answer = answer.replace(value, instead)
    found = json.loads(answer)
    result = found.get("result", {})
    for member in ("pid", "started"):
        result.pop(member, None)
    for key in result.get("keys", ()):
        for generation in key["generations"]:
            del generation["created"], generation["changed"]
    return found


KEY: dict[str, Any] = {"key": "shop", "origins": [API], "allow_sign_proof": True}
SOCKET: dict[str, Any] = {
    "socket": "ci",
    "keys": ["shop"],
    "origins": [API],
    "methods": ["GET"],
    "paths": ["/api"],
}


@pytest.mark.row(24)
def test_a_client_in_a_sandbox_gets_its_proofs_and_learns_nothing_of_what_else_the_agent_has(
    ordinary: Ordinary, make_agent: MakeAgent, reached: Reached
) -> None:
    need("bubblewrap")
    serve(ordinary)

    def ask(method: str, path: str = ordinary.agent.admin_socket, **params: Any) -> Any:
        return ordinary.ask(request(method, params), path)["result"]

    jkts = []
    for name in ("default", "retired", "secret"):
        made = ask("key.create", key=name, origins=[], allow_sign_proof=True)
        jkts.append(made["keys"][0]["generations"][0]["jkt"])
    (made,) = ask("key.create", **(KEY | {"origins": [API, SECRET], "methods": ["GET", "POST"]}))[
        "keys"
    ]
    own = made["generations"][0]
    ask("socket.add", socket="theirs", keys=["secret"])
    ask("socket.add", **SOCKET)
    whole = ordinary.agent.socket
    ask("observe", whole, seen=[{"htu": f"{o}/", "nonce": "others"} for o in (API, SECRET)])
    for key, origin in (("secret", SECRET), ("shop", SECRET), ("shop", API)):
        ask("proof", whole, key=key, htm="GET", htu=f"{origin}/")
    ask("key.destroy", key="retired", generation=1)
    ask("key.forget", key="retired")

    alone = make_agent().start()
    (only,) = alone.admin().call("key.create", {**KEY, "methods": ["GET", "POST"]})["keys"]
    only_one = only["generations"][0]
    alone.admin().call("socket.add", SOCKET)

    requests = attempts(own, jkts)
    assert len(requests) > 100
    sandbox = Sandbox(ordinary, ordinary.agent.runtime / "sockets" / "ci", uid=1000, program=_RELAY)
    try:
        tries = sandbox.tries([json.dumps(line) for line in requests])
        assert tries["state"] == "active"
        with Wire(str(alone.runtime / "sockets" / "ci" / "agent.sock")) as wire:
            for line, answer, there in zip(
                requests, tries["answers"], attempts(only_one, jkts), strict=True
            ):
                wire.send(json.dumps(there).encode() + b"\n")
                expected = told(json.dumps(wire.next()), only_one)
                assert told(answer, own) == expected, line
                result = json.loads(answer).get("result", {})
                assert not {"proof", "signature"} & result.keys(), line
                for others in ("secret.example", "theirs", "others", "retired"):
                    assert others not in json.dumps(result), line
        assert ordinary.agent.stop() == 0
        serve(ordinary)
        assert sandbox.tries([])["state"] == "active"
    finally:
        sandbox.end()
    found = {key["key"]: key["origins"] for key in ask("key.list")["keys"]}
    assert found == {"default": [], "secret": [], "shop": [API, SECRET]}, "nothing was changed"
    reached("attempts at more than a filtered socket gives", len(requests))
    reached("attempts at more that got or told something", 0)
