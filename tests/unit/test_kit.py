"""The kit itself: it finds what is wrong, and other languages can use it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dpop_agent.client import AgentClient
from tests.kit.kit import Kit, Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def kit() -> Iterator[Kit]:
    with Kit() as made:
        yield made


def run_of(kit: Kit, **case: Any) -> Run:
    return kit.begin({"name": "one", "needs": [], "requests": [{"url": "{api}/me"}], **case})


def proof(kit: Kit, uri: str, htm: str = "GET", **arguments: Any) -> str:
    with AgentClient(kit.socket) as agent:
        return str(agent.proof(htm, uri, **arguments))


def sent(run: Run, url: str, *headers: tuple[str, str], method: str = "GET") -> dict[str, Any]:
    with httpx.Client(trust_env=False) as http:
        response = http.request(method, url, headers=list(headers))
    return {"status": response.status_code, "body": response.text}


def judged(kit: Kit, *headers: tuple[str, str], to: str = "api", **case: Any) -> list[str]:
    run = run_of(kit, **case)
    return run.end([sent(run, f"{run.places[to]}/me", *headers)])


def test_a_proper_request_has_no_fault(kit: Kit) -> None:
    run = run_of(kit, wire=[{"to": "api", "proof": {"jkt": "{active}", "nonce": None}}])
    uri = f"{run.places['api']}/me"
    assert run.end([sent(run, uri, ("DPoP", proof(kit, uri)))]) == []


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"htm": "POST"}, "htm"),
        ({"path": "/other"}, "htu"),
        ({"path": "/me/"}, "htu"),
        ({"access_token": "at-1", "key": "shop"}, "ath"),
    ],
)
def test_a_proof_for_another_request_is_a_fault(
    kit: Kit, arguments: dict[str, Any], fault: str
) -> None:
    run = run_of(kit)
    uri = run.places["api"] + arguments.pop("path", "/me")
    faults = run.end([sent(run, f"{run.places['api']}/me", ("DPoP", proof(kit, uri, **arguments)))])
    assert len(faults) == 1
    assert f"the proof's {fault}" in faults[0]


def test_a_proof_that_comes_twice_is_a_fault(kit: Kit) -> None:
    run = run_of(kit, requests=[{"url": "{api}/me"}] * 2)
    uri = f"{run.places['api']}/me"
    header = ("DPoP", proof(kit, uri))
    assert any("twice" in fault for fault in run.end([sent(run, uri, header) for _ in "12"]))


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ([("Authorization", "DPoP at-1")], "without a proof"),
        ([("DPoP", "a.b.c"), ("DPoP", "a.b.c")], "several proofs"),
        ([("Authorization", "Basic x"), ("Authorization", "Bearer y")], "several Authorization"),
    ],
)
def test_headers_that_no_case_allows_are_faults(
    kit: Kit, headers: list[tuple[str, str]], fault: str
) -> None:
    assert any(fault in each for each in judged(kit, *headers))


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        ({"wire": []}, "1 requests on the wire"),
        ({"wire": [{"to": "as"}]}, "to:"),
        ({"wire": [{"proof": {}}]}, "proof"),
        ({"wire": [{"authorization": "x"}]}, "authorization"),
        ({"wire": [{"cookies": {"a": "1"}}]}, "cookies"),
        ({"wire": [{"headers": {"x": "1"}}]}, "the header x"),
        ({"wire": [{"body": "x"}]}, "body"),
        ({"wire": [{"body_has": "x"}]}, "body"),
        ({"counts": [{"of": {"to": "api"}, "is": 2}]}, "not 2"),
        ({"connections": 2}, "connections"),
        ({"requests": []}, "results"),
        ({"requests": [{"result": {"status": 201}}]}, "status"),
        ({"requests": [{"result": {"error": "http"}}]}, "not the error"),
        ({"requests": [{"result": {"body": "x"}}]}, "body"),
        ({"requests": [{"result": {"body_length": 1}}]}, "a body of"),
    ],
)
def test_what_a_case_says_is_compared(kit: Kit, case: dict[str, Any], fault: str) -> None:
    assert any(fault in each for each in judged(kit, **case))


def test_a_proof_and_a_secret_for_an_unlisted_server_are_faults(kit: Kit) -> None:
    faults = judged(kit, ("DPoP", "a.b.c"), ("X", "geheim"), to="other", secrets=["geheim"])
    assert any("isn't listed" in each for each in faults)
    assert any("'geheim' went to other" in each for each in faults)


def test_an_error_that_shows_a_secret_is_a_fault(kit: Kit) -> None:
    run = run_of(kit, requests=[{"result": {"error": "http"}}], secrets=["geheim"])
    assert run.end([{"error": "http", "shown": "it was geheim"}]) == ["an error shows 'geheim'"]


def test_a_body_that_is_read_to_its_end_first_is_a_fault(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.kit.servers.HELD_S", 0.1)
    run = run_of(kit, answers=[{"body": {"parts": ["a", "b"], "hold": True}}])
    with pytest.raises(httpx.HTTPError):
        sent(run, f"{run.places['api']}/me")
    assert any("waited for the end" in fault for fault in run.end([{"status": 200}]))


def test_a_body_without_end_that_is_taken_whole_is_a_fault(kit: Kit) -> None:
    run = run_of(kit, answers=[{"body": {"endless": "x"}}])
    with pytest.raises(httpx.HTTPError):
        sent(run, f"{run.places['api']}/me")
    assert any("endless" in fault for fault in run.end([{"status": 200, "body": ""}]))


def test_the_readme_names_all_that_cases_need_and_have(kit: Kit) -> None:
    readme = (ROOT / "tests/kit/README.md").read_text("utf-8")
    said: set[str] = set()
    for case in kit.cases.values():
        said |= {*case, *case["needs"], *case.get("client", {})}
        for each in (*case["requests"], *case.get("answers", []), *case.get("wire", [])):
            said |= set(each)
    assert {name for name in said if f"`{name}`" not in readme} == set()


def test_another_language_runs_a_case_by_the_program() -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.kit"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout

    def ask(path: str, **asked: Any) -> Any:
        data = json.dumps(asked).encode()
        with urllib.request.urlopen(f"{where['control']}{path}", data, timeout=30) as answer:
            return json.load(answer)

    with program:
        where = json.loads(program.stdout.readline())
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask("/begin", case="none")
        name = "an_event_stream_stays_a_stream"
        assert name in {case["name"] for case in ask("/cases")}
        begun = ask("/begin", case=name)
        came = []
        with AgentClient(where["agent"]) as agent, httpx.Client(trust_env=False) as http:
            for request in begun["case"]["requests"]:
                uri = request["url"]
                header = {"DPoP": str(agent.proof("GET", uri))}
                with http.stream("GET", uri, headers=header) as response:
                    body = ""
                    for part in response.iter_text():
                        body += part
                        ask("/release", run=begun["run"])
                    nonce = response.headers.get("DPoP-Nonce")
                    came.append({"status": response.status_code, "body": body})
                if nonce:
                    agent.observe([{"htu": uri, "nonce": nonce}])
        assert ask("/end", run=begun["run"], came=came) == {"faults": []}
        assert program.stdin
        program.stdin.close()
        assert program.wait(30) == 0
