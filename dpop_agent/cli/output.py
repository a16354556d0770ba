"""What people read: tables that fit the terminal, colours, times, and JSON for programs."""

from __future__ import annotations

import os
import re
import sys

from dpop_agent import durations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TextIO

    from dpop_agent.errors import DPoPAgentError

_GAP = "  "
_SHORTEST = 8
_NAME = 16

GOOD, NOTICE, BAD, HEAD = "32", "35", "1;31", "1"
"""Green, magenta, bold red and bold (ECMA-48, SGR): of the eight colours those that stand out from
black and from white alike in the palettes that terminals have. None says what no word says.
"""

# These patterns are compiled where they are first needed, which `proof` doesn't wait for.
_COLOUR = r"\x1b\[[0-9;]*m"

_PARTS = r"; (?![^(]*\))"
"""Between the parts of a sentence, but not in a command in parentheses."""

_WORDS = r" *(?:\([^)]{0,80}\)\S*|\S+)"
"""What stays on one line, with the blanks before it: a word, or what stands in parentheses."""

_COMMAND = (
    r"\b(?:dpop-agent|chmod|export|journalctl|kill|loginctl|mv|rm|sudo|systemctl|timedatectl|umask"
    r"|unset) "
)
"""Where a line has to stay one, so that it can be copied."""


def plain(text: object) -> str:
    """`text` on one line: a PKCS#11 token's label must not steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def shows_colours() -> bool:
    """Whether standard output is to have colours: on a terminal, unless its user wants none.

    NO_COLOR (no-color.org), then FORCE_COLOR and CLICOLOR_FORCE, then CLICOLOR; empty is unset.
    """
    asked = os.environ.get
    if asked("NO_COLOR"):
        return False
    if any(asked(name, "") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    if asked("FORCE_COLOR") == "0" or asked("CLICOLOR") == "0":
        return False
    return takes_escapes(sys.stdout)


def takes_escapes(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that has colours, and that can be written over."""
    at_a_terminal = stream is not None and stream.isatty()  # it is None where it was closed
    return at_a_terminal and os.environ.get("TERM", "dumb") != "dumb"


def paint(text: str, colour: str) -> str:
    """`text` in a colour, where there are any."""
    return f"\x1b[{colour}m{text}\x1b[m" if colour and text and shows_colours() else text


class Painted(str):
    """A cell of a table, with its colour."""

    colour: str

    def __new__(cls, text: object, colour: str = "") -> Painted:
        """`text` as it is."""
        found = super().__new__(cls, text)
        found.colour = colour
        return found


def columns(text: str) -> int:
    """How many columns of a terminal a text takes, its colours none."""
    if "\x1b" in text:
        text = re.sub(_COLOUR, "", text)
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0
        if unicodedata.category(c) in ("Mn", "Me")
        else 2
        if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )


def fold(text: str, indent: int, room: int | None = None) -> list[str]:
    """A text in lines as long as the terminal (or `room`) is wide, the further ones indented.

    No word is broken, so that it can be copied.
    """
    room = room or width()
    if room is None or columns(text) <= room:
        return [text]
    lines, line = [], ""
    for word in re.findall(_WORDS, text):
        if line.strip() and columns(line + word) > room:
            lines.append(line)
            line = " " * indent + word.lstrip()
        else:
            line += word
    return [*lines, line]


def facts(lines: Sequence[str], indent: int) -> list[str]:
    """Lines of a name and its value, in as many as the terminal needs; values begin at `indent`."""
    return [part for line in lines for part in fold(plain(line), indent)]


def sentence(
    text: str, indent: int = 2, *, first: str = "", colour: str = "", room: int | None = None
) -> list[str]:
    """What is wrong; what to do about it. In lines where one is too short, and then a command has
    its own.

    Args:
        text: the parts, between semicolons.
        indent: blanks before all but the first line.
        first: what stands before it.
        colour: of what stands before the first colon.
        room: the columns that one line may have, if not the terminal's.
    """
    text, room = first + plain(text), room or width()
    if room is None or columns(text) <= room:
        lines = [text]
    else:
        lines = []
        for part in re.split(_PARTS, text):
            line = part if not lines else " " * indent + part
            # What has a command is folded by the terminal, which copies it as one line.
            lines += [line] if re.search(_COMMAND, line) else fold(line, indent)
    label, colon, rest = lines[0].partition(": ")
    return [paint(label + colon, colour) + rest, *lines[1:]] if colon else lines


def folded(lines: Sequence[str]) -> list[str]:
    """Lines, each in as many as the terminal needs: but for commands, and for what has several
    lines already, which stay as they are.
    """
    if width() is None:
        return [*lines]
    found: list[str] = []
    for line in lines:
        stays = "\n" in line or re.search(_COMMAND, line)
        found += line.split("\n") if stays else fold(line, 2)
    return found


def show(lines: Sequence[str]) -> None:
    """Print lines as the terminal needs them."""
    print("\n".join(folded(lines)))


def report(error: DPoPAgentError, *, as_json: bool) -> None:
    """What went wrong, on one line of standard error, however narrow a terminal is: it is looked
    for, and pasted.
    """
    if as_json:
        import json

        line = json.dumps({"error": error.to_wire()})
    else:
        line = plain(f"dpop-agent: {error}")
    print(line, file=sys.stderr)


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


def fits(head: Sequence[str], rows: Sequence[Sequence[object]]) -> bool:
    """Whether a table needs neither cutting nor dropping."""
    room = width()
    return room is None or _taken([*zip(head, *_cells(rows), strict=True)]) <= room


def table(
    head: Sequence[str], rows: Sequence[Sequence[object]], *, drop: Sequence[str] = ()
) -> list[str]:
    """Aligned lines, one for the head and one for each row.

    Where the terminal is too narrow, a long name in the first column has a line of its own, in the
    same string.

    Args:
        head: the columns' names. The last column may be cut.
        rows: their cells; None is shown as a dash.
        drop: columns that go where the terminal is too narrow, the first of them first.
    """
    cells = [*zip([Painted(name, HEAD) for name in head], *_cells(rows), strict=True)]
    sizes = [max(map(columns, column)) for column in cells]
    room = width()
    if room is not None and _taken(cells) > room:
        longest = max(room // 3, _NAME)
        if len(head) > 1:
            sizes[0] = max(size for size in map(columns, cells[0]) if size <= longest)
        kept = list(range(len(head)))
        for name in filter(head.__contains__, drop):
            last = _SHORTEST if kept[-1] == len(head) - 1 else sizes[kept[-1]]
            if sum(sizes[i] + len(_GAP) for i in kept[:-1]) + last <= room:
                break
            kept.remove(head.index(name))
        cells, sizes = [cells[i] for i in kept], [sizes[i] for i in kept]
        sizes[-1] = max(_SHORTEST, room - sum(size + len(_GAP) for size in sizes[:-1]))
    return [_row(line, sizes, room) for line in zip(*cells, strict=True)]


def _cells(rows: Sequence[Sequence[object]]) -> list[list[Painted]]:
    return [
        [Painted("-" if c is None else plain(c), getattr(c, "colour", "")) for c in row]
        for row in rows
    ]


def _taken(cells: Sequence[Sequence[str]]) -> int:
    """The width of a line that has all of them."""
    return sum(max(map(columns, column)) + len(_GAP) for column in cells) - len(_GAP)


def _row(cells: Sequence[Painted], sizes: Sequence[int], room: int | None) -> str:
    first, *rest = cells
    before = ""
    if rest and room is not None and columns(first) > sizes[0]:
        before = f"{paint(first, first.colour)}\n"
        cells = [Painted(""), *rest]
    *full, last = zip(cells, sizes, strict=True)
    padded = [paint(c, c.colour) + " " * (size - columns(c)) for c, size in full]
    end, size = last
    return before + _GAP.join([*padded, paint(cut(end, size), end.colour)]).rstrip()


def cut(text: str, size: int) -> str:
    """A text of so many columns at the most."""
    if columns(text) <= size:
        return text
    while columns(text) > size - 1:
        text = text[: -max(1, (columns(text) - size) // 2)]
    return f"{text}…"


def many(number: object, what: str) -> str:
    """A number of things: `1 proof`, `2 proofs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def day(time: object) -> str | None:
    """The date of a time on the wire (RFC 3339, UTC); where we are, at a terminal."""
    found = minute(time)
    return found and found[:10]


def minute(time: object) -> str | None:
    """Date and minute of a time on the wire; where we are, at a terminal."""
    if not isinstance(time, str):
        return None
    if sys.stdout.isatty():
        from datetime import datetime

        try:
            return f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M %Z}"
        except (ValueError, OverflowError):
            pass
    return f"{time[:10]} {time[11:16]} UTC"


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

    return str(minute((datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()))


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
