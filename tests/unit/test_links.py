"""Links in the Markdown pages lead to files and headings that exist."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.markdown import CHECKOUT, anchors, each_page, links, pages, web_links


@each_page
def test_links_resolve(page: Path) -> None:
    broken = [link for link in links(page.read_text("utf-8")) if not _resolves(page, link)]
    assert broken == []


def _resolves(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(CHECKOUT):
        return False
    return not anchor or anchor in anchors(target.read_text("utf-8"))


@each_page
def test_links_to_elsewhere_have_the_right_form(page: Path) -> None:
    """They are not asked for: no test needs the network."""
    wrong = [link for link in web_links(page.read_text("utf-8")) if not is_web_link(link)]
    assert wrong == []


def is_web_link(link: str) -> bool:
    parts = urlsplit(link)
    host = parts.hostname or ""
    return (
        parts.scheme == "https"
        and re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", host) is not None
        and "//" not in parts.path
        and not link.endswith((".", ",", ";"))
    )


def test_web_links_are_found_and_judged() -> None:
    text = "[a](https://example.org/b) `[c](https://x)` [d](http://example.org) [e](f.md)\n"
    assert list(web_links(text)) == ["https://example.org/b", "http://example.org"]
    assert is_web_link("https://example.org/a_(b)?c=d#e")
    for link in ("http://example.org", "https://localhost/a", "https://example.org/a//b", "ftp:a"):
        assert not is_web_link(link)


def test_the_index_lists_every_page() -> None:
    index = CHECKOUT / "docs" / "README.md"
    listed = [(index.parent / link).resolve() for link in links(index.read_text("utf-8"))]
    assert len(listed) == len(set(listed))
    assert set(pages()) - set(listed) == {index}


def test_the_readme_links_to_the_index() -> None:
    assert "docs/README.md" in links((CHECKOUT / "README.md").read_text("utf-8"))


def test_anchors_are_those_of_github() -> None:
    text = "# A & B\n## `x_y`, Zürich\n```\n# no heading\n```\n## [a](b) c\n## A & B\n"
    assert anchors(text) == {"a--b", "x_y-zürich", "a-c", "a--b-1"}


def test_code_holds_no_links() -> None:
    text = "[a](b.md) `[c](d.md)` [web](https://example.org)\n```\n[e](f.md)\n```\n![g](h.svg)\n"
    assert list(links(text)) == ["b.md", "h.svg"]
