"""What goes into one call of the script `add`, and what its reply means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from redisagg.config import AggregationConfig
from redisagg.errors import AggregatorFull, RedisUnavailable
from redisagg.producer.sequences import Lane
from redisagg.protocol.entries import EncodedTask
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.scripts import Request, call
from redisagg.transport.failures import error_from_reply

# What one call may carry, so that it keeps Redis busy for about 2 ms at most.
MAX_CALL_TASKS = 400
MAX_CALL_BYTES = 512 * 1024

# What one round trip may carry, over all partitions. Small ones let a group commit overlap with
# Redis' work on the one before; a stream has nobody waiting, and large ones cost less a task.
COMMIT_ROUND_TASKS = 500
STREAM_ROUND_TASKS = 4_000
MAX_ROUND_BYTES = 4 * 1024 * 1024

# How long a call is remembered for a repetition whose first reply was lost, ms.
_REMEMBERED_MS = 10 * 60 * 1000

W = TypeVar("W")
"""Who waits for a task: anything that `Round.outcomes` hands back."""

Outcomes: TypeAlias = Iterator[tuple[list[W], "Exception | None"]]
"""Those who wait, with what kept their tasks out or None."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What each call of a producer says apart from its tasks."""

    keyspace: Keyspace
    pending_tasks: int
    """How many tasks may be pending in one partition; 0 for any number."""
    pending_bytes: int
    dedupe: bytes
    """b"1" if ids that were flushed lately are not accepted again."""
    call_tasks: int
    """How many tasks a call may carry."""
    call_bytes: int

    @classmethod
    def of(cls, keyspace: Keyspace, config: AggregationConfig) -> Terms:
        """The terms that a configuration asks for; each partition has its share of a limit."""
        tasks = (config.max_pending_tasks or 0) // len(keyspace.partitions)
        size = (config.max_pending_bytes or 0) // len(keyspace.partitions)
        # What is kept out is so as a whole: small calls find room where a large one never would.
        return cls(
            keyspace,
            tasks,
            size,
            b"1" if config.dedupe_window else b"",
            max(1, min(MAX_CALL_TASKS, tasks // 4)) if tasks else MAX_CALL_TASKS,
            min(MAX_CALL_BYTES, size // 4) if size else MAX_CALL_BYTES,
        )


class _Call(Generic[W]):
    """What one call of `add` carries: sections, which are runs of tasks for one group.

    Each task adds as few objects as possible, and none that holds what holds it: with thousands of
    coroutines at a time Python's garbage collector takes longer over them than we do.
    """

    __slots__ = ("bytes", "group_keys", "open", "partition", "places", "sections", "waiters")

    def __init__(self, partition: PartitionKeys) -> None:
        self.partition = partition
        self.sections: list[list[Any]] = []
        """Each as it is in ARGV: group, limits, number of tasks, and of each task id and body."""
        self.open: dict[bytes, int] = {}
        """By group, the place of the section that takes its tasks."""
        self.group_keys: list[bytes] = []
        self.waiters: list[W] = []
        self.places: list[int] = []
        """For each of those who wait, the place of the section with its task."""
        self.bytes = 0

    def put(self, task: EncodedTask, waiter: W, tasks_key: bytes, ids_key: bytes) -> None:
        """Puts a task into the section of its group."""
        group, task_id, body, limits = task
        place = self.open.get(group, -1)
        if place < 0 or self.sections[place][1] != limits:
            place = self.open[group] = len(self.sections)
            self.sections.append([group, limits, 0])
            self.group_keys += (tasks_key, ids_key)
        section = self.sections[place]
        section[2] += 1
        section += (task_id, body)
        self.waiters.append(waiter)
        self.places.append(place)
        self.bytes += len(body)

    def request(self, lane: Lane, terms: Terms) -> Request:
        """The call, as the next one of `lane`."""
        p = self.partition
        keys = [p.state, p.groups, p.due, p.ready, p.call(lane.id), p.seen, p.seen_before]
        keys += self.group_keys
        number = lane.next_number(p.number)
        args: list[Any] = [number, _REMEMBERED_MS, terms.keyspace.wake_channel, p.label]
        args += (terms.pending_tasks, terms.pending_bytes, terms.dedupe)
        for section in self.sections:
            args += section
        return call("add", keys, *args)

    def outcomes(self, reply: Any) -> Outcomes[W]:
        """Those who wait, with what kept their tasks out or None."""
        if isinstance(reply, Exception):
            yield self.waiters, reply
        elif all(type(status) is int for status in reply):
            yield self.waiters, None
        else:
            errors = list(map(_error, reply))
            for waiter, place in zip(self.waiters, self.places, strict=True):
                yield [waiter], errors[place]


def _error(status: Any) -> Exception | None:
    if isinstance(status, int):
        return None
    return (
        status
        if isinstance(status, Exception)
        else error_from_reply(status.decode(errors="replace"))
    )


class Round(Generic[W]):
    """What goes out in one round trip: one call for each partition that has tasks."""

    __slots__ = (
        *("_bytes", "_call_bytes", "_call_tasks", "_calls", "_max_tasks", "_place"),
        *("_tasks", "_terms", "full"),
    )

    def __init__(self, terms: Terms, max_tasks: int) -> None:
        self.full = False
        """Whether nothing more should go in."""
        self._terms = terms
        self._place = terms.keyspace.place
        self._call_tasks = terms.call_tasks
        self._call_bytes = terms.call_bytes
        self._max_tasks = max_tasks
        self._calls: dict[int, _Call[W]] = {}
        self._tasks = 0
        self._bytes = 0

    def put(self, task: EncodedTask, waiter: W) -> None:
        """Puts a task in."""
        partition, tasks_key, ids_key = self._place(task.group)
        its_call = self._calls.get(partition.number)
        if its_call is None:
            its_call = self._calls[partition.number] = _Call(partition)
        its_call.put(task, waiter, tasks_key, ids_key)
        self._tasks += 1
        self._bytes += len(task.body)
        if (
            self._tasks >= self._max_tasks
            or self._bytes >= MAX_ROUND_BYTES
            or len(its_call.waiters) >= self._call_tasks
            or its_call.bytes >= self._call_bytes
        ):
            self.full = True

    def __len__(self) -> int:
        return self._tasks

    def requests(self, lane: Lane) -> list[Request]:
        """The calls, as the next ones of `lane`."""
        return [each.request(lane, self._terms) for each in self._calls.values()]

    def outcomes(self, replies: Iterable[Any]) -> Outcomes[W]:
        """Those who wait, with what kept their tasks out or None."""
        for each, reply in zip(self._calls.values(), replies, strict=True):
            yield from each.outcomes(reply)

    def failed(self, error: Exception) -> Outcomes[W]:
        """The same if the round trip itself failed."""
        return self.outcomes([error] * len(self._calls))


def stream_round(terms: Terms, tasks: Iterable[EncodedTask] = ()) -> Round[EncodedTask]:
    """A round of a stream, with these tasks in it."""
    together: Round[EncodedTask] = Round(terms, STREAM_ROUND_TASKS)
    for task in tasks:
        together.put(task, task)
    return together


class Tally:
    """Counts what became of a stream of tasks.

    Args:
        progress: called with the number of tasks acknowledged so far.
        waits: whether tasks for which there is no room are to be tried again.
    """

    def __init__(self, progress: Callable[[int], object] | None, *, waits: bool) -> None:
        self._progress = progress
        self._waits = waits
        self._acknowledged = 0
        self._refusal: Exception | None = None
        self._full: AggregatorFull | None = None
        self.without_room: list[EncodedTask] = []
        """What is to be tried again of the round that was counted last."""

    def count(self, outcomes: Outcomes[EncodedTask]) -> None:
        """Counts a round.

        Raises:
            RedisUnavailable: the round trip failed; there is no point in going on.
        """
        self._full, self.without_room = None, []
        for tasks, error in outcomes:
            if isinstance(error, RedisUnavailable):
                raise error
            if error is None:
                self._acknowledged += len(tasks)
            elif self._waits and isinstance(error, AggregatorFull):
                self._full = error
                self.without_room += tasks
            else:
                self._refusal = self._refusal or error
        if self._progress is not None:
            self._progress(self._acknowledged)

    def check_room(self) -> None:
        """Raises AggregatorFull if there was no room for some tasks of the last round."""
        if self._full is not None:
            raise self._full

    def raise_refusal(self) -> None:
        """Raises the first refusal, if there was one."""
        if self._refusal is not None:
            raise self._refusal
