"""The documents' code blocks, and which test runs each.

A test that runs blocks says which, and gets them from the fixture `blocks`, which gives no others:

    @pytest.mark.runs("docs/mcp.md", "What is signed")
    def test_…(blocks: list[Block]) -> None:

A block that no test runs says so on the line after its fence:

    *Not run by the tests: it wants a tenant.*

`tests/unit/test_documents.py` holds that each block has one of the two.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.processes import ROOT

PROSE = "text"
"""The language of what nobody types: a picture, a grammar, a part of a file."""

RUN_ELSEWHERE = {
    ("README.md", "js"): "clients/node/test/readme.test.js",
    ("clients/node/README.md", "js"): "clients/node/test/readme.test.js",
}
"""Documents and languages of which a test in another language runs all blocks, and its file."""

_NOT_RUN = re.compile(r"\*Not run by the tests: (\S.*)\.\*")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        document: its file, from the repository's root.
        heading: the nearest one above it, as written; empty below the title alone.
        line: of its fence.
        not_run: why no test runs it; None where one does.
    """

    document: str
    heading: str
    line: int
    language: str
    text: str
    not_run: str | None


class Runs(NamedTuple):
    """What a test says that it runs: the arguments of its marker `runs`.

    Attributes:
        heading: of the blocks below this one; None for all of the document.
        languages: blocks in these; without any, all.
        begins: blocks whose text begins so.
    """

    document: str
    heading: str | None = None
    languages: tuple[str, ...] = ()
    begins: str = ""

    def take(self, block: Block) -> bool:
        return (
            block.not_run is None
            and block.document == self.document
            and self.heading in (None, block.heading)
            and block.language in (self.languages or (block.language,))
            and block.text.startswith(self.begins)
        )

    def blocks(self) -> list[Block]:
        """In the document's order; at least one."""
        found = [block for block in blocks_of(self.document) if self.take(block)]
        assert found, f"{self} is no block"
        return found


def documents() -> list[str]:
    """All that the repository has for readers."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    found += [ROOT / "clients/node/README.md", ROOT / "dpop_agent/PROTOCOL.md"]
    found += [ROOT / "softhsm/README.md"]
    found += [ROOT / "tests" / part / "README.md" for part in ("exchanges", "kit")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


@functools.cache
def blocks_of(document: str) -> list[Block]:
    return list(blocks_in((ROOT / document).read_text("utf-8"), document))


def blocks_in(text: str, document: str = "") -> Iterator[Block]:
    """The fenced blocks of a text in Markdown.

    Raises:
        ValueError: code that isn't fenced, or has no language.
    """
    heading = ""
    tokens = parsed(text)
    for here, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag != "h1":
            heading = tokens[here + 1].content
        if token.type == "code_block":
            raise ValueError(f"{document}:{_line(token)}: code without a fence")
        if token.type != "fence":
            continue
        if not re.fullmatch(r"\w+", token.info):
            raise ValueError(f"{document}:{_line(token)}: a block without a language")
        yield Block(
            document, heading, _line(token), token.info, token.content, _reason(tokens[here + 1 :])
        )


def parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def _line(token: Token) -> int:
    assert token.map
    return token.map[0] + 1


def _reason(after: list[Token]) -> str | None:
    if [token.type for token in after[:2]] != ["paragraph_open", "inline"]:
        return None
    found = _NOT_RUN.match(" ".join(after[1].content.split()))
    return found[1] if found else None


def running_tests() -> dict[str, list[Runs]]:
    """What each test says that it runs; it gets nothing else, and gets all of it."""
    found: dict[str, list[Runs]] = {}
    for path in sorted(ROOT.glob("tests/**/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            runs = [
                _marked(decorator)
                for decorator in node.decorator_list
                if isinstance(decorator, ast.Call)
                and ast.unparse(decorator.func) == "pytest.mark.runs"
            ]
            if runs:
                name = f"{path.relative_to(ROOT)}::{node.name}"
                used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                assert "blocks" in used, f"{name} doesn't use the fixture blocks"
                found[name] = runs
    return found


def _marked(decorator: ast.Call) -> Runs:
    named = {k.arg: ast.literal_eval(k.value) for k in decorator.keywords if k.arg}
    return Runs(*map(ast.literal_eval, decorator.args), **named)


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command, and what it shows according to the document."""
    if block.language == "sh":
        for line in block.text.replace("\\\n", "").splitlines():
            yield line, ""
    else:
        for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
            line, _, shows = part.replace("\\\n", "").partition("\n")
            yield line, shows
