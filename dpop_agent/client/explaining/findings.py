"""What is said of an exchange: findings, likeliest first, as people and as programs read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

COLUMNS = 80

LABEL = 20
"""Columns for what a line of evidence is of."""

COMMAND = "dpop-agent proof "
"""How the command begins that ends a mend; it has a line of its own, to be copied."""

OTHERS = 4
"""Further causes that are shown; the rest is guessing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or may be.

    Attributes:
        cause: its name, such as `htu_mismatch`.
        summary: the same in a sentence.
        evidence: what shows it: what each thing is of, and what it is. No secret is in it.
        mend: what to do about it.
        is_shown: the exchange itself shows that it is wrong, whatever the server says.
    """

    cause: str
    summary: str
    evidence: tuple[tuple[str, str], ...]
    mend: str
    is_shown: bool = False

    def to_wire(self) -> dict[str, Any]:
        """It, for JSON."""
        return {
            "cause": self.cause,
            "summary": self.summary,
            "evidence": [{"of": of, "is": is_} for of, is_ in self.evidence],
            "mend": self.mend,
            "shown": self.is_shown,
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is wrong with an exchange; `str()` of it is for people, and has no secret.

    Attributes:
        findings: the likeliest first; empty where nothing wrong was found.
        request: method and URL, the values of its query left out.
        response: the status, and what the server says.
        notes: what isn't known, and why.
    """

    findings: tuple[Finding, ...]
    request: str
    response: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.lines(COLUMNS))

    def __bool__(self) -> bool:
        """Whether something wrong was found."""
        return bool(self.findings)

    def to_wire(self) -> dict[str, Any]:
        """It, for JSON."""
        return {
            "request": self.request,
            "response": self.response,
            "findings": [finding.to_wire() for finding in self.findings],
            "notes": list(self.notes),
        }

    def lines(self, columns: int) -> list[str]:
        """It, for a terminal; no word is broken, so that URLs and commands can be copied."""
        if not self.findings:
            return [*self._nothing(columns), *self._rest(columns)]
        first, *others = self.findings
        found = [*_wrapped(first.summary, columns), ""]
        for of, is_ in (("request", self.request), *first.evidence, ("answer", self.response)):
            found += _row(of, is_, columns)
        text, colon, command = first.mend.partition(f": {COMMAND}")
        found += ["", *_wrapped(f"What to do: {text}{':' if colon else ''}", columns, 2)]
        if colon:
            found += ["", *_command(f"{COMMAND}{command}", columns).splitlines()]
        shown = [other for other in others if other.is_shown]
        guessed = [other for other in others if not other.is_shown][:OTHERS]
        for title, listed in (("Wrong as well:", shown), ("Less likely, but possible:", guessed)):
            if listed:
                found += ["", title]
            for other in listed:
                found += _wrapped(f"- {other.summary}", columns, 2)
        return [*found, *self._rest(columns)]

    def _nothing(self, columns: int) -> list[str]:
        status = self.response.partition(" ")[0]
        said = (
            "Nothing wrong found."
            if status < "4"
            else "Nothing wrong found with DPoP: what the server refuses is another matter."
        )
        rows = (("request", self.request), ("answer", self.response))
        return [said, "", *(line for row in rows for line in _row(*row, columns))]

    def _rest(self, columns: int) -> Iterator[str]:
        if self.notes:
            yield ""
        for note in self.notes:
            yield from _wrapped(f"Not known: {note}", columns, 2)


def _row(of: str, is_: str, columns: int) -> list[str]:
    return _wrapped(f"  {of:{LABEL}}{is_}", columns, LABEL + 2)


def _command(command: str, columns: int) -> str:
    """A command that a shell takes as it is pasted, on several lines where it has to be."""
    if len(command) + 2 <= columns:
        return f"  {command}"
    return "  " + " \\\n    --".join(command.split(" --"))


def _wrapped(text: str, columns: int, indent: int = 0) -> list[str]:
    return wrap(
        text,
        columns,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
