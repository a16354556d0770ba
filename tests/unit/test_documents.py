"""Each code block of the documents is run by a test, or says that it isn't."""

from __future__ import annotations

import re

import pytest

from tests import documents
from tests.documents import Block, Runs, blocks_in, blocks_of
from tests.processes import ROOT

DOCUMENTS = documents.documents()
RUNNING = documents.running_tests()

TYPED = re.compile(r"^\$ |^(?:softhsm/run|tests/run|dpop-agent|curl|pip|export) ", re.M)


def test_a_block_is_known_by_its_document_and_heading() -> None:
    text = "# A\n\n```sh\na\n```\n\n## B `c`\n\n- in a list\n\n  ```toml\n  b = 1\n  ```\n"
    assert list(blocks_in(text, "a.md")) == [
        Block("a.md", "", 3, "sh", "a\n", None),
        Block("a.md", "B `c`", 11, "toml", "b = 1\n", None),
    ]


@pytest.mark.parametrize("between", ["", "\n"])
def test_a_block_may_say_why_no_test_runs_it(between: str) -> None:
    text = f"```sh\na\n```\n{between}*Not run by the tests: it wants a\ntenant.*\n"
    assert [block.not_run for block in blocks_in(text)] == ["it wants a tenant"]


@pytest.mark.parametrize(
    "after", ["", "*Not run by the tests.*", "*Not run by the tests: .*", "Then:\n\n*Not run …*"]
)
def test_without_a_reason_it_is_to_be_run(after: str) -> None:
    assert [block.not_run for block in blocks_in(f"```sh\na\n```\n{after}\n")] == [None]


@pytest.mark.parametrize("text", ["```\na\n```\n", "A\n\n    dpop-agent status\n", "~~~\na\n~~~\n"])
def test_code_has_a_fence_and_a_language(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a\.md:\d: "):
        list(blocks_in(text, "a.md"))


def test_a_marker_takes_what_it_names_and_no_block_that_isnt_run() -> None:
    with pytest.raises(AssertionError, match="is no block"):
        Runs("README.md", "No such heading").blocks()
    block = Block("a.md", "B", 1, "sh", "dpop-agent status\n", None)
    assert Runs("a.md").take(block)
    assert Runs("a.md", "B", languages=("sh",), begins="dpop-agent").take(block)
    for other in (
        Runs("b.md"),
        Runs("a.md", ""),
        Runs("a.md", languages=("console",)),
        Runs("a.md", begins="softhsm"),
    ):
        assert not other.take(block)
    assert not Runs("a.md").take(block._replace(not_run="it wants a tenant"))


def test_what_each_test_says_that_it_runs_is_there() -> None:
    assert RUNNING
    for runs in RUNNING.values():
        for each in runs:
            assert each.blocks()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_block_is_run_by_a_test_or_says_why_not(document: str) -> None:
    runs = [each for of_test in RUNNING.values() for each in of_test]
    for block in blocks_of(document):
        if block.language == documents.PROSE:
            assert not TYPED.search(block.text), f"{document}:{block.line} has commands"
        elif (document, block.language) not in documents.RUN_ELSEWHERE:
            run = any(each.take(block) for each in runs)
            assert run or block.not_run, f"{document}:{block.line} ({block.heading}) isn't run"


@pytest.mark.parametrize(("place", "test"), documents.RUN_ELSEWHERE.items())
def test_a_test_in_another_language_reads_its_document(place: tuple[str, str], test: str) -> None:
    document, language = place
    assert any(block.language == language for block in blocks_of(document))
    assert f"read('{document}')" in (ROOT / test).read_text("utf-8")
