"""What was found of one thing: fine, or what is wrong with it and what mends that."""

from __future__ import annotations

from typing import NamedTuple

from dpop_agent.cli import output
from dpop_agent.errors import DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

OK, WARNING, WRONG = "ok", "warning", "wrong"
"""Levels: fine; worth knowing, or a person's to do; what keeps it from working."""

COLUMNS = 80
"""Where nobody says how wide the terminal is."""

_INDENT = 9

_COLOURS = {OK: output.GOOD, WARNING: output.NOTICE, WRONG: output.BAD}


class Finding(NamedTuple):
    """What was found of one thing.

    Attributes:
        check: what was looked at: `state folder`, or `stores.work`.
        level: OK, WARNING or WRONG.
        what: what it is, or what is wrong with it; no secret in it.
        mend: what to do about it; empty where it is fine.
    """

    check: str
    level: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.what}" + (f"; {self.mend}" if self.mend else "")

    @property
    def lines(self) -> list[str]:
        """It, for a terminal: no word is broken, so that commands can be copied."""
        text = output.plain(f"{self.level:{_INDENT}}{self.check}: {self.what}")
        own = output.fold(text, _INDENT, output.width() or COLUMNS)
        own[0] = output.paint(self.level, _COLOURS[self.level]) + own[0][len(self.level) :]
        if not self.mend:
            return own
        first = f"{' ' * _INDENT}mend: "
        return own + output.sentence(
            self.mend, len(first), first=first, room=output.width() or COLUMNS
        )


def of_error(check: str, error: DPoPAgentError, more: str = "") -> Finding:
    """What an error says, with `more` to do about it."""
    return Finding(check, WRONG, error.message, "; ".join(filter(None, (error.hint, more))))


def problems(check: str, call: Callable[[], None]) -> list[Finding]:
    """What a check raises; nothing where there is nothing yet: it is told elsewhere, or made when
    it is needed.
    """
    try:
        call()
    except FileNotFoundError:
        pass
    except OSError as e:
        return [Finding(check, WRONG, f"{e.filename}: {e.strerror}", "correct that")]
    except DPoPAgentError as e:
        return [of_error(check, e)]
    return []
