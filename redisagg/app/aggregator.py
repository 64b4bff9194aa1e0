"""An aggregator that is made from a merge function."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypedDict,
    TypeVar,
    cast,
)

from redisagg.aggregator import Aggregator, AsyncAggregator
from redisagg.app.batched import Batched
from redisagg.app.clients import Clients
from redisagg.app.targets import load, place_of
from redisagg.config import AggregationConfig, GroupAggregator
from redisagg.durations import Duration
from redisagg.merge_function import is_async, wants_info
from redisagg.namespace import Namespace
from redisagg.schedule import Cron
from redisagg.sinks import Sink
from redisagg.sinks.routing import Route
from redisagg.task import GroupKey, Task
from redisagg.transport.endpoint import AsyncClient, SyncClient

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
R = TypeVar("R")

Prepare: TypeAlias = "Callable[[GroupAggregator], GroupAggregator]"
"""Returns what flushers call in place of a merge function."""


def _unchanged(merge: GroupAggregator) -> GroupAggregator:
    return merge


class TaskFields(TypedDict, total=False):
    """The fields of a `Task` that `add` takes by keyword."""

    type: str
    id: str | None
    headers: Mapping[str, str]
    options: Mapping[str, Any]
    priority: int
    grace_period: Duration | None
    max_delay: Duration | None
    max_size: int | None
    max_bytes: int | None
    weight: int
    due_at: datetime | None
    not_before: datetime | None
    flush: bool
    on_conflict: Literal["keep", "replace"]
    schedule: Cron | None


class AppAggregator(Aggregator, Generic[P, R]):
    """An `Aggregator` that `App.aggregator` made from a merge function.

    It can be called as the function. `asyncio` is the same for an event loop. All aggregators of an
    app share a client for adds, which connects at its first command. It can be used in processes
    that were forked after the import, and is pickled by the name of the function.
    """

    __wrapped__: Callable[P, R]
    __name__: str
    __qualname__: str

    def __init__(
        self,
        function: Callable[P, R],
        name: str,
        url: str,
        *,
        config: AggregationConfig,
        sink: Sink | Route | str | None,
        clients: Clients,
        prepare: Prepare = _unchanged,
    ) -> None:
        merge = cast(GroupAggregator, function)
        replace(config, group_aggregator=merge)  # checks the function
        self._prepare = prepare
        self._merge = merge = prepare(merge)
        config = replace(config, group_aggregator=merge)
        if is_async(merge):
            config = replace(config, executor="thread")  # needs no processes, so no pickle
        elif config.executor == "process":
            config = replace(config, group_aggregator=MergeByName(merge))
        self._clients = clients
        super().__init__(name, url, config=config, sink=sink)
        self._own_client = False  # those of the app are closed with it
        functools.update_wrapper(self, function, updated=())
        for attribute in ("__name__", "__qualname__"):  # not all that can be called have one
            vars(self).setdefault(attribute, name)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the merge function itself."""
        return self.__wrapped__(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<aggregator {self.name!r} of {self.__module__}.{self.__qualname__}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (place_of(self, self.__module__, self.__qualname__),)

    def add(self, payload: Any = None, *, group_key: GroupKey, **fields: Unpack[TaskFields]) -> str:
        """Adds a task to its group; returns when Redis has stored it, as `add_task`.

        Args:
            payload: data; `redisagg.payload` lists the types that it may hold.
            group_key: key of the group: a `str`, `int`, `UUID`, or a tuple of those such as
                ``("user", 42)``, whose text form is that of `group_key_text`.
            fields: further fields of the `Task`. Its type is the name of the aggregator by default.

        Returns:
            The id of the task.

        Raises:
            InvalidTask: a field is wrong; see `add_task`, also for the other errors.
        """
        return self.add_task(self._task(payload, group_key, fields))

    async def aadd(
        self, payload: Any = None, *, group_key: GroupKey, **fields: Unpack[TaskFields]
    ) -> str:
        """Adds a task to its group from an event loop; arguments, result and errors as of `add`."""
        return await self.asyncio.add_task(self._task(payload, group_key, fields))

    def _task(self, payload: Any, group_key: GroupKey, fields: TaskFields) -> Task:
        fields.setdefault("type", self.name)
        return Task(payload=payload, group_key=group_key, **fields)

    @property
    def asyncio(self) -> AsyncAggregator:
        """The aggregator for asyncio, with the same methods as coroutines."""
        known = vars(self)
        if "_twin" not in known:
            known.setdefault("_twin", _Twin(self))  # of two threads, both use the first one
        twin: AsyncAggregator = known["_twin"]
        return twin

    async def _close_here(self) -> None:
        await self.asyncio.close()
        await super()._close_here()

    def _make_client(self) -> SyncClient:
        return self._clients.blocking(self._namespace.producer_endpoint())


class _Twin(AsyncAggregator):
    """The same aggregator for asyncio."""

    def __init__(self, of: AppAggregator[Any, Any]) -> None:
        self._of = of
        super().__init__(of.name)

    def _make_namespace(self, *arguments: Any, **named: Any) -> Namespace:
        return self._of._namespace  # with the same observers

    def _make_client(self) -> tuple[AsyncClient, bool]:
        return self._of._clients.asyncio(self._namespace.producer_endpoint()), False


class MergeByName:
    """A merge function that is pickled by its name, which an `AppAggregator` has taken over.

    Args:
        function: the merge function.
    """

    def __init__(self, function: GroupAggregator) -> None:
        self._function: Callable[..., Any] = function
        self.wants_info = wants_info(function)

    def __call__(self, *args: Any) -> Any:
        """Calls the merge function."""
        return self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        module = getattr(self._function, "__module__", None)
        name = getattr(self._function, "__qualname__", "")
        if not module or not name or "<" in name:
            raise pickle.PicklingError(f"{self._function!r} is not at the top level of a module")
        return _merge_function, (f"{module}:{name}",)


def _merge_function(place: str) -> Any:
    found = load(place)
    if isinstance(found, Batched):
        found = found.aggregator
    return found._merge if isinstance(found, AppAggregator) else found
