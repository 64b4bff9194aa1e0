"""Functions of lists that are called for single items, by any number of processes."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from redisagg.app.targets import load, place_of
from redisagg.durations import Duration, seconds
from redisagg.errors import InvalidConfig, MergeError, RetryAfter, Unavailable
from redisagg.merge_function import Results, is_async
from redisagg.protocol.keys import Keyspace
from redisagg.task import Task
from redisagg.texts import shorten

if TYPE_CHECKING:
    from redisagg.app.aggregator import AppAggregator

In = TypeVar("In")
Out = TypeVar("Out")

Outputs: TypeAlias = "Sequence[Out | Exception] | Mapping[In, Out | Exception]"
"""What a batched function returns: a list as long as its input, or a mapping of its items."""

Function: TypeAlias = "Callable[[list[In]], Outputs[Out, In] | Awaitable[Outputs[Out, In]]]"


class BatchedMerge:
    """The merge function of a batched function: calls it with the payloads of the tasks."""

    wants_info = False

    def __init__(self, function: Callable[[list[Any]], Any]) -> None:
        functools.update_wrapper(self, function, updated=())
        self._function = function

    def __call__(self, group: str, tasks: list[Task]) -> Results | Awaitable[Results]:
        """Calls the function; an exception is the result of each task.

        Raises:
            RetryAfter, Unavailable: what the function raised; the batch is tried again.
        """
        try:
            returned = self._function([task.payload for task in tasks])
            if inspect.isawaitable(returned):
                return self._awaited(returned, tasks)
            return _results(tasks, returned)
        except Exception as error:
            return _failed(tasks, error)

    async def _awaited(self, returned: Awaitable[Any], tasks: list[Task]) -> Results:
        try:
            return _results(tasks, await returned)
        except Exception as error:
            return _failed(tasks, error)


class AsyncBatchedMerge(BatchedMerge):
    """As `BatchedMerge`, for an ``async`` function."""

    async def __call__(self, group: str, tasks: list[Task]) -> Results:
        """Awaits the function; as `BatchedMerge`."""
        return await self._awaited(self._function([task.payload for task in tasks]), tasks)


def _failed(tasks: list[Task], error: Exception) -> Results:
    if isinstance(error, RetryAfter | Unavailable):
        raise error
    return Results({task.id: error for task in tasks})


def _results(tasks: list[Task], returned: object) -> Results:
    if isinstance(returned, Mapping):
        missing = MergeError("the batched function returned a mapping without this item")
        return Results({task.id: returned.get(task.payload, missing) for task in tasks})
    if not isinstance(returned, Sequence) or isinstance(returned, str | bytes | bytearray):
        raise MergeError(
            f"a batched function returns a list or a mapping, not {type(returned).__name__}"
        )
    if len(returned) != len(tasks):
        raise MergeError(
            f"the batched function returned {len(returned):,} values for {len(tasks):,} items"
        )
    return Results({task.id: value for task, value in zip(tasks, returned, strict=True)})


class Batched(Generic[In, Out]):
    """A function of a list that `App.batched` made into one that is called for single items.

    Args:
        aggregator: what gathers the items.
        weight: returns the weight of an item; None if all weigh 1.
        timeout: seconds that a call waits for its result.
        spread: number of groups among which the calls are spread.
    """

    __name__: str
    __qualname__: str

    def __init__(
        self,
        function: Function[In, Out],
        aggregator: AppAggregator[Any, Any],
        *,
        weight: Callable[[In], int] | None,
        timeout: Duration,
        spread: int,
    ) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function
        """The function itself, which takes a list."""
        self.aggregator = aggregator
        """The aggregator that gathers the items, for looking at them."""
        self.timeout = seconds(timeout)
        """Seconds that a call waits for its result."""
        self._weight = weight
        self._spread = spread
        self._lanes, self._lanes_for = self._make_lanes(), aggregator.config

    def _make_lanes(self) -> Lanes:
        config = self.aggregator.config
        return Lanes(
            self.aggregator.name,
            config.partitions,
            min(self._spread, config.partitions),
            config.group_max_size,
            seconds(config.group_max_delay or 0),
        )

    async def __call__(self, item: In) -> Out:
        """Calls the function for one item, together with other calls, and awaits the result.

        Args:
            item: anything that a payload may hold; see `redisagg.payload`.

        Returns:
            What the function returned for this item, as msgpack gives it back: a tuple is a list.

        Raises:
            TaskFailed: the function raised an exception, or returned one for this item.
            ResultTimeout: there is no result after `timeout` seconds.
            RedisAggError: the item could not be added; see `Aggregator.add_task`.
        """
        receipt = await self.aggregator.asyncio.submit(self._task(item))
        result: Out = await receipt.result(self.timeout)
        return result

    def call(self, item: In) -> Out:
        """Calls the function for one item, together with other calls, and waits for the result.

        Args:
            item: as for a call of the object itself, which is for event loops.

        Returns:
            What the function returned for this item, as msgpack gives it back: a tuple is a list.

        Raises:
            TaskFailed, ResultTimeout, RedisAggError: as for a call of the object itself.
        """
        result: Out = self.aggregator.submit(self._task(item)).result(self.timeout)
        return result

    def call_many(self, items: Iterable[In]) -> list[Out]:
        """Calls the function for several items, and waits for all results.

        Args:
            items: as for `call`.

        Returns:
            The results in the order of the items.

        Raises:
            TaskFailed, ResultTimeout, RedisAggError: as for `call`, for the first item to which it
                happened.
        """
        end = time.monotonic() + self.timeout
        receipts = [self.aggregator.submit(self._task(item)) for item in items]
        return [each.result(max(0.0, end - time.monotonic())) for each in receipts]

    def _task(self, item: In) -> Task:
        if self._lanes_for is not self.aggregator.config:  # the app was configured anew
            self._lanes, self._lanes_for = self._make_lanes(), self.aggregator.config
        weight = 1 if self._weight is None else self._weight(item)
        return Task(self.__name__, item, self._lanes.next(), weight=weight)

    def __repr__(self) -> str:
        return f"<batched function {self.__module__}.{self.__qualname__}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (place_of(self, self.__module__, self.__qualname__),)


class Lanes:
    """The groups to which calls go, in turn.

    All processes use the same one at the same time, as far as their clocks agree, so that their
    calls share batches. Each goes on to the next one when it has filled a batch.

    Args:
        name: name of the namespace.
        partitions: number of its partitions.
        count: number of groups, each in a partition of its own.
        size: number of calls in a batch.
        span: seconds for which a group is used.
    """

    def __init__(self, name: str, partitions: int, count: int, size: int, span: float) -> None:
        keyspace = Keyspace(name, partitions)
        by_partition: dict[int, str] = {}
        number = 0
        while len(by_partition) < count:
            by_partition.setdefault(keyspace.partition_of(b"%d" % number).number, str(number))
            number += 1
        self._groups = list(by_partition.values())
        self._size = size
        self._span = span
        self._until = 0.0
        self._left = 0
        self._skipped = 0

    def next(self) -> str:
        """Returns the group of the next call."""
        if len(self._groups) == 1:
            return self._groups[0]
        now = time.time()
        if now >= self._until:
            self._until, self._skipped, self._left = now + self._span, 0, self._size
        elif self._left <= 0:
            self._skipped, self._left = self._skipped + 1, self._size
        self._left -= 1
        turn = int(self._until / self._span) + self._skipped
        return self._groups[turn % len(self._groups)]


def merge_of(function: Callable[[list[Any]], Any]) -> BatchedMerge:
    """Returns the merge function for a batched function.

    Raises:
        InvalidConfig: it is no function.
    """
    if not callable(function):
        raise InvalidConfig(f"a batched function is a function of a list, not {shorten(function)}")
    return (AsyncBatchedMerge if is_async(function) else BatchedMerge)(function)
