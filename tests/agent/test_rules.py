"""What a key's rules let pass and refuse, with an agent that runs; and who is asked for consent."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent.proofs import SIGN_PROOF_WINDOW_S
from dpop_agent.client import AgentClient, Touch
from dpop_agent.jose import access_token_hash, b64url, b64url_decode, thumbprint
from dpop_agent.proof import header as proof_header
from tests.agent.places import hurried, until, until_logged, until_open
from tests.agent.wire import Wire, request
from tests.processes import ROOT, Agent, Token, new_token, running
from tests.rows import Reached

API = "https://api.example.com"
ATH = access_token_hash("an access token")
CANCELLED = "ERR 83886179 Operation cancelled <Pinentry>"
NOT_CONFIRMED = "ERR 83886194 Not confirmed <Pinentry>"


class Person:
    """Who is asked by a pinentry of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        program = folder / "bin" / "pinentry"
        program.parent.mkdir()
        script = ROOT / "tests" / "pinentry_program.py"
        program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I '{script}'\n")
        program.chmod(0o700)
        self.env = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "FAKE_PINENTRY": str(folder),
        }
        self.says("OK")

    def says(self, answer: str) -> None:
        new = self.folder / "answer.new"
        new.write_text(answer)
        new.rename(self.folder / "answer")

    @property
    def asked(self) -> list[tuple[int, str]]:
        """Each question so far: the pinentry's pid, and what it showed."""
        file = self.folder / "asked"
        lines = file.read_text().splitlines() if file.exists() else []
        return [
            (int(pid), ast.literal_eval(text)) for pid, text in (x.split(" ", 1) for x in lines)
        ]

    @property
    def answered_at(self) -> float:
        """When the last question was answered."""
        return float((self.folder / "answered").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent whose keys have rules, and which never asks anybody."""
    folder = tmp_path_factory.mktemp("rules")
    agent = Agent(new_token(folder / "token").config, folder / "state")
    with agent.serving():
        rules: dict[str, dict[str, Any]] = {
            "get": {"methods": ["GET"]},
            "v1": {"origins": [API], "paths": ["/v1"]},
            "ath": {"require_ath": True},
            "rated": {"rate": {"per_minute": 6, "burst": 3}},
            "narrow": {
                "origins": [API],
                "methods": ["GET"],
                "paths": ["/v1"],
                "require_ath": True,
                "rate": {"per_minute": 6000},
            },
        }
        for name, settings in rules.items():
            agent.create_key(name, allow_sign_proof=True, **settings)
        yield agent


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "person")


@pytest.fixture
def asking(token: Token, make_agent: Callable[..., Agent], person: Person) -> Agent:
    """An agent with a key that wants consent to each proof, and one that wants it once in 15 m."""
    agent = make_agent(token.config, env=person.env).start()
    agent.create_key("each", confirm_s=0, allow_sign_proof=True)
    agent.create_key("held", confirm_s=900)
    agent.create_key("free")
    return agent


def claims_of(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(b64url_decode(result["proof"].split(".")[1]))
    return found


def jwk_of(wire: Wire, key: str) -> dict[str, str]:
    (found,) = wire.result("key.list", key=key)["keys"]
    jwk: dict[str, str] = found["generations"][-1]["jwk"]
    return jwk


def asked_for(wire: Wire, key: str, htm: str, htu: str, ath: str | None) -> list[dict[str, Any]]:
    """The answers to the same request by `proof` and by `proof.sign`."""
    with_ath = {} if ath is None else {"ath": ath}
    own = wire.ask("proof", key=key, htm=htm, htu=htu, **with_ath)
    jwk = jwk_of(wire, key)
    claims = {"jti": "x" * 22, "htm": htm, "htu": htu, "iat": int(time.time()), **with_ath}
    text = f"{proof_header('ES256', jwk)}.{b64url(json.dumps(claims).encode())}"
    return [own, wire.ask("proof.sign", signing_input=text, jkt=thumbprint(jwk))]


@pytest.mark.parametrize(
    ("key", "htm", "path", "ath", "rule"),
    [
        ("get", "GET", "/x", None, None),
        ("get", "POST", "/x", None, "methods"),
        ("get", "get", "/x", None, "methods"),
        ("v1", "GET", "/v1", None, None),
        ("v1", "GET", "/v1/me", None, None),
        ("v1", "GET", "/v1/", None, None),
        ("v1", "GET", "/v12", None, "paths"),
        ("v1", "GET", "/v1/..;/admin", None, "paths"),
        ("v1", "GET", "/v1/a%2f..%2f..%2fb", None, "paths"),
        ("v1", "GET", "/v1/%252e%252e/x", None, "paths"),
        ("v1", "GET", "/v1//x", None, "paths"),
        ("v1", "GET", "/v1/x%5cy", None, "paths"),
        ("ath", "GET", "/", None, "require_ath"),
        ("ath", "GET", "/", ATH, None),
        ("narrow", "GET", "/v1/me", ATH, None),
        ("narrow", "GET", "/v1/me", None, "require_ath"),
        ("narrow", "PUT", "/v1/me", ATH, "methods"),
        ("narrow", "GET", "/v2/me", ATH, "paths"),
    ],
)
def test_rules_hold_for_proof_as_for_proof_sign(
    agent: Agent, key: str, htm: str, path: str, ath: str | None, rule: str | None
) -> None:
    with Wire(agent.socket) as wire:
        for answer in asked_for(wire, key, htm, API + path, ath):
            if rule is None:
                assert "result" in answer, answer
            else:
                data = answer["error"]["data"]
                assert (data["type"], data["rule"]) == ("policy_refused", rule)
                assert data["hint"]


def test_a_refusal_is_logged_with_its_rule_and_costs_no_signature(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(token.config).start()  # of one that refused a lot it would only be counted
    agent.create_key("v1", origins=[API], paths=["/v1"], allow_sign_proof=True)
    with Wire(agent.socket) as wire:
        before = wire.result("status")["proofs"]
        for answer in asked_for(wire, "v1", "GET", f"{API}/s3cret/path", None):
            assert answer["error"]["data"]["rule"] == "paths"
        assert wire.result("status")["proofs"] == before
        (listed,) = wire.result("key.list", key="v1")["keys"]
    said = "refused by the rule paths: the key v1 isn't for that path, only for those below /v1"
    until_logged(agent, said, times=2)
    assert "s3cret" not in agent.log.read_text()
    assert listed["paths"] == ["/v1"]


def test_beyond_its_rate_a_key_says_when_the_next_proof_is_to_be_had(agent: Agent) -> None:
    with Wire(agent.socket) as wire:
        wire.send(
            b"".join(
                request("proof", {"key": "rated", "htm": "GET", "htu": f"{API}/"}, number=n)
                for n in range(10)
            )
        )
        answers = wire.lines(10)
        assert sum("result" in answer for answer in answers) == 3
        for answer in asked_for(wire, "rated", "GET", f"{API}/", None):
            data = answer["error"]["data"]
            assert (data["type"], data["rule"], data["retry"]) == ("rate_exceeded", "rate", "later")
            assert 0 < data["retry_after_ms"] <= 10_000
        with Wire(agent.admin_socket) as admin:
            admin.result("key.set", key="rated", rate=None)
        assert len(asked_for(wire, "rated", "GET", f"{API}/", None)) == 2
        assert all("result" in a for a in asked_for(wire, "rated", "GET", f"{API}/", None))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"paths": ["/v1/"]}, "a path ends with no slash"),
        ({"paths": ["v1"]}, "a path begins with a slash"),
        ({"paths": ["/a/%2e%2e/b"]}, "could be read in another way"),
        ({"methods": ["get"]}, "no request has the method get"),
        ({"methods": ["GET POST"]}, "methods has to be a list of at most 32 HTTP methods"),
        ({"rate": {"per_minute": 0}}, "rate has to be null, or an object with per_minute"),
        ({"rate": 60}, "rate has to be null"),
        ({"confirm_s": -1}, "confirm_s has to be seconds"),
        ({"require_ath": None}, "require_ath has to be true or false"),
        ({"path": ["/v1"]}, "no such parameter"),
    ],
)
def test_a_rule_that_is_none_changes_nothing(
    agent: Agent, params: dict[str, Any], says: str
) -> None:
    with Wire(agent.admin_socket) as admin:
        before = admin.result("key.list", key="narrow")
        error = admin.error("key.set", key="narrow", **params)
        assert says in error["message"]
        assert error["hint"]
        assert admin.error("key.create", key="new", origins=[], **params)["message"]
        assert admin.result("key.list", key="narrow") == before
        assert admin.error("key.list", key="new")["type"] == "key_unknown"


_HANDS_ON = """
import os, sys, time
from tests.agent.wire import Wire
wire = Wire(sys.argv[1])
wire.result("status")
if os.fork():
    os._exit(0)
sys.stdin.readline()
print(wire.result("proof", key="each", htm="GET", htu="https://api.example.com/")["state"])
"""


@pytest.mark.row(22)
def test_a_person_isnt_told_the_name_of_a_program_that_ended(
    asking: Agent, person: Person, reached: Reached
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HANDS_ON, asking.socket],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:
        parent.wait(30)
        said, _ = parent.communicate(b"\n", timeout=30)
    assert said == b"active\n"
    ((_, question),) = person.asked
    assert "It seems to be asked for by a program that can't be told." in question
    assert "python" not in question
    reached("names of a program that had ended, in audit, log and prompts", 0)


def test_rules_outlive_the_agent_and_are_shown_as_a_sentence(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(token.config).start()
    words = ["--origin", API, "--method", "GET", "--method", "POST", "--path", "/v1"]
    words += ["--require-ath", "--rate", "60/min", "--confirm", "each"]
    agent.run("key", "create", "shop", *words, check=True)
    assert agent.stop() == 0
    agent.start()
    until_open(agent)
    sentence = (
        f"  signs       GET and POST for {API} below /v1, with an access token, at most 60 a "
        "minute and 10 at once, and asks first\n"
    )
    assert sentence in agent.run("key", "show", "shop", check=True).stdout
    words = ["--any-origin", "--any-method", "--any-path", "--no-require-ath", "--any-rate"]
    agent.run("key", "set", "shop", *words, "--confirm", "never", check=True)
    shown = agent.run("key", "show", "shop", check=True).stdout
    assert "  signs       for every https server, and http on this machine\n" in shown


def test_a_key_with_the_longest_rules_is_made_rotated_and_listed(agent: Agent) -> None:
    label = "a" * 63
    rules = {
        "origins": [f"https://{n:061d}.{label}.{label}.{label}:65535" for n in range(64)],
        "methods": [f"{n:032d}" for n in range(32)],
        "paths": [f"/{n:0255d}" for n in range(32)],
    }
    with Wire(agent.admin_socket) as admin:
        admin.result("key.create", key="long", **rules)
        for _ in range(3):
            admin.result("key.rotate", key="long")
        (key,) = admin.result("key.list", key="long")["keys"]
        assert {name: key[name] for name in rules} == rules
        error = admin.error("proof", key="long", htm="GET", htu=f"{API}/")
        assert (error["type"], error["rule"]) == ("policy_refused", "origins")


# Consent


def test_a_key_that_wants_consent_signs_after_a_yes_with_the_time_of_then(
    asking: Agent, person: Person
) -> None:
    person.says("wait")
    with Wire(asking.socket) as wire, Wire(asking.socket) as other:
        wire.send(request("proof", {"key": "each", "htm": "POST", "htu": f"{API}/x"}))
        until(lambda: person.asked)
        assert other.result("proof", key="free", htm="GET", htu=f"{API}/"), "waits for nobody"
        asked_at = time.time()
        until(lambda: time.time() > asked_at + 1.1)  # a second on: `iat` has no finer
        person.says("OK")
        claims = claims_of(wire.next()["result"])
        assert claims["iat"] >= int(person.answered_at)
        ((pid, shown),) = person.asked
        assert "Sign a proof with the key each?" in shown
        assert f"POST at {API}\n" in shown
        assert f"process {os.getpid()}" in shown
        assert "That is a hint alone" in shown
        until(lambda: not running(pid))
        assert all("result" in a for a in asked_for(wire, "each", "GET", f"{API}/", None))
        assert len(person.asked) == 3, "each has its own question, by either method"


def test_a_yes_holds_for_its_key_and_origin_until_the_key_changes_or_is_locked(
    asking: Agent, person: Person
) -> None:
    def proofs(times: int, htu: str = API) -> int:
        """How often somebody is asked for so many."""
        before = len(person.asked)
        for n in range(times):
            with Wire(asking.socket) as wire:
                wire.result("proof", key="held", htm=("GET", "PUT")[n % 2], htu=f"{htu}/{n}")
        return len(person.asked) - before

    assert proofs(5) == 1
    assert proofs(2, "https://b.example") == 1
    assert proofs(1) == 0
    with Wire(asking.admin_socket) as admin:
        admin.result("key.set", key="held", methods=["GET", "PUT"])
        assert proofs(2) == 1
        admin.result("key.set", key="free", methods=["GET"])
        assert proofs(2) == 0, "another key's change is none of its own"
        admin.result("key.suspend", key="held", generation=1)
        admin.result("key.resume", key="held", generation=1)
        assert proofs(2) == 1
        admin.result("lock")
        asking.run("unlock", check=True)
        assert proofs(2) == 1


@pytest.mark.parametrize("says", [CANCELLED, NOT_CONFIRMED])
def test_after_a_no_nobody_is_asked_again_for_a_while(
    asking: Agent, person: Person, says: str
) -> None:
    person.says(says)
    with Wire(asking.socket) as wire:
        error = wire.error("proof", key="each", htm="GET", htu=f"{API}/")
        assert (error["type"], error["rule"]) == ("consent_refused", "confirm_s")
        assert error["message"] == ("the key each wants a person's consent, and the answer was no")
        person.says("OK")
        for key in ("each", "held"):
            error = wire.error("proof", key=key, htm="GET", htu="https://b.example/")
            assert (error["type"], error["retry"]) == ("consent_refused", "later")
            assert 0 < error["retry_after_ms"] <= 30_000
            assert "last time the answer was no" in error["message"]
        assert len(person.asked) == 1
        assert wire.result("proof", key="free", htm="GET", htu=f"{API}/")
    until_logged(asking, "refused by the rule confirm_s", times=3)


def test_one_question_is_open_at_a_time_and_ends_with_its_connection(
    asking: Agent, person: Person
) -> None:
    person.says("wait")
    first, second = Wire(asking.socket), Wire(str(asking.runtime / "mount" / "agent.sock"))
    with first, second:
        first.send(request("proof", {"key": "each", "htm": "GET", "htu": "https://1.example/"}))
        until(lambda: person.asked)
        second.send(request("proof", {"key": "held", "htm": "GET", "htu": "https://2.example/"}))
        assert second.silent
        ((pid, _),) = person.asked
        first.close()
        until(lambda: len(person.asked) == 2)
        assert not running(pid)
        person.says("OK")
        assert second.next()["result"]["key"] == "held"
        assert "2.example" in person.asked[1][1]


def test_whoever_goes_while_a_person_is_asked_has_had_a_no_and_leaves_its_own_outcome(
    asking: Agent, person: Person
) -> None:
    person.says("wait")
    for number in range(5):
        with Wire(asking.socket) as wire:
            wire.send(request("proof", {"key": "each", "htm": "GET", "htu": f"{API}/"}))
            if not number:
                until(lambda: person.asked)
            else:
                data = wire.next()["error"]["data"]
                assert (data["type"], data["retry"]) == ("consent_refused", "later")
    assert len(person.asked) == 1
    asking.stop()
    lines = (asking.state / "audit" / "agent.jsonl").read_text().splitlines()
    outcomes = [json.loads(line)["outcome"] for line in lines]
    assert sorted(outcomes) == ["cancelled", *["consent_refused"] * 4]


def test_what_a_program_calls_itself_is_escaped_in_the_question(
    asking: Agent, person: Person, tmp_path: Path
) -> None:
    program = tmp_path / "bank\n\nPress <b>OK<b>"
    shutil.copy(Path(sys.executable).resolve(), program)
    line = request("proof", {"key": "each", "htm": "GET", "htu": f"{API}/"})
    script = (
        "import socket\n"
        f"with socket.socket(socket.AF_UNIX) as s: s.connect({asking.socket!r}); "
        f"s.sendall({line!r}); s.recv(9)"
    )
    env = os.environ | {"PYTHONHOME": sys.base_prefix}
    subprocess.run([program, "-c", script], env=env, check=True, timeout=30)
    shown = person.asked[-1][1]
    assert "bank__Press__b_OK_b_, process " in shown
    assert "bank\n" not in shown


def test_a_clients_proof_that_got_too_old_while_a_person_was_asked_isnt_signed(
    asking: Agent, person: Person
) -> None:
    person.says("wait")
    with Wire(asking.socket) as wire:
        jwk = jwk_of(wire, "each")
        iat = int(time.time()) - SIGN_PROOF_WINDOW_S + 2
        claims = {"jti": "x" * 22, "htm": "GET", "htu": f"{API}/", "iat": iat}
        text = f"{proof_header('ES256', jwk)}.{b64url(json.dumps(claims).encode())}"
        wire.send(request("proof.sign", {"signing_input": text, "jkt": thumbprint(jwk)}))
        until(lambda: person.asked)
        until(lambda: int(time.time()) > iat + SIGN_PROOF_WINDOW_S)
        person.says("OK")
        error = wire.next()["error"]
    assert error["data"]["type"] == "invalid_params"
    assert "its iat isn't within 5 seconds before now" in error["message"]
    assert error["data"]["hint"] == "build another, with the time of now"


def test_a_key_that_changes_while_somebody_is_asked_isnt_signed_with(
    asking: Agent, person: Person
) -> None:
    person.says("wait")
    with Wire(asking.socket) as wire, Wire(asking.admin_socket) as admin:
        wire.send(request("proof", {"key": "each", "htm": "GET", "htu": f"{API}/"}))
        until(lambda: person.asked)
        admin.result("key.set", key="each", origins=["https://b.example"])
        person.says("OK")
        data = wire.next()["error"]["data"]
        assert (data["type"], data["retry"]) == ("consent_refused", "now")


def test_an_agent_that_ends_takes_its_question_along(asking: Agent, person: Person) -> None:
    person.says("wait")
    with Wire(asking.socket) as wire:
        wire.send(request("proof", {"key": "each", "htm": "GET", "htu": f"{API}/"}))
        until(lambda: person.asked)
        ((pid, _),) = person.asked
        assert asking.stop() == 0
        assert wire.next()["error"]["data"]["type"] == "agent_unavailable"
    assert not running(pid)


def test_a_client_is_told_that_a_person_is_asked_and_waits_longer_than_its_timeout(
    asking: Agent, person: Person
) -> None:
    person.says("wait")
    touches: list[Touch] = []

    def on_touch(touch: Touch) -> None:
        if not touches:
            threading.Timer(1.5, person.says, ["OK"]).start()
        touches.append(touch)

    with AgentClient(asking.socket, timeout=0.2, on_touch=on_touch) as client:
        proof = client.proof("GET", f"{API}/", key="each")
    assert proof.key == "each"
    assert {str(touch) for touch in touches} == {"you are being asked whether each may sign"}


def test_where_there_is_no_pinentry_the_answer_is_no(
    token: Token, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    agent = make_agent(token.config, env={"PATH": str(tmp_path)}).start()
    agent.create_key("each", confirm_s=0)
    with Wire(agent.socket) as wire:
        error = wire.error("proof", key="each", htm="GET", htu=f"{API}/")
    assert error["type"] == "consent_refused"
    assert "nobody can be asked: there is no pinentry" in error["message"]
    assert "agent.confirm_command" in error["hint"]


def test_a_pinentry_that_nobody_answers_is_a_no(
    token: Token, make_agent: Callable[..., Agent], person: Person
) -> None:
    person.says("wait")
    env = person.env | {"PYTHONPATH": str(ROOT)}
    settings = hurried("server.ANSWER_S=1")
    agent = make_agent(token.config, env=env, preexec=settings).start()
    agent.create_key("each", confirm_s=0)
    with Wire(agent.socket) as wire:
        error = wire.error("proof", key="each", htm="GET", htu=f"{API}/")
    assert "nobody answered in time" in error["message"]


def test_a_command_of_the_configuration_asks_instead(
    token: Token, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    program, shown = tmp_path / "asks", tmp_path / "shown"
    program.write_text(f'#!/bin/sh\nprintf "%s" "$2" > {shown}\ntest "$1" = --yes\n')
    program.chmod(0o700)

    def configure(*words: str) -> None:
        setting = f"[agent]\nconfirm_command = {json.dumps([str(program), *words])}\n"
        token.config.write_text(text.replace("[agent]\n", setting, 1))

    text = token.config.read_text()
    configure("--yes")
    agent = make_agent(token.config).start()
    agent.create_key("each", confirm_s=0)
    with Wire(agent.socket) as wire, Wire(agent.admin_socket) as admin:
        assert wire.result("proof", key="each", htm="GET", htu=f"{API}/")
        assert shown.read_text().startswith("Sign a proof with the key each?\n\n")
        configure("--no")
        admin.result("reload")
        error = wire.error("proof", key="each", htm="GET", htu=f"{API}/")
        assert "the answer was no" in error["message"]
