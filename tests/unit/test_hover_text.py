"""Every public name, method and field says in one sentence what it is: the text under the mouse."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from tests.support.markdown import CHECKOUT

SITE: dict[str, Any] = runpy.run_path(str(CHECKOUT / "scripts" / "build_site.py"))


def public() -> Iterator[tuple[str, object]]:
    """All public names of all public modules, and the public members of classes."""
    for module in SITE["modules"]():
        found = import_module(module)
        yield module, found
        for name in SITE["public_names"](module):
            try:
                value = getattr(found, name)
            except ImproperlyConfigured:  # the app of a project of Django
                continue
            if inspect.isclass(value):
                yield f"{module}.{name}", value
                yield from members(f"{module}.{name}", value)
            elif callable(value):
                yield f"{module}.{name}", value


def members(path: str, kind: type) -> Iterator[tuple[str, object]]:
    for name in dir(kind):
        member = inspect.getattr_static(kind, name)
        defined = next((base for base in kind.__mro__ if name in vars(base)), object)
        if name.startswith("_") or not defined.__module__.startswith("redisagg"):
            continue
        wrapped = isinstance(member, property | staticmethod | classmethod)
        if wrapped or (callable(member) and not inspect.isclass(member)):
            yield f"{path}.{name}", getattr(kind, name)


NAMES = dict(public())


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.])(?:\s|$)", " ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]


def test_there_are_names() -> None:
    assert len(NAMES) > 200
    assert "redisagg.Aggregator.add_task" in NAMES
    assert "redisagg.AppAggregator.aadd" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_what_it_is(name: str) -> None:
    text = inspect.getdoc(NAMES[name])
    assert text, f"{name} has no docstring"
    sentence = first_sentence(text)
    assert re.search(r"[.:;]$", sentence), f"{name}: {sentence!r} is no sentence"
    assert len(sentence.split()) >= 2, f"{name}: {sentence!r} says nothing"
    assert not re.match(r"(?i)(todo|see\b|docstring)", sentence), name
    assert not text.startswith(f"{name.rpartition('.')[2]}("), f"{name} has the text of a dataclass"


@pytest.mark.parametrize(
    "name",
    [name for name, value in NAMES.items() if inspect.isclass(value) and is_dataclass(value)],
)
def test_the_fields_of_a_class_are_explained(name: str) -> None:
    kind = NAMES[name]
    assert inspect.isclass(kind)
    explained: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("redisagg"):
            continue
        explained |= set(re.findall(r"^ *(\w+):", inspect.getdoc(base) or "", re.MULTILINE))
        explained |= set(re.findall(r"`(\w+)`", inspect.getdoc(base) or ""))
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                explained.add(ast.unparse(field.target))
    assert is_dataclass(kind)
    assert {field.name for field in fields(kind) if not field.name.startswith("_")} <= explained
