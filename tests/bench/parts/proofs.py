"""Proofs: the PKCS#11 token alone, the agent with one and with many connections, and others."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from operator import truediv

from tests.bench import bars
from tests.bench.figures import (
    AGENT_CPU,
    CPU,
    P50,
    RATE,
    SIGNER_CPU,
    Column,
    Measures,
    Step,
    in_rounds,
)
from tests.bench.loads import Asked, concurrent, connected, pipelined, sequential, timed
from tests.bench.peers import SshAgent, TokenLoop, built, echo, echoed, python_pkcs11
from tests.bench.revisions import Revision
from tests.bench.setting import Setting
from tests.bench.usage import with_cpu
from tests.processes import Agent

ROUNDS = 15
TOKEN, PYTHON_PKCS11 = "PKCS#11 token alone, C loop", "PKCS#11 token alone, python-pkcs11"
TOKEN_PAUSED = f"{TOKEN}, 2 ms apart"
ECHO = "echo between two processes"
ONE, PAUSED, LONG_PAUSED, PIPELINED = "1 connection", "2 ms apart", "20 ms apart", "pipelined"
CONNECTIONS = (4, 16, 64)
SSH_AGENT = "ssh-agent"


def many(connections: int) -> str:
    """What a subject is called that is asked on so many connections."""
    return f"{connections} connections"


def request(method: str = "proof", **params: str) -> bytes:
    """One line for the agent."""
    return (
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n"
    )


def _answers(data: bytes) -> int:
    answers = data.count(b'"proof"')
    if answers != data.count(b"\n"):
        raise SystemExit(f"the agent refused: {data[:300]!r}")
    return answers


def proof_by(**key: str) -> Asked:
    """A proof by the default key, or by `key=NAME`."""
    asked = request(htm="GET", htu="https://api.example.com/v1/me", **key)
    return Asked(asked, _answers, lambda data: data.endswith(b"\n"))


PROOF = proof_by()


def measure(setting: Setting) -> None:
    """In rounds."""
    with ExitStack() as stack:
        steps: list[Step] = []
        token = setting.new_token()
        for revision in setting.revisions:
            own = token if revision is setting.this else setting.new_token()
            agent = setting.serving(stack, revision, own)
            steps += _of_agent(stack, revision, agent)
        if not setting.lacks("the PKCS#11 token alone, in C", "gcc", "libc6-dev"):
            steps += _of_token(stack, TokenLoop(built("token_loop.c", setting.folder), token))
        echoes = stack.enter_context(echo())
        steps += [
            Step(PYTHON_PKCS11, partial(timed, python_pkcs11(token), 2000)),
            Step(ECHO, partial(sequential, echoed(PROOF.request), echoes, 4000)),
        ]
        if not setting.lacks("ssh-agent", "openssh-client"):
            steps += _of_ssh_agent(stack, SshAgent(token, setting.new_folder() / "ssh"))
        in_rounds(steps, setting.rounds(ROUNDS), setting.figures)
    _derive(setting)


def _of_agent(stack: ExitStack, revision: Revision, agent: Agent) -> list[Step]:
    status = agent.client().status()
    pids = {AGENT_CPU: status["pid"], SIGNER_CPU: status["stores"][0]["signer_pid"]}
    one = stack.enter_context(connected(agent.socket))

    def step(name: str, count: int, load: Callable[[int], Measures]) -> Step:
        subject = f"{revision.name}, {name}"
        return Step(subject, partial(with_cpu, partial(load, count), pids, count))

    def on_one(load: Callable[..., Measures], **settings: float) -> Callable[[int], Measures]:
        return lambda count: load(PROOF, one, count, **settings)

    def on_many(connections: int) -> Callable[[int], Measures]:
        socks = [stack.enter_context(connected(agent.socket)) for _ in range(connections)]
        return lambda count: concurrent(PROOF, socks, count)

    return [
        step(ONE, 1000, on_one(sequential)),
        step(PAUSED, 150, on_one(sequential, pause=0.002)),
        step(LONG_PAUSED, 30, on_one(sequential, pause=0.02)),
        step(PIPELINED, 4000, on_one(pipelined)),
        *(step(many(count), 4000, on_many(count)) for count in CONNECTIONS),
    ]


def _of_token(stack: ExitStack, loop: TokenLoop) -> list[Step]:
    stack.enter_context(closing(loop))
    return [
        Step(TOKEN, lambda: loop.sign(2000)),
        Step(TOKEN_PAUSED, lambda: loop.sign(150, pause=0.002)),
    ]


def _of_ssh_agent(stack: ExitStack, ssh: SshAgent) -> list[Step]:
    stack.enter_context(closing(ssh))
    one = stack.enter_context(connected(ssh.path))
    socks = [stack.enter_context(connected(ssh.path)) for _ in range(16)]

    def step(name: str, load: Callable[[int], Measures], count: int) -> Step:
        return Step(
            f"{SSH_AGENT}, {name}", partial(with_cpu, partial(load, count), ssh.pids, count)
        )

    return [
        step(ONE, partial(sequential, ssh.asked, one), 500),
        step(many(16), partial(concurrent, ssh.asked, socks), 2000),
    ]


def _derive(setting: Setting) -> None:
    derive, this = setting.figures.derive, setting.this.name
    one, sixteen = f"{this}, {ONE}", f"{this}, {many(16)}"
    derive(bars.SEQUENTIAL, truediv, Column(one, P50), Column(TOKEN, P50))
    derive(bars.CONCURRENT, truediv, Column(sixteen, RATE), Column(TOKEN, RATE))
    derive(
        bars.CPU_BEYOND,
        lambda agent, signer, token: agent + signer - token,
        *(Column(sixteen, AGENT_CPU), Column(sixteen, SIGNER_CPU), Column(TOKEN, CPU)),
    )
    ssh_one, ssh_sixteen = f"{SSH_AGENT}, {ONE}", f"{SSH_AGENT}, {many(16)}"
    derive(bars.SSH_SEQUENTIAL, truediv, Column(ssh_one, P50), Column(one, P50))
    derive(bars.SSH_CONCURRENT, truediv, Column(sixteen, RATE), Column(ssh_sixteen, RATE))
    for revision in setting.revisions[1:]:
        before = f"{revision.name}, {ONE}"
        paused = (Column(f"{name}, {PAUSED}", P50) for name in (this, revision.name))
        derive(bars.PAUSED_TO_BEFORE, truediv, *paused)
        derive(
            bars.CPU_TO_BEFORE,
            lambda agent, signer, agent_before, signer_before, token: (
                (agent + signer - token) / (agent_before + signer_before - token)
            ),
            *(Column(one, AGENT_CPU), Column(one, SIGNER_CPU)),
            *(Column(before, AGENT_CPU), Column(before, SIGNER_CPU)),
            Column(TOKEN, CPU),
        )
