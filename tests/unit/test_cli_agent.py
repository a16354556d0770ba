"""The verbs that talk to an agent, against one that answers from a table."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dpop_agent import errors, protocol
from dpop_agent.cli import output, waiting
from dpop_agent.cli.main import main
from dpop_agent.client import Touch
from tests import vectors

JKT = "-" * 42 + "A"
OTHER = "B" * 42 + "A"
ATH = "_" * 42 + "8"
DAY_S = 86_400
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
        "shared": False,
        "created": "2026-11-20T19:05:00Z",
        "changed": "2026-11-20T19:05:00Z",
        "last_used": None,
        "origins_used": {},
        "origins_left_out": 0,
        "drain_left_s": None,
    } | changes


def key(*generations: dict[str, Any], name: str = "default", **changes: Any) -> dict[str, Any]:
    return {
        "key": name,
        "store": "soft",
        "alg": "ES256",
        "origins": [],
        "allow_sign_proof": False,
        "rotate_every_s": None,
        "drain_s": 604_800,
        "max_drain_s": 7_776_000,
        "generations": list(generations or [generation()]),
    } | changes


class Agent:
    """Answers each method with what `answers` has; `seen` are the sockets, methods, parameters.

    But for subscriptions, which every connection begins with.
    """

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
        if request.method == "subscribe":
            return protocol.encode_result(request.id, {})
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

    @pytest.mark.parametrize("number", [1, 2])
    def test_a_named_generation_is_asked_for_by_its_jkt(self, agent: Agent, number: int) -> None:
        agent.answers["key.list"] = {"keys": [key(generation(1, state="draining"), generation(2))]}
        agent.answers["proof"] = agent.answers["proof"] | {"jkt": [JKT, OTHER][number - 1]}  # type: ignore[operator]
        assert main(["proof", "GET", "https://api.example/", "--key", f"default@{number}"]) == 0
        _, method, params = agent.seen[-1]
        assert (method, params["key"]) == ("proof", "default")
        assert params["jkt"] == [JKT, OTHER][number - 1]

    def test_a_named_generation_that_is_not_there_signs_nothing(
        self, agent: Agent, capsys: Capture
    ) -> None:
        agent.answers["key.list"] = {"keys": [key(generation(1, state="pending", jkt=None))]}
        words = ["proof", "GET", "https://api.example/", "--key"]
        assert main([*words, "default@2"]) == 1
        assert "no generation 2" in capsys.readouterr().err
        assert main([*words, "default@1"]) == 1
        assert "default@1 isn't made yet" in capsys.readouterr().err
        assert {method for _, method, _ in agent.seen} == {"key.list"}

    @pytest.mark.parametrize("words", [[], ["--key", "default"]])
    def test_where_the_jkt_is_required_the_option_and_the_choices_are_named(
        self, agent: Agent, capsys: Capture, words: list[str]
    ) -> None:
        agent.answers["proof"] = errors.JktRequired(
            "several generations of default sign", details={"choices": [JKT, OTHER]}
        )
        old, gone = generation(1, state="draining"), generation(3, state="retired", jkt=ATH)
        agent.answers["key.list"] = {"keys": [key(old, generation(2), gone)]}
        words = ["proof", "GET", "https://api.example/", "--ath", ATH, *words]
        assert main(words) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert " --jkt" in err
        assert f"{JKT} (default@1, draining), {OTHER} (default@2, active)\n" in err
        assert main([*words, "--json"]) == 1
        data = json.loads(capsys.readouterr().err)["error"]["data"]
        assert (data["type"], data["choices"]) == ("jkt_required", [JKT, OTHER])

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


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (TestVerify.WORDS, "a proof"),
        (("proof", "GET", "https://a.example/", "--access-token-file", "-"), "an access token"),
    ],
)
def test_who_sits_at_standard_input_is_told_that_it_is_read(
    agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str], what: str
) -> None:
    for is_terminal in (True, False):
        stdin = io.TextIOWrapper(io.BytesIO(vectors.RFC9449_TOKEN_REQUEST_PROOF.encode()))
        monkeypatch.setattr(stdin, "isatty", lambda: is_terminal)  # noqa: B023  (asked at once)
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main([*words]) == 0
        told = f"reading {what} from standard input; end it with Enter and Ctrl-D\n"
        assert capsys.readouterr().err == (told if is_terminal else "")


def test_an_access_token_that_the_terminal_cut_is_not_signed_for(
    agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"a" * 4095 + b"\n"))
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["proof", "GET", "https://a.example/", "--access-token-file", "-"]) == 1
    assert "the terminal took no more than 4095 characters" in capsys.readouterr().err
    assert agent.seen == []


def test_a_touch_is_never_asked_for_on_standard_output(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch = Touch(key="shop", jkt=JKT, store="yubi\x1bkey")
    waiting.say_touch(touch)
    asked = "touch the card of the store yubi?key to sign with shop\n"
    assert capsys.readouterr() == ("", asked)
    monkeypatch.setattr(sys, "stderr", None)  # as it is where it was closed
    waiting.say_touch(touch)
    assert capsys.readouterr().out == ""


def test_that_a_person_is_asked_is_said_once(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_said", set())
    for _ in ("it waits", "it is asked"):
        waiting.say_touch(Touch(key="shop", jkt=JKT, store="yubikey", consent=True))
    assert capsys.readouterr().err == "you are being asked whether shop may sign\n"


class TestKeys:
    def test_create_sends_only_what_was_given(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["key.create"] = {"keys": [key()]}
        assert main(["key", "create", "default", "--any-origin"]) == 0
        out = capsys.readouterr().out
        assert "default@1  active         never      software-token  ES256  soft" in out
        [(sock, method, params)] = agent.seen
        assert (sock, method) == ("admin.sock", "key.create")
        assert len(params.pop("request_id")) == 32
        assert params == {"key": "default", "origins": []}

    def test_create_sends_all_that_was_given(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["key.create"] = {"keys": [key()]}
        words = ["key", "create", "a", "--store", "s", "--alg", "EdDSA", "--allow-sign-proof"]
        words += ["--origin", "https://A.example:443", "--origin", "http://localhost:8080/"]
        words += ["--rotate-every", "30d", "--drain", "15m", "--max-drain", "90s"]
        words += ["--method", "GET", "--method", "POST", "--path", "/v1", "--path", "/v2/me"]
        words += ["--require-ath", "--rate", "60/min", "--burst", "20", "--confirm", "15m"]
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
            "methods": ["GET", "POST"],
            "paths": ["/v1", "/v2/me"],
            "require_ath": True,
            "rate": {"per_minute": 60, "burst": 20},
            "confirm_s": 900,
            "rotate_every_s": 2_592_000,
            "drain_s": 900,
            "max_drain_s": 90,
        }

    @pytest.mark.parametrize(
        ("alg", "says"),
        [
            ("Ed25519", "Keycloak, Spring, Nimbus, better-auth, express-oauth2-jwt-bearer and"),
            ("EdDSA", "Spring and Nimbus."),
            ("ES256", None),
            ("PS256", None),
        ],
    )
    def test_a_key_whose_algorithm_has_a_name_that_servers_refuse_is_told_which(
        self, agent: Agent, capsys: Capture, alg: str, says: str | None
    ) -> None:
        made = key(alg=alg)
        agent.answers |= {"key.create": {"keys": [made]}, "key.adopt": {"keys": [made]}}
        for words in (["create", "default"], ["adopt", "default", "--ref", "00"]):
            assert main(["key", *words, "--alg", alg, "--any-origin"]) == 0
            out = capsys.readouterr().out
            if says is None:
                assert "refused" not in out
            else:
                assert f"Proofs that say {alg} are refused by {says}" in out
        assert main(["key", "create", "default", "--alg", alg, "--any-origin", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"keys": [made]}

    def test_help_says_how_many_servers_refuse_which_name(self, capsys: Capture) -> None:
        assert main(["key", "create", "--help"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "six refuse the name Ed25519 in a proof's header, and two EdDSA" in said

    def test_any_origin_is_said_as_such(self, agent: Agent) -> None:
        agent.answers |= {f"key.{v}": {"keys": [key()]} for v in ("create", "set", "adopt")}
        for words in (["create", "a"], ["set", "a"], ["adopt", "a", "--ref", "00"]):
            assert main(["key", *words, "--any-origin"]) == 0
            assert main(["key", *words, "--origin", "https://a.example"]) == 0
        given = [params["origins"] for _, _, params in agent.seen]
        assert given == [[], ["https://a.example"]] * 3

    def test_a_key_for_any_origin_is_shown_as_one(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["key.list"] = {"keys": [key()]}
        assert main(["key", "show", "default"]) == 0
        assert "  signs       for every https server, and http on" in capsys.readouterr().out

    def test_each_request_has_an_id_of_its_own(self, agent: Agent) -> None:
        agent.answers["key.create"] = {"keys": [key()]}
        for _ in range(2):
            assert main(["key", "create", "default", "--any-origin"]) == 0
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
        assert head.split()[:3] == ["KEY", "STATE", "NOTES"]
        assert [row.split()[:2] for row in rows] == [
            ["chain@1", "active"],
            ["default@1", "active"],
            ["default@2", "active"],
        ]
        notes = slice(head.index("NOTES"), head.index("LAST USED"))
        assert [row[notes].strip() for row in rows] == ["exportable", "", "missing"]
        assert "keychain" in rows[0]
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

    def test_a_key_that_is_destroyed_is_shown_as_such_wherever_it_is_named(
        self, agent: Agent, capsys: Capture
    ) -> None:
        gone = generation(2, state="destroyed", jwk={})
        agent.answers["key.list"] = {"keys": [key(generation(), name="other"), key(gone)]}
        for words in (["list"], ["show", "default"]):
            if words[0] == "show":
                agent.answers["key.list"] = {"keys": [key(gone)]}
            assert main(["key", *words]) == 0
            out = capsys.readouterr().out
            assert "default@2" in out
            assert "destroyed" in out
            assert out.endswith(
                "All generations of default are destroyed, and its name is taken still.\n"
                "for a new generation: dpop-agent key rotate default\n"
                "to free the name: dpop-agent key forget default\n"
            )
            assert out.count("taken still") == 1

    def test_forget_frees_the_name(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["key.forget"] = {"keys": []}
        assert main(["key", "forget", "default"]) == 0
        assert capsys.readouterr().out == "default is forgotten, and the name is free\n"
        [(sock, method, params)] = agent.seen
        assert (sock, method, params["key"]) == ("admin.sock", "key.forget", "default")
        assert main(["key", "forget", "default", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"keys": []}

    def test_show_tells_everything(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["key.list"] = {
            "keys": [key(origins=["https://a.example", "https://b.example"])]
        }
        assert main(["key", "show", "default"]) == 0
        out = capsys.readouterr().out
        for part in (
            "  signs       for https://a.example and https://b.example\n",
            "not allowed",
            JKT,
            json.dumps(vectors.RFC9449_JWK, separators=(",", ":")),
            "software-token",
            "2026-11-20 19:05 UTC",
            "never",
        ):
            assert part in out

    @pytest.mark.parametrize(
        ("rules", "sentence"),
        [
            ({}, "for every https server, and http on this machine"),
            (
                {"paths": ["/v1"], "confirm_s": 900},
                "for every https server, and http on this machine, below /v1, and asks first (a "
                "yes holds for 15m)",
            ),
            (
                {
                    "origins": ["https://api.example.com"],
                    "methods": ["GET", "POST"],
                    "paths": ["/v1"],
                    "require_ath": True,
                    "rate": {"per_minute": 60, "burst": 10},
                    "confirm_s": 0,
                },
                "GET and POST for https://api.example.com below /v1, with an access token, at "
                "most 60 a minute and 10 at once, and asks first",
            ),
            (
                {"origins": ["https://a.example"], "methods": ["GET"], "paths": ["/a", "/b", "/c"]},
                "GET for https://a.example below /a, /b or /c",
            ),
        ],
    )
    def test_what_a_key_signs_reads_like_a_sentence(
        self, agent: Agent, capsys: Capture, rules: dict[str, Any], sentence: str
    ) -> None:
        agent.answers |= {f"key.{verb}": {"keys": [key(**rules)]} for verb in ("list", "set")}
        for words in (["show", "default"], ["set", "default", "--drain", "1d"]):
            assert main(["key", *words]) == 0
            assert f"  signs       {sentence}\n" in capsys.readouterr().out

    def test_list_tells_what_drains_until_when_and_what_is_exportable_or_shared(
        self, agent: Agent, capsys: Capture
    ) -> None:
        long = generation(1, state="draining", drain_left_s=5 * DAY_S, exportable=True)
        short = generation(2, state="draining", drain_left_s=3600, shared=True)
        pending = generation(3, state="pending", jkt=None, exportable=True, protection="")
        agent.answers["key.list"] = {"keys": [key(long, short, pending)]}
        before = datetime.now(UTC)
        assert main(["key", "list"]) == 0
        _, *rows = capsys.readouterr().out.splitlines()
        assert re.split(" {2,}", rows[0])[:3] == [
            "default@1",
            "draining",
            f"until {before + timedelta(days=5):%Y-%m-%d}, exportable",
        ]
        assert re.fullmatch(
            r"until \d{4}-\d\d-\d\d \d\d:\d\d UTC, shared", re.split(" {2,}", rows[1])[2]
        )
        assert "exportable" not in rows[2]

    def test_show_tells_the_schedule_the_drain_and_what_it_was_used_for(
        self, agent: Agent, capsys: Capture
    ) -> None:
        used = {"https://old.example": "2026-11-20T19:05:00Z"}
        used["https://new.example"] = "2026-11-21T20:06:00Z"
        draining = generation(
            1, state="draining", drain_left_s=3600, origins_used=used, shared=True, missing=True
        )
        agent.answers["key.list"] = {
            "keys": [key(draining, generation(2, exportable=True), rotate_every_s=30 * DAY_S)]
        }
        assert main(["key", "show", "default"]) == 0
        out = capsys.readouterr().out
        for part in (
            "rotation    every 30d\n",
            "drain       7d without use, 90d at most\n",
            "default@1: draining since 2026-11-20 19:05 UTC\n",
            "use extends that, to 90d at most\n",
            "software-token, never exportable, made there\n",
            "missing     its store doesn't have it now\n",
            "shared      another agent may use it",
            "used for    https://new.example, 2026-11-21 20:06 UTC\n"
            "              https://old.example, 2026-11-20 19:05 UTC\n",
            "software-token, exportable, made there\n",
        ):
            assert part in out

    @pytest.mark.parametrize("verb", ["list", "rotate", "set"])
    def test_a_generation_where_a_key_is_meant_is_told_from_a_bad_name(
        self, agent: Agent, capsys: Capture, verb: str
    ) -> None:
        assert main(["key", verb, "default@1"]) == 2
        assert "a key, not a generation: default\n" in capsys.readouterr().err
        assert main(["key", verb, "Default@1"]) == 2
        assert "a key's name is made of" in capsys.readouterr().err

    @pytest.mark.parametrize(("touch", "said"), [(True, "yes"), (False, "no"), (None, None)])
    def test_show_tells_what_was_set_of_touches(
        self, agent: Agent, capsys: Capture, touch: bool | None, said: str | None
    ) -> None:
        agent.answers["key.list"] = {"keys": [key(generation(1), touch=touch)]}
        assert main(["key", "show", "default"]) == 0
        out = capsys.readouterr().out
        assert (f"  touch       {said}, as set\n" in out) if said else "touch" not in out

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
            (["--method", "BREW"], {"methods": ["BREW"]}),
            (["--any-method"], {"methods": []}),
            (["--path", "/"], {"paths": ["/"]}),
            (["--any-path"], {"paths": []}),
            (["--require-ath"], {"require_ath": True}),
            (["--no-require-ath"], {"require_ath": False}),
            (["--rate", "5/min"], {"rate": {"per_minute": 5}}),
            (["--any-rate"], {"rate": None}),
            (["--confirm", "each"], {"confirm_s": 0}),
            (["--confirm", "never"], {"confirm_s": None}),
            (["--allow-sign-proof"], {"allow_sign_proof": True}),
            (["--no-allow-sign-proof"], {"allow_sign_proof": False}),
            (["--rotate-every", "30d"], {"rotate_every_s": 2_592_000}),
            (["--rotate-every", "never"], {"rotate_every_s": None}),
            (["--drain", "0s"], {"drain_s": 0}),
            (
                ["--drain", "12h", "--max-drain", "4w"],
                {"drain_s": 43_200, "max_drain_s": 2_419_200},
            ),
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


SAID = (
    "default@1 is destroyed\n\n"
    "default has no active generation now.\n"
    "for a new generation: dpop-agent key rotate default\n"
    "to free the name: dpop-agent key forget default\n"
)
"""After the last generation was destroyed."""


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
        assert capsys.readouterr() == (SAID, "")

    def test_a_yes_destroys(
        self, agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer(monkeypatch, "yes\n")
        assert main(["key", "destroy", "default@1"]) == 0
        assert self.destroyed(agent) == [("default", 1)]
        out, err = capsys.readouterr()
        assert JKT in err
        assert out == SAID

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
        assert "default@1 (draining), default@2 (active)" in capsys.readouterr().err
        assert self.destroyed(agent) == []

    def test_of_a_shared_one_it_says_that_another_agent_loses_it_too(
        self, agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent.answers["key.list"] = {"keys": [key(generation(shared=True))]}
        self.answer(monkeypatch, "no\n")
        assert main(["key", "destroy", "default@1"]) == 1
        assert "another agent may use it" in capsys.readouterr().err


class TestRotation:
    OLD: ClassVar[dict[str, Any]] = generation(
        1,
        state="draining",
        drain_left_s=7 * DAY_S,
        last_used="2026-11-21T20:06:00Z",
        origins_used={
            "https://old.example": "2026-11-20T19:05:00Z",
            "https://new.example": "2026-11-21T20:06:00Z",
        },
    )

    def sent(self, agent: Agent) -> dict[str, Any]:
        sock, _, params = agent.seen[-1]
        assert sock == "admin.sock"
        assert len(params.pop("request_id")) == 32
        return params

    def test_rotate_tells_both_jkts_when_the_old_one_ends_and_whom_it_touches(
        self, agent: Agent, capsys: Capture
    ) -> None:
        agent.answers["key.rotate"] = {
            "keys": [key(self.OLD, generation(2))],
            "new": generation(2),
            "old": self.OLD,
        }
        assert main(["key", "rotate", "default", "--drain", "7d"]) == 0
        assert self.sent(agent) == {"key": "default", "drain_s": 7 * DAY_S}
        out = capsys.readouterr().out
        for part in (
            f"new: default@2 is active, jkt {OTHER}\n",
            f"old: default@1 is draining, jkt {JKT}\n",
            f"until {datetime.now(UTC) + timedelta(days=7):%Y-%m-%d} ",
            "unless it is used before then; use extends that, to 90d at most.\n",
            "to go back: dpop-agent key activate default@1\n",
        ):
            assert part in out
        assert out.index("https://new.example") < out.index("https://old.example")
        assert max(map(len, out.splitlines())) <= 80

    @pytest.mark.parametrize(
        ("shared", "says"),
        [
            (False, "The agent knows of no use of it."),
            (True, "When it was used isn't known here: access tokens may be bound to it."),
        ],
    )
    def test_rotate_says_what_is_known_of_uses_where_none_was_seen(
        self, agent: Agent, capsys: Capture, shared: bool, says: str
    ) -> None:
        old = generation(1, state="draining", drain_left_s=60, shared=shared)
        agent.answers["key.rotate"] = {"keys": [key(old, generation(2))], "new": None, "old": old}
        assert main(["key", "rotate", "default"]) == 0
        assert self.sent(agent) == {"key": "default"}
        assert says in capsys.readouterr().out

    def test_rotate_without_a_drain_says_that_the_old_one_signs_no_more(
        self, agent: Agent, capsys: Capture
    ) -> None:
        old = self.OLD | {"drain_left_s": 0}
        agent.answers["key.rotate"] = {"keys": [key(old, generation(2))], "new": None, "old": old}
        assert main(["key", "rotate", "default", "--drain", "0s"]) == 0
        assert "default@1 no longer signs" in capsys.readouterr().out

    def test_rotate_where_nothing_was_active_has_no_old_one(
        self, agent: Agent, capsys: Capture
    ) -> None:
        gone = generation(1, state="compromised")
        agent.answers["key.rotate"] = {
            "keys": [key(gone, generation(2))],
            "new": generation(2),
            "old": None,
        }
        assert main(["key", "rotate", "default"]) == 0
        out = capsys.readouterr().out
        assert f"new: default@2 is active, jkt {OTHER}\nold: none" in out

    def test_stage_tells_the_jkt_to_announce_and_what_to_type_then(
        self, agent: Agent, capsys: Capture
    ) -> None:
        staged = generation(2, state="staged")
        agent.answers["key.rotate"] = {
            "keys": [key(generation(), staged)],
            "new": staged,
            "old": None,
        }
        assert main(["key", "rotate", "default", "--stage"]) == 0
        assert self.sent(agent) == {"key": "default", "stage": True}
        out = capsys.readouterr().out
        assert f"new: default@2 is staged, jkt {OTHER}\n" in out
        assert f"now: default@1 is active, jkt {JKT}\n" in out
        assert out.endswith("then: dpop-agent key activate default@2\n")

    @pytest.mark.parametrize("which", ["default@2", "default"])
    def test_activate_tells_what_is_active_and_what_drains(
        self, agent: Agent, capsys: Capture, which: str
    ) -> None:
        agent.answers["key.list"] = {"keys": [key(generation(), generation(2, state="staged"))]}
        agent.answers["key.activate"] = {
            "keys": [key(self.OLD, generation(2))],
            "new": generation(2),
            "old": self.OLD,
        }
        assert main(["key", "activate", which, "--drain", "90s"]) == 0
        assert self.sent(agent) == {"key": "default", "generation": 2, "drain_s": 90}
        out = capsys.readouterr().out
        assert f"new: default@2 is active, jkt {OTHER}\nold: default@1 is draining" in out

    def test_what_is_activated_is_told_though_another_one_is_staged(
        self, agent: Agent, capsys: Capture
    ) -> None:
        staged = generation(3, state="staged", jkt=ATH)
        agent.answers["key.activate"] = {
            "keys": [key(self.OLD, generation(2), staged)],
            "new": staged,
            "old": self.OLD,
        }
        assert main(["key", "activate", "default@2"]) == 0
        assert ATH not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("verb", "states", "expected"),
        [
            ("activate", ["active", "draining", "compromised"], 2),
            ("activate", ["active", "draining", "staged"], None),
            ("activate", ["active"], None),
            ("suspend", ["retired"], 1),
            ("suspend", ["compromised", "active"], 2),
            ("suspend", ["draining", "active"], None),
            ("resume", ["suspended", "active"], 1),
            ("resume", ["suspended", "suspended"], None),
            ("resume", ["active"], None),
            ("destroy", ["pending", "compromised"], 2),
            ("destroy", ["retired", "suspended"], None),
        ],
    )
    def test_a_bare_name_means_the_one_generation_that_fits_or_none(
        self, agent: Agent, capsys: Capture, verb: str, states: list[str], expected: int | None
    ) -> None:
        found = [generation(n, state=state) for n, state in enumerate(states, 1)]
        agent.answers["key.list"] = {"keys": [key(*found)]}
        result = {"keys": [key(*found)], "new": None, "old": None}
        agent.answers[f"key.{verb}"] = result
        words = ["key", verb, "default", *(["--yes"] if verb == "destroy" else [])]
        assert main(words) == (1 if expected is None else 0)
        done = [params["generation"] for sock, _, params in agent.seen if sock == "admin.sock"]
        assert done == ([] if expected is None else [expected])
        if expected is None:
            err = capsys.readouterr().err
            assert "could be meant; name one: default@" in err or f"to {verb}: none is " in err
            assert err.count("\n") == 1

    def test_suspend_tells_how_to_undo_it_and_that_nothing_is_active(
        self, agent: Agent, capsys: Capture
    ) -> None:
        suspended = {"keys": [key(generation(state="suspended"))]}
        agent.answers["key.suspend"] = suspended
        assert main(["key", "suspend", "default@1"]) == 0
        assert self.sent(agent) == {"key": "default", "generation": 1}
        out = capsys.readouterr().out
        assert f"default@1 is suspended, jkt {JKT}\n" in out
        assert "dpop-agent key resume default@1\n" in out
        assert "default has no active generation now" in out
        assert main(["key", "suspend", "default@1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == suspended

    def test_resume_tells_what_it_came_back_as(self, agent: Agent, capsys: Capture) -> None:
        agent.answers["key.resume"] = {"keys": [key(generation())]}
        assert main(["key", "resume", "default@1"]) == 0
        assert capsys.readouterr().out == f"default@1 is active, jkt {JKT}\n"
        agent.answers["key.resume"] = {"keys": [key(self.OLD, generation(2))]}
        assert main(["key", "resume", "default@1"]) == 0
        out = capsys.readouterr().out
        assert f"default@1 is draining, jkt {JKT}\ndefault@2 is the active one" in out
        assert "default@1 signs for access tokens bound to it until " in out


class TestAdopt:
    def test_it_is_staged_and_shared_and_what_comes_next_is_told(
        self, agent: Agent, capsys: Capture
    ) -> None:
        adopted = generation(2, state="staged", shared=True)
        agent.answers["key.adopt"] = {"keys": [key(generation(), adopted)]}
        words = ["key", "adopt", "default", "--ref", "0BadCafe", "--store", "s", "--alg", "ES256"]
        assert main(words) == 0
        [(sock, method, params)] = agent.seen
        del params["request_id"]
        assert (sock, method) == ("admin.sock", "key.adopt")
        assert params == {"key": "default", "ref": "0BadCafe", "store": "s", "alg": "ES256"}
        out = capsys.readouterr().out
        assert out.startswith(f"default@2 is staged, jkt {OTHER}\n")
        assert "It is shared" in out
        assert "exportable" not in out
        assert out.endswith("dpop-agent key activate default@2\n")

    @pytest.mark.parametrize("local", [False, None])
    def test_what_may_have_been_copied_is_told(
        self, agent: Agent, capsys: Capture, local: bool | None
    ) -> None:
        adopted = generation(state="staged", shared=True, exportable=True, local=local)
        agent.answers["key.adopt"] = {"keys": [key(adopted)]}
        assert main(["key", "adopt", "default", "--ref", "00"]) == 0
        out = capsys.readouterr().out
        assert "somebody may have a copy of the private key" in out
        assert "It isn't known to have been made in this store" in out


class TestCompromise:
    USED: ClassVar[dict[str, str]] = {"https://as.example": "2026-11-20T19:05:00Z"}

    @pytest.fixture(autouse=True)
    def answers(self, agent: Agent) -> None:
        marked = [
            generation(n, state="compromised", origins_used=self.USED if n == 1 else {})
            for n in (1, 2)
        ]
        agent.answers["key.list"] = {"keys": [key(generation(1), generation(2, state="staged"))]}
        agent.answers["key.compromise"] = {"keys": [key(*marked)]}

    def marked(self, agent: Agent) -> list[tuple[str, int | None]]:
        return [
            (params["key"], params.get("generation"))
            for sock, method, params in agent.seen
            if (sock, method) == ("admin.sock", "key.compromise")
        ]

    def answer(self, monkeypatch: pytest.MonkeyPatch, text: str, *, tty: bool = True) -> None:
        stdin = io.StringIO(text)
        monkeypatch.setattr(stdin, "isatty", lambda: tty)
        monkeypatch.setattr(sys, "stdin", stdin)

    def test_a_bare_name_means_all_and_what_to_revoke_where_is_told(
        self, agent: Agent, capsys: Capture
    ) -> None:
        assert main(["key", "compromise", "default", "--yes"]) == 0
        assert self.marked(agent) == [("default", None)]
        out, err = capsys.readouterr()
        assert err == ""
        for part in (
            "default@1 is compromised, and never signs again\n",
            "default@2 is compromised, and never signs again\n",
            f"jkt {JKT} (default@1)\n",
            " https://as.example\n",
            f"jkt {OTHER} (default@2)\nnever used",
            "dpop-agent key rotate default\n",
        ):
            assert part in out

    def test_of_origins_that_were_not_kept_it_says_how_many(
        self, agent: Agent, capsys: Capture
    ) -> None:
        marked = generation(state="compromised", origins_used=self.USED, origins_left_out=12)
        agent.answers["key.compromise"] = {"keys": [key(marked)]}
        assert main(["key", "compromise", "default", "--yes"]) == 0
        out = capsys.readouterr().out
        assert "and up to 12 more that weren't kept: the list isn't complete\n" in out

    def test_one_generation_is_marked_alone(self, agent: Agent, capsys: Capture) -> None:
        assert main(["key", "compromise", "default@2", "--yes"]) == 0
        assert self.marked(agent) == [("default", 2)]
        assert JKT not in capsys.readouterr().out

    def test_a_yes_marks_what_was_shown_first(
        self, agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer(monkeypatch, "yes\n")
        assert main(["key", "compromise", "default"]) == 0
        assert self.marked(agent) == [("default", None)]
        err = capsys.readouterr().err
        assert f"default@1 is active, jkt {JKT}\ndefault@2 is staged, jkt {OTHER}\n" in err
        assert err.endswith("Mark default as compromised? Type yes: ")

    @pytest.mark.parametrize("text", ["", "\n", "y\n", "default\n"])
    def test_anything_else_marks_nothing(
        self, agent: Agent, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        self.answer(monkeypatch, text)
        assert main(["key", "compromise", "default"]) == 1
        assert self.marked(agent) == []

    def test_generations_that_did_not_fit_the_answer_are_told_too(
        self, agent: Agent, capsys: Capture
    ) -> None:
        agent.answers["key.list"] = agent.answers["key.compromise"]
        agent.answers["key.compromise"] = {"keys": [key(generation(2, state="compromised"))]}
        assert main(["key", "compromise", "default", "--yes"]) == 0
        assert f"jkt {JKT} (default@1)\n" in capsys.readouterr().out

    def test_where_nobody_can_be_asked_it_is_refused(
        self, agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer(monkeypatch, "yes\n", tty=False)
        assert main(["key", "compromise", "default@1"]) == 1
        assert "dpop-agent key compromise default@1 --yes" in capsys.readouterr().err
        assert self.marked(agent) == []

    def test_blocked_but_not_durable_is_a_failure_that_tells_both(
        self, agent: Agent, capsys: Capture
    ) -> None:
        agent.answers["key.list"] = agent.answers["key.compromise"]
        refusal = errors.NotDurable(
            "default is blocked, but that isn't durable: the disk is full", hint="free space"
        )
        agent.answers["key.compromise"] = refusal
        assert main(["key", "compromise", "default", "--yes"]) == 1
        out, err = capsys.readouterr()
        assert "default@1 is blocked for as long as this agent runs\n" in out
        assert f"jkt {JKT} (default@1)\n" in out
        assert err == f"dpop-agent: {refusal}\n"
        assert main(["key", "compromise", "default", "--yes", "--json"]) == 1
        out, err = capsys.readouterr()
        assert (out, json.loads(err)) == ("", {"error": refusal.to_wire()})
        refusal.details["survives_restart"] = True
        assert main(["key", "compromise", "default", "--yes"]) == 1
        assert "default@1 is blocked for ever\n" in capsys.readouterr().out


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

    @pytest.mark.parametrize(
        ("pids", "reason", "place", "said"),
        [
            ([7], None, "work?[2J, serial 0123, SoftHSM v2", None),
            ([7, 8, 9], None, "work?[2J, 3 signers, serial 0123, SoftHSM v2", None),
            ([7, 8], None, "work?[2J, 2 of 3 signers, serial 0123, SoftHSM v2", None),
            (
                [7],
                "no session is left",
                "work?[2J, 1 of 3 signers, serial 0123, SoftHSM v2",
                "soft: 1 of 3 signers: no session is left; look there",
            ),
        ],
    )
    def test_a_store_with_several_signers_says_how_many_and_why_they_are_fewer(
        self,
        agent: Agent,
        capsys: Capture,
        pids: list[int],
        reason: str | None,
        place: str,
        said: str | None,
    ) -> None:
        several = {
            "signers": 3 if "signers" in place else 1,
            "signer_pids": pids,
            "signers_reason": reason,
            "signers_hint": reason and "look there",
        }
        agent.answers["status"] = {**STATUS, "stores": [{**STATUS["stores"][0], **several}]}
        assert main(["status"]) == 0
        out = capsys.readouterr().out
        assert f"soft   ready  {place}\n" in out
        assert [line for line in out.splitlines() if line.startswith("soft: ")] == [said] * bool(
            said
        )

    @pytest.mark.parametrize(
        ("offset_s", "refused_s", "said"),
        [
            (90, None, "clock is 90 s behind the server's, and proofs are never dated ahead"),
            (5, 10, "clock is 5 s behind the server's"),
            (-400, 10, "clock is 400 s ahead of the server's, and proofs are dated back by 300 s"),
            (None, 130, "refused a proof 2 min ago, perhaps for its time, and sent no Date"),
            (-90, 10, None),  # what proofs are dated back for
            (0, 10, None),
            (4, None, None),
            (None, None, None),
        ],
    )
    def test_a_clock_that_servers_may_refuse_proofs_for_is_told(
        self,
        agent: Agent,
        capsys: Capture,
        offset_s: int | None,
        refused_s: int | None,
        said: str | None,
    ) -> None:
        origin = {
            "origin": "https://as.example",
            "nonce_age_s": None,
            "clock_offset_s": offset_s,
            "iat_refused_age_s": refused_s,
        }
        agent.answers["status"] = STATUS | {"origins": [origin]}
        assert main(["status"]) == 0
        lines = capsys.readouterr().out.splitlines()
        told = [line for line in lines if line.startswith("https://as.example: ")]
        assert len(told) == (said is not None)
        assert (said or "") in "".join(told)

    def test_free_slots_are_told_in_eighty_columns(
        self, agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card: dict[str, Any] = {
            "store": "yubikey",
            "label": "YubiKey PIV #88259816",
            "serial": "88259816",
        }
        card |= {"model": "YubiKey YK5", "slots": {"total": 24, "free": 21}}
        monkeypatch.setattr(output, "width", lambda: 80)
        agent.answers["status"] = STATUS | {"stores": [STATUS["stores"][0] | card], "proofs": 1}
        assert main(["status"]) == 0
        out = capsys.readouterr().out
        assert "ready  YubiKey PIV #88259816, 21 of 24 slots free, serial 88259816" in out
        assert ", 1 proof, 1 connection\n" in out

    def test_keys_that_are_not_the_agent_s_are_listed_so_that_adopt_can_name_them(
        self, agent: Agent, capsys: Capture
    ) -> None:
        unknown = [{"ref": "0badcafe", "label": "old\x1b key"}, {"ref": "", "label": ""}]
        agent.answers["status"] = STATUS | {"stores": [STATUS["stores"][0] | {"unknown": unknown}]}
        assert main(["status"]) == 0
        out = capsys.readouterr().out
        assert "soft: 2 private keys that the ledger doesn't list, left alone\n" in out
        assert "\n0badcafe  old? key\n-         -\n" in out
        assert "dpop-agent key adopt NAME --ref REF --store soft --origin https://" in out

    def test_it_is_what_stores_have_now_where_the_agent_can_look(
        self, agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent.answers["status"] = STATUS
        assert main(["status"]) == 0
        assert isinstance(protocol.AGENT_METHODS, dict)
        monkeypatch.setitem(protocol.AGENT_METHODS, "status", {})  # one that was started before
        assert main(["status"]) == 0
        assert [params for _, _, params in agent.seen] == [{"look": True}, {}]

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


def test_one_long_name_takes_nothing_from_the_other_rows(
    agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    draining = generation(1, state="draining", drain_left_s=60)
    agent.answers["key.list"] = {"keys": [key(draining), key(name="a" * 64), key(name="b")]}
    monkeypatch.setattr(output, "width", lambda: 80)
    assert main(["key", "list"]) == 0
    head, first, _, name, rest, _, last, _ = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "KEY"
    assert name == f"{'a' * 64}@1"
    place = head.index("STATE")
    assert (first[place:].split()[0], first.split()[0]) == ("draining", "default@1")
    assert rest[:place].isspace()
    assert (rest[place:].split()[0], last[place:].split()[0]) == ("active", "active")
    assert "until 20" in first
    assert last.startswith("b@1 ")


@pytest.mark.parametrize("name", ["default", "a" * 64])
@pytest.mark.parametrize("width", [200, 124, 100, 80, 49])
def test_list_shows_every_jkt_whole_where_the_terminal_has_room_for_one(
    agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    long = generation(1, state="draining", drain_left_s=60, exportable=True, shared=True)
    agent.answers["key.list"] = {"keys": [key(long, generation(2), name=name)]}
    monkeypatch.setattr(output, "width", lambda: width)
    assert main(["key", "list"]) == 0
    out = capsys.readouterr().out
    assert re.findall(rf"{JKT}|{OTHER}", out) == [JKT, OTHER]
    assert max(len(line) for line in out.splitlines() if not line.startswith(name)) <= width
    if len(name) + 2 < width:
        assert [line.split()[0] for line in out.splitlines() if f"{name}@" in line] == [
            f"{name}@1",
            f"{name}@2",
        ]


def test_a_narrow_terminal_keeps_key_and_jkt(
    agent: Agent, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "width", lambda: 30)
    assert main(["key", "list"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert max(len(head), len(row)) <= 30
    assert row.startswith("default@1  active  -")
    assert head.split() == ["KEY", "STATE", "JKT"]
