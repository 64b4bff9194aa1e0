"""The site of the documentation: all pages are on it, and it needs nothing from elsewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import redisagg
from tests.support.builds import build_once, run_folder
from tests.support.markdown import CHECKOUT, code_blocks, pages

SITE: dict[str, Any] = runpy.run_path(str(CHECKOUT / "scripts" / "build_site.py"))


def places(nav: list[dict[str, Any]]) -> list[str]:
    found = []
    for entry in nav:
        for value in entry.values():
            found += [value] if isinstance(value, str) else places(value)
    return found


def test_each_page_is_in_the_navigation_once() -> None:
    found = places(SITE["navigation"]())
    assert len(found) == len(set(found))
    assert {SITE["place_of"](page) for page in pages()} <= set(found)
    assert [place for place in found if place.startswith("source/")] == []


def test_the_reference_has_all_names_of_the_package() -> None:
    names = SITE["public_names"]("redisagg")
    assert set(names) == set(redisagg.__all__)
    for module in SITE["modules"]():
        assert SITE["public_names"](module), module


def test_the_reference_has_all_modules_that_pages_import_from() -> None:
    imported = {
        module
        for page in pages()
        for block in code_blocks(page.read_text("utf-8"), "python")
        for module in re.findall(r"^from (redisagg(?:\.\w+)*) import", block, re.MULTILINE)
    }
    assert "redisagg.sinks" in imported
    assert imported <= set(SITE["modules"]())


def test_links_become_those_of_the_site(tmp_path: Path) -> None:
    SITE["Site"](tmp_path).write()
    home = (tmp_path / "index.md").read_text("utf-8")
    assert "](tutorial.md)" in home
    assert "](overview.svg)" in home
    assert "<!--" not in home
    concepts = (tmp_path / "concepts.md").read_text("utf-8")
    assert "](project/architecture.md)" in concepts
    asynq = (tmp_path / "asynq.md").read_text("utf-8")
    assert "](source/tests/sinks/producer_go/main.go.md)" in asynq
    assert "package main" in (tmp_path / "source/tests/sinks/producer_go/main.go.md").read_text()
    sinks = (tmp_path / "sinks" / "README.md").read_text("utf-8")
    assert "](../asynq.md)" in sinks


def test_lists_begin_after_an_empty_line() -> None:
    """The site needs it, GitHub does not."""
    wrong = []
    for page in pages():
        fenced, before = False, ""
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            item = re.match(r"(?:[-*]|\d+\.) ", line)
            if item and not fenced and before and not re.match(r"[-*#]|\d+\.| ", before):
                wrong.append(f"{page.relative_to(CHECKOUT)}:{number}")
            before = line
    assert wrong == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; the build fails at each link that leads nowhere."""
    folder = run_folder(tmp_path_factory) / "site"

    def build(into: Path) -> None:
        into.mkdir()
        SITE["build"](into)

    return build_once(folder, build) / "site"


@pytest.mark.slow
def test_the_site_has_all_pages(site: Path) -> None:
    for place in places(SITE["navigation"]()):
        name = place.removesuffix(".md").replace("README", "index")
        assert (site / f"{name}.html").stat().st_size > 5_000


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = []
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        loaded += re.findall(r"<(?:script|img|iframe|source)[^>]+(?:https?:)?//[^>]*>", text)
        loaded += re.findall(r"<link[^>]+rel=\"?(?!canonical)[^>]*https?://[^>]*>", text)
    for sheet in site.rglob("*.css"):
        loaded += re.findall(
            r"(?:url\(|@import )[\"']?(?:https?:)?//[^)]*", sheet.read_text("utf-8")
        )
    assert loaded == []


@pytest.mark.slow
def test_no_page_has_what_a_script_would_load_from_elsewhere(site: Path) -> None:
    drawn = [page for page in site.rglob("*.html") if "mermaid" in page.read_text("utf-8")]
    assert drawn == []


@pytest.mark.slow
def test_the_reference_is_made_of_the_docstrings(site: Path) -> None:
    text = (site / "reference" / "redisagg.html").read_text("utf-8")
    for name in ("Aggregator.add_task", "AsyncAggregator.submit", "Task", "App.batched"):
        assert f'id="redisagg.{name}"' in text
    assert "Adds a task to its group; returns when Redis has stored it." in text
