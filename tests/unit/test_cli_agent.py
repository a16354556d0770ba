"""The verbs that talk to an agent, against one that answers from a table."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent import errors, protocol
from dpop_agent.cli import output
from dpop_agent.cli.main import main
from tests import vectors

JKT = "-" * 42 + "A"
OTHER = "B" * 42 + "A"
ATH = "_" * 42 + "8"
PROOF = "eyJ0.eyJq.c2ln"
ACCESS_TOKEN = vectors.RFC9449_ACCESS_TOKEN


def generation(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "generation": number,
        "jkt": JKT if number == 1 else OTHER,
        "state": "active",
        "jwk": vectors.RFC9449_JWK,
        "exportable": False,
        "protection": "software-token",
        "local": True,
        "missing": False,
        "created": "2026-11-20T19:05:00Z",
        "last_used": None,
    } | changes


def key(*generations: dict[str, Any], name: str = "default", **changes: Any) -> dict[str, Any]:
    return {
        "key": name,
        "store": "soft",
        "alg": "ES256",
        "origins": [],
        "allow_sign_proof": False,
        "generations": list(generations or [generation()]),
    } | changes


class Agent:
    """Answers each method with what `answers` has; `seen` are the sockets, methods, parameters."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, dict[str, Any] | errors.DPoPAgentError] = {
            "key.list": {"keys": [key()]},
        }
        self.seen: list[tuple[str, str, dict[str, Any]]] = []
        self._sockets = [
            self._listen(folder / "agent.sock", protocol.AGENT_METHODS),
            self._listen(folder / "admin.sock", protocol.ADMIN_METHODS),
        ]

    def _listen(self, path: Path, methods: Any) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        threading.Thread(target=self._serve, args=(sock, path.name, methods), daemon=True).start()
        return sock

    def _serve(self, sock: socket.socket, name: str, methods: Any) -> None:
        while True:
            try:
                connection, _ = sock.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                for line in lines:
                    connection.sendall(self._answer(name, line, methods))

    def _answer(self, name: str, line: bytes, methods: Any) -> bytes:
        try:
            request = protocol.decode_request(line, methods)
        except errors.ProtocolError as e:
            return protocol.encode_error(e.request_id, e)
        self.seen.append((name, request.method, request.params))
        answer = self.answers[request.method]
        if isinstance(answer, errors.DPoPAgentError):
            return protocol.encode_error(request.id, answer)
        return protocol.encode_result(request.id, answer)

    def close(self) -> None:
        for sock in self._sockets:
            sock.shutdown(socket.SHUT_RDWR)  # ends accept(2) too
            sock.close()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("DPOP_AGENT_SOCK", str(folder / "agent.sock"))
    agent = Agent(folder)
    agent.answers["proof"] = {
        "proof": PROOF,
        "key": "default",
        "jkt": JKT,
        "state": "active",
        "nonce": "n1",
    }
    yield agent
    agent.close()


Capture = pytest.CaptureFixture[str]


class TestProof:
    def test_it_prints_the_proof_alone(self, agent: Agent, capsys: Capture) -> None:
        assert main(["proof", "GET", "https://api.example/me?q=1#f"]) == 0
        assert capsys.readouterr() == (f"{PROOF}\n", "")
        [(sock, method, params)] = agent.seen
        assert (sock, method) == ("agent.sock", "proof")
        params.pop("timeout_ms", None)
        assert params == {"htm": "GET", "htu": "https://api.example/me"}

    def test_it_prints_a_header(self, agent: Agent, capsys: Capture) -> None:
        assert main(["proof", "GET", "https://api.example/", "--header"]) == 0
        assert capsys.readouterr().out == f"DPoP: {PROOF}\n"

    def test_json_is_what_the_wire_returns(self, agent: Agent, capsys: Capture) -> None:
        assert main(["proof", "GET", "https://api.example/", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == agent.answers["proof"]

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--key", "a"], {"key": "a"}),
            (["--jkt", JKT], {"jkt": JKT}),  # begins with a dash
            ([f"--jkt={JKT}"], {"jkt": JKT}),
            (["--ath", ATH], {"ath": ATH}),
            (["--nonce", "--n-"], {"nonce": "--n-"}),
            (["--no-nonce"], {"nonce": None}),
        ],
    )
    def test_options_become_parameters(
        self, agent: Agent, words: list[str], expected: dict[str, Any]
    ) -> None:
        assert main(["proof", "GET", "https://api.example/", *words]) == 0
        params = agent.seen[0][2]
        assert {n: params[n] for n in params.keys() - {"htm", "htu", "timeout_ms"}} == expected

    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_an_access_token_s_hash_is_sent_never_itself(
        self, agent: Agent, tmp_path: Path, end: str
    ) -> None:
        file = tmp_path / "access-token"
        file.write_text(ACCESS_TOKEN + end)
        words = ["proof", "GET", "https://api.example/", "--access-token-file", str(file)]
        assert main(words) == 0
        assert agent.seen[0][2]["ath"] == vectors.RFC9449_ATH
        assert ACCESS_TOKEN not in str(agent.seen)

    def test_an_access_token_comes_from_standard_input(
        self, agent: Agent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(ACCESS_TOKEN.encode())))
        assert main(["proof", "GET", "https://api.example/", "--access-token-file", "-"]) == 0
        assert agent.seen[0][2]["ath"] == vectors.RFC9449_ATH

    @pytest.mark.parametrize("uri", ["", "api.example", "ftp://a/", "https://u:p@a/", "https://ü/"])
    def test_a_target_that_is_not_one_is_refused(
        self, agent: Agent, capsys: Capture, uri: str
    ) -> None:
        agent.answers["proof"] = errors.HtuRefused("the target URI isn't one", hint="correct it")
        assert main(["proof", "GET", uri]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)

    def test_a_refusal_says_what_why_and_what_next(self, agent: Agent, capsys: Capture) -> None:
        refusal = errors.KeyRetired("the generation default@1 is retired")
        agent.answers["proof"] = refusal
        assert main(["proof", "GET", "https://api.example/"]) == 1
        assert capsys.readouterr().err == f"dpop-agent: {refusal.message}; {refusal.hint}\n"
        assert main(["proof", "GET", "https://api.example/", "--json"]) == 1
        assert json.loads(capsys.readouterr().err) == {"error": refusal.to_wire()}


class TestVerify:
    def give(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    WORDS = (
        "verify",
        "--htm",
        "POST",
        "--htu",
        "https://server.example.com/token",
        "--max-age",
        "999999999",
    )

    @pytest.mark.parametrize("before", ["", "DPoP: ", "dpop:", "\n DPoP : "])
    def test_a_proof_that_is_one_is_ok(
        self, capsys: Capture, monkeypatch: pytest.MonkeyPatch, before: str
    ) -> None:
        self.give(monkeypatch, f"{before}{vectors.RFC9449_TOKEN_REQUEST_PROOF}\n")
        assert main([*self.WORDS, "--jkt", vectors.RFC9449_JKT]) == 0
        shown = f"ok jkt={vectors.RFC9449_JKT} alg=ES256 iat=1562262616\n"
        assert capsys.readouterr() == (shown, "")

    def test_json_has_the_header_and_the_claims(
        self, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.give(monkeypatch, vectors.RFC9449_TOKEN_REQUEST_PROOF)
        assert main([*self.WORDS, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["jkt"] == vectors.RFC9449_JKT
        assert shown["header"]["jwk"] == vectors.RFC9449_JWK
        assert shown["claims"]["htm"] == "POST"

    @pytest.mark.parametrize(
        ("text", "more", "check"),
        [
            (vectors.RFC9449_TOKEN_REQUEST_PROOF, ["--htm", "GET"], 8),
            (vectors.RFC9449_TOKEN_REQUEST_PROOF, ["--htu", "https://server.example.com/"], 9),
            (vectors.RFC9449_TOKEN_REQUEST_PROOF, ["--nonce", "n"], 10),
            (vectors.RFC9449_TOKEN_REQUEST_PROOF, ["--max-age", "60"], 11),
            (vectors.RFC9449_TOKEN_REQUEST_PROOF, ["--ath", ATH], 12),
            (vectors.RFC9449_TOKEN_REQUEST_PROOF, ["--jkt", JKT], 12),
            (vectors.RFC9449_TOKEN_REQUEST_PROOF[:-3] + "AAA", [], 6),
            ("", [], 2),
            ("a.b.c", [], 2),
            ("\x00\xff", [], 2),
        ],
    )
    def test_the_check_that_failed_is_told(
        self,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
        text: str,
        more: list[str],
        check: int,
    ) -> None:
        self.give(monkeypatch, text)
        assert main([*self.WORDS, *more]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert f"check {check} of RFC 9449" in err
        assert err.count("\n") == 1
        self.give(monkeypatch, text)
        assert main([*self.WORDS, *more, "--json"]) == 1
        assert json.loads(capsys.readouterr().err)["error"]["data"]["check"] == check


class TestKeys:
    def test_create_sends_only_what_was_given(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["key.create"] = {"keys": [key()]}
        assert main(["key", "create", "default"]) == 0
        assert "default@1  active  ES256  soft   software-token" in capsys.readouterr().out
        [(sock, method, params)] = agent.seen
        assert (sock, method) == ("admin.sock", "key.create")
        assert len(params.pop("request_id")) == 32
        assert params == {"key": "default"}

    def test_create_sends_all_that_was_given(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["key.create"] = {"keys": [key()]}
        words = ["key", "create", "a", "--store", "s", "--alg", "EdDSA", "--allow-sign-proof"]
        words += ["--origin", "https://A.example:443", "--origin", "http://localhost:8080/"]
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"keys": [key()]}
        params = agent.seen[0][2]
        del params["request_id"]
        assert params == {
            "key": "a",
            "store": "s",
            "alg": "EdDSA",
            "allow_sign_proof": True,
            "origins": ["https://a.example", "http://localhost:8080"],
        }

    def test_each_request_has_an_id_of_its_own(self, agent: Agent) -> None:
        agent.answers["key.create"] = {"keys": [key()]}
        for _ in range(2):
            assert main(["key", "create", "default"]) == 0
        first, second = (params["request_id"] for _, _, params in agent.seen)
        assert first != second

    def test_list_shows_every_generation(self, agent: Agent, capsys: Capture) -> None:
        chain = key(
            generation(1, exportable=True, protection="keychain"), name="chain", store="login"
        )
        gone = generation(2, missing=True, last_used="2026-11-20T19:05:00Z")
        agent.answers["key.list"] = {"keys": [chain, key(generation(), gone)]}
        assert main(["key", "list"]) == 0
        head, *rows = capsys.readouterr().out.splitlines()
        assert head.split()[:3] == ["KEY", "STATE", "ALG"]
        assert [row.split()[0] for row in rows] == ["chain@1", "default@1", "default@2"]
        assert "keychain, exportable" in rows[0]
        assert "active, missing" in rows[2]
        assert "2026-11-20" in rows[2]
        assert [row[head.index("JKT") :] for row in rows] == [JKT, JKT, OTHER]
        assert agent.seen[0][:2] == ("agent.sock", "key.list")

    def test_list_asks_for_the_destroyed_ones_when_told_to(self, agent: Agent) -> None:
        assert main(["key", "list", "default", "--all", "--json"]) == 0
        params = agent.seen[0][2]
        assert (params["key"], params["include_destroyed"]) == ("default", True)

    def test_no_keys_yet_names_the_command_that_makes_one(
        self, agent: Agent, capsys: Capture
    ) -> None:
        agent.answers["key.list"] = {"keys": []}
        assert main(["key", "list"]) == 0
        assert "dpop-agent key create default" in capsys.readouterr().out
        assert main(["key", "list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"keys": []}

    def test_show_tells_everything(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["key.list"] = {
            "keys": [key(origins=["https://a.example", "https://b.example"])]
        }
        assert main(["key", "show", "default"]) == 0
        out = capsys.readouterr().out
        for part in (
            "https://a.example, https://b.example",
            "not allowed",
            JKT,
            json.dumps(vectors.RFC9449_JWK, separators=(",", ":")),
            "software-token",
            "2026-11-20 19:05 UTC",
            "never",
        ):
            assert part in out

    def test_show_of_one_generation_shows_that_one(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["key.list"] = {
            "keys": [key(generation(1, state="destroyed", jwk=None), generation(2))]
        }
        assert main(["key", "show", "default@1", "--json"]) == 0
        [shown] = json.loads(capsys.readouterr().out)["keys"]
        assert [g["generation"] for g in shown["generations"]] == [1]
        assert main(["key", "show", "default@1"]) == 0
        assert OTHER not in capsys.readouterr().out
        assert main(["key", "show", "default@3"]) == 1
        assert "no generation 3" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--any-origin"], {"origins": []}),
            (["--origin", "https://a.example"], {"origins": ["https://a.example"]}),
            (["--allow-sign-proof"], {"allow_sign_proof": True}),
            (["--no-allow-sign-proof"], {"allow_sign_proof": False}),
        ],
    )
    def test_set_changes_only_what_was_given(
        self, agent: Agent, words: list[str], expected: dict[str, Any]
    ) -> None:
        agent.answers["key.set"] = {"keys": [key()]}
        assert main(["key", "set", "default", *words]) == 0
        sock, _, params = agent.seen[0]
        del params["request_id"]
        assert (sock, params) == ("admin.sock", {"key": "default"} | expected)


class TestDestroy:
    @pytest.fixture(autouse=True)
    def answers(self, agent: Agent) -> None:
        agent.answers["key.destroy"] = {"keys": [key(generation(state="destroyed"))]}

    def destroyed(self, agent: Agent) -> list[tuple[str, int]]:
        return [
            (params["key"], params["generation"])
            for sock, method, params in agent.seen
            if (sock, method) == ("admin.sock", "key.destroy")
        ]

    def answer(self, monkeypatch: pytest.MonkeyPatch, text: str, *, tty: bool = True) -> None:
        stdin = io.StringIO(text)
        monkeypatch.setattr(stdin, "isatty", lambda: tty)
        monkeypatch.setattr(sys, "stdin", stdin)

    def test_with_yes_it_does_not_ask(self, agent: Agent, capsys: Capture) -> None:
        assert main(["key", "destroy", "default@1", "--yes"]) == 0
        assert self.destroyed(agent) == [("default", 1)]
        assert capsys.readouterr() == ("default@1 is destroyed\n", "")

    def test_a_yes_destroys(
        self, agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer(monkeypatch, "yes\n")
        assert main(["key", "destroy", "default@1"]) == 0
        assert self.destroyed(agent) == [("default", 1)]
        out, err = capsys.readouterr()
        assert JKT in err
        assert out == "default@1 is destroyed\n"

    @pytest.mark.parametrize("text", ["", "\n", "no\n", "y\n", "default@1\n"])
    def test_anything_else_destroys_nothing(
        self, agent: Agent, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        self.answer(monkeypatch, text)
        assert main(["key", "destroy", "default@1"]) == 1
        assert self.destroyed(agent) == []

    def test_where_nobody_can_be_asked_it_is_refused(
        self, agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer(monkeypatch, "yes\n", tty=False)
        assert main(["key", "destroy", "default"]) == 1
        assert "dpop-agent key destroy default@1 --yes" in capsys.readouterr().err
        assert self.destroyed(agent) == []

    def test_a_bare_name_means_the_only_generation(self, agent: Agent) -> None:
        agent.answers["key.list"] = {"keys": [key(generation(1, state="destroyed"), generation(2))]}
        assert main(["key", "destroy", "default", "--yes"]) == 0
        assert self.destroyed(agent) == [("default", 2)]

    def test_a_bare_name_is_refused_where_two_could_be_meant(
        self, agent: Agent, capsys: Capture
    ) -> None:
        agent.answers["key.list"] = {"keys": [key(generation(1, state="draining"), generation(2))]}
        assert main(["key", "destroy", "default", "--yes"]) == 1
        assert "default@1, default@2" in capsys.readouterr().err
        assert self.destroyed(agent) == []


STATUS: dict[str, Any] = {
    "agent": "0.1.0",
    "protocol": 1,
    "pid": 4711,
    "started": "2026-11-20T19:05:00Z",
    "connections": 1,
    "proofs": 12,
    "config": "/home/alice/.config/dpop-agent/config.toml",
    "ledger": "/home/alice/.local/state/dpop-agent/ledger.json",
    "stores": [
        {
            "store": "soft",
            "type": "pkcs11",
            "state": "ready",
            "reason": None,
            "hint": None,
            "module": "/usr/lib/softhsm/libsofthsm2.so",
            "label": "work\x1b[2J",
            "serial": "0123",
            "model": "SoftHSM v2",
            "signer_pid": 4712,
        },
        {
            "store": "yubikey",
            "type": "pkcs11",
            "state": "absent",
            "reason": "no PKCS#11 token fits",
            "hint": "plug it in",
            "module": "/usr/lib/libykcs11.so",
            "label": None,
            "serial": None,
            "model": None,
            "signer_pid": None,
        },
    ],
    "origins": [
        {"origin": "https://as.example", "nonce_age_s": 12, "clock_offset_s": -3},
        {"origin": "https://api.example", "nonce_age_s": None, "clock_offset_s": None},
    ],
}


class TestStatus:
    def test_a_person_reads_it_at_a_glance(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["status"] = STATUS
        assert main(["status"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("dpop-agent 0.1.0, pid 4711, started ")
        for line in (
            "soft     ready   work?[2J, serial 0123, SoftHSM v2",
            "yubikey  absent  /usr/lib/libykcs11.so",
            "yubikey: no PKCS#11 token fits; plug it in",
            "12 s old  -3 s   https://as.example",
            "-         -      https://api.example",
        ):
            assert f"\n{line}\n" in out
        assert "\x1b" not in out

    def test_json_is_what_the_wire_returns(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["status"] = STATUS
        assert main(["status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == STATUS


def test_somebody_else_s_folder_is_refused_before_anything_is_sent(
    agent: Agent, capsys: Capture
) -> None:
    os.chmod(os.path.dirname(os.environ["DPOP_AGENT_SOCK"]), 0o755)
    assert main(["key", "list"]) == 1
    assert "mode 0755" in capsys.readouterr().err
    assert agent.seen == []


def test_a_socket_path_that_is_too_long_is_refused(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPOP_AGENT_SOCK", "/" + "a" * 200)
    assert main(["key", "list"]) == 1
    assert "201 bytes" in capsys.readouterr().err


def test_a_narrow_terminal_keeps_key_and_jkt(
    agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "width", lambda: 30)
    assert main(["key", "list"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert max(len(head), len(row)) <= 30
    assert row.startswith("default@1  active  -")
    assert head.split() == ["KEY", "STATE", "JKT"]
