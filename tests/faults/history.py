"""The events of a run as plain data, and the journals to which processes write them.

All times are seconds since the epoch by the clock of the machine, which Redis reads too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

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


class Batch(NamedTuple):
    """Tasks that were read together: enqueued, in flight, dead, or waiting in a group."""

    batch_id: str
    """Empty for waiting tasks."""
    group: str
    tasks: tuple[str, ...]
    by: str = ""
    """The flusher that enqueued them."""
    enqueued_at: float | None = None
    stated_count: int | None = None
    """The number of tasks that its entry states, if it states one."""

    @property
    def partition(self) -> int:
        """The partition in its id."""
        return int(self.batch_id.split("-")[1])


class Lease(NamedTuple):
    """A lease, and when its flusher knew of it."""

    partition: int
    token: int
    flusher: str
    at: float


class Window(NamedTuple):
    """A time in which Redis itself may lose writes that it acknowledges."""

    start: float
    end: float


@dataclass
class History:
    """All that is known of a run."""

    limits: dict[str, Limits]
    """By group; all tasks of a group have the same."""
    offers: list[Offer] = field(default_factory=list)
    enqueued: list[Batch] = field(default_factory=list)
    """In the order in which they were enqueued, within each partition."""
    in_flight: list[Batch] = field(default_factory=list)
    dead: list[Batch] = field(default_factory=list)
    waiting: list[Batch] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    lossy: list[Window] = field(default_factory=list)
    durable: bool = False
    """Whether the settings prevent losses, so that a window in `lossy` excuses no lost task.

    It still excuses a lost lease."""
    exactly_once: bool = True
    """False for a sink that gets each batch at least once, with the same batch id."""


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

    def offer(self, groups: Sequence[str]) -> list[str]:
        """Writes an offer of one task for each of `groups`; returns the names of the tasks."""
        first, self._next = self._next, self._next + len(groups)
        self._journal.write("offered", self._producer, self._clock(), first, groups)
        return [task_name(self._producer, number) for number in range(first, self._next)]

    def end(self, outcome: Outcome, error: str = "") -> None:
        """Writes the outcome of the last offer."""
        self._journal.write("ended", self._producer, self._clock(), outcome, error)


def task_name(producer: str, number: int) -> str:
    """The name of a task, which is its payload."""
    return f"{producer}/{number}"


def read_offers(events: Iterator[list[Any]]) -> Iterator[Offer]:
    """The offers in the journal of one process."""
    open_calls: dict[str, tuple[float, int, list[str]]] = {}

    def offers(producer: str, outcome: Outcome, ended_at: float | None) -> Iterator[Offer]:
        at, first, groups = open_calls.pop(producer)
        for number, group in enumerate(groups, first):
            name = task_name(producer, number)
            yield Offer(name, producer, number, group, at, outcome, ended_at)

    for kind, *rest in events:
        if kind == "offered":
            producer, at, first, groups = rest
            open_calls[producer] = (at, first, groups)
        elif kind == "ended":
            producer, at, outcome, _error = rest
            yield from offers(producer, outcome, at)
    for producer in list(open_calls):  # it was killed in these
        yield from offers(producer, "unknown", None)
