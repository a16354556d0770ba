"""Ten thousand keys: proofs beside one key, and what else the agent's loop does for them."""

from __future__ import annotations

import copy
import secrets
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from operator import truediv

from tests.bench import bars
from tests.bench.asked import proof_by
from tests.bench.figures import P50, SLOWEST, Column, Step, in_rounds
from tests.bench.loads import connected, sequential
from tests.bench.setting import Setting
from tests.processes import ROOT, Agent
from tests.state_folder import changed, new_public_key

ROUNDS, PROOFS = 5, 20_000
KEYS = 10_000
ONE_KEY, MANY_KEYS = "an agent with 1 key", f"an agent with {KEYS} keys"


def measure(setting: Setting) -> None:
    """In rounds; the loop's steps, which have no bar, are printed at once."""
    asked = proof_by(key="default")
    with ExitStack() as stack:
        steps = []
        for name, count in ((ONE_KEY, 1), (MANY_KEYS, KEYS)):
            agent = setting.serving(stack, setting.this, setting.new_token())
            if count > 1:
                agent.stop()
                _add_keys(agent, count - 1)
                agent.start()
            one = stack.enter_context(connected(agent.socket))
            steps.append(Step(name, partial(sequential, asked, one, PROOFS)))
        in_rounds(steps, setting.rounds(ROUNDS), setting.figures)
    for bar, measured in {bars.MANY_KEYS_P50: P50, bars.MANY_KEYS_SLOWEST: SLOWEST}.items():
        columns = (Column(name, measured) for name in (MANY_KEYS, ONE_KEY))
        setting.figures.derive(bar, truediv, *columns)
    subprocess.run([sys.executable, "-m", "tests.bench.many_keys", str(KEYS)], cwd=ROOT, check=True)


def _add_keys(agent: Agent, count: int) -> None:
    """Put keys into the ledger that nothing else has: SoftHSM2 itself is slow with so many."""
    with changed(agent.state / "ledger.json") as ledger:
        (first,) = ledger["keys"]
        for number in range(count):
            key = copy.deepcopy(first)
            key["name"] = f"key-{number}"
            key["generations"][0] |= {"ref": secrets.token_hex(16), **new_public_key()}
            ledger["keys"].append(key)
