"""Several signers for a PKCS#11 token that takes 5 ms for a signature, and many at once."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from operator import truediv

from tests import faulty
from tests.bench import bars
from tests.bench.asked import PROOF
from tests.bench.figures import RATE, Column, Step, in_rounds
from tests.bench.loads import concurrent, connected
from tests.bench.setting import Setting
from tests.faulty import Faulty

ROUNDS = 5
SIGNERS, CONNECTIONS = (1, 2, 4), 16
PROOFS = 400
"""A round, for each signer."""


def measure(setting: Setting) -> None:
    """In rounds."""
    if setting.lacks("several signers", "gcc", "libc6-dev"):
        return
    module = faulty.module(setting.new_folder())
    with ExitStack() as stack:
        steps = []
        for signers in SIGNERS:
            slow = Faulty(setting.new_token(), module)
            slow.rules("C_Sign delay 5")
            config = slow.config()
            if signers > 1:
                config.write_text(f"{config.read_text()}signers = {signers}\n")
            agent = setting.serving(stack, setting.this, slow.token, config)
            socks = [stack.enter_context(connected(agent.socket)) for _ in range(CONNECTIONS)]
            load = partial(concurrent, PROOF, socks, PROOFS * signers)
            steps.append(Step(_with(signers), load))
        in_rounds(steps, setting.rounds(ROUNDS), setting.figures)
    one = Column(_with(1), RATE)
    setting.figures.derive(bars.FOUR_SIGNERS, truediv, Column(_with(4), RATE), one)
    setting.figures.derive("two signers ÷ one", truediv, Column(_with(2), RATE), one)


def _with(signers: int) -> str:
    return f"5 ms token, signers = {signers}, {CONNECTIONS} connections"
