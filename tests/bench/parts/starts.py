"""How long what starts takes: the agent, a signer, the command line, the client's import."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from operator import truediv

from tests.bench import bars
from tests.bench.asked import PROOF
from tests.bench.figures import Column, Measures, Step, in_rounds
from tests.bench.loads import connected, connected_soon, sequential, take
from tests.bench.revisions import Revision
from tests.bench.setting import Setting
from tests.processes import Agent

ROUNDS, AGENT_ROUNDS = 25, 10
LIVED_S = 1.2
"""One that dies sooner isn't replaced at once, lest it does nothing but die."""

MS, S = "ms", "s"
BARE = "python -c pass"


def measure(setting: Setting) -> None:
    """In rounds."""
    _measure_agents(setting)
    _measure_programs(setting)


def _measure_agents(setting: Setting) -> None:
    with ExitStack() as stack:
        steps = []
        for revision in setting.revisions:
            agent = setting.serving(stack, revision, setting.new_token())
            steps += [
                Step(_started(revision), partial(_start, agent)),
                Step(_respawned(revision), partial(_respawn, agent)),
            ]
        in_rounds(steps, setting.rounds(AGENT_ROUNDS), setting.figures)
    values, this = setting.figures.values, setting.this
    setting.figures.derived[bars.STARTED] = values[_started(this)][S]
    setting.figures.derived[bars.RESPAWNED] = values[_respawned(this)][S]


def _started(revision: Revision) -> str:
    return f"{revision.name}, start to first proof"


def _respawned(revision: Revision) -> str:
    return f"{revision.name}, a killed signer to the next proof"


def _start(agent: Agent) -> Measures:
    agent.stop()
    start = time.perf_counter()
    agent.start(wait=False)
    with connected_soon(agent.socket) as one:
        sequential(PROOF, one, 1)
        seconds = time.perf_counter() - start
    return {S: seconds}


def _respawn(agent: Agent) -> Measures:
    """Whoever asks while the agent doesn't know of its death yet is refused, and asks again."""
    with connected(agent.socket) as one:
        time.sleep(LIVED_S)
        sequential(PROOF, one, 1)
        (store,) = agent.client().status()["stores"]
        start = time.perf_counter()
        os.kill(store["signer_pid"], signal.SIGKILL)
        while True:
            one.sendall(PROOF.request)
            if b'"proof"' in take(PROOF, one):
                return {S: time.perf_counter() - start}


def _measure_programs(setting: Setting) -> None:
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
    imported = [revision.python, "-c", "import dpop_agent.client"]
    return {
        f"{revision.name} proof": revision.command("proof", "GET", "https://as.example.com/me"),
        f"{revision.name} --help": revision.command("--help"),
        f"{revision.name}, import dpop_agent.client": imported,
        **({} if revision.beside else {BARE: [revision.python, "-c", "pass"]}),
    }


def _run(revision: Revision, sock: str, command: list[str]) -> Measures:
    env = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"DPOP_AGENT_SOCK": sock, "PYTHONPATH": str(revision.root)}
    start = time.perf_counter()
    # No timeout: waiting with one polls, at intervals longer than what is measured.
    subprocess.run(command, cwd=revision.root, env=env, stdout=subprocess.DEVNULL, check=True)
    return {MS: (time.perf_counter() - start) * 1e3}
