"""A slow PKCS#11 token: what of its rate reaches clients, and what a fast one beside it feels."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial
from operator import truediv
from pathlib import Path

from tests import faulty
from tests.bench import bars
from tests.bench.asked import PROOF, proof_by
from tests.bench.beside import beside
from tests.bench.figures import P99, RATE, Column, Step, in_rounds
from tests.bench.loads import concurrent, connected, sequential
from tests.bench.peers import TokenLoop, built
from tests.bench.setting import Setting
from tests.faulty import Faulty
from tests.processes import Token

ROUNDS = 7
DELAYS = {80: 25, 5: 200}
"""Signatures a round, by the milliseconds that each takes more than SoftHSM2's own."""

CONNECTIONS = 8
FAST = "fast token alone, 1 connection"


def measure(setting: Setting) -> None:
    """In rounds."""
    if setting.lacks("slow PKCS#11 tokens", "gcc", "libc6-dev"):
        return
    module, loop = faulty.module(setting.new_folder()), built("token_loop.c", setting.folder)
    with ExitStack() as stack:
        fast = setting.new_token()
        slow = {ms: _slow(setting.new_token(f"slow-{ms}"), module, ms) for ms in DELAYS}
        config = _config(fast, slow)
        agent = setting.serving(stack, setting.this, fast, config=config)
        one = stack.enter_context(connected(agent.socket))
        socks = [stack.enter_context(connected(agent.socket)) for _ in range(CONNECTIONS)]
        on_fast = partial(sequential, PROOF, one, 1500)
        steps = [Step(FAST, on_fast)]
        for ms, count in DELAYS.items():
            key = f"slow-{ms}"
            agent.create_key(key, store=key)
            token, env = slow[ms].token, slow[ms].env
            own = TokenLoop(loop, token, module=str(module), env=env)
            stack.enter_context(closing(own))
            through = partial(concurrent, proof_by(key=key), socks, count)
            around = partial(beside, agent.socket, key, CONNECTIONS, on_fast)
            steps += [
                Step(_alone(ms), partial(own.sign, count)),
                Step(_through(ms), through),
                Step(_beside(ms), around),
            ]
        in_rounds(steps, setting.rounds(ROUNDS), setting.figures)
    derive = setting.figures.derive
    for ms in DELAYS:
        rates = (Column(_through(ms), RATE), Column(_alone(ms), RATE))
        derive(bars.SLOW_SHARE[ms], truediv, *rates)
        derive(bars.BESIDE_SLOW[ms], truediv, Column(_beside(ms), P99), Column(FAST, P99))


def _alone(ms: int) -> str:
    return f"{ms} ms token alone, C loop"


def _through(ms: int) -> str:
    return f"{ms} ms token, {CONNECTIONS} connections"


def _beside(ms: int) -> str:
    return f"fast token beside a busy {ms} ms one, 1 connection"


def _slow(token: Token, module: Path, ms: int) -> Faulty:
    slow = Faulty(token, module)
    slow.rules(f"C_Sign delay {ms}")
    return slow


def _config(fast: Token, slow: dict[int, Faulty]) -> Path:
    text = fast.config.read_text()
    for ms, each in slow.items():
        settings = each.config().read_text().partition("[stores.softhsm]\n")[2]
        text += f"\n[stores.slow-{ms}]\n{settings}"
    config = fast.folder / "with-slow.toml"
    config.write_text(text)
    return config
