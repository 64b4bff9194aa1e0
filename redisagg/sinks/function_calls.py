"""Merged tasks as calls of a named function, for the sinks of queues such as Celery or RQ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from redisagg.errors import InvalidConfig, SinkError
from redisagg.payload import to_plain
from redisagg.task import Task
from redisagg.texts import shorten

Encode: TypeAlias = Callable[[Any], Any]
"""Converts a payload to a value that the queue can serialize; may raise `PayloadError`."""

Arguments: TypeAlias = Literal["auto", "keywords", "payload"]
"""How a function receives the payload:

- ``keywords``: as keyword arguments; the payload has to be a map with `str` keys;
- ``payload``: as one positional argument;
- ``auto``: as keyword arguments if the payload is such a map, else as one positional argument.
"""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call of a function, to be enqueued."""

    name: str
    """The name of the function."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    queue: str | None
    """The name of the queue; None if the sink has no setting of its own for it."""
    options: dict[str, Any]
    """The options of the queue system for this call."""


@dataclass(frozen=True, slots=True)
class FunctionCallOptions:
    """The settings by which a sink converts merged tasks to calls of a function.

    Args:
        function: the name of the function; None takes the type of the merged task.
        known: the names of the options that the queue system has.
        options: the options of all calls. `Task.options` of a merged task overrides them; names
            there that are not in `known` are ignored.
        arguments: how the function receives the payload.
        encode: converts the payload to a value that the queue can serialize.
        queue: the name of the queue; ``Task.options["queue"]`` overrides it.
        headers_as: the keyword argument that receives the headers as a dict, for a queue system
            without a place for headers; None leaves them out.

    Raises:
        InvalidConfig: `arguments` is none of `Arguments`, or an option is not in `known`.
    """

    function: str | None
    known: Collection[str]
    options: Mapping[str, Any]
    arguments: Arguments
    encode: Encode
    queue: str | None = None
    headers_as: str | None = None

    def __post_init__(self) -> None:
        if self.arguments not in {"auto", "keywords", "payload"}:
            raise InvalidConfig(
                f"arguments is 'auto', 'keywords' or 'payload', not {shorten(self.arguments)}"
            )
        if unknown := sorted(self.options.keys() - set(self.known)):
            raise InvalidConfig(
                f"unknown option: {', '.join(unknown)}; known: {', '.join(self.known)}"
            )

    @property
    def takes_json(self) -> bool:
        """Whether `encode` takes only payloads that have a form in JSON."""
        return self.encode is to_plain

    def call(self, task: Task) -> FunctionCall:
        """The call for a merged task.

        Raises:
            PayloadError: `encode` can't convert the payload.
            SinkError: `arguments` is ``keywords`` and the payload is no map with `str` keys.
        """
        args, kwargs = self._arguments(task)
        if self.headers_as:
            kwargs[self.headers_as] = dict(task.headers)
        overriding = {name: task.options[name] for name in self.known if name in task.options}
        return FunctionCall(
            name=self.function or task.type,
            args=args,
            kwargs=kwargs,
            queue=task.options.get("queue", self.queue),
            options={**self.options, **overriding},
        )

    def _arguments(self, task: Task) -> tuple[tuple[Any, ...], dict[str, Any]]:
        payload = self.encode(task.payload)
        has_names = isinstance(payload, Mapping) and all(isinstance(key, str) for key in payload)
        if has_names and self.arguments != "payload":
            return (), dict(payload)
        if self.arguments == "keywords":
            raise SinkError(
                f"the payload of {task.type} is no map with str keys, so it can't be passed as "
                "keyword arguments; set arguments='payload' to pass it as one argument"
            )
        return (payload,), {}


def message_headers(task: Task, reserved: Collection[str], system: str) -> dict[str, str]:
    """The headers of a merged task, for a queue system that keeps its own fields among them.

    Args:
        task: the merged task.
        reserved: the names of those fields.
        system: the name of the queue system, for the error.

    Raises:
        SinkError: a header has one of the reserved names.
    """
    if clashing := sorted(task.headers.keys() & set(reserved)):
        raise SinkError(
            f"{system} reserves the header {', '.join(clashing)}; rename it in the merge function"
        )
    return dict(task.headers)
