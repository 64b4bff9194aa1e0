"""The events of a run as plain data, and the journals to which processes write them.

All times are seconds since the epoch by the clock of the machine. Redis reads it too, unless a
fault steps the clock of Redis (`History.clock`).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from redisagg import RedisAggError
from redisagg.protocol.answers import Answer

Outcome: TypeAlias = Literal["acknowledged", "refused", "unknown"]


class Limits(NamedTuple):
    """When a group is due: grace period and max delay in seconds, and max size."""

    grace: float
    delay: float
    size: int


class Offer(NamedTuple):
    """A task that was passed to `add_task` or `add_tasks`."""

    task: str
    producer: str
    """A producer makes one call after the other."""
    number: int
    """Its number among the offers of its producer."""
    group: str
    offered_at: float
    outcome: Outcome
    """Unknown: the task may be stored once or not at all."""
    ended_at: float | None
    """When the call returned or raised; None if it did neither."""


class Cause(NamedTuple):
    """What a merge function was told about its batch, and what its tasks said."""

    reason: str
    opened_at: float
    due_at: float
    claimed_at: float
    bytes: int
    weight: int
    arrivals: tuple[float, ...]
    versions: tuple[int, ...]
    """By task: 1 if it replaced another one."""


class Batch(NamedTuple):
    """Tasks that were read together: enqueued, in flight, dead, or waiting in a group."""

    batch_id: str
    """Empty for waiting tasks."""
    group: str
    tasks: tuple[str, ...]
    by: str = ""
    """The flusher that enqueued them."""
    enqueued_at: float | None = None
    """When it was enqueued; None if the queue does not tell."""
    stated_count: int | None = None
    """The number of tasks that its entry states, if it states one."""
    signed_at: float | None = None
    """When a flusher made its entry, shortly before it was enqueued."""
    cause: Cause | None = None
    """Of a batch of a group whose tasks have limits of all kinds."""
    failed: tuple[tuple[int, str], ...] = ()
    """The tasks that failed alone, with their places in the batch as it was cut; `tasks` are the
    others."""

    @property
    def partition(self) -> int:
        """The partition in its id."""
        return int(self.batch_id.split("-")[1])

    @property
    def claimed_at(self) -> float:
        """When it was cut, by the clock of Redis: the time in its id."""
        return int(self.batch_id.split("-")[0], 16) / 1000

    @property
    def as_cut(self) -> Batch:
        """The batch with the tasks that failed alone."""
        tasks = list(self.tasks)
        for place, task in self.failed:  # in order
            tasks.insert(place, task)
        return self._replace(tasks=tuple(tasks))

    @property
    def left_at(self) -> float | None:
        """When it left its group, as far as that is known."""
        return self.signed_at if self.enqueued_at is None else self.enqueued_at


class Lease(NamedTuple):
    """A lease, and when its flusher knew of it."""

    partition: int
    token: int
    flusher: str
    at: float


class Window(NamedTuple):
    """A span of time, such as one in which Redis may lose writes that it acknowledges."""

    start: float
    end: float


class Disturbance(NamedTuple):
    """A time in which a fault may delay batches."""

    kind: str
    """The fault."""
    start: float
    end: float
    place: str = ""
    """The place of the flushers whose partitions it delays; empty if it may delay all batches."""
    group: str = ""
    """The group that it delays alone."""


MOVED = "namespace moved"
"""The kind of the disturbance while an operator moves the namespace."""


def place_of(flusher: str) -> str:
    """The place in which a flusher runs: its name up to the first dot."""
    return flusher.partition(".")[0]


class Reply(NamedTuple):
    """What a merge function said of its batch, beside a merged task."""

    batch_id: str
    group: str
    flusher: str
    at: float
    again_at: float
    """When the batch may be tried again; infinity if never, until it is requeued."""
    of_all: bool = False
    """Whether its flusher may merge nothing until then."""


class Call(NamedTuple):
    """A call of a merge function."""

    group: str
    flusher: str
    tasks: int
    began: float
    ended: float
    """Infinity if its process ended before."""


class Told(NamedTuple):
    """What a receipt said of a task."""

    task: str
    outcome: str
    """``"result"``, or the name of the error."""
    value: Any


class Down(NamedTuple):
    """A flusher that ended or was stopped by a signal, without giving up its leases."""

    flusher: str
    at: float


class Stop(NamedTuple):
    """A flusher that was asked to stop in order, by SIGTERM."""

    flusher: str
    asked_at: float
    ended_at: float | None
    """When its process had ended; None if it had to be killed."""
    within: float
    """Seconds that it may take."""


OPERATIONS = (
    "cancel_task",
    "cancel_group",
    "flush",
    "flush_all",
    "pause",  # of all groups, or of one
    "resume",
    "requeue_dead_letter",
    "drop_dead_letter",
)
"""The calls of an operator."""


class Operation(NamedTuple):
    """A call of an operator, who makes one after the other."""

    name: str
    began_at: float
    ended_at: float | None
    """When it returned or raised; None if it did neither."""
    result: Any
    """What it returned, if `returned`."""
    returned: bool
    """False if it raised: it may have been carried out or not."""
    group: str = ""
    target: str = ""
    """The id of a task or of a batch."""
    tasks: tuple[str, ...] = ()
    """The tasks of that batch, read before the call."""


class Pending(NamedTuple):
    """The number of pending tasks at some time."""

    at: float
    tasks: int


@dataclass
class History:
    """All that is known of a run."""

    limits: dict[str, Limits]
    """By group; all tasks of a group have the same, or these are the most that any has."""
    offers: list[Offer] = field(default_factory=list)
    enqueued: list[Batch] = field(default_factory=list)
    """In the order in which they were enqueued, within each partition."""
    in_flight: list[Batch] = field(default_factory=list)
    dead: list[Batch] = field(default_factory=list)
    waiting: list[Batch] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    lossy: list[Window] = field(default_factory=list)
    """When Redis itself may lose writes that it acknowledges."""
    wiped: list[Window] = field(default_factory=list)
    """When Redis lost all that it had. `lossy` has these windows too."""
    durable: bool = False
    """Whether the settings prevent losses, so that a window in `lossy` excuses no lost task.

    It still excuses a lost lease."""
    exactly_once: bool = True
    """False for a sink that gets each batch at least once, with the same batch id."""
    again: list[Offer] = field(default_factory=list)
    """Tasks that were offered a second time, with the same id, within the dedupe window."""
    poison: frozenset[str] = frozenset()
    """Tasks that no flusher can merge."""
    alone: frozenset[str] = frozenset()
    """Those of them that become dead letters without others, while the rest of their batch is
    done."""
    buries_innocents: frozenset[str] = frozenset()
    """The groups in which a task that no flusher can merge takes others to the dead letters."""
    retries: int = 0
    """How often a task may fail alone until it is a dead letter of its own; 0 if it is one at once.
    """
    submitted: set[str] = field(default_factory=set)
    """Tasks whose outcome is kept."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """What is stored of their outcomes at the end."""
    told: list[Told] = field(default_factory=list)
    """What receipts said meanwhile."""
    replies: list[Reply] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    """The calls of the operator, in order."""
    moves: int = 0
    """The number of movers."""
    calls: list[Call] = field(default_factory=list)
    """Of merge functions."""
    work_limits: Mapping[str, Any] = field(default_factory=dict)
    """The settings that bound these calls."""
    merge_timeout: float = math.inf
    """Seconds after which a call is not counted any more."""
    clock: list[Window] = field(default_factory=list)
    """When the clock of Redis was off: it was stepped at the start, and back at the end. And the
    times that it stated then."""
    disturbances: list[Disturbance] = field(default_factory=list)
    downs: list[Down] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    max_pending: int | None = None
    """The largest number of pending tasks that is allowed."""
    lease_time: float = math.inf
    """Seconds."""
    bound: float = math.inf
    """Seconds after which a due group has left, apart from disturbances."""
    ended_at: float | None = None
    """When the run ended."""
    with_policies: bool = False
    """Whether the policies of `workload` held from the first task on."""


# --- journals ------------------------------------------------------------------------------------


class Journal:
    """A file with a line for each event, which outlives a SIGKILL of its writer.

    A line is passed to the kernel in one call before `write` returns. Only the last line of a
    process that is killed in that call may be incomplete; `read_journal` leaves it out.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, *event: Any) -> None:
        """Appends an event; safe in threads."""
        os.write(self._file, json.dumps(event).encode() + b"\n")


def read_journal(path: Path) -> Iterator[list[Any]]:
    """The events in a journal, oldest first."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)


class ProducerLog:
    """Writes each offer of a producer to its journal, and then the outcome."""

    def __init__(self, journal: Journal, producer: str, clock: Any) -> None:
        self._journal = journal
        self._producer = producer
        self._clock = clock
        self._next = 0
        self.offered_at = 0.0
        """When the last offer was made."""

    def offer(self, groups: Sequence[str]) -> list[str]:
        """Writes an offer of one task for each of `groups`; returns the names of the tasks."""
        first, self._next = self._next, self._next + len(groups)
        self.offered_at = self._clock()
        self._journal.write("offered", self._producer, self.offered_at, first, groups)
        return [task_name(self._producer, number) for number in range(first, self._next)]

    def offer_again(self, task: str, group: str) -> None:
        """Writes that a task is offered a second time."""
        self.offered_at = self._clock()
        self._journal.write("again", self._producer, self.offered_at, task, group)

    def submit(self, task: str) -> None:
        """Writes that the outcome of a task is wanted, which was just offered."""
        self._journal.write("submitted", task)

    def told(self, task: str, outcome: str, value: Any = None) -> None:
        """Writes what a receipt said.

        Args:
            outcome: ``"result"``, or the name of the error.
        """
        self._journal.write("told", task, outcome, value)

    def end(self, outcome: Outcome, error: str = "") -> None:
        """Writes the outcome of the last offer."""
        self._journal.write("ended", self._producer, self._clock(), outcome, error)


class OperatorLog:
    """Writes each call of an operator to its journal, and then the outcome."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def call(self, function: Any, *, group: str = "", target: str = "", tasks: Any = ()) -> Any:
        """Calls a method of an aggregator with its group and target, or only the target of a batch.

        Raises:
            RedisAggError: the call raised it.
        """
        began = time.time()
        call = [function.__name__, began, group, target, list(tasks)]
        try:
            of_batch = function.__name__.endswith("dead_letter")
            result = function(*(each for each in ("" if of_batch else group, target) if each))
        except RedisAggError as error:
            self._journal.write("called", *call, time.time(), False, str(error))
            raise
        self._journal.write("called", *call, time.time(), True, result)
        return result


def read_operation(event: list[Any]) -> Operation:
    """The call in an event of `OperatorLog`."""
    name, began, group, target, tasks, ended, returned, result = event
    return Operation(name, began, ended, result, returned, group, target, tuple(tasks))


def task_name(producer: str, number: int) -> str:
    """The name of a task, which is its payload."""
    return f"{producer}/{number}"


AGAIN = -1
"""The number of an offer that repeats an earlier one."""


def read_offers(events: Iterable[list[Any]]) -> Iterator[Offer]:
    """The offers in the journal of one process; those that repeat one have the number `AGAIN`."""
    open_calls: dict[str, list[Offer]] = {}
    for kind, *rest in events:
        if kind == "offered":
            producer, at, first, groups = rest
            open_calls[producer] = [
                Offer(task_name(producer, number), producer, number, group, at, "unknown", None)
                for number, group in enumerate(groups, first)
            ]
        elif kind == "again":
            producer, at, task, group = rest
            open_calls[producer] = [Offer(task, producer, AGAIN, group, at, "unknown", None)]
        elif kind == "ended":
            producer, at, outcome, _error = rest
            for offer in open_calls.pop(producer):
                yield offer._replace(outcome=outcome, ended_at=at)
    for offers in open_calls.values():  # it was killed in these
        yield from offers
