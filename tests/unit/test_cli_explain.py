"""`dpop-agent explain`: what it reads, what it prints, how it ends."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.cli.main import main
from tests.unit import exchanges_by_hand as hand
from tests.unit.test_cli_log import entry
from tests.unit.test_layout import among, loaded_by

Capture = pytest.CaptureFixture[str]

BROKEN = hand.spring(hand.rs(htm="PUT"))
GOOD = hand.resource(hand.rs(), status=hand.OK)
REQUEST = f"GET {hand.ME} HTTP/1.1\nDPoP: {hand.rs(htm='PUT')}\nAuthorization: DPoP {hand.BOUND}\n"
RESPONSE = 'HTTP/1.1 401 Unauthorized\nWWW-Authenticate: DPoP error="invalid_dpop_proof"\n'


@pytest.fixture(autouse=True)
def no_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPOP_AGENT_SOCK", str(tmp_path / "agent.sock"))
    monkeypatch.setenv("DPOP_AGENT_STATE_DIR", str(tmp_path / "state"))


def given(monkeypatch: pytest.MonkeyPatch, text: str | bytes, *, tty: bool = False) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    stream = io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr(stream, "isatty", lambda: tty)
    monkeypatch.setattr(sys, "stdin", stream)


def run(monkeypatch: pytest.MonkeyPatch, text: str | bytes, *words: str) -> int:
    given(monkeypatch, text)
    return main(["explain", *words])


def test_it_ends_with_1_where_something_is_wrong_and_0_where_nothing_is(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert run(monkeypatch, BROKEN) == 1
    out, err = capsys.readouterr()
    assert out.startswith("The proof is for another method than the request's.\n")
    assert err == ""
    assert run(monkeypatch, GOOD) == 0
    assert capsys.readouterr().out.startswith("Nothing wrong found.\n")


def test_what_cannot_be_read_ends_with_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for text in ("no curl here", b"\xff\xfe\0", "", "x" * (2 * 1024 * 1024)):
        assert run(monkeypatch, text) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("dpop-agent: ")


@pytest.mark.parametrize("body", ["", '{"error":"invalid_token"}'])
def test_who_pipes_a_body_alone_is_told_how_a_pipe_gets_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, body: str
) -> None:
    assert run(monkeypatch, body) == 2
    assert "2>&1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dpop-agent: there is no key shop; make one\n", "there is no key shop; make one"),
        ("usage: dpop-agent curl …\ndpop-agent curl: error: -L isn't passed on\n", "-L isn't"),
        ("* Trying 127.0.0.1:9...\ncurl: (7) Failed to connect\n", "curl ended with status 7"),
    ],
)
def test_where_nothing_was_sent_it_says_so_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, text: str, said: str
) -> None:
    assert run(monkeypatch, text) == 2
    assert f"dpop-agent: no request was sent: {said}" in capsys.readouterr().err


def test_json_has_the_same_for_programs(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert run(monkeypatch, BROKEN, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [each["cause"] for each in found["findings"]][:1] == ["htm_mismatch"]
    assert {"of": "htm in the proof", "is": "PUT"} in found["findings"][0]["evidence"]
    assert found["request"] == f"GET {hand.ME}"
    assert run(monkeypatch, "nothing", "--json") == 2
    assert "line 1" in json.loads(capsys.readouterr().err)["error"]["message"]


def test_raw_messages_come_from_files_or_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    request, response = tmp_path / "request", tmp_path / "response"
    request.write_text(REQUEST)
    response.write_text(RESPONSE)
    assert run(monkeypatch, "", "--request", str(request), "--response", str(response)) == 1
    assert run(monkeypatch, REQUEST, "--request", "-", "--response", str(response)) == 1
    assert capsys.readouterr().out.count("another method") == 2
    assert run(monkeypatch, "", "--request", str(tmp_path / "gone"), "--response", "-") == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--request", "x"],
        ["--response", "x"],
        ["--request", "-", "--response", "-"],
        ["--token", "secret-access-token"],
        ["secret-access-token"],
    ],
)
def test_wrong_options_end_with_2_and_repeat_no_value(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: list[str]
) -> None:
    assert run(monkeypatch, "", *words) == 2
    assert "secret" not in capsys.readouterr().err


def test_metadata_say_which_algorithms_the_server_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    text = hand.token_request(hand.at(key=hand.ES384), answer=hand.error("invalid_dpop_proof"))
    file = tmp_path / "metadata.json"
    file.write_text('{"dpop_signing_alg_values_supported": ["PS256"]}')
    assert run(monkeypatch, text, "--metadata", str(file)) == 1
    assert capsys.readouterr().out.startswith("The server doesn't take the algorithm ES384.")
    file.write_text("<html>")
    assert run(monkeypatch, text, "--metadata", str(file)) == 2
    assert "one JSON object" in capsys.readouterr().err


def test_who_sits_at_a_terminal_is_told_what_to_paste_and_how_to_end(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    given(monkeypatch, BROKEN, tty=True)
    assert main(["explain"]) == 1
    err = capsys.readouterr().err
    assert "curl -v" in err
    assert "Ctrl-D" in err


def test_a_line_that_the_terminal_cut_is_not_taken_for_a_malformed_proof(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    cut = BROKEN.replace("> DPoP: ", f"> DPoP: {'a' * 5000}")
    given(monkeypatch, "\n".join(line[:4095] for line in cut.split("\n")), tty=True)
    assert main(["explain"]) == 2
    assert "give that with < FILE" in capsys.readouterr().err


def test_a_signature_by_another_key_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert run(monkeypatch, hand.spring(hand.unsigned(hand.rs()))) == 1
    assert "not by the key in the header" in capsys.readouterr().out


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    folder = tmp_path / "state" / "audit"
    folder.mkdir(mode=0o700, parents=True)
    (tmp_path / "state").chmod(0o700)
    return folder / "agent.jsonl"


def test_the_audit_says_when_a_proof_was_made(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, audit: Path
) -> None:
    lines: list[dict[str, Any]] = [entry(1), entry(2, jti="jti-of-this-very-proof")]
    audit.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = hand.keycloak("DPoP proof has already been used", hand.at())
    assert run(monkeypatch, text) == 1
    assert "2026-11-26T12:00:02Z, default@1 (the audit)" in capsys.readouterr().out


def test_an_audit_that_cannot_be_read_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, audit: Path
) -> None:
    audit.write_bytes(b"\xff\0 no audit\n")
    audit.parent.chmod(0o777)
    assert run(monkeypatch, hand.keycloak("DPoP proof has already been used", hand.at())) == 1
    assert "seen this proof before" in capsys.readouterr().out


def test_its_help_loads_nothing_that_judges() -> None:
    """Completions ask each verb for its options."""
    loaded = loaded_by("from dpop_agent.cli.main import _parser; _parser('explain').format_help()")
    assert not among(loaded, "dpop_agent.client", "dpop_agent.verify", "cryptography")
