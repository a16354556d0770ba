"""Proofs: the PKCS#11 token alone, the agent with one and with many connections, and others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from operator import truediv
from pathlib import Path
from typing import NamedTuple

from tests.bench import bars
from tests.bench.asked import PROOF
from tests.bench.figures import (
    AGENT_CALLS,
    AGENT_CPU,
    CPU,
    P50,
    RATE,
    SIGNER_CALLS,
    SIGNER_CPU,
    Column,
    Measures,
    Step,
    in_rounds,
)
from tests.bench.loads import concurrent, connected, pipelined, sequential, timed
from tests.bench.peers import (
    SshAgent,
    TokenLoop,
    built,
    echo,
    echoed,
    p11_kit_client,
    p11_kit_server,
    python_pkcs11,
)
from tests.bench.revisions import Revision
from tests.bench.setting import Setting
from tests.bench.software import with_cryptography, with_pyjwt
from tests.bench.usage import with_calls, with_cpu
from tests.processes import Agent, Token

ROUNDS = 40
"""Many and short: a machine's speed itself changes from one second to the next."""

TOKEN, PYTHON_PKCS11 = "PKCS#11 token alone, C loop", "PKCS#11 token alone, python-pkcs11"
TOKEN_PAUSED = f"{TOKEN}, 2 ms apart"
APART = "three processes in C around the PKCS#11 token"
"""A client, something that passes on what it asks and hears, and what signs for it: what an agent
with a signer of its own costs that has nothing to do."""
APART_PAUSED = f"{APART}, 2 ms apart"
ONE, PAUSED, LONG_PAUSED, PIPELINED = "1 connection", "2 ms apart", "20 ms apart", "pipelined"
CONNECTIONS = (4, 16, 64)
SSH_AGENT, P11_KIT = "ssh-agent", "p11-kit remoting, C loop"
PYJWT, ECHO = "PyJWT, a key in memory", "an echo between two processes"
TRACED = 300


def many(connections: int) -> str:
    """What a subject is called that is asked on so many connections."""
    return f"{connections} connections"


class Load(NamedTuple):
    """So many proofs or signatures, asked of an agent.

    Attributes:
        pids: the agent, and the process that signs for it.
        ask: asks for so many.
    """

    subject: str
    pids: tuple[int, int]
    proofs: int
    ask: Callable[[int], Measures]

    @property
    def step(self) -> Step:
        """How fast it is, and the CPU time that it takes."""
        pids = dict(zip((AGENT_CPU, SIGNER_CPU), self.pids, strict=True))
        measure = partial(with_cpu, partial(self.ask, self.proofs), pids, self.proofs)
        return Step(self.subject, measure)

    def calls(self, folder: Path) -> Measures:
        """Its system calls."""
        pids = dict(zip((AGENT_CALLS, SIGNER_CALLS), self.pids, strict=True))
        return with_calls(partial(self.ask, TRACED), pids, TRACED, folder)


def measure(setting: Setting) -> None:
    """In rounds; the system calls afterwards, for counting them slows everything down."""
    with ExitStack() as stack:
        token = setting.new_token()
        loads = []
        for revision in setting.revisions:
            own = token if revision is setting.this else setting.new_token()
            loads += _of_agent(stack, revision, setting.serving(stack, revision, own))
        if not setting.lacks(SSH_AGENT, "openssh-client"):
            loads += _of_ssh_agent(stack, SshAgent(token, setting.new_folder() / "ssh"))
        others = _of_token(stack, setting, token) + _without_token(stack)
        steps = [*others, *(load.step for load in loads)]
        in_rounds(steps, setting.rounds(ROUNDS), setting.figures)
        if not setting.lacks("system calls", "strace"):
            for load in loads:
                setting.figures.add(load.subject, load.calls(setting.new_folder()))
    _derive(setting)


def _of_agent(stack: ExitStack, revision: Revision, agent: Agent) -> list[Load]:
    status = agent.client().status()
    pids = (status["pid"], status["stores"][0]["signer_pid"])
    one = stack.enter_context(connected(agent.socket))

    def load(name: str, count: int, ask: Callable[[int], Measures]) -> Load:
        return Load(f"{revision.name}, {name}", pids, count, ask)

    def on_one(ask: Callable[..., Measures], **settings: float) -> Callable[[int], Measures]:
        return lambda count: ask(PROOF, one, count, **settings)

    def on_many(connections: int) -> Callable[[int], Measures]:
        socks = [stack.enter_context(connected(agent.socket)) for _ in range(connections)]
        return lambda count: concurrent(PROOF, socks, count)

    return [
        load(ONE, 400, on_one(sequential)),
        load(PAUSED, 60, on_one(sequential, pause=0.002)),
        load(LONG_PAUSED, 12, on_one(sequential, pause=0.02)),
        load(PIPELINED, 1500, on_one(pipelined)),
        *(load(many(count), 1500, on_many(count)) for count in CONNECTIONS),
    ]


def _of_ssh_agent(stack: ExitStack, ssh: SshAgent) -> list[Load]:
    stack.enter_context(closing(ssh))
    one = stack.enter_context(connected(ssh.path))
    socks = [stack.enter_context(connected(ssh.path)) for _ in range(16)]
    on_one, on_many = partial(sequential, ssh.asked, one), partial(concurrent, ssh.asked, socks)
    return [
        Load(f"{SSH_AGENT}, {ONE}", ssh.pids, 250, on_one),
        Load(f"{SSH_AGENT}, {many(16)}", ssh.pids, 500, on_many),
    ]


def _of_token(stack: ExitStack, setting: Setting, token: Token) -> list[Step]:
    python = Step(PYTHON_PKCS11, partial(timed, python_pkcs11(token), 800))
    if setting.lacks("the PKCS#11 token alone, in C, and p11-kit", "gcc", "libc6-dev"):
        return [python]
    program = built("token_loop.c", setting.folder)
    loop = stack.enter_context(closing(TokenLoop(program, token)))
    apart = stack.enter_context(closing(TokenLoop(program, token, apart=True)))
    steps = [
        Step(TOKEN, partial(loop.sign, 800)),
        Step(TOKEN_PAUSED, partial(loop.sign, 60, pause=0.002)),
        Step(APART, partial(apart.sign, 400)),
        Step(APART_PAUSED, partial(apart.sign, 60, pause=0.002)),
        python,
    ]
    if not setting.lacks("p11-kit", "p11-kit", "p11-kit-modules"):
        env = stack.enter_context(p11_kit_server(token, setting.new_folder() / "p11-kit"))
        remote = TokenLoop(program, token, module=p11_kit_client(), env=env)
        stack.enter_context(closing(remote))
        steps.append(Step(P11_KIT, partial(remote.sign, 400)))
    return steps


def _without_token(stack: ExitStack) -> list[Step]:
    echoes = stack.enter_context(echo())
    asked = ("GET", "https://api.example.com/v1/me")
    pyjwt, by_hand = partial(with_pyjwt(), *asked), partial(with_cryptography(), *asked)
    return [
        Step(PYJWT, partial(timed, pyjwt, 400)),
        Step("cryptography, a key in memory", partial(timed, by_hand, 400)),
        Step(ECHO, partial(sequential, echoed(PROOF.request), echoes, 1000)),
    ]


def _derive(setting: Setting) -> None:
    derive, this = setting.figures.derive, setting.this.name
    one, sixteen = f"{this}, {ONE}", f"{this}, {many(16)}"
    derive(bars.SEQUENTIAL, truediv, Column(one, P50), Column(TOKEN, P50))
    derive(f"{APART} ÷ {TOKEN}", truediv, Column(APART, P50), Column(TOKEN, P50))
    for name, apart in ((one, APART), (f"{this}, {PAUSED}", APART_PAUSED)):
        derive(f"{name} ÷ {apart}", truediv, Column(name, P50), Column(apart, P50))
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
