"""What a terminal is shown: colours where they are wanted, and nothing that steers it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dpop_agent.cli import audit, output
from dpop_agent.cli.checks.finding import WRONG, Finding
from dpop_agent.cli.listing import details, table
from dpop_agent.cli.status import lines
from tests.unit.test_cli_agent import generation, key

HOSTILE = "\x1b[31mred\x1b]0;title\x07 \x9b2J\r\n\u202eevil\x1b[m"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize(
    ("env", "at_a_terminal", "wanted"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": None}, True, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": "0"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": ""}, False, False),
        ({"CLICOLOR_FORCE": "1"}, False, True),
        ({"CLICOLOR_FORCE": "0"}, False, False),
        ({"CLICOLOR_FORCE": "0"}, True, True),
        ({"CLICOLOR": "0"}, True, False),
        ({"CLICOLOR": "1"}, False, False),
    ],
)
def test_colours_are_shown_where_terminal_and_user_want_them(
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str | None],
    at_a_terminal: bool,
    wanted: bool,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: at_a_terminal)
    for name, value in ({"TERM": "xterm"} | env).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert output.shows_colours() is wanted
    assert output.paint("a", output.BAD) == ("\x1b[1;31ma\x1b[m" if wanted else "a")


def status() -> dict[str, Any]:
    store = {"store": HOSTILE, "state": "failed", "reason": HOSTILE, "hint": HOSTILE}
    unknown = [{"ref": "ab", "label": HOSTILE}]
    return {
        "agent": HOSTILE,
        "pid": 1,
        "started": HOSTILE,
        "proofs": HOSTILE,
        "config": HOSTILE,
        "ledger": HOSTILE,
        "connections": 1,
        "audit": {"mode": "on", "folder": HOSTILE, "failing": HOSTILE, "lost": 1},
        "sockets": [HOSTILE],
        "leases": [{"name": HOSTILE, "left_s": 1, "waiting": 1}],
        "stores": [store, store | {"label": HOSTILE, "serial": HOSTILE, "unknown": unknown}],
        "rotations_due": [HOSTILE],
        "destroyed": [HOSTILE],
        "origins": [{"origin": HOSTILE, "nonce_age_s": 1, "clock_offset_s": 400}],
    }


ENTRY = {
    "time": "2026-11-26T15:00:00Z",
    "socket": HOSTILE,
    "peer": {"uid": 0, "pid": 1, "program": HOSTILE},
    "key": HOSTILE,
    "method": "proof",
    "htm": HOSTILE,
    "origin": HOSTILE,
    "outcome": HOSTILE,
}


@pytest.mark.parametrize("width", [None, 80, 30])
def test_no_text_of_others_brings_an_escape_along(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int | None
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(output, "width", lambda: width)
    hostile = key(generation(slot=HOSTILE, touch=HOSTILE, state=HOSTILE), name=HOSTILE)
    output.show(lines(status(), HOSTILE))
    output.show(table([hostile]) + details(hostile))
    output.show(Finding(HOSTILE, WRONG, HOSTILE, f"{HOSTILE}; dpop-agent {HOSTILE}").lines)
    audit._Table().show([ENTRY, ENTRY | {"time": HOSTILE}, ENTRY | {"outcome": "done"}])
    shown = capsys.readouterr().out
    assert "evil" in shown
    painted = set(COLOUR.findall(shown))
    assert painted <= {f"\x1b[{c}m" for c in ("", output.GOOD, output.NOTICE, output.BAD, "1")}
    assert all(c.isprintable() or c == "\n" for c in COLOUR.sub("", shown))
    assert shown.count("\x1b[m") * 2 == shown.count("\x1b")


def test_wide_and_combining_characters_align(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*map(output.columns, ("ab", "山田", "e\u0301", "\x1b[1mab\x1b[m"))] == [2, 4, 1, 2]
    rows = [("山田", "x", "1"), ("e\u0301e", "y", "2"), ("abcd", "z", "3")]
    for width in (None, 80):
        monkeypatch.setattr(output, "width", lambda: width)  # noqa: B023  (read at once)
        lines = output.table(("A", "B", "C"), rows)
        assert {
            output.columns(line.partition(mark)[0])
            for line, mark in zip(lines, "Bxyz", strict=True)
        } == {6}
    assert output.cut("山田太郎", 5) == "山田…"
    assert output.columns(output.cut("山田太郎", 6)) <= 6


def test_colours_take_no_columns_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", output.Painted("active", output.GOOD), "x"), ("b", "off", "y" * 90)]
    monkeypatch.setattr(output, "width", lambda: 40)
    bare = output.table(("K", "STATE", "L"), rows)
    monkeypatch.setenv("FORCE_COLOR", "1")
    painted = output.table(("K", "STATE", "L"), rows)
    assert painted != bare
    assert [COLOUR.sub("", line) for line in painted] == bare
    assert max(map(len, bare)) == 40


def test_a_sentence_is_one_line_in_a_pipe_and_its_command_one_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = f"dpop-agent unlock {'store-' * 12}"
    text = f"work: {'word ' * 20}end; {command}; then look again"
    assert output.sentence(text) == [text]
    monkeypatch.setattr(output, "width", lambda: 60)
    *prose, last, end = output.sentence(text)
    assert (last, end) == (f"  {command}", "  then look again")
    assert " ".join(map(str.strip, prose)) == text.partition(";")[0]
    assert max(map(len, prose)) <= 60


def test_parentheses_stay_on_one_line() -> None:
    folded = output.fold(f"{'word ' * 9}(umask 077; cat > file) end", 2, 60)
    assert folded == ["word " * 8 + "word", "  (umask 077; cat > file) end"]
    open_ones = "(" * 50_000  # in a time that doesn't grow with the square of them
    assert output.fold(open_ones + " a", 2, 60) == [open_ones, "  a"]


def test_what_has_several_lines_is_shown_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "width", lambda: 30)
    script = f"#!/bin/sh\necho {'word ' * 20}"
    command = f"to adopt one: dpop-agent key adopt {'word ' * 9}"
    output.show([script, command, "word " * 9])
    assert capsys.readouterr().out.startswith(
        f"{script}\n{command}\nword word word word word word\n"
    )
