"""An editor shows for each public class, function and method what it does."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

MODULES = (
    *("redisagg", "redisagg.errors", "redisagg.events", "redisagg.merges", "redisagg.payload"),
    *("redisagg.sinks", "redisagg.testing", "redisagg.metrics"),
    *("redisagg.contrib.celery", "redisagg.contrib.django", "redisagg.contrib.flask"),
)

FEWEST_WORDS = 2


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """The public names of a module, and the public members of its classes."""
    own = module.__name__.partition(".")[0]
    names = getattr(module, "__all__", None) or [
        name
        for name, each in vars(module).items()
        if name[0] != "_" and getattr(each, "__module__", "") == module.__name__
    ]
    for name in names:
        if name not in vars(module):  # made when it is used
            continue
        found = getattr(module, name)
        if not (inspect.isclass(found) or inspect.isroutine(found)):
            continue
        yield name, found
        if not inspect.isclass(found) or not found.__module__.startswith(own):
            continue
        for member in dir(found):
            value = inspect.getattr_static(found, member)
            where = getattr(getattr(value, "fget", value), "__module__", "") or ""
            shown = isinstance(value, property) or inspect.isroutine(value)
            if member[0] != "_" and where.startswith(own) and shown:
                yield f"{name}.{member}", value


@pytest.mark.parametrize("name", MODULES)
def test_each_public_name_says_what_it_does(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:  # of an extra
        pytest.skip(str(error))
    found = dict(public(module))
    assert found
    silent = [
        each
        for each, value in found.items()
        if len((inspect.getdoc(value) or _inherited(module, each)).split("\n\n")[0].split())
        < FEWEST_WORDS
    ]
    assert silent == []


def _inherited(module: Any, name: str) -> str:
    """The text of a member that its class takes from a base, as editors show it."""
    kind, _, member = name.partition(".")
    if not member:
        return ""
    for base in getattr(module, kind).__mro__:
        if doc := inspect.getdoc(vars(base).get(member)):
            return doc
    return ""
