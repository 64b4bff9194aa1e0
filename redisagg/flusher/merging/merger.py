"""A batch to be merged, what becomes of it, and the steps that all mergers share."""

from __future__ import annotations

import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.errors import MergeError, MergeTimeout, SinkError, UndecodableTask
from redisagg.flusher.merging.result_codec import pack_batch, pack_merged, unpack_merged
from redisagg.flusher.merging.tracing import linked
from redisagg.protocol.entries import decode
from redisagg.sinks.base import DeliverySink, MergedTask, ScriptSink
from redisagg.sinks.routing import Router
from redisagg.task import Task


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    error: str
    traceback: str
    pause: float | None = None
    """If the batch is not to blame, and the attempt does not count: seconds until the next."""

    @classmethod
    def of(cls, error: BaseException, pause: float | None = None) -> Failure:
        """The failure that an exception means."""
        text = "".join(traceback.format_exception(error))
        return cls(f"{type(error).__name__}: {error}", text, pause)

    @classmethod
    def of_sink_down(cls, pause: float) -> Failure:
        """Nothing was tried, since the sink is down: seconds until it may be."""
        return cls("", "", pause)


@dataclass(slots=True)
class Commit:
    """Merged tasks as a commit script takes them, for one batch."""

    sink: str
    """The name of the sink's class."""
    script: str
    queue_keys: Sequence[bytes]
    options: Sequence[Any]
    entry_keys: list[bytes] = field(default_factory=list)
    arguments: list[bytes] = field(default_factory=list)

    @classmethod
    def into(cls, sink: ScriptSink, slot: str | None) -> Commit:
        """An empty one, for a partition with this hash tag (None off a cluster)."""
        name = type(sink).__name__
        return cls(name, sink.script, sink.commit_keys(slot), sink.options())

    @property
    def queue(self) -> Hashable:
        """Stands for the queue, in whatever process the sink was asked."""
        return self.script, *self.queue_keys

    def goes_with(self, other: Commit) -> bool:
        """Whether both go into the same queue, and so into the same call."""
        mine = (self.script, self.queue_keys, self.options)
        return mine == (other.script, other.queue_keys, other.options)


@dataclass(slots=True)
class Outcome:
    """How a merge ended."""

    failure: Failure | None = None
    commit: Commit | None = None
    """What the commit script enqueues, if anything."""
    deliveries: list[MergedTask] = field(default_factory=list)
    """What is delivered before the commit."""
    undecodable: list[tuple[int, str]] = field(default_factory=list)
    """Places of entries that are no tasks, and what is wrong with them."""
    merged: dict[str, bytes] = field(default_factory=dict)
    """By batch id, what the merge function returned and is still to be enqueued; packed. If there
    is any, a failure is one of the sink."""

    def packed(self) -> bytes:
        """What is to be kept of it in Redis, so that nothing is merged again; empty if nothing."""
        return pack_merged(self.undecodable, self.merged.values()) if self.merged else b""


_beginning = threading.Lock()
"""A merge that begins and one that is given up must not pass each other. One lock for all jobs is
held too briefly to matter."""


@dataclass(slots=True, eq=False)
class Batch:
    """A claimed batch on its way through a flusher."""

    batch_id: bytes
    group: bytes
    attempt: int
    merged: bytes
    """What it was merged to by an earlier attempt, as `Outcome.packed` had it, or empty."""
    entries: Sequence[bytes]
    slot: str | None
    """The hash tag of its partition on a cluster, else None."""
    done: Callable[[Batch], None]
    """Called on the loop when there is an outcome."""
    outcome: Outcome | None = None
    probing: bool = False
    """Whether it was claimed to find out if a sink that was down works again."""
    delivering: bool = False
    """Whether its outcome is being delivered."""
    abandoned: bool = False
    """Whether nobody waits for it any more."""
    begun: bool = False
    """Whether a merge is or was at work on it."""

    def begin(self) -> bool:
        """Called by a merger before it merges: whether it shall."""
        with _beginning:
            self.begun = not self.abandoned
            return self.begun

    def give_up(self) -> bool:
        """Abandons it unless its merge has begun; returns whether it is abandoned."""
        with _beginning:
            self.abandoned = self.abandoned or not self.begun
            return self.abandoned

    def end(self, outcome: Outcome) -> None:
        """Takes the outcome and tells who waits for it; on the loop."""
        if not self.abandoned:
            self.outcome = outcome
            self.done(self)


class Merger(ABC):
    """Merges jobs, at most `concurrency` at a time."""

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        self.function = config.group_aggregator
        self.timeout = seconds(config.merge_timeout)
        self.concurrency = config.concurrency
        self.router = router

    @abstractmethod
    def submit(self, job: Batch) -> None:
        """Merges the job soon and calls its `end`; to be called on the loop."""

    @abstractmethod
    def close(self) -> None:
        """Starts no further merge."""

    def timed_out(self) -> Outcome:
        """The outcome of a merge that took too long."""
        error = MergeTimeout(f"the merge took longer than merge_timeout ({self.timeout:g} s)")
        return Outcome(Failure.of(error))


_Routed: TypeAlias = tuple[ScriptSink | DeliverySink, MergedTask]


def prepare(job: Batch, outcome: Outcome, router: Router) -> tuple[str, list[Task]]:
    """The arguments for the merge function; what can't be decoded goes into the outcome.

    No tasks if it is not to be called, since an earlier attempt has merged them: then all that is
    left to do is in the outcome.

    Raises:
        KeyConflict: what is stored in place of the merged tasks is not ours.
    """
    group = job.group.decode("utf-8", "replace")
    tasks: list[Task] = []
    if job.merged:
        outcome.undecodable, merged = unpack_merged(job.merged)
        outcome.merged = {batch.batch_id: packed for batch, packed in merged}
        _hand_over(job, outcome, ((router.sink_of(batch.task), batch) for batch, _ in merged))
        return group, tasks
    for place, entry in enumerate(job.entries):
        try:
            tasks.append(decode(entry, group))
        except UndecodableTask as error:
            outcome.undecodable.append((place, str(error)))
    return group, tasks


def settle(
    job: Batch, outcome: Outcome, router: Router, tasks: Sequence[Task], merged: Any
) -> None:
    """Puts what the merge function returned into the outcome.

    Args:
        tasks: what was merged.
        merged: a task, None, or a list or tuple of tasks.

    Raises:
        MergeError: it is something else.
        PayloadError: its payload can't be packed, or the sink can't write it.
        SinkError: no sink, or two different queues in Redis, for the tasks of one batch.
    """
    routed: list[_Routed] = []
    for batch in _batches(job, tasks, merged):
        sink = router.sink_of(batch.task)
        routed.append((sink, _inheriting(batch, sink.inherits, tasks)))
    outcome.merged = {batch.batch_id: pack_batch(batch) for _, batch in routed}
    # From here on it is not the merge that fails.
    _hand_over(job, outcome, routed)


def _hand_over(job: Batch, outcome: Outcome, routed: Iterable[_Routed]) -> None:
    """Puts merged tasks into the outcome in the form in which their sinks take them."""
    for sink, batch in routed:
        if isinstance(sink, DeliverySink):
            outcome.deliveries.append(batch)
            continue
        commit = Commit.into(sink, job.slot)
        if outcome.commit is None:
            outcome.commit = commit
        elif not outcome.commit.goes_with(commit):
            raise SinkError("the tasks of one batch go to two queues in Redis: not in one step")
        outcome.commit.entry_keys += sink.entry_keys(batch)
        outcome.commit.arguments += sink.arguments(batch)


def _inheriting(batch: MergedTask, names: Sequence[str], tasks: Sequence[Task]) -> MergedTask:
    """The batch with the options that its merged task takes over; the same if there are none."""
    given = [task.options for task in tasks if task.options] if names else []
    # Backwards, so that the first task that has an option decides.
    inherited = {name: has[name] for has in reversed(given) for name in names if name in has}
    if not inherited:
        return batch
    options = {**inherited, **batch.task.options}
    return replace(batch, task=replace(batch.task, options=options))


def _batches(job: Batch, tasks: Sequence[Task], merged: Any) -> Iterator[MergedTask]:
    if merged is None:
        return
    several = merged if isinstance(merged, list | tuple) else [merged]
    group = job.group.decode("utf-8", "replace")
    for number, task in enumerate(several, 1):
        if not isinstance(task, Task):
            raise MergeError(
                f"the merge function returned {type(task).__name__}; return a Task, None, or "
                "several tasks"
            )
        batch_id = job.batch_id.decode()
        if several is merged:
            batch_id = f"{batch_id}-{number}"
        headers = linked(task.headers, tasks)
        if not task.group_key or headers is not task.headers:
            task = replace(task, group_key=task.group_key or group, headers=headers)
        yield MergedTask(batch_id, group, len(tasks), task)
