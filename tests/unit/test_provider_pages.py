"""The pages on single servers have the same parts, and the index says what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.provider_pages import (
    DEMANDS,
    FACTS,
    FOLDER,
    HEADINGS,
    HERE,
    INDEX,
    PAGES,
    glance,
    page,
    rows,
)

EACH = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
LONG = 90
"""Characters of a fact: what is longer belongs into the text, or the index can't be read."""


def test_there_is_a_page_for_each_server_that_we_speak_of() -> None:
    assert {path.stem for path in PAGES} == {
        "auth0",
        "better-auth",
        "bluesky",
        "entra-id",
        "fapi-2",
        "keycloak",
        "mcp",
        "oidc-provider",
        "okta",
        "spring-security",
    }


@EACH
def test_each_page_has_the_same_headings_and_says_first_how_much_was_run(path: Path) -> None:
    found = page(path)
    assert tuple(found.sections) == HEADINGS
    assert found.here in HERE


@EACH
def test_each_page_says_all_that_can_be_demanded_in_a_few_words(path: Path) -> None:
    found = page(path)
    assert [name for name, _ in rows(found.sections[DEMANDS])] == list(FACTS)
    for name, fact in found.facts.items():
        assert 0 < len(fact) <= LONG, name


@EACH
def test_each_page_says_where_it_has_that_from_and_when(path: Path) -> None:
    sources = [s for s in page(path).sections["Sources"].splitlines() if s.startswith("- ")]
    assert sources
    dated = [source for source in sources if re.search(r"\b20\d\d\b", source)]
    assert len(dated) >= len(sources) - 1, "one may stand for what has no date"
    if page(path).here == "Only read":
        assert not any(source.startswith("- Run") for source in sources)
    else:
        assert any(source.startswith("- Run") for source in sources)


@EACH
def test_each_trap_has_words_and_what_they_mean(path: Path) -> None:
    traps = rows(page(path).sections["Traps"])
    assert len(traps) >= 3
    assert {len(trap) for trap in traps} == {2}


def test_the_index_says_of_each_server_what_its_page_says() -> None:
    tables = [t for t in re.split(r"^## ", INDEX.read_text(), flags=re.M) if t.startswith("At a")]
    shown = " ".join(next(line for line in t.splitlines() if line[0:1] == "|") for t in tables)
    for name in (*FACTS, "Here"):
        assert f"| {name} |" in shown
    for table in tables:
        assert rows(table) == glance(table), "python -m tests.provider_pages writes it anew"


ON_FILE = ROOT / "tests" / "exchanges"
FOLDERS = {
    "auth0": ("auth0-express", "auth0-fastapi"),
    "better-auth": ("better-auth",),
    "bluesky": ("bluesky",),
    "keycloak": ("keycloak",),
    "oidc-provider": ("oidc-provider",),
    "okta": ("okta",),
    "spring-security": ("spring",),
}
"""The pages on servers whose words are on file, and where."""


@pytest.mark.parametrize("name", FOLDERS)
def test_what_a_page_has_a_server_say_is_on_file_or_was_read(name: str) -> None:
    files = [path for folder in FOLDERS[name] for path in (ON_FILE / folder).glob("*.txt")]
    said = "\n".join(path.read_text("utf-8").replace("\\", "") for path in files)
    quoted = [
        words.strip("… ")
        for trap, _ in rows(page(FOLDER / f"{name}.md").sections["Traps"])
        for words in re.findall(r'(?:^|, )"(.+)"(?! \(read\))', trap)
    ]
    assert quoted
    assert [words for words in quoted if words not in said] == []
