"""What an agent with one store takes while nobody asks it: memory, CPU time."""

from __future__ import annotations

import time
from contextlib import ExitStack

from tests.agent.places import descendants
from tests.bench import bars
from tests.bench.asked import PROOF
from tests.bench.loads import connected, sequential
from tests.bench.revisions import Revision
from tests.bench.setting import Setting
from tests.bench.usage import cpu_seconds, pss_mib

PROOFS = 1000
ALL, MEMORY, CPU = "all processes", "PSS, MiB", "CPU, % of a core"
SETTLED_S, REST_S, QUICK_REST_S = 3.0, 20.0, 5.0


def measure(setting: Setting) -> None:
    """Each revision by itself: what two have in common would count half for each."""
    for revision in setting.revisions:
        _measure(setting, revision)
    of_all = setting.figures.values[f"{setting.this.name}, {ALL}"]
    setting.figures.derived |= {bars.PSS: of_all[MEMORY], bars.REST: of_all[CPU]}


def _measure(setting: Setting, revision: Revision) -> None:
    with ExitStack() as stack:
        agent = setting.serving(stack, revision, setting.new_token())
        with connected(agent.socket) as one:
            sequential(PROOF, one, PROOFS)
        status = agent.client().status()
        names = {status["pid"]: "agent", status.get("forking_pid"): "forking process"}
        names |= {store["signer_pid"]: "signer" for store in status["stores"]}
        pids = sorted({agent.pid} | descendants(agent.pid))
        time.sleep(SETTLED_S)
        before, began = [cpu_seconds(pid) for pid in pids], time.monotonic()
        time.sleep(QUICK_REST_S if setting.quick else REST_S)
        seconds = time.monotonic() - began
        cpu = [(cpu_seconds(pid) - b) / seconds * 100 for pid, b in zip(pids, before, strict=True)]
        memory = [pss_mib(pid) for pid in pids]

    def add(name: str, mib: float, percent: float) -> None:
        setting.figures.add(f"{revision.name}, {name}", {MEMORY: mib, CPU: percent})

    for pid, mib, percent in zip(pids, memory, cpu, strict=True):
        add(names.get(pid, "another process"), mib, percent)
    add(ALL, sum(memory), sum(cpu))
