"""The signature of a merge function is checked when the configuration is made."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from redisagg import AggregationConfig, Task
from redisagg.errors import InvalidConfig
from redisagg.merge_function import is_async, wants_info


def _two(group: str, tasks: list[Task]) -> None: ...


def _three(group: str, tasks: list[Task], batch: Any) -> None: ...


def _optional(group: str, tasks: list[Task], database: Any = None) -> None: ...


def _info(group: str, tasks: list[Task], info: Any = None) -> None: ...


def _four(group: str, tasks: list[Task], info: Any, database: Any) -> None: ...


def _keyword(group: str, tasks: list[Task], *, limit: int = 5) -> None: ...


def _unbound(group: str, tasks: list[Task], *, database: Any, limit: int) -> None: ...


def _one(group: str) -> None: ...


def _none() -> None: ...


def _named(**tasks: Any) -> None: ...


def _any(*arguments: Any) -> None: ...


async def _async_two(group: str, tasks: list[Task]) -> None: ...


async def _async_three(group: str, tasks: list[Task], info: Any) -> None: ...


def _yields(group: str, tasks: list[Task]) -> Iterator[Task]:
    yield from tasks


async def _yields_later(group: str, tasks: list[Task]) -> AsyncIterator[Task]:
    yield tasks[0]


class _Digest:
    def method(self, group: str, tasks: list[Task]) -> None: ...

    def with_info(self, group: str, tasks: list[Task], info: Any) -> None: ...

    @classmethod
    def of_class(cls, group: str, tasks: list[Task]) -> None: ...

    @staticmethod
    def static(group: str, tasks: list[Task]) -> None: ...


class _Called:
    def __call__(self, group: str, tasks: list[Task]) -> None: ...


class _CalledLater:
    async def __call__(self, group: str, tasks: list[Task], info: Any) -> None: ...


class _Decides:
    def __init__(self, answer: Any) -> None:
        self.wants_info = answer

    def __call__(self, group: str, tasks: list[Task], info: Any = None) -> None: ...


def _passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def _with_database(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(group: str, tasks: list[Task]) -> Any:
        return function(group, tasks, "a database")

    return wrapper


TWO: list[Any] = [
    *(_two, _optional, _keyword, _any, _async_two, _Digest().method, _Digest.of_class),
    *(_Digest.static, _Called(), _Decides(False), Mock(), _passing_on(_two)),
    *(_with_database(_three), functools.partial(_unbound, database=1, limit=2)),
    functools.partial(_three, batch=None),
    functools.partial(_Digest.method, _Digest()),
    lambda group, tasks: None,
    lambda group, *rest: None,
    dict,  # Python knows no signature of it
]
THREE: list[Any] = [
    *(_three, _info, _async_three, _Digest().with_info, _CalledLater(), _Decides(True)),
    *(_Decides("yes"), _passing_on(_three), functools.partial(_four, database=1)),
    lambda group, tasks, batch, *rest: None,
]


def _name(value: Any) -> str:
    return value if isinstance(value, str) else getattr(value, "__qualname__", type(value).__name__)


@pytest.mark.parametrize("function", TWO, ids=_name)
def test_a_function_of_group_and_tasks(function: Any) -> None:
    AggregationConfig(group_aggregator=function)
    assert not wants_info(function)


@pytest.mark.parametrize("function", THREE, ids=_name)
def test_a_function_of_group_tasks_and_info(function: Any) -> None:
    AggregationConfig(group_aggregator=function)
    assert wants_info(function)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("merge", "must be a function of"),
        (None, "must be a function of"),
        (_none, "takes no positional arguments; give it the parameters group and tasks"),
        (_named, "takes no positional arguments"),
        (_one, "takes 1 positional argument;"),
        (_four, r"needs 4 arguments \(group, tasks, info, database\); bind some"),
        (_unbound, "needs database, limit by keyword; bind this with functools.partial"),
        (functools.partial(_two, tasks=[]), "takes 1 positional argument;"),
        (_Digest.method, "a method without its self"),
        (_Digest, "takes no positional arguments"),
        (_with_database, "takes 1 positional argument; .* call it if it returns"),
        (_yields, "generator function"),
        (_yields_later, "generator function"),
    ],
    ids=_name,
)
def test_what_can_not_be_called_like_that_is_refused(function: Any, says: str) -> None:
    with pytest.raises(InvalidConfig, match=f"group_aggregator .*{says}"):
        AggregationConfig(group_aggregator=function)


def test_async_functions_are_known() -> None:
    is_it = [is_async(each) for each in (_async_two, _CalledLater(), functools.partial(_async_two))]
    assert is_it == [True, True, True]
    assert [is_async(each) for each in (_two, _Called(), dict)] == [False, False, False]
