"""What things may take on a machine that does nothing else: the only figures that are judged.

Some the suite measures on the way, with the fixture `measured`, and judges none; the others are
measured by the parts of this benchmark.
"""

from __future__ import annotations

import statistics

BACK = "a store that is back signs again"
WHILE_ANOTHER = "a proof is given or refused while another store or client is waited for"
ABSENT = "a proof from a store that isn't there is refused"
RECOVERED = "an agent that was killed has recovered"
REPLACED = "a signer that was killed is replaced after 0.01 s, and its successor signs"
PROOF = "`dpop-agent proof`, in starts of the interpreter"
HONEST = "a proof beside 80 greedy clients, in proofs of a client alone"
HONEST_400 = "a proof beside 400 greedy clients, in proofs of a client alone"
OWNER = "the owner's status on admin.sock beside 400 greedy clients"
LATE_LINE = "a line that isn't ended in 5 s is refused"
DESCRIPTORS_BACK = "a proof, once an agent without descriptors has some again"

SECONDS = {
    RECOVERED: 2.0,
    BACK: 2.0,
    REPLACED: 1.0,
    "a signer whose agent was killed ends": 3.0,
    "a keychain that answers again is used": 3.0,
    "a card that is back is unlocked and signs": 2.0,
    ABSENT: 2.0,
    "a proof from a card that another program holds is refused": 1.0,
    "a proof from a locked keychain is refused": 2.0,
    "a hundred proofs with a PIN that was refused before are refused": 2.0,
    WHILE_ANOTHER: 0.5,
    "a key is made behind a store that hangs in the same module": 10.0,
    "a reload, and the agent's end, while somebody types": 5.0,
    "a proof with a deadline of 0.3 s, from a store that hangs, is refused": 1.0,
    LATE_LINE: 6.5,
    OWNER: 0.5,
    DESCRIPTORS_BACK: 1.0,
    "a proof with a touch that comes after 2.2 s": 3.5,
    "a touch that is due is announced": 1.0,
    "a touch that the card waits 1.1 s for in vain is told": 2.2,
    "a keychain that is stuck is told after its 5 s": 7.0,
    "`init` with a keychain that is stuck ends after its 5 s": 8.0,
    "`key create` in a keychain that is stuck ends after its 5 s": 15.0,
    "a pinentry is given up after its 1 s": 3.0,
    "a pad at which nobody types is given up after its 4 s": 8.0,
    "an unlock that is interrupted at its pinentry ends": 1.0,
}
"""What each measurement may take."""

SEQUENTIAL = "a proof on one connection, p50, in signatures of the PKCS#11 token alone"
PAUSED_TO_BEFORE = "a proof with 2 ms between them, p50, ÷ that of the revision before"
CONCURRENT = "proofs a second on 16 connections ÷ signatures of the PKCS#11 token alone"
SSH_SEQUENTIAL = "ssh-agent's p50 on one connection ÷ ours"
SSH_CONCURRENT = "proofs a second on 16 connections ÷ ssh-agent's signatures"
CPU_BEYOND = "µs of CPU a proof beyond the PKCS#11 token's own, on 16 connections"
CPU_TO_BEFORE = "the same on one connection ÷ that of the revision before"
SLOW_SHARE = {
    ms: f"a token that takes {ms} ms: share of its own rate that reaches 8 connections"
    for ms in (80, 5)
}
BESIDE_SLOW = {ms: f"a fast token's p99 beside a busy one of {ms} ms ÷ alone" for ms in (80, 5)}
FOUR_SIGNERS = "signatures a second of a token that takes 5 ms and many at once, signers = 4 ÷ 1"
MANY_KEYS_P50 = "a proof's p50 with 10 000 keys ÷ with one"
MANY_KEYS_SLOWEST = "the slowest of 20 000 proofs with 10 000 keys ÷ with one"
STARTED = "seconds from the start of the agent to its first proof"
RESPAWNED = "seconds from the death of a signer to the next proof"
PSS = "MiB of memory (PSS) of all processes of an agent with one store"
REST = "% of a core of all these processes at rest"

AT_MOST = {
    **SECONDS,
    PROOF: 2.7,
    HONEST: 2.0,
    HONEST_400: 2.0,
    SEQUENTIAL: 3.5,
    PAUSED_TO_BEFORE: 0.7,
    CPU_BEYOND: 40.0,
    CPU_TO_BEFORE: 0.5,
    **dict.fromkeys(BESIDE_SLOW.values(), 1.3),
    MANY_KEYS_P50: 1.1,
    MANY_KEYS_SLOWEST: 2.0,
    PSS: 70.0,
    REST: 0.1,
    STARTED: 0.6,
    RESPAWNED: 0.1,
}
AT_LEAST = {
    CONCURRENT: 0.85,
    SSH_SEQUENTIAL: 2.0,
    SSH_CONCURRENT: 5.0,
    **dict.fromkeys(SLOW_SHARE.values(), 0.99),
    FOUR_SIGNERS: 3.7,
}
BARS = {**AT_MOST, **AT_LEAST}
"""What the median of all measurements is held against; of `SECONDS`, each of them."""


def judged(bar: str, values: list[float]) -> float:
    """What is held against the bar: the slowest, for seconds are promised each time."""
    return max(values) if bar in SECONDS else statistics.median(values)


def is_kept(bar: str, values: list[float]) -> bool:
    """Whether what was measured is within the bar."""
    found = judged(bar, values)
    return found >= AT_LEAST[bar] if bar in AT_LEAST else found <= AT_MOST[bar]
