"""What a judge says of an exchange, and what several of them say in the same words.

An opinion's weight is what the evidence gives; what the server says is added to it elsewhere. A
weight of 0 means: nothing shows it, and this is what to say if the server names it.
"""

from __future__ import annotations

from shlex import quote
from typing import NamedTuple

from dpop_agent.client.explaining.case import Case
from dpop_agent.client.explaining.redaction import one_line

SHOWN = 80
"""The weight from which on the evidence by itself shows the cause."""

MAX_NAME = 32
"""Characters that are shown of a variable's name."""

UNIVERSAL = "ES256"
"""The one algorithm that every server takes."""


class Opinion(NamedTuple):
    """What speaks for a cause, and what to do if it is the one."""

    weight: int
    summary: str
    evidence: tuple[tuple[str, str], ...]
    mend: str


def opinion(weight: int, summary: str, mend: str, *evidence: tuple[str, str | None]) -> Opinion:
    shown = tuple((of, one_line(is_)) for of, is_ in evidence if is_)
    return Opinion(weight, one_line(summary), shown, one_line(mend))


def by_its_word(case: Case, said: str, of: str, mend: str) -> Opinion | None:
    """For what the server alone can say, since the proof can't be read in what was given."""
    if not case.is_unseen:
        return None
    return opinion(0, f"{said}, as the server says.", mend, (of, "can't be seen"))


def anew(case: Case) -> str:
    """How to make the proof with the agent."""
    jkt = case.bound_to or case.jkt
    which = f" --jkt {jkt}" if jkt and case.generation(jkt) else ""
    presented = " --access-token-file FILE" if case.scheme in ("dpop", "bearer") else ""
    url = case.redaction.url(case.url)
    if url.startswith("//"):
        url = f"https:{url}"
    method = case.redaction.text(case.exchange.method, 32)
    return f"dpop-agent proof {quote(method)} {quote(url)}{which}{presented}"


def authorization(case: Case) -> str | None:
    name = {"dpop": "DPoP", "bearer": "Bearer"}.get(case.scheme)
    return name if name is None else f"{name}, an access token"
