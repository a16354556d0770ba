"""An agent that plays a part, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dpop_agent.client import AgentClient
from tests.unit.fake_agent import FakeAgent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with FakeAgent(tmp_path / "run") as fake:
        yield fake


@pytest.fixture
def client(agent: FakeAgent) -> Iterator[AgentClient]:
    with AgentClient(agent.path) as made:
        yield made
