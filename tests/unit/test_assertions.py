"""Every test has an assertion that its reader sees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]

_RAISING = {"raises", "warns", "fail"}  # of pytest
_PREFIXES = ("assert_", "verify_")  # of helpers


def find_tests(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The test functions and methods in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:5] == "test_":
            yield node


def asserts(test: ast.AST) -> bool:
    """Whether a test has an assert statement, or calls something that by its name asserts."""
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and _is_assertion(node.func))
        for node in ast.walk(test)
    )


def _is_assertion(function: ast.expr) -> bool:
    match function:
        case ast.Attribute(value=ast.Name(id="pytest"), attr=name):
            return name in _RAISING
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name.startswith(_PREFIXES)
    return False


def test_every_test_has_one() -> None:
    without = [
        f"{path.relative_to(TESTS.parent)}:{test.lineno} {test.name}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for test in find_tests(path.read_text())
        if not asserts(test)
    ]
    assert not without, "\n".join(without)


def test_what_counts_as_one() -> None:
    source = """
def test_statement(): assert f()
def test_raises():
    with pytest.raises(ValueError): f()
async def test_helper(): await model.verify_order(1)
def test_nothing(): f()
def test_wait(): wait_until(f)
def not_a_test(): f()
"""
    found = {test.name: asserts(test) for test in find_tests(source)}
    assert found == {
        "test_statement": True,
        "test_raises": True,
        "test_helper": True,
        "test_nothing": False,
        "test_wait": False,
    }
