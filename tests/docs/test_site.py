"""The documents as a site: built without a warning, whole, and nobody else's."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from bs4 import BeautifulSoup

from tests.documents import documents
from tests.processes import ROOT

PAGES = [name.removesuffix(".md") + ".html" for name in documents()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    made = build(ROOT, folder)
    assert (made.returncode, made.stderr) == (0, "")
    return folder


def build(sources: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    options = ("-q", "-W", "--keep-going", "-n", "-E", "-d", f"{folder}.trees")
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "-c", ROOT / "docs", sources, folder],
        capture_output=True,
        text=True,
        check=False,
    )


@functools.cache
def page(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def pages(site: Path) -> Iterator[tuple[Path, BeautifulSoup]]:
    for path in sorted(site.rglob("*.html")):
        yield path, page(path)


def leads_to(path: Path, link: str) -> Path:
    to = unquote(urlsplit(link).path)
    return (path.parent / to).resolve() if to else path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a](b.md)", "b.md"),
        ("[a](../NO.md)", "../NO.md"),
        ("[a](#b)", "not found: 'b'"),
        ("[a](index.md#b)", "local id not found in doc 'docs/index': 'b'"),
        ("![a](b.svg)", "b.svg"),
    ],
)
def test_what_leads_nowhere_fails_the_build(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "docs").mkdir()
    index = tmp_path / "docs" / "index.md"
    index.write_text("# A\n\nSound.\n")
    assert build(tmp_path, tmp_path / "made").returncode == 0
    index.write_text(f"# A\n\n{text}\n")
    made = build(tmp_path, tmp_path / "made")
    assert made.returncode != 0
    assert said in made.stderr


def test_every_document_has_its_place_in_the_navigation(site: Path) -> None:
    index = site / "docs" / "index.html"
    links = page(index).select(".sidebar-tree a[href]")
    found = {leads_to(index, str(a["href"])) for a in links if a["href"] != "#"} | {index}
    assert found == {site / name for name in PAGES}


def test_the_first_page_of_the_site_leads_to_the_documents(site: Path) -> None:
    (link,) = page(site / "index.html").select("a[href]")
    assert (site / str(link["href"])).exists()


def test_no_link_within_the_site_leads_nowhere(site: Path) -> None:
    seen = 0
    for path, content in pages(site):
        for a in content.select("a[href]"):
            link = str(a["href"])
            if urlsplit(link).scheme:
                assert urlsplit(link).scheme == "https", f"{path}: {link}"
                continue
            to, anchor = leads_to(path, link), unquote(urldefrag(link).fragment)
            assert to.exists(), f"{path}: {link}"
            if anchor and to.suffix == ".html":
                assert page(to).find(id=anchor), f"{path}: {link}"
            seen += 1
    assert seen > 10 * len(PAGES)


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for path, content in pages(site):
        loaded = [str(e["src"]) for e in content.select("[src]")]
        loaded += [str(e["href"]) for e in content.select("link[href], image[href], use[href]")]
        for link in loaded:
            parts = urlsplit(link)
            assert not parts.netloc, f"{path}: {link}"
            assert parts.scheme in ("", "data"), f"{path}: {link}"
            assert parts.scheme or leads_to(path, link).exists(), f"{path}: {link}"
    for style in site.rglob("*.css"):
        text = style.read_text("utf-8")
        assert not re.search(r"(?:url\(|@import)\s*[\"']?\s*(?:https?:)?//", text), style


@pytest.mark.parametrize("language", ["sh", "console", "python", "toml", "js"])
def test_code_is_highlighted(site: Path, language: str) -> None:
    found = [
        block for _, content in pages(site) for block in content.select(f".highlight-{language}")
    ]
    assert found
    assert any(block.select("pre span[class]") for block in found)
