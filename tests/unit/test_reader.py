"""What counts as shown, where a document says what a command shows."""

from __future__ import annotations

import pytest

from tests.reader import is_shown

SHOWN = (
    "dpop-agent lock\r\nthe store soft is locked\r\nPIN of it: \r\njkt a-b (x@1)\r\n"
    "its key stays in slot 82, where nothing can\r\n  delete it\r\n[0]% "
)


@pytest.mark.parametrize(
    "expected",
    [
        "",
        "the store soft is locked\n",
        "the store … is locked\njkt … (x@1)",
        "PIN of it:\n",
        "its key stays in slot 82, where nothing can delete it",
        "its key stays in slot 82, … can delete it",
    ],
)
def test_whole_lines_in_their_order_are_shown(expected: str) -> None:
    assert is_shown(expected, SHOWN)


@pytest.mark.parametrize(
    "expected",
    [
        "the store soft is",
        "store soft is locked",
        "the store … is open",
        "jkt … (x@1)\nthe store soft is locked",
        "the store soft is locked\nthe store soft is locked",
        "jkt a.b (x@1)",
        "PIN of it: jkt a-b (x@1)",
    ],
)
def test_anything_else_isnt(expected: str) -> None:
    assert not is_shown(expected, SHOWN)
