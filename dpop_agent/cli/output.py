"""What people read: tables that fit the terminal, times, and JSON for programs."""

from __future__ import annotations

import os
import sys

from dpop_agent import durations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from dpop_agent.client import Touch
    from dpop_agent.errors import DPoPAgentError

_GAP = "  "
_SHORTEST = 8


def plain(text: object) -> str:
    """`text` on one line: a PKCS#11 token's label must not steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def report(error: DPoPAgentError, *, as_json: bool) -> None:
    """What went wrong, on one line of standard error."""
    if as_json:
        import json

        line = json.dumps({"error": error.to_wire()})
    else:
        line = plain(f"dpop-agent: {error}")
    print(line, file=sys.stderr)


_said: set[str] = set()


def say_touch(touch: Touch) -> None:
    """Ask for a touch, on standard error: standard output may be a proof and nothing else.

    A consent is announced when it begins to wait and when its turn comes, and said once.
    """
    if touch.consent:
        if touch.key in _said:
            return
        _said.add(touch.key)
    if sys.stderr is not None:  # closed, print would take standard output
        print(plain(touch), file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object, indented where a person watches."""
    import json

    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def width() -> int | None:
    """The terminal's columns; None where there is none, so that nothing is cut for a program."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def table(
    head: Sequence[str], rows: Sequence[Sequence[object]], *, drop: Sequence[str] = ()
) -> list[str]:
    """Aligned lines.

    Args:
        head: the columns' names. The last column may be cut.
        rows: their cells; None is shown as a dash.
        drop: columns that go where the terminal is too narrow, the first of them first.
    """
    columns = [
        [name, *("-" if row[i] is None else plain(row[i]) for row in rows)]
        for i, name in enumerate(head)
    ]
    room = width()
    if room is not None:
        gone = iter(drop)
        while _taken(columns) > room and (name := next(gone, None)) is not None:
            columns = [column for column in columns if column[0] != name]
        last = columns[-1]
        size = max(_SHORTEST, room - _taken(columns) + _SHORTEST)
        last[:] = [cut(cell, size) for cell in last]
    sizes = [max(map(len, column)) for column in columns]
    return [
        _GAP.join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip()
        for line in zip(*columns, strict=True)
    ]


def _taken(columns: list[list[str]]) -> int:
    """The least width of a line: the last column counts as short as it may be cut."""
    return sum(max(map(len, c)) + len(_GAP) for c in columns[:-1]) + _SHORTEST


def cut(text: str, size: int) -> str:
    """A text of so many characters at the most."""
    return text if len(text) <= size else text[: size - 1] + "…"


def many(number: object, what: str) -> str:
    """A number of things: `1 proof`, `2 proofs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def day(time: object) -> str | None:
    """The date of a time on the wire (RFC 3339, UTC)."""
    return time[:10] if isinstance(time, str) else None


def minute(time: object) -> str | None:
    """Date and minute of a time on the wire."""
    return f"{time[:10]} {time[11:16]} UTC" if isinstance(time, str) else None


def span(seconds: object) -> str | None:
    """A duration in its largest unit: `90` is `90 s`, `200` is `3 min`."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return None
    for unit, name, until in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172800)):
        if abs(seconds) < until:
            return f"{int(seconds / unit)} {name}"
    return f"{int(seconds / 86400)} d"


def duration(seconds: object) -> str:
    """A duration as people type it: `604800` is `7d`."""
    return durations.text(seconds) if isinstance(seconds, int) else "-"


def after(seconds: int) -> str:
    """When that many seconds from now will have passed: date and minute."""
    from datetime import UTC, datetime, timedelta

    return f"{datetime.now(UTC) + timedelta(seconds=seconds):%Y-%m-%d %H:%M} UTC"


def since(time: object) -> str | None:
    """How long ago a time on the wire was."""
    from datetime import UTC, datetime

    if not isinstance(time, str):
        return None
    try:
        then = datetime.fromisoformat(time)
        seconds = (datetime.now(UTC) - then).total_seconds()
    except (ValueError, TypeError):
        return plain(time)
    return f"{span(max(0, seconds))} ago"
