"""Every case that clients can make has its tests, and the table says what they reached."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench import bars
from tests.processes import ROOT
from tests.rows import ROW_OF, ROWS, Results

TREES = [ast.parse(file.read_text("utf-8")) for file in sorted(ROOT.glob("tests/**/test_*.py"))]


def called_with(name: str) -> set[object]:
    """The first arguments in all tests' calls of `name`, where those are constants."""
    return {
        node.args[0].value
        for tree in TREES
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == name
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def test_each_row_of_clients_has_a_test() -> None:
    assert list(ROWS) == [*range(1, 7), *range(16, 26)]
    assert called_with("pytest.mark.row") == set(ROWS)


def test_each_figure_is_of_one_row_and_recorded_by_a_test() -> None:
    assert len(ROW_OF) == sum(len(row.bars) for row in ROWS.values())
    assert called_with("reached") == ROW_OF.keys() - bars.BARS.keys()


def told(rows: list[int], *values: tuple[str, float], outcome: str = "passed") -> Any:
    """A test's report."""
    properties: list[tuple[str, object]] = [("row", number) for number in rows]
    properties += [("reached", list(value)) for value in values]
    return SimpleNamespace(
        nodeid="a test",
        when="call",
        outcome=outcome,
        passed=outcome == "passed",
        user_properties=properties,
    )


def all_kept() -> Results:
    results = Results()
    for number, row in ROWS.items():
        for bar in row.bars:
            value = bar.limit - 1 if bar.sign == "<" else bar.limit
            results.pytest_runtest_logreport(told([number], (bar.what, value)))
    return results


def test_all_rows_are_kept_where_all_figures_are() -> None:
    lines, kept = all_kept().table()
    assert kept
    assert not any("NOT KEPT" in line for line in lines)


@pytest.mark.parametrize("what", ROW_OF)
def test_a_row_is_not_kept_without_a_result_of_each_figure(what: str) -> None:
    results = all_kept()
    del results.values[what]
    lines, kept = results.table()
    assert not kept
    (line,) = [line for line in lines if "NOT KEPT" in line]
    assert "no result" in line
    assert line.endswith(what)


@pytest.mark.parametrize(
    "bar", [bar for row in ROWS.values() for bar in row.bars if bar.what not in bars.BARS]
)
def test_a_row_is_not_kept_by_one_figure_that_misses_its_bar(bar: Any) -> None:
    results = all_kept()
    miss = bar.limit - 1 if bar.sign == "≥" else bar.limit + 1
    results.pytest_runtest_logreport(told([ROW_OF[bar.what]], (bar.what, miss)))
    lines, kept = results.table()
    assert not kept
    (line,) = [line for line in lines if "NOT KEPT" in line]
    assert line.endswith(bar.what)


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_a_test_that_failed_or_was_skipped_is_no_result(outcome: str) -> None:
    results = all_kept()
    results.pytest_runtest_logreport(told([3], outcome=outcome))
    lines, kept = results.table()
    assert not kept
    assert [line.split() for line in lines if "NOT KEPT" in line] == [
        ["NOT", "KEPT", "a", "test", outcome]
    ]


def test_what_a_test_of_no_row_reached_counts_for_none() -> None:
    results = Results()
    results.pytest_runtest_logreport(told([], ("malformed lines in process", 2_000_000)))
    assert results.values == {}
