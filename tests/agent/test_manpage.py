"""The man page, as `man` shows it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from dpop_agent.cli import main
from dpop_agent.cli.arguments import Parser
from tests.emulators import file_of, need
from tests.manpage import PAGE, SECTIONS

WIDTH = 80


@pytest.fixture(scope="module")
def shown() -> str:
    need("man-db")
    done = subprocess.run(
        [file_of("man-db"), "--warnings", "--local-file", PAGE],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": str(WIDTH), "MANPAGER": "cat"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return re.sub(".\b|\x1b\\[[0-9;]*m", "", done.stdout)


def verbs(parser: Parser, name: str) -> Iterator[tuple[str, Parser]]:
    """Each verb that has none below it, as it is typed."""
    if parser.verbs is None:
        yield name, parser
    else:
        for verb, below in parser.verbs.choices.items():
            yield from verbs(below, f"{name} {verb}")


def test_man_shows_the_page_in_80_columns_without_a_warning(shown: str) -> None:
    assert max(map(len, shown.splitlines())) <= WIDTH
    headings = re.findall(r"^[A-Z][A-Z ]+$", shown, re.M)
    assert headings == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "VERBS", "OPTIONS"),
        *(heading.upper() for heading in SECTIONS if heading != "synopsis"),
    ]


def test_each_verb_and_option_is_in_the_man_page_with_all_its_help(shown: str) -> None:
    words = " ".join(shown.split())
    of_verbs = dict(verbs(main.whole(Parser, main._VERBS), "dpop-agent"))
    assert len(of_verbs) > 40
    for name, parser in of_verbs.items():
        section = re.search(rf"^   {name}$.*?(?=^   dpop-agent |^[A-Z])", shown, re.M | re.S)
        assert section, name
        told = " ".join(section[0].split())
        assert " ".join((parser.description or "").split()) in words
        for action in parser._actions:
            if "--help" in action.option_strings:
                continue
            for option in action.option_strings or [str(action.metavar)]:
                assert option in told
            assert " ".join((action.help or "").replace("%%", "%").split()) in told
