"""`explain` against what strangers paste, by whatever program, and however mangled."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.cli.explain import _is_signed
from dpop_agent.cli.main import main
from dpop_agent.client.explaining.case import Sources
from dpop_agent.client.explaining.findings import Explanation
from dpop_agent.client.explaining.reading import exchanges, messages
from dpop_agent.client.explaining.verdict import explained
from tests.unit.strangers import first, mangled, second
from tests.unit.strangers.first import Case
from tests.unit.strangers.mangled import Mangled

BROKEN = [*first.broken(), *second.broken()]
GOOD = [*first.good(), *second.good()]
MANGLED = [*mangled.mangled(), *second.mangled()]


def explain(case: Case) -> Explanation:
    shown = [case.shown(each) for each in case.hops]
    sources = Sources(metadata=case.hops[-1].metadata, is_signed=_is_signed)
    if isinstance(shown[-1], tuple):
        return explained([messages(*shown[-1])], sources)
    return explained(exchanges("".join(shown)), sources)


@pytest.fixture(autouse=True)
def no_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPOP_AGENT_SOCK", str(tmp_path / "agent.sock"))
    monkeypatch.setenv("DPOP_AGENT_STATE_DIR", str(tmp_path / "state"))


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_the_true_cause_is_named_first_however_it_was_recorded(case: Case) -> None:
    found = explain(case)
    assert found.findings, str(found)
    assert found.findings[0].cause in case.causes.split(), str(found)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_no_secret_is_in_what_is_printed(case: Case) -> None:
    printed = str(explain(case))
    for exchange in case.hops:
        for _, value in exchange.sent:
            secret = value.rpartition(".")[2].strip('"')  # a signature, or an opaque token
            assert len(secret) < 40 or secret not in printed


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_nothing_is_found_in_what_is_no_matter_of_dpop(case: Case) -> None:
    found = explain(case)
    assert found.findings == (), str(found)


@pytest.mark.parametrize("case", MANGLED, ids=lambda case: case.name)
def test_what_cannot_be_read_is_said_and_no_cause_is_made_of_it(
    case: Mangled, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = typed(case, monkeypatch, capsys)
    assert re.search(case.says, " ".join(printed.split())), printed
    assert (status == 2) == (case.causes is None), printed
    if case.causes is not None:
        _, printed = typed(case, monkeypatch, capsys, "--json")
        assert json.loads(printed)["findings"][0]["cause"] in case.causes.split()


def typed(
    case: Mangled,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *options: str,
) -> tuple[Any, str]:
    data = case.text if isinstance(case.text, bytes) else case.text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    status = main(["explain", *options])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("milliseconds", "The proof's iat is in milliseconds."),
        ("header-name", "a proof is in DPoP-Proof"),
        ("padded", "in base64 with =, + or /"),
        ("undefined", "DPoP header undefined"),
        ("bearer-issued", "it came with token_type Bearer"),
        ("okta-escape", "the path has escapes"),
        ("op-refresh-two", "grant's key"),
        ("kong-ath", '401: "Unauthorized"'),
    ],
)
def test_what_shows_the_cause_is_said(name: str, words: str) -> None:
    case = next(each for each in BROKEN if each.name == name)
    assert words in " ".join(str(explain(case)).split())
