"""Who asked for what leaves a line, which has no secret, in files that no other client floods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.client import AgentClient
from dpop_agent.errors import NotRecorded
from dpop_agent.jose import b64url, b64url_decode
from tests.agent.places import serve_with, until
from tests.agent.wire import Wire
from tests.processes import Agent, Token
from tests.rows import Reached

ORIGIN = "https://api.example.com"
MEMBERS = [
    *("time", "socket", "peer", "method", "outcome", "key", "generation", "jkt", "origin"),
    *("htm", "jti", "us"),
]

MakeAgent = Callable[..., Agent]


def entries(agent: Agent, socket: str = "agent") -> list[dict[str, Any]]:
    """What a socket's file has."""
    path = agent.state / "audit" / f"{socket}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked(agent: Agent, method: str, socket: str = "agent") -> list[dict[str, Any]]:
    """The lines of a method, once there is one."""
    until(lambda: any(e["method"] == method for e in entries(agent, socket)))
    return [e for e in entries(agent, socket) if e["method"] == method]


def claims(proof: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(b64url_decode(proof.split(".")[1]))
    return found


def with_setting(config: Path, line: str) -> Path:
    """The same configuration with one more setting of the agent's."""
    config.write_text(config.read_text().replace("[agent]\n", f"[agent]\n{line}\n"))
    return config


def client_proof(jwk: dict[str, str], htu: str, jti: str) -> str:
    """A signing input that a client built."""
    parts = (
        {"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk},
        {"jti": jti, "htm": "POST", "htu": htu, "iat": int(time.time())},
    )
    return ".".join(b64url(json.dumps(part).encode()) for part in parts)


def test_a_proof_leaves_a_line_with_all_that_is_known_of_it(agent: Agent) -> None:
    jkt = agent.create_key("default")["jkt"]
    before = time.time()
    proof = str(agent.client().proof("GET", f"{ORIGIN}/me"))
    [line] = asked(agent, "proof")
    assert list(line) == MEMBERS
    assert {**line, "time": 0, "us": 0, "peer": 0} == {
        "time": 0,
        "socket": "agent",
        "peer": 0,
        "method": "proof",
        "outcome": "done",
        "key": "default",
        "generation": 1,
        "jkt": jkt,
        "origin": ORIGIN,
        "htm": "GET",
        "jti": claims(proof)["jti"],
        "us": 0,
    }
    name = Path("/proc/self/comm").read_text().strip()
    assert line["peer"] == {"uid": os.getuid(), "pid": os.getpid(), "program": name}
    assert line["time"].endswith("Z")
    assert 0 < line["us"] < (time.time() - before) * 1e6


def test_a_proof_that_a_client_built_leaves_its_own_jti(agent: Agent) -> None:
    made = agent.create_key("default", allow_sign_proof=True)
    jti = 'quote"and\\backslash'
    with Wire(agent.socket) as wire:
        signing_input = client_proof(made["jwk"], f"{ORIGIN}/token", jti)
        wire.result("proof.sign", signing_input=signing_input, jkt=made["jkt"])
        old = client_proof(made["jwk"], f"{ORIGIN}:443/token", "b" * 20)
        assert wire.error("proof.sign", signing_input=old, jkt=made["jkt"])["type"] == "htu_refused"
    until(lambda: len(asked(agent, "proof.sign")) == 2)
    done, refused = asked(agent, "proof.sign")
    assert list(done) == MEMBERS
    assert (done["outcome"], done["jti"], done["htm"]) == ("done", jti, "POST")
    assert (refused["outcome"], refused["jti"], refused["key"], refused["origin"]) == (
        "htu_refused",
        "b" * 20,
        "default",
        ORIGIN,
    )


def test_refusals_leave_a_line_with_the_reason_and_what_was_asked_for(agent: Agent) -> None:
    jkt = agent.create_key("default", origins=[ORIGIN])["jkt"]
    with Wire(agent.socket) as wire:
        wire.error("proof", htm="GET", htu="https://evil.example/x")
        wire.error("proof", htm="PUT", htu=f"{ORIGIN}/x", key="none")
        wire.error("proof", htm="GET", htu="nothing")
        wire.error("proof", htm="GET", htu="https://evil.example/x", jkt=jkt)
        wire.error("key.create", key="mine", origins=[])
        wire.send(b"no json\n")
        assert "error" in wire.next()
    until(lambda: len(entries(agent)) == 6)
    lines = entries(agent)
    assert all(set(line) >= set(MEMBERS) for line in lines)
    assert [
        (e["method"], e["outcome"], e["key"], e["generation"], e["origin"], e["htm"]) for e in lines
    ] == [
        ("proof", "policy_refused", "default", 1, "https://evil.example", "GET"),
        ("proof", "key_unknown", "none", None, ORIGIN, "PUT"),
        ("proof", "htu_refused", "default", 1, None, "GET"),
        ("proof", "policy_refused", "default", 1, "https://evil.example", "GET"),
        ("key.create", "method_not_found", None, None, None, None),
        (None, "parse_error", None, None, None, None),
    ]


def test_what_changes_keys_and_stores_leaves_a_line_on_the_owners_socket(agent: Agent) -> None:
    with Wire(agent.admin_socket) as admin:
        admin.result("key.create", key="shop", origins=[ORIGIN])
        admin.result("key.rotate", key="shop")
        admin.result("key.activate", key="shop", generation=1)
        admin.result("key.suspend", key="shop", generation=2)
        admin.result("key.resume", key="shop", generation=2)
        admin.result("key.set", key="shop", origins=[], drain_s=60)
        admin.result("key.compromise", key="shop")
        admin.result("key.destroy", key="shop", generation=1)
        admin.result("lock")
        admin.result("unlock", store="softhsm")
        admin.result("key.destroy", key="shop", generation=2)
        admin.result("key.forget", key="shop")
        admin.result("reload")
        admin.result("status")  # changes nothing
        admin.error("key.set", key="shop", drain_s=60)
    until(lambda: any(e["outcome"] == "key_unknown" for e in entries(agent, "admin")))
    lines = [e for e in entries(agent, "admin") if e["socket"] == "admin"]
    assert [(e["method"], e["outcome"], e["key"], e["generation"]) for e in lines] == [
        ("key.create", "done", "shop", 1),
        ("key.rotate", "done", "shop", 2),
        ("key.activate", "done", "shop", 1),
        ("key.suspend", "done", "shop", 2),
        ("key.resume", "done", "shop", 2),
        ("key.set", "done", "shop", None),
        ("key.compromise", "done", "shop", None),
        ("key.destroy", "done", "shop", 1),
        ("lock", "done", None, None),
        ("unlock", "done", None, None),
        ("key.destroy", "done", "shop", 2),
        ("key.forget", "done", "shop", None),
        ("reload", "done", None, None),
        ("key.set", "key_unknown", "shop", None),
    ]
    assert all(e["jkt"] for e in lines[:5])
    assert lines[5]["given"] == ["drain_s", "origins"]
    assert [e["store"] for e in lines if e["method"] in ("lock", "unlock")] == [None, "softhsm"]
    opened = [e for e in entries(agent, "admin") if e["method"] == "store.open"]
    assert [e["store"] for e in opened] == ["softhsm", "softhsm"]
    assert all((e["socket"], e["peer"]) == (None, None) for e in opened)


def test_what_the_agent_does_by_itself_leaves_a_line_too(
    make_agent: MakeAgent, token: Token
) -> None:
    # Locked before it is due, the key wouldn't be rotated.
    agent = make_agent(with_setting(token.config, 'lock_after = "10s"')).start()
    agent.create_key("default", rotate_every_s=2, drain_s=0)
    rotated = asked(agent, "key.rotate", "admin")[0]
    retired = asked(agent, "key.retire", "admin")[0]
    assert (rotated["socket"], rotated["key"], rotated["generation"]) == (None, "default", 2)
    assert (retired["socket"], retired["key"], retired["generation"]) == (None, "default", 1)
    agent.admin().call("key.set", {"key": "default", "rotate_every_s": None})
    assert asked(agent, "lock", "admin")[0]["store"] == "softhsm"


def test_no_secret_path_or_query_is_in_any_file_of_the_audit(
    make_agent: MakeAgent, token: Token
) -> None:
    pin = token.pin
    agent = make_agent(token.config).start()
    made = agent.create_key("default", allow_sign_proof=True)
    access_token, nonce = "canary-access-token", "canary-nonce"
    htu = "https://api.example.com/canary-path?canary-query#canary-fragment"
    proof = agent.client().proof("GET", htu, access_token=access_token, nonce=nonce)
    agent.create_key("limited", origins=[ORIGIN])
    ath = claims(str(proof))["ath"]
    signing_input = client_proof(made["jwk"], "https://api.example.com/canary-path", "j" * 20)
    with Wire(agent.admin_socket) as wire:
        target = {"htm": "GET", "htu": "https://other.example/canary-path?canary-query"}
        wire.error("proof", **target, key="limited", ath=ath, nonce=nonce)
        wire.error("proof", htm="GET", htu="https://user:canary-password@h/")
        wire.error("proof", **target, ath=access_token)
        wire.error("proof", **target, jkt=str(proof))
        signed = wire.result("proof.sign", signing_input=signing_input, jkt=made["jkt"])
        wire.error("proof.sign", signing_input=str(proof), jkt=made["jkt"])
        wire.error(f"canary-method {access_token}")
        wire.result("observe", seen=[{"htu": htu, "nonce": nonce}])
        wire.error("unlock", store="canary-store", pin=pin)
        wire.send(f'{{"canary": "{access_token}"\n'.encode())
        wire.next()
    agent.stop()
    files = list((agent.state / "audit").iterdir())
    assert {file.name for file in files} == {"agent.jsonl", "admin.jsonl"}
    told = "".join(file.read_text() for file in files)
    assert told.count("\n") >= 12
    parts = [*str(proof).split("."), signing_input, signed["signature"]]
    for secret in (pin, "canary", ath, nonce, *parts):
        assert secret not in told


def test_a_flood_of_refusals_is_counted_and_leaves_other_sockets_trails_alone(
    agent: Agent,
) -> None:
    agent.create_key("default", origins=[ORIGIN])
    before = entries(agent, "admin")
    with Wire(agent.socket) as wire:
        for _ in range(500):
            wire.error("proof", htm="GET", htu="https://evil.example/x")
        wire.result("proof", htm="GET", htu=f"{ORIGIN}/x")
    with Wire(str(agent.runtime / "mount" / "agent.sock")) as mounted:
        mounted.error("proof", htm="GET", htu="https://evil.example/y")
    agent.stop()
    lines = entries(agent)
    assert [e["outcome"] for e in lines] == [*["policy_refused"] * 10, "done", "counted"]
    assert lines[-1]["count"] == 490
    assert [e["outcome"] for e in entries(agent, "mount")] == ["policy_refused"]
    assert entries(agent, "admin")[: len(before)] == before


def test_who_isnt_let_in_leaves_a_line(make_agent: MakeAgent, token: Token) -> None:
    agent = make_agent(with_setting(token.config, "max_connections = 1")).start()
    until(lambda: agent.admin().status()["connections"] == 1)  # its own
    with Wire(agent.socket) as first:
        first.result("status")
        with Wire(agent.socket) as second:
            assert second.next()["error"]["data"]["type"] == "too_many_connections"
        until(lambda: any(e["outcome"] == "too_many_connections" for e in entries(agent)))
    assert entries(agent)[0]["peer"]["pid"] == os.getpid()


@pytest.mark.skipif(os.getuid() != 0, reason="to be another user takes root")
def test_another_user_who_is_refused_leaves_a_line(agent: Agent) -> None:
    agent.runtime.chmod(0o755)
    Path(agent.socket).chmod(0o666)
    connect = "import os, socket, sys; os.setuid(4711); s = socket.socket(socket.AF_UNIX); "
    connect += "s.connect(sys.argv[1]); s.recv(1)"
    subprocess.run([sys.executable, "-c", connect, agent.socket], check=True, timeout=30)
    until(lambda: any(e["outcome"] == "unsafe_socket" for e in entries(agent)))
    assert entries(agent)[0]["peer"]["uid"] == 4711


HANDS_ON = """
import os, sys, time
from tests.agent.wire import Wire
wire = Wire(sys.argv[1])
wire.result("status")
if os.fork():
    os._exit(0)
sys.stdin.readline()
time.sleep(1.1)  # how long it is taken to run on
wire.error("proof", htm="GET", htu="nothing")
"""


@pytest.mark.row(22)
def test_a_program_that_ended_isnt_named_for_what_its_child_asks(
    make_agent: MakeAgent, reached: Reached
) -> None:
    agent = make_agent(preexec=serve_with("-v")).start()
    child = subprocess.Popen(
        [sys.executable, "-c", HANDS_ON, agent.socket],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    child.wait(30)
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.close()
    [line] = asked(agent, "proof")
    assert line["peer"] == {"uid": os.getuid(), "pid": child.pid, "program": None}
    told = [said for said in agent.log.read_text().splitlines() if str(child.pid) in said]
    assert told
    assert not any("python" in said for said in told)
    reached("names of a program that had ended, in audit, log and prompts", 0)


def test_a_kill_loses_what_waits_for_the_next_write_and_tears_no_line_of_the_next_agent(
    make_agent: MakeAgent, token: Token
) -> None:
    agent = make_agent(token.config).start()
    agent.create_key("default")
    client = agent.client()
    given = [claims(str(client.proof("GET", f"{ORIGIN}/me")))["jti"] for _ in range(20)]
    until(lambda: len(entries(agent)) == len(given))
    late = [claims(str(client.proof("GET", f"{ORIGIN}/me")))["jti"] for _ in range(5)]
    agent.kill()
    kept = [e["jti"] for e in entries(agent)]
    assert len(kept) >= len(given), "what was written a moment ago is lost"
    assert kept == [*given, *late][: len(kept)]
    path = agent.state / "audit" / "agent.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    agent.start()
    agent.client().proof("GET", f"{ORIGIN}/again")
    until(lambda: len(path.read_bytes().splitlines()) == len(kept) + 1)
    shown = agent.run("log", "agent", "--json", check=True)
    assert len(shown.stdout.splitlines()) == len(kept)
    assert "1 line couldn't be read" in shown.stderr


def test_status_tells_where_the_audit_is_and_log_shows_it_without_an_agent(agent: Agent) -> None:
    agent.create_key("default")
    agent.client().proof("GET", f"{ORIGIN}/me")
    status = agent.client().status()["audit"]
    folder = str(agent.state / "audit")
    assert status == {"mode": "on", "folder": folder, "failing": None, "lost": 0}
    assert f"  audit    {folder}\n" in agent.run("status", check=True).stdout
    agent.stop()
    shown = agent.run("log", "agent", check=True).stdout
    assert f"default@1  GET {ORIGIN}\n" in shown
    assert "key.create" not in shown
    assert "key.create origins" in agent.run("log", check=True).stdout


def test_the_audit_can_be_turned_off_and_on_by_a_reload(
    make_agent: MakeAgent, token: Token
) -> None:
    text = token.config.read_text()
    agent = make_agent(with_setting(token.config, 'audit = "off"')).start()
    agent.create_key("default")
    client = agent.client()
    client.proof("GET", f"{ORIGIN}/one")
    assert "  audit    off\n" in agent.run("status", check=True).stdout
    token.config.write_text(text)
    agent.run("reload", check=True)
    client.proof("PUT", f"{ORIGIN}/two")
    assert [e["htm"] for e in asked(agent, "proof")] == ["PUT"]
    assert not any(e["method"] == "key.create" for e in entries(agent, "admin"))


# A full disk

MOUNT = 'mount -t tmpfs -o size=400k,mode=0700 tmpfs "$0" && echo mounted && exec sleep infinity'


class SmallDisk:
    """An agent whose audit is on a file system of its own."""

    def __init__(self, agent: Agent, seen: Path) -> None:
        self.agent = agent
        self.seen = seen

    def fill(self) -> None:
        with (self.seen / "filler").open("ab", buffering=0) as filler:
            try:
                while filler.write(b"x" * 512):
                    pass
            except OSError:
                pass

    def free(self) -> None:
        (self.seen / "filler").unlink()

    @property
    def jtis(self) -> list[str]:
        lines = (self.seen / "agent.jsonl").read_text().splitlines()
        return [e["jti"] for e in map(json.loads, lines) if e["jti"]]


@contextmanager
def on_small_disk(token: Token, state: Path) -> Iterator[SmallDisk]:
    audit = state / "audit"
    audit.mkdir(parents=True, mode=0o700)
    state.chmod(0o700)
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNT, str(audit)],
        stdout=subprocess.PIPE,
    )
    agent = Agent(
        token.config, state, preexec=["nsenter", "--target", str(holder.pid), "--mount", "--"]
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        agent.start().create_key("default")
        yield SmallDisk(agent, Path(f"/proc/{holder.pid}/root{audit}"))
    finally:
        agent.close()
        holder.kill()
        holder.communicate()


def failing(client: AgentClient) -> bool:
    return client.status()["audit"]["failing"] is not None


def test_a_full_disk_costs_no_proof_and_is_told_in_status(
    own_mounts: None, token: Token, tmp_path: Path
) -> None:
    with on_small_disk(token, tmp_path / "state") as disk:
        client = disk.agent.client()
        first = claims(str(client.proof("GET", f"{ORIGIN}/0")))["jti"]
        until(lambda: (disk.seen / "agent.jsonl").exists() and disk.jtis == [first])
        disk.fill()
        meanwhile = [claims(str(client.proof("GET", f"{ORIGIN}/1")))["jti"] for _ in range(40)]
        until(lambda: failing(client))
        said = disk.agent.run("status", check=True).stdout
        assert "the audit can't be written: No space left on device\n" in said
        meanwhile.append(claims(str(client.proof("GET", f"{ORIGIN}/2")))["jti"])
        disk.free()
        until(lambda: not failing(client))
        assert set(disk.jtis) == {first, *meanwhile}


def test_where_the_audit_is_required_a_full_disk_refuses_proofs_until_there_is_room(
    own_mounts: None, token: Token, tmp_path: Path
) -> None:
    with_setting(token.config, 'audit = "required"')
    with on_small_disk(token, tmp_path / "state") as disk:
        client = disk.agent.client()
        jtis = []
        for _ in range(3):  # each is there by the time that it is given
            jtis.append(claims(str(client.proof("GET", f"{ORIGIN}/0")))["jti"])
            assert disk.jtis == jtis

        def fill_the_last_page() -> None:
            for _ in range(40):
                jtis.append(claims(str(client.proof("GET", f"{ORIGIN}/0")))["jti"])  # noqa: PERF401  (those before one that is refused)

        disk.fill()
        with pytest.raises(NotRecorded, match="No space left on device") as refused:
            fill_the_last_page()
        assert (refused.value.retry, refused.value.retry_after_ms) == ("later", 1000)
        assert "no proof is given until it can" in disk.agent.run("status", check=True).stdout
        assert disk.agent.admin().call("key.compromise", {"key": "default"})["keys"]  # never held
        disk.free()
        disk.agent.create_key("other")
        jtis.append(claims(str(client.proof("GET", f"{ORIGIN}/1", key="other")))["jti"])
        assert disk.jtis == jtis


def test_many_proofs_at_once_share_writes_where_the_audit_is_required(
    make_agent: MakeAgent, token: Token
) -> None:
    agent = make_agent(with_setting(token.config, 'audit = "required"')).start()
    agent.create_key("default")
    line = {"jsonrpc": "2.0", "method": "proof", "params": {"htm": "GET", "htu": f"{ORIGIN}/x"}}
    with Wire(agent.socket) as wire:
        wire.send(b"".join(json.dumps({**line, "id": n}).encode() + b"\n" for n in range(60)))
        jtis = {claims(answer["result"]["proof"])["jti"] for answer in wire.lines(60)}
        assert {e["jti"] for e in entries(agent)} == jtis


def test_the_running_agents_audit_is_the_one_that_is_meant_unless_another_is_set(
    agent: Agent, tmp_path: Path
) -> None:
    agent.create_key("default")
    agent.env.pop("DPOP_AGENT_STATE_DIR")
    until(lambda: "key.create" in agent.run("log").stdout)
    agent.env["DPOP_AGENT_STATE_DIR"] = str(tmp_path / "none")
    refused = agent.run("log")
    assert f"nothing is recorded in {tmp_path / 'none' / 'audit'} yet" in refused.stderr


def test_where_a_socket_doesnt_tell_the_state_folder_the_usual_one_is_meant(
    agent: Agent, tmp_path: Path
) -> None:
    agent.create_key("default")
    agent.run("socket", "add", "ci", "--key", "default", check=True)
    agent.env.pop("DPOP_AGENT_STATE_DIR")
    agent.env |= {
        "DPOP_AGENT_SOCK": str(agent.runtime / "sockets" / "ci" / "agent.sock"),
        "XDG_STATE_HOME": str(tmp_path),
    }
    for words in (["log"], ["ledger", "check"]):
        assert f" {tmp_path / 'dpop-agent'}/" in agent.run(*words).stderr
