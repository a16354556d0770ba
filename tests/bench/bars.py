"""What things may take on a machine that does nothing else: the only seconds that are judged.

The suite measures them on the way, with the fixture `measured`, and judges none.
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
    "a line that isn't ended in 5 s is refused": 6.5,
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

BARS = {**SECONDS, PROOF: 3.5, HONEST: 2.0}
"""With what the median of all measurements may be."""


def judged(bar: str, values: list[float]) -> float:
    """What is held against the bar: the slowest, for seconds are promised each time."""
    return max(values) if bar in SECONDS else statistics.median(values)
