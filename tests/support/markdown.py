"""The Markdown pages of the project: their tables, code blocks, links and anchors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SCHEME = re.compile(r"[a-z]+:")
_CODE_SPAN = re.compile(r"`[^`\n]*`")
_CELL = re.compile(r"(?<!\\)\|")


def pages() -> list[Path]:
    """All pages at the top of the checkout and in its folders of documentation."""
    folders = ("docs", "lua", "examples", "benchmarks", "deploy")
    found = [*CHECKOUT.glob("*.md")]
    for folder in folders:
        found += (CHECKOUT / folder).rglob("*.md")
    return sorted(found)


each_page = pytest.mark.parametrize(
    "page", pages(), ids=lambda page: str(page.relative_to(CHECKOUT))
)
"""Runs a test once for each page."""


def read(name: str) -> str:
    """The text of a page, by its path in the checkout."""
    return (CHECKOUT / name).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next heading of any level.

    Raises:
        LookupError: there is no such heading, or there are several.
    """
    bodies = re.findall(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL
    )
    if len(bodies) != 1:
        raise LookupError(f"{len(bodies)} headings {heading!r}")
    return str(bodies[0])


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows in a text, without header rows and rules."""
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if not line.startswith("|") or _is_rule(line) or _is_rule(following):
            continue
        found.append([cell.strip() for cell in _CELL.split(line)[1:-1]])
    return found


def _is_rule(line: str) -> bool:
    return line.startswith("|") and set(line) <= set("|-: ")


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [block for name, block in _FENCE.findall(text) if name == language]


def links(text: str) -> Iterator[str]:
    """The targets of all links and images outside code, without web addresses."""
    return (target for target in _targets(text) if not _SCHEME.match(target))


def web_links(text: str) -> Iterator[str]:
    """The targets of all links and images outside code that are elsewhere."""
    return (target for target in _targets(text) if _SCHEME.match(target))


def _targets(text: str) -> list[str]:
    return _LINK.findall(_CODE_SPAN.sub("", _FENCE.sub("", text)))


def anchors(text: str) -> set[str]:
    """The anchors of all headings, as GitHub makes them."""
    found: set[str] = set()
    times: Counter[str] = Counter()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{times[slug]}" if times[slug] else slug)
        times[slug] += 1
    return found
