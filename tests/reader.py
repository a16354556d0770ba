"""Somebody who types what a document says, and compares what is shown with what it says."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.documents import Block, commands
from tests.newcomer import BASH, PROMPT, Shell
from tests.processes import Agent

REFUSED = "dpop-agent: "
"""How the last line begins that a command shows where the document has it fail."""


def terminal(agent: Agent, home: Path, *programs: Path, **env: str) -> Shell:
    """A terminal in this home, where the agent is found, and these folders of programs."""
    path = [*programs, Path(sys.executable).parent, os.environ["PATH"]]
    env |= {"DPOP_AGENT_SOCK": agent.socket, "HOME": str(home), "PATH": ":".join(map(str, path))}
    env |= {"HISTFILE": "", "LANG": "C.UTF-8", "PS1": PROMPT, "TERM": "dumb"}
    return Shell(BASH, cwd=home, env=env)


def follow(shell: Shell, todo: Iterable[Block], asked: dict[str, str]) -> None:
    """Type the blocks' commands one after the other; each shows what the document says.

    Lines may be left out there, and `…` stands for the rest of a word, or for several words.

    Args:
        asked: what is typed where one of these is shown, a regular expression.
    """
    for block in todo:
        for line, shows in commands(block):
            fails = shows.startswith(REFUSED)
            shown = shell.run(line, asked=asked, serving=None, fails=fails)
            assert is_shown(shows, shown), f"{block.document}: {line} doesn't show this\n{shown}"


def is_shown(expected: str, shown: str) -> bool:
    """Whether these lines are there, whole and in their order; a terminal may have folded them."""
    lines = [re.escape(line.rstrip()) for line in expected.strip().split("\n")]
    lines = [line.replace("…", ".*").replace(r"\ ", r"(?: |\n {2,4})") for line in lines]
    pattern = r" *$[\s\S]*?".join(rf"^{line}" for line in lines) + " *$"
    return bool(re.search(pattern, shown.replace("\r", ""), re.M)) or not expected.strip()
