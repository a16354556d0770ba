"""What the loads ask the agent."""

from __future__ import annotations

import json

from tests.bench.figures import CannotMeasure
from tests.bench.loads import Asked


def _answers(data: bytes) -> int:
    answers = data.count(b'"proof"')
    if answers != data.count(b"\n"):
        raise CannotMeasure(f"the agent refused: {data[:300]!r}")
    return answers


def proof_by(**key: str) -> Asked:
    """A proof by the default key, or by `key=NAME`."""
    params = {"htm": "GET", "htu": "https://api.example.com/v1/me", **key}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "proof", "params": params}
    return Asked(json.dumps(asked).encode() + b"\n", _answers, lambda data: data.endswith(b"\n"))


PROOF = proof_by()
