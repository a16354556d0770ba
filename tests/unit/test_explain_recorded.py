"""`explain` on what real servers answered: the true cause is first, and what is good stays good."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dpop_agent.cli.explain import _is_signed
from dpop_agent.client.explaining.case import Known, Sources
from dpop_agent.client.explaining.findings import Explanation
from dpop_agent.client.explaining.judges.table import JUDGES
from dpop_agent.client.explaining.reading import exchanges
from dpop_agent.client.explaining.verdict import explained
from tests.exchanges.exchange import FOLDER, listed

ROWS = [pytest.param(row, id=row["file"]) for row in listed()]
WORDS = re.compile(r'(?:"?error_description"?|"message")(?:=|:\s*)"(?:[^"\\]|\\.)*"')


def text_of(row: dict[str, Any]) -> str:
    text: str = (FOLDER / row["file"]).read_text()
    return text


def explain(row: dict[str, Any], text: str) -> Explanation:
    members = ("key", "generation", "state", "jkt")
    known = [Known(*(each[name] for name in members)) for each in row["known"]]
    metadata = row["metadata"] and json.loads((FOLDER / row["metadata"]).read_text())
    return explained(exchanges(text), Sources(known=known, metadata=metadata, is_signed=_is_signed))


@pytest.mark.parametrize("row", ROWS)
def test_the_true_cause_of_a_recorded_exchange_is_named_first(row: dict[str, Any]) -> None:
    found = explain(row, text_of(row))
    assert [f.cause for f in found.findings[:1]] == [row["cause"]][: row["cause"] is not None]


@pytest.mark.parametrize("row", ROWS)
def test_nothing_secret_of_a_recorded_exchange_is_printed(row: dict[str, Any]) -> None:
    text = text_of(row)
    printed = json.dumps(explain(row, text).to_wire())
    secrets = re.findall(r"(?im)^> authorization: \w+ (\S+)", text)
    secrets += [
        part for proof in re.findall(r"(?im)^> dpop: (\S+)", text) for part in proof.split(".")
    ]
    secrets += re.findall(r'"(?:access|refresh|id)_token":\s*"([^"]+)"', text)
    secrets += re.findall(r"(?:code|token|secret|verifier|assertion)=([^\s&']{12,})", text)
    assert [secret for secret in secrets if len(secret) >= 12 and secret in printed] == []


def test_most_causes_are_named_first_where_the_server_says_no_more_than_an_errors_code() -> None:
    broken = [row for row in listed() if row["cause"] is not None]
    first = [explain(row, WORDS.sub('x=""', text_of(row))).findings[:1] for row in broken]
    right = [f for f, row in zip(first, broken, strict=True) if f and f[0].cause == row["cause"]]
    assert len(right) / len(broken) > 0.85


def test_every_cause_is_among_the_recorded_ones() -> None:
    assert {row["cause"] for row in listed()} - {None} == set(JUDGES)
