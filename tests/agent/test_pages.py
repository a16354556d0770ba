"""What the documents have typed with an agent that is there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents import Block
from tests.emulators import need
from tests.processes import Agent
from tests.reader import follow, terminal


@pytest.mark.runs("docs/from-ssh-agent.md")
def test_what_users_of_ssh_agent_are_told_to_type_shows_what_they_are_told(
    agent: Agent, tmp_path: Path, blocks: list[Block]
) -> None:
    need("openssh-client")
    with terminal(agent, tmp_path) as shell:
        follow(shell, blocks, {})
