"""What the sinks for queues of function calls share: a merged task as arguments of a function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from redisagg.errors import InvalidConfig, SinkError
from redisagg.task import Task

Encode: TypeAlias = Callable[[Any], Any]
"""Turns a payload into what the function gets; may raise `PayloadError`."""

Arguments: TypeAlias = Literal["auto", "keywords", "payload"]
"""How a function gets the payload:

- ``keywords``: it is a map with `str` keys, each an argument by name;
- ``payload``: as one argument;
- ``auto``: the first if it is such a map, else the second.
"""


def check_arguments(arguments: str) -> None:
    """Raises `InvalidConfig` unless it is one of `Arguments`."""
    if arguments not in {"auto", "keywords", "payload"}:
        raise InvalidConfig(f"arguments is 'auto', 'keywords' or 'payload', not {arguments!r}")


@dataclass(frozen=True, slots=True)
class Call:
    """A function by its name, with arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, task: Task, name: str | None, arguments: Arguments, encode: Encode) -> Call:
        """The call that a merged task stands for.

        Args:
            name: of the function; None takes the task's type.

        Raises:
            PayloadError: `encode` has no form for the payload.
            SinkError: the payload is no map with `str` keys, but is to be passed by keywords.
        """
        payload = encode(task.payload)
        name = name or task.type
        by_keywords = isinstance(payload, Mapping) and all(isinstance(key, str) for key in payload)
        if arguments == "keywords" and not by_keywords:
            raise SinkError(
                f"the payload of {task.type} is to be passed by keywords, but it is no map with "
                "str keys"
            )
        if by_keywords and arguments != "payload":
            return cls(name, (), dict(payload))
        return cls(name, (payload,), {})


def check_options(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises `InvalidConfig` if a sink was given an option that its queue does not know."""
    if unknown := sorted(options.keys() - set(known)):
        raise InvalidConfig(f"unknown option: {', '.join(unknown)}; known: {', '.join(known)}")


def options_for(task: Task, defaults: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """What a sink was given, overridden by what `Task.options` asks for; others stay unheeded."""
    return {**defaults, **{name: task.options[name] for name in known if name in task.options}}


def headers_of(task: Task, taken: Collection[str], system: str) -> dict[str, str]:
    """The headers of a merged task, for a system that keeps things of its own among them.

    Raises:
        SinkError: a header has one of the names that are `taken`.
    """
    if both := sorted(task.headers.keys() & set(taken)):
        raise SinkError(f"{system} has a use of its own for the header {', '.join(both)}")
    return dict(task.headers)


def headers_as(task: Task, name: str | None) -> dict[str, dict[str, str]]:
    """The headers of a merged task as one more argument, for a system without a place for them.

    Args:
        name: of the argument; None leaves the headers out.
    """
    return {name: dict(task.headers)} if name else {}
