"""How long what starts takes: the command line, the client's import."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from operator import truediv

from tests.bench import bars
from tests.bench.figures import Column, Measures, Step, in_rounds
from tests.bench.revisions import Revision
from tests.bench.setting import Setting

ROUNDS = 25
MS = "ms"
BARE = "python -c pass"


def measure(setting: Setting) -> None:
    """In rounds."""
    with ExitStack() as stack:
        steps = []
        for revision in setting.revisions:
            agent = setting.serving(stack, revision, setting.new_token())
            steps += [
                Step(name, partial(_run, revision, agent.socket, command))
                for name, command in _commands(revision).items()
            ]
        in_rounds(steps, setting.rounds(ROUNDS), setting.figures)
    for revision in setting.revisions:
        for name in _commands(revision):
            bar = bars.PROOF if name == f"{setting.this.name} proof" else f"{name} ÷ {BARE}"
            if name != BARE:
                setting.figures.derive(bar, truediv, Column(name, MS), Column(BARE, MS))


def _commands(revision: Revision) -> dict[str, list[str]]:
    return {
        f"{revision.name} proof": revision.command("proof", "GET", "https://as.example.com/me"),
        f"{revision.name} --help": revision.command("--help"),
        f"{revision.name}, import dpop_agent.client": [
            *(revision.python, "-c", "import dpop_agent.client"),
        ],
        **({} if revision.beside else {BARE: [revision.python, "-c", "pass"]}),
    }


def _run(revision: Revision, sock: str, command: list[str]) -> Measures:
    env = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"DPOP_AGENT_SOCK": sock, "PYTHONPATH": str(revision.root)}
    start = time.perf_counter()
    # No timeout: waiting with one polls, at intervals longer than what is measured.
    subprocess.run(command, cwd=revision.root, env=env, stdout=subprocess.DEVNULL, check=True)
    return {MS: (time.perf_counter() - start) * 1e3}
