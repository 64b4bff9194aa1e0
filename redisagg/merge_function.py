"""Merge functions: their type, and the check of their signature."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any, NamedTuple, TypeAlias

from redisagg.errors import InvalidConfig
from redisagg.task import Task
from redisagg.texts import shorten

Merged: TypeAlias = "Task | Sequence[Task] | Partial | Results | None"
"""The result of a merge function: one task, several (a list or tuple), None, a `Partial` or
`Results`."""

_Returned: TypeAlias = "Merged | Awaitable[Merged]"


@dataclass(frozen=True, slots=True)
class Partial:
    """What a merge function returns if some tasks of its batch failed: the rest is done.

    Args:
        merged: what the function would return for the other tasks alone.
        failed: the ids of the tasks that failed, each with the reason: a text or an exception. Each
            becomes a dead letter of its own, or is tried again if `on_task_failure` says so. An id
            that the batch does not have fails the attempt, and so does a batch of which all tasks
            failed.
    """

    merged: Task | Sequence[Task] | Results | None = None
    failed: Mapping[str, str | BaseException] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Results:
    """What a merge function returns if tasks of its batch were submitted: their results.

    Args:
        values: the result of each task, by its id: anything that a payload may hold, or an
            exception for a task that failed but is to be no dead letter. Those of tasks that were
            added by `add_task` are not kept. An id that the batch does not have fails the attempt.
        merged: what the function would return without results, also a `Partial`.
    """

    values: Mapping[str, Any]
    merged: Task | Sequence[Task] | Partial | None = None


GroupAggregator: TypeAlias = (
    "Callable[[str, list[Task]], _Returned] | Callable[[str, list[Task], Any], _Returned]"
)
"""A merge function: takes a group key and tasks in arrival order, returns the tasks to enqueue. One
with a third parameter gets a `BatchInfo` there."""


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call returns a coroutine: an `async def`, or an object with such a `__call__`."""
    call = getattr(function, "__call__", None)  # noqa: B004 - not a test for being callable
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def wants_info(function: Callable[..., Any]) -> bool:
    """Whether a merge function takes information about its batch as a third argument.

    It does if its third positional parameter has no default or is called ``info``. An object with a
    bool as its attribute ``wants_info`` decides by itself. A function without a signature, as some
    that are written in C, and one that takes ``*args`` only, get two arguments.
    """
    decided = getattr(function, "wants_info", None)
    if isinstance(decided, bool):
        return decided
    found = _parameters_of(function)
    if found is None:
        return False
    return found.required == 3 or (len(found.positional) > 2 and found.positional[2].name == "info")


def check_merge_function(function: object, what: str) -> None:
    """Checks whether a merge function can be called with ``(group, tasks)`` or a third argument.

    Args:
        function: the merge function.
        what: the name of the setting or argument, for the error message.

    Raises:
        InvalidConfig: it can't be called like that, or is a generator function.
    """
    if not callable(function):
        raise InvalidConfig(f"{what} must be a function of (group, tasks), not {shorten(function)}")
    call = getattr(function, "__call__", None)  # noqa: B004
    problem = ""
    if any(map(_is_generator_function, (function, call))):
        problem = "it is a generator function; return a list of tasks instead of yielding them"
    elif (found := _parameters_of(function)) is not None:
        problem = found.problem()
    if problem:
        raise InvalidConfig(
            f"{what} is called with (group, tasks), or with (group, tasks, info) if it has a third "
            f"parameter; {shorten(function)} can't be: {problem}"
        )


def _is_generator_function(function: object) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


class _Parameters(NamedTuple):
    positional: list[Parameter]
    required: int
    """The number of positional parameters without a default. They are the first ones."""
    any_number: bool
    """Whether further positional arguments are accepted (``*args``)."""
    unbound: list[str]
    """The keyword-only parameters without a default."""

    def problem(self) -> str:
        """Returns what is wrong and what to do; empty if nothing is."""
        if self.required == 3 and self.positional[0].name in ("self", "cls"):
            return f"it is a method without its {self.positional[0].name}; pass that of an object"
        if self.required > 3:
            names = ", ".join(each.name for each in self.positional[: self.required])
            return f"it needs {self.required} arguments ({names}); bind some with functools.partial"
        if len(self.positional) < 2 and not self.any_number:
            count = len(self.positional)
            return (
                f"it takes {count or 'no'} positional argument{'s' * (count != 1)}; give it the "
                "parameters group and tasks, or call it if it returns the merge function"
            )
        if self.unbound:
            names = ", ".join(self.unbound)
            return f"it needs {names} by keyword; bind this with functools.partial"
        return ""


def _parameters_of(function: Callable[..., Any]) -> _Parameters | None:
    """Returns the parameters of a function; None if Python does not know them."""
    try:
        # What a decorator returned is called, whatever function it names as wrapped. One that
        # takes any arguments hands them on to that.
        signature = inspect.signature(function, follow_wrapped=False)
        kinds = [each.kind for each in signature.parameters.values()]
        if kinds[:1] == [Parameter.VAR_POSITIONAL]:
            signature = inspect.signature(function)
    except (ValueError, TypeError):
        return None
    parameters = list(signature.parameters.values())
    positional = [
        each
        for each in parameters
        if each.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    ]
    return _Parameters(
        positional,
        required=sum(each.default is Parameter.empty for each in positional),
        any_number=any(each.kind is Parameter.VAR_POSITIONAL for each in parameters),
        unbound=[
            each.name
            for each in parameters
            if each.kind is Parameter.KEYWORD_ONLY and each.default is Parameter.empty
        ],
    )
