"""The man page that is committed."""

from __future__ import annotations

from tests.manpage import PAGE, page


def test_the_man_page_is_what_the_parser_gives() -> None:
    assert PAGE.read_text() == page(), "write it anew with: python -m tests.manpage"
