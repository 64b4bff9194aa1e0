"""Ready-made merge functions: ``AggregationConfig(group_aggregator=merges.latest(by="order"))``.

Those that take arguments return a merge function. They can be combined, and pickled if the
functions in them can.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, TypeAlias

from redisagg.errors import InvalidConfig, MergeError
from redisagg.merge_function import (
    GroupAggregator,
    Merged,
    check_merge_function,
    is_async,
    wants_info,
)
from redisagg.task import Task
from redisagg.texts import shorten

__all__ = ["By", "by_type", "collect", "concat", "count", "latest", "unique"]

By: TypeAlias = "str | Callable[[Task], Hashable]"
"""A field of the payload, or a function of the task."""


def collect(group: str, tasks: list[Task]) -> Task:
    """The default merge function: puts the payloads of all tasks into one task.

    Args:
        group: group key.
        tasks: tasks of the batch in arrival order.

    Returns:
        A task whose type is that of the first task followed by ``:aggregated``, and whose payload
        is ``{"group": group, "count": len(tasks), "payloads": [...]}`` in arrival order.
    """
    return _aggregated(group, tasks, payloads=[task.payload for task in tasks])


def latest(*, by: By | None = None, then: GroupAggregator | None = None) -> GroupAggregator:
    """Makes a merge function that keeps the newest task, or the newest one of each value.

    Args:
        by: a field of the payload, or a function of the task that returns something hashable; of
            the tasks with the same value the newest is kept. None: the newest of all is kept.
        then: merge function for the kept tasks, in arrival order. None: they are enqueued as they
            are.

    Raises:
        InvalidConfig: an argument is of the wrong type. A task without the field fails the merge.
    """
    return _chosen(_Latest, by, then)


def unique(*, by: By, then: GroupAggregator | None = None) -> GroupAggregator:
    """Makes a merge function that keeps the oldest task of each value.

    Args:
        by: a field of the payload, or a function of the task that returns something hashable.
        then: merge function for the kept tasks, in arrival order. None: they are enqueued as they
            are.

    Raises:
        InvalidConfig: an argument is of the wrong type. A task without the field fails the merge.
    """
    if by is None:
        raise InvalidConfig("by must be a field of the payload or a function of the task, not None")
    return _chosen(_Unique, by, then)


def count() -> GroupAggregator:
    """Makes a merge function that counts the tasks.

    Its task has the type of the first task followed by ``:aggregated``, and the payload
    ``{"group": group, "count": len(tasks)}``.
    """
    return _aggregated


def concat(field: str) -> GroupAggregator:
    """Makes a merge function that joins a field of the payloads: lists, strings or bytes.

    Its task has the type of the first task followed by ``:aggregated``, and the payload
    ``{"group": group, "count": len(tasks), field: joined}``. A task without the field, or with a
    value of another type than the first task's, fails the merge.

    Args:
        field: a field of the payload.

    Raises:
        InvalidConfig: the field is not a `str`, or is ``group`` or ``count``.
    """
    if not isinstance(field, str) or field in ("group", "count"):
        raise InvalidConfig(
            "the field to join must be a str other than 'group' and 'count', which the merged "
            f"payload has too; not {shorten(field)}"
        )
    return _Concat(field)


def by_type(
    functions: Mapping[str, GroupAggregator], *, otherwise: GroupAggregator | None = None
) -> GroupAggregator:
    """Makes a merge function that merges the tasks of each type by a function of their own.

    The functions are called in the order in which their types arrived first. What they return is
    enqueued together.

    Args:
        functions: merge functions by the type of the tasks. If one is ``async``, the others have to
            be quick, since all run on the event loop.
        otherwise: merge function for each other type. None: a task of another type fails the merge.

    Raises:
        InvalidConfig: an argument is of the wrong type.
    """
    if not isinstance(functions, Mapping) or not functions:
        raise InvalidConfig(
            f"by_type takes a dict of merge functions by task type, not {shorten(functions)}"
        )
    for type_, function in functions.items():
        if not isinstance(type_, str):
            raise InvalidConfig(f"a task type must be a str, not {shorten(type_)}")
        check_merge_function(function, f"the merge function for {shorten(type_)}")
    inner = list(functions.values())
    if otherwise is not None:
        check_merge_function(otherwise, "otherwise")
        inner.append(otherwise)
    kind = _AsyncByType if any(map(is_async, inner)) else _ByType
    return kind(dict(functions), otherwise)


def _aggregated(group: str, tasks: Sequence[Task], **fields: Any) -> Task:
    payload = {"group": group, "count": len(tasks), **fields}
    return Task(type=f"{tasks[0].type}:aggregated", payload=payload, group_key=group)


def _call(function: Any, group: str, tasks: list[Task], info: Any) -> Any:
    return function(group, tasks, info) if wants_info(function) else function(group, tasks)


# --- choosing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Latest:
    by: By | None

    def __call__(self, tasks: list[Task]) -> list[Task]:
        if self.by is None:
            return tasks[-1:]
        kept: dict[Hashable, Task] = {}
        for value, task in _values(tasks, self.by):
            kept.pop(value, None)  # so that the kept tasks are in arrival order
            kept[value] = task
        return list(kept.values())


@dataclass(frozen=True)
class _Unique:
    by: By

    def __call__(self, tasks: list[Task]) -> list[Task]:
        kept: dict[Hashable, Task] = {}
        for value, task in _values(tasks, self.by):
            kept.setdefault(value, task)
        return list(kept.values())


def _values(tasks: Iterable[Task], by: By) -> Iterable[tuple[Hashable, Task]]:
    for task in tasks:
        value = _field(task, by) if isinstance(by, str) else by(task)
        try:
            hash(value)
        except TypeError:
            raise MergeError(
                f"{shorten(by)} of task {task.id!r} is a {type(value).__name__}, which has no "
                "hash; pass a function that returns a str, a number or a tuple"
            ) from None
        yield value, task


def _field(task: Task, name: str) -> Any:
    try:
        return task.payload[name]
    except (KeyError, TypeError, IndexError):
        raise MergeError(
            f"the payload of task {task.id!r} has no field {name!r}; add it, or pass a function "
            "of the task"
        ) from None


def _chosen(
    kind: Callable[[Any], Any], by: By | None, then: GroupAggregator | None
) -> GroupAggregator:
    if by is not None and not isinstance(by, str) and not callable(by):
        raise InvalidConfig(
            f"by must be a field of the payload or a function of the task, not {shorten(by)}"
        )
    if then is None:
        return _Chosen(kind(by), None)
    check_merge_function(then, "then")
    chosen = _AsyncChosen if is_async(then) else _Chosen
    return chosen(kind(by), then)


@dataclass(frozen=True)
class _Chosen:
    choose: Callable[[list[Task]], list[Task]]
    then: GroupAggregator | None

    @property
    def wants_info(self) -> bool:
        return self.then is not None and wants_info(self.then)

    def __call__(self, group: str, tasks: list[Task], info: Any = None) -> Any:
        chosen = self.choose(tasks)
        return chosen if self.then is None else _call(self.then, group, chosen, info)


class _AsyncChosen(_Chosen):
    async def __call__(self, group: str, tasks: list[Task], info: Any = None) -> Merged:
        merged: Merged = await super().__call__(group, tasks, info)
        return merged


# --- joining and splitting -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Concat:
    field: str

    def __call__(self, group: str, tasks: list[Task]) -> Task:
        values = [_field(task, self.field) for task in tasks]
        kind = type(values[0])
        for task, value in zip(tasks, values, strict=True):
            if type(value) is not kind or kind not in (list, str, bytes):
                raise MergeError(
                    f"the field {self.field!r} of task {task.id!r} is a {type(value).__name__}; "
                    "concat joins lists, strings or bytes, of one type in all tasks"
                )
        empty: Any = kind()
        joined = [item for each in values for item in each] if kind is list else empty.join(values)
        return _aggregated(group, tasks, **{self.field: joined})


@dataclass(frozen=True)
class _ByType:
    functions: dict[str, GroupAggregator]
    otherwise: GroupAggregator | None

    @property
    def wants_info(self) -> bool:
        inner = [*self.functions.values(), self.otherwise]
        return any(each is not None and wants_info(each) for each in inner)

    def __call__(self, group: str, tasks: list[Task], info: Any = None) -> Any:
        return _flat([_call(each, group, some, info) for each, some in self._split(tasks)])

    def _split(self, tasks: list[Task]) -> list[tuple[GroupAggregator, list[Task]]]:
        of_type: dict[str, list[Task]] = {}
        for task in tasks:
            of_type.setdefault(task.type, []).append(task)
        return [(self._function(type_), some) for type_, some in of_type.items()]

    def _function(self, type_: str) -> GroupAggregator:
        function = self.functions.get(type_, self.otherwise)
        if function is None:
            raise MergeError(
                f"by_type has no merge function for tasks of type {type_!r}; add one, or pass "
                "otherwise"
            )
        return function


class _AsyncByType(_ByType):
    async def __call__(self, group: str, tasks: list[Task], info: Any = None) -> Merged:
        merged = []
        for each, some in self._split(tasks):
            result = _call(each, group, some, info)
            merged.append(await result if isawaitable(result) else result)
        return _flat(merged)


def _flat(results: Iterable[Merged]) -> list[Task]:
    flat: list[Task] = []
    for each in results:
        if isinstance(each, list | tuple):
            flat += each
        elif each is not None:
            flat.append(each)  # type: ignore[arg-type]  # the flusher checks it
    return flat
