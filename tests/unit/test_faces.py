"""`Aggregator` and `AsyncAggregator` have the same methods, and document them alike."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from redisagg import Aggregator, AsyncAggregator

_SECTIONS = ("Args", "Returns", "Raises")


def _public(face: type) -> dict[str, Any]:
    """Public methods and properties, inherited ones too, and the constructor."""
    members = {name: inspect.getattr_static(face, name) for name in dir(face)}
    return {name: each for name, each in members.items() if name == "__init__" or name[0] != "_"}


_BLOCKING, _ASYNC = _public(Aggregator), _public(AsyncAggregator)
_METHODS = [name for name, member in _BLOCKING.items() if inspect.isfunction(member)]


def _signature(method: Any) -> list[tuple[str, Any, Any, str]]:
    """Name, kind, default and annotation of each parameter, and the annotation of the result.

    A coroutine function is annotated with the type that it is awaited for, as a plain function is.
    """
    signature = inspect.signature(method)
    parameters = [
        (each.name, each.kind, each.default, _without_async(each.annotation))
        for each in signature.parameters.values()
    ]
    return [*parameters, ("return", None, None, _without_async(signature.return_annotation))]


def _without_async(annotation: object) -> str:
    return str(annotation).replace(" | AsyncIterable[Task]", "").replace("AsyncReceipt", "Receipt")


def _documented(doc: str) -> dict[str, list[str]]:
    """The sections of a google-style docstring, with the names that each lists."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in inspect.cleandoc(doc).splitlines():
        if heading := re.fullmatch(rf"({'|'.join(_SECTIONS)}):", line):
            section = heading[1]
            found[section] = []
        elif line and not line.startswith(" "):
            section = ""
        elif section and (entry := re.match(r" {4}(\w+): \S", line)):
            found[section].append(entry[1])
    return found


def test_both_have_the_same_members() -> None:
    assert _ASYNC.keys() == _BLOCKING.keys()
    assert {name: type(member) for name, member in _ASYNC.items()} == {
        name: type(member) for name, member in _BLOCKING.items()
    }
    assert {"get_groups", "get_entries", "requeue_dead_letter", "drop_dead_letter"} <= set(_METHODS)


@pytest.mark.parametrize("name", _METHODS)
def test_signatures_are_the_same(name: str) -> None:
    assert _signature(_ASYNC[name]) == _signature(_BLOCKING[name])
    shared = _ASYNC[name] is _BLOCKING[name] or name == "__init__"
    assert inspect.iscoroutinefunction(_ASYNC[name]) is not shared
    assert not inspect.iscoroutinefunction(_BLOCKING[name])


@pytest.mark.parametrize("name", [name for name in _BLOCKING if name != "__init__"])
def test_each_docstring_says_what_its_method_does(name: str) -> None:
    for member in (_BLOCKING[name], _ASYNC[name]):
        doc = inspect.getdoc(member) or ""
        summary = doc.split("\n")[0]
        assert len(summary.split()) >= 3, doc
        assert not re.search(r"\bAs `|\bSee `|`Aggregator", summary), "it refers to another method"
    blocking, other = (_documented(each.__doc__) for each in (_BLOCKING[name], _ASYNC[name]))
    assert other == blocking


@pytest.mark.parametrize("name", _METHODS)
def test_each_argument_and_result_is_documented(name: str) -> None:
    method = _BLOCKING[name]
    documented = _documented((Aggregator if name == "__init__" else method).__doc__ or "")
    signature = inspect.signature(method)
    assert documented.get("Args", []) == [each for each in signature.parameters if each != "self"]
    assert ("Returns" in documented) is (signature.return_annotation != "None")


def test_the_classes_are_documented_alike() -> None:
    blocking, other = (_documented(face.__doc__ or "") for face in (Aggregator, AsyncAggregator))
    assert blocking == other
    assert blocking["Raises"] == ["InvalidConfig"]
