"""The pages on single servers, docs/providers/: each has the same headings and facts.

`python -m tests.provider_pages` puts the facts into the tables of their index.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.processes import ROOT

FOLDER = ROOT / "docs" / "providers"
INDEX = FOLDER / "index.md"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path != INDEX)

DEMANDS = "What it demands"
HEADINGS = (
    DEMANDS,
    "Set it up there",
    "With dpop-agent",
    "Traps",
    "Rotation and refresh",
    "Sources",
)
FACTS = (
    "Algorithms",
    "Nonces",
    "`iat`",
    "`htu`",
    "What is bound",
    "`dpop_jkt`",
    "PAR",
    "Refresh with another key",
    "Its errors",
)
HERE = ("Run here", "Run once", "Only read")
"""How much of a page was run; the page begins with one of these, and the index says it again."""


class Page(NamedTuple):
    """A page's parts.

    Attributes:
        title: as the index names it.
        here: one of HERE; empty where it says none of them.
        sections: what is below each heading.
        facts: the table below DEMANDS.
    """

    title: str
    here: str
    sections: dict[str, str]
    facts: dict[str, str]


def page(path: Path) -> Page:
    head, *rest = re.split(r"^## ", path.read_text("utf-8"), flags=re.M)
    sections = dict(text.split("\n", 1) for text in rest)
    title, _, begins = head.partition("\n\n")
    here = re.match(r"\*\*([^*]+)\*\*", begins)
    return Page(
        title.removeprefix("# "),
        here[1] if here else "",
        sections,
        {row[0]: row[1] for row in rows(sections.get(DEMANDS, ""))},
    )


def rows(text: str) -> list[list[str]]:
    """A table's cells, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def glance(text: str) -> list[list[str]]:
    """What a table of the index should have, page by page, by the columns that it names."""
    head = next(line for line in text.splitlines() if line.startswith("|"))
    columns = [cell.strip() for cell in head.strip("|").split("|")][1:]
    found = [(path.name, page(path)) for path in PAGES]
    return [
        [f"[{p.title}]({name})", *(p.here if c == "Here" else p.facts[c] for c in columns)]
        for name, p in sorted(found, key=lambda each: each[1].title.lower())
    ]


def write() -> None:
    """Put the pages' facts into the index's tables."""
    parts = re.split(r"^(?=## )", INDEX.read_text("utf-8"), flags=re.M)
    for number, part in enumerate(parts):
        if part.startswith("## At a glance"):
            lines = part.splitlines()
            first = next(n for n, line in enumerate(lines) if line.startswith("|"))
            made = [f"| {' | '.join(cells)} |" for cells in glance(part)]
            parts[number] = "\n".join([*lines[: first + 2], *made, "", ""])
    INDEX.write_text("".join(parts), "utf-8")


if __name__ == "__main__":
    write()
