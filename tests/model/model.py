"""A model of one partition in plain Python.

A batch holds its tasks, and a group its batches and its waiting tasks. So the model computes places
in lists, counters and marks from its contents, where the scripts keep them up to date.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redisagg.protocol.records import BatchRecord, DeadRecord

PRIORITY_STEP = 2**42
BEHIND_MS = 50


class Refused(Exception):
    """A script replied with an error; the message is the error's text."""


class Limits(NamedTuple):
    """The limits of a section; spans in ms."""

    grace: int
    delay: int
    size: int
    priority: int


_NONE = Limits(0, 0, 0, 0)


class Entry(NamedTuple):
    """A stored task."""

    arrival: int
    id: bytes
    body: bytes
    limits: Limits

    @property
    def raw(self) -> bytes:
        return self.arrival.to_bytes(6, "big") + bytes([len(self.id)]) + self.id + self.body


class AddOptions(NamedTuple):
    """The options of an `add` call."""

    tasks: int = 0
    """Maximum number of pending tasks; 0 for no maximum."""
    bytes: int = 0
    """Maximum bytes of their entries; 0 for no maximum."""
    dedupe: bool = False


class Section(NamedTuple):
    """A section of an `add` call: tasks of one group, as id and body."""

    group: bytes
    limits: Limits
    tasks: Sequence[tuple[bytes, bytes]]


@dataclass
class Batch:
    """A batch in flight."""

    id: bytes
    group: bytes
    entries: list[Entry]
    created: int
    attempts: int = 0
    error: bytes = b""
    merged: bytes = b""


class Retry(NamedTuple):
    """A batch in a `retry` call."""

    batch_id: bytes
    delay: int | None
    """ms; None: the batch stays claimed and only its merge result is stored."""
    counts: int
    """1 if the attempt counts, else 0."""
    error: bytes
    merged: bytes


@dataclass
class DeadLetter:
    """A dead letter."""

    record: DeadRecord
    entries: list[Entry]


@dataclass
class Group:
    """A group."""

    base: int = 0
    in_flight: list[Batch] = field(default_factory=list)
    """Batches in the order in which they have to leave."""
    waiting: list[Entry] = field(default_factory=list)
    numbers: dict[bytes, int] = field(default_factory=dict)
    """The absolute number that each waiting task got when it came, by its id."""
    deadline: int = 0
    limits: Limits = _NONE
    marked: int = 0
    """Number of waiting tasks that a flush made due."""
    held_from: int = 0
    """Absolute number of the first task of the batches in retry, or of one before it."""
    held_until: int = 0
    """When the last of those batches may be claimed again."""

    @property
    def claimed(self) -> int:
        """Number of tasks in batches."""
        return sum(len(batch.entries) for batch in self.in_flight)

    @property
    def due_at(self) -> int:
        """When the group is due; 0: at once."""
        if self.marked or len(self.waiting) >= self.limits.size:
            return 0
        return min(self.waiting[-1].arrival + self.limits.grace, self.deadline)

    @property
    def score(self) -> int:
        """The score in `ready`."""
        return self.due_at - self.limits.priority * PRIORITY_STEP

    def start(self, batch: Batch) -> int:
        """Absolute number of the first task of a batch."""
        before = self.in_flight[: self.in_flight.index(batch)]
        return self.base + sum(len(each.entries) for each in before)

    def refresh_head(self) -> None:
        """Updates the group after its waiting tasks have lost some."""
        self.marked = min(self.marked, len(self.waiting))
        if self.waiting:
            self.deadline = max(self.deadline, self.waiting[0].arrival + self.limits.delay)


def length(entries: Iterable[Entry]) -> int:
    """Bytes of entries."""
    return sum(len(entry.raw) for entry in entries)


def seen_member(group: bytes, task_id: bytes) -> bytes:
    """The member of the set `seen` for an id."""
    return len(group).to_bytes(2, "big") + group + task_id


def in_order(index: dict[bytes, int]) -> list[bytes]:
    """The members of a sorted set, in its order."""
    return sorted(index, key=lambda member: (index[member], member))


class Partition:
    """The state of a partition, with a method for each script that returns the script's reply."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.partitions = 0
        self.owner: bytes | None = None
        self.token = 0
        self.expires = 0
        self.wake = 0
        self.paused = False
        self.sequence = 0
        self.flushed = 0
        self.flushed_tasks = 0
        self.groups: dict[bytes, Group] = {}
        self.batches: dict[bytes, Batch] = {}
        self.claims: dict[bytes, int] = {}
        self.retries: dict[bytes, int] = {}
        self.due: dict[bytes, int] = {}
        self.ready: dict[bytes, int] = {}
        self.dead: dict[bytes, DeadLetter] = {}
        self.calls: dict[bytes, tuple[int, list[int | bytes]]] = {}
        self.seen: set[bytes] = set()
        """The group and id of each flushed task; the dedupe window is longer than a test."""
        self.stream: list[tuple[bytes, ...]] = []

    # --- shared by the scripts ---------------------------------------------------------------

    def leads(self, token: int) -> bool:
        """Whether the lease of this token runs."""
        return token == self.token and self.expires > self.now

    def register_partition(self, partitions: int) -> int:
        self.partitions = partitions
        return 1

    def _refuse_unregistered(self) -> None:
        if not self.partitions:
            raise Refused("UNREGISTERED the state is of unknown partitions, not 1")

    def _fence(self, token: int) -> None:
        if token != self.token:
            raise Refused("STALE the partition has another leader")
        if self.expires <= self.now:
            raise Refused("STALE the lease has expired")

    def held(self, name: bytes) -> int:
        """Number of batches of a group that are in retry; they hold the group."""
        return sum(batch.id in self.retries for batch in self.groups[name].in_flight)

    def _schedule(self, name: bytes) -> None:
        """Puts a group into the index of its state, and removes it if it is empty."""
        group = self.groups[name]
        self.due.pop(name, None)
        self.ready.pop(name, None)
        if group.waiting and not self.held(name):
            if group.due_at <= self.now:
                self.ready[name] = group.score
            else:
                self.due[name] = group.due_at
        self._remove_if_empty(name)

    def _remove_if_empty(self, name: bytes) -> None:
        group = self.groups[name]
        if not group.waiting:
            group.marked = 0
        if not group.waiting and not group.in_flight:
            del self.groups[name]

    def _wake(self, at: float) -> None:
        if at < self.wake:
            self.wake = 0

    # --- producers ---------------------------------------------------------------------------

    def add(
        self, producer: bytes, number: int | None, sections: Iterable[Section], options: AddOptions
    ) -> list[int | bytes]:
        if number is not None and producer in self.calls:
            last, answered = self.calls[producer]
            if number == last:
                return answered
            if number < last:
                raise Refused("LATE a later call was made")
        self._refuse_unregistered()
        reply: list[int | bytes] = []
        earliest = math.inf
        for section in sections:
            if self._too_full(section, options):
                reply.append(b"FULL too much is pending")
                continue
            added, due = self._add_section(section, dedupe=options.dedupe)
            reply.append(added)
            earliest = min(earliest, due)
        if any(isinstance(each, int) and each for each in reply):
            self._wake(earliest)
        if number is not None:
            self.calls[producer] = (number, reply)
        return reply

    def _too_full(self, section: Section, options: AddOptions) -> bool:
        group = self.groups.get(section.group, Group())
        new = [
            Entry(0, task_id, body, section.limits)
            for task_id, body in section.tasks
            if task_id not in group.numbers
            and not (options.dedupe and seen_member(section.group, task_id) in self.seen)
        ]
        counts = self.counters()
        tasks = counts["waiting"] + counts["claimed"] + len(new)
        size = counts["bytes"] + length(new)
        return bool(new) and (0 < options.tasks < tasks or 0 < options.bytes < size)

    def _add_section(self, section: Section, *, dedupe: bool) -> tuple[int, float]:
        name, limits = section.group, section.limits
        group = self.groups.setdefault(name, Group())
        new: list[Entry] = []
        first = group.base + group.claimed + len(group.waiting)
        for task_id, body in section.tasks:
            known = dedupe and seen_member(name, task_id) in self.seen
            if task_id not in group.numbers and not known:
                group.numbers[task_id] = first + len(new)
                new.append(Entry(self.now, task_id, body, limits))
        if not new:
            self._remove_if_empty(name)
            return 0, math.inf
        was_full = bool(group.waiting) and len(group.waiting) >= group.limits.size
        was_due = group.due_at if group.waiting else None
        deadline = self.now + limits.delay
        if group.waiting:
            old = group.limits
            group.deadline = min(group.deadline, deadline)
            group.limits = Limits(
                limits.grace,
                min(old.delay, limits.delay),
                min(old.size, limits.size),
                max(old.priority, limits.priority),
            )
        else:
            group.deadline, group.limits = deadline, limits
        group.waiting += new
        if self.held(name):
            return len(new), math.inf
        if group.due_at > 0:
            # A group in `ready` stays there: once due, it stays due.
            if was_due is not None and was_due <= group.due_at:
                return len(new), math.inf  # the index may be early; `poll` corrects it
            self.due[name] = group.due_at
            return len(new), group.due_at
        self.ready[name] = min(self.ready.get(name, group.score), group.score)
        if was_full:
            return len(new), math.inf
        self.due.pop(name, None)
        return len(new), self.now

    def forget_calls(self, producers: Sequence[bytes]) -> int:
        return sum(self.calls.pop(producer, None) is not None for producer in producers)

    # --- leases ------------------------------------------------------------------------------

    def acquire(self, owner: bytes, lease: int) -> list[int]:
        self._refuse_unregistered()
        if self.expires > self.now and self.owner != owner:
            return [0, self.expires - self.now]
        self.claims = dict.fromkeys(self.claims, 0)
        self.token = max(self.token + 1, self.now)
        self.owner, self.expires, self.wake = owner, self.now + lease, 0
        return [self.token, 0]

    def renew(self, token: int, lease: int) -> int:
        self._fence(token)
        self.expires = self.now + lease
        return 1

    def release(self, token: int) -> int:
        if token != self.token:
            return 0
        self.expires = 0
        self.claims = dict.fromkeys(self.claims, 0)
        return 1

    # --- claims ------------------------------------------------------------------------------

    def poll(self, token: int, limit: int, sleep: int) -> list[Any]:
        self._fence(token)
        if self.paused:
            self.wake = self.now + sleep
            return [-1, []]
        items: list[tuple[bytes, bytes]] = []
        next_at = math.inf
        for index in (self.claims, self.retries):
            members = in_order(index)
            back = [member for member in members if index[member] <= self.now]
            back = back[: limit - len(items)]
            items += [(batch_id, self.batches[batch_id].group) for batch_id in back]
            for member in members[len(back) : len(back) + 1]:
                next_at = min(next_at, index[member])
        for name in [name for name, at in self.due.items() if at <= self.now]:
            if self.groups[name].due_at > self.now:
                self.due[name] = self.groups[name].due_at
                continue
            score = self.groups[name].score
            self.ready[name] = min(self.ready.get(name, score), score)
            del self.due[name]
        next_at = min(next_at, *self.due.values(), math.inf)
        items += [(b"", name) for name in in_order(self.ready)[: limit - len(items)]]
        if items or next_at <= self.now:
            self.wake = 0
            return [0, items]
        self.wake = int(min(next_at, self.now + sleep))
        return [self.wake - self.now, items]

    def claim(
        self,
        token: int,
        duration: int,
        room: Room,
        items: Iterable[tuple[bytes, bytes]],
        new_id: Callable[[], bytes],
        *,
        dedupe: bool,
    ) -> list[list[Any]]:
        self._fence(token)
        until = self.now + duration
        claimed: list[Batch] = []

        def claim_batch(batch: Batch) -> None:
            batch.attempts += 1
            claimed.append(batch)
            room.take(batch)

        for batch_id, name in items:
            if not room.left:
                continue
            if batch_id:
                if self._take_over(batch_id):
                    claim_batch(self.batches[batch_id])
            else:
                cut = self._cut(name, room, new_id, claim_batch)
                if dedupe:
                    self.seen |= {seen_member(name, entry.id) for entry in cut}
        for batch in claimed:
            self.claims[batch.id] = until
        return [
            [
                *(each.id, each.group, each.attempts, each.created, each.error, each.merged),
                raws(each.entries),
            ]
            for each in claimed
        ]

    def _take_over(self, batch_id: bytes) -> bool:
        waits = self.retries.get(batch_id)
        at = self.claims.get(batch_id, math.inf) if waits is None else waits
        if at > self.now or (self.paused and waits is not None):
            return False
        batch = self.batches[batch_id]
        group = self.groups[batch.group]
        start = group.start(batch)
        if self.held(batch.group) and start > group.held_from and group.in_flight[0] is not batch:
            index = self.claims if waits is None else self.retries
            index[batch_id] = max(group.held_until, self.now + BEHIND_MS)
            return False
        if waits is not None:
            del self.retries[batch_id]
            group.held_from = start + len(batch.entries)
            self._schedule(batch.group)
        return True

    def _cut(
        self,
        name: bytes,
        room: Room,
        new_id: Callable[[], bytes],
        claim_batch: Callable[[Batch], None],
    ) -> list[Entry]:
        if self.paused or name not in self.ready:
            return []
        group = self.groups[name]
        cut: list[Entry] = []
        first = True
        while group.waiting and room.left and (first or group.due_at <= self.now):
            first = False
            size = group.limits.size
            batch = Batch(new_id(), name, group.waiting[:size], self.now)
            del group.waiting[:size]
            for entry in batch.entries:
                del group.numbers[entry.id]
            group.marked = max(0, group.marked - len(batch.entries))
            group.refresh_head()
            group.in_flight.append(batch)
            self.batches[batch.id] = batch
            self.sequence += 1
            cut += batch.entries
            claim_batch(batch)
        self._schedule(name)
        return cut

    def extend(self, token: int, duration: int, batch_ids: Iterable[bytes]) -> int:
        self._fence(token)
        for batch_id in batch_ids:
            if batch_id in self.claims:
                self.claims[batch_id] = self.now + duration
        return 1

    # --- the end of batches ------------------------------------------------------------------

    def _may_leave(self, batch_id: bytes) -> bytes:
        if batch_id not in self.claims:
            return b"GONE"
        batch = self.batches[batch_id]
        return b"OK" if self.groups[batch.group].in_flight[0] is batch else b"ORDER"

    def _close(self, batch_id: bytes) -> Batch:
        batch = self.batches.pop(batch_id)
        del self.claims[batch_id]
        group = self.groups[batch.group]
        del group.in_flight[0]
        group.base += len(batch.entries)
        self._remove_if_empty(batch.group)
        return batch

    def commit_stream(
        self, token: int, commits: Iterable[tuple[bytes, Sequence[tuple[bytes, ...]]]]
    ) -> list[bytes]:
        self._fence(token)
        reply = []
        for batch_id, messages in commits:
            reply.append(self._may_leave(batch_id))
            if reply[-1] == b"OK":
                self.stream += messages
                self.flushed += 1
                self.flushed_tasks += len(self._close(batch_id).entries)
        return reply

    def bury(self, token: int, batch_id: bytes, error: bytes, traceback: bytes) -> bytes:
        self._fence(token)
        reply = self._may_leave(batch_id)
        if reply == b"OK":
            batch = self._close(batch_id)
            self.dead[batch_id] = self._dead_letter(batch, batch.entries, error, traceback)
        return reply

    def _dead_letter(
        self, batch: Batch, entries: list[Entry], error: bytes, traceback: bytes
    ) -> DeadLetter:
        record = DeadRecord(
            batch.group, len(entries), batch.attempts, batch.created, self.now, error, traceback
        )
        return DeadLetter(record, entries)

    def set_aside(
        self, token: int, batch_id: bytes, letter_id: bytes, error: bytes, places: Sequence[int]
    ) -> bytes:
        self._fence(token)
        if batch_id not in self.batches:
            return b"GONE"
        if letter_id not in self.dead and letter_id not in self.batches:
            batch = self.batches[batch_id]
            entries = [batch.entries[place] for place in places]
            self.dead[letter_id] = self._dead_letter(batch, entries, error, b"")
        return b"OK"

    def retry(self, token: int, batches: Iterable[Retry]) -> list[int]:
        self._fence(token)
        reply = []
        for batch_id, delay, counts, error, merged in batches:
            reply.append(int(batch_id in self.claims))
            if batch_id in self.claims:
                batch = self.batches[batch_id]
                if merged and not batch.merged:
                    batch.attempts = 1
                batch.merged = merged or batch.merged
                if delay is not None:
                    self._put_into_retry(batch, delay, counts, error)
        return reply

    def _put_into_retry(self, batch: Batch, delay: int, counts: int, error: bytes) -> None:
        del self.claims[batch.id]
        self._hold(batch, self.now + delay)
        if not counts:
            batch.attempts = max(0, batch.attempts - 1)
        batch.error = error or batch.error
        self._schedule(batch.group)

    def _hold(self, batch: Batch, until: int) -> None:
        group = self.groups[batch.group]
        start = group.start(batch)
        group.held_from = min(group.held_from, start) if self.held(batch.group) else start
        group.held_until = max(group.held_until, until)
        self.retries[batch.id] = until

    # --- operators ---------------------------------------------------------------------------

    def requeue(self, letter_id: bytes) -> int:
        if letter_id not in self.dead:
            return 0
        letter = self.dead.pop(letter_id)
        record = letter.record
        batch = Batch(letter_id, record.group, letter.entries, record.created, error=record.error)
        group = self.groups.setdefault(record.group, Group())
        group.in_flight.insert(0, batch)
        group.base -= len(batch.entries)
        self.batches[letter_id] = batch
        self._hold(batch, self.now)
        self._schedule(record.group)
        self._wake(self.now)
        return len(batch.entries)

    def drop(self, letter_id: bytes) -> int:
        letter = self.dead.pop(letter_id, None)
        return len(letter.entries) if letter else 0

    def flush(self, names: Iterable[bytes]) -> int:
        marked = 0
        for name in names:
            group = self.groups.get(name)
            if group and group.marked < len(group.waiting):
                marked += len(group.waiting) - group.marked
                group.marked = len(group.waiting)
                self._schedule(name)
        if marked:
            self._wake(self.now)
        return marked

    def flush_all(self) -> list[Any]:
        return [b"0", self.flush(list(self.groups))]

    def pause(self, paused: bool) -> int:
        self._refuse_unregistered()
        changed = self.paused != paused
        self.paused = paused
        if not paused:
            self.wake = 0
        return int(changed)

    def cancel_task(self, name: bytes, task_id: bytes) -> int:
        group = self.groups.get(name)
        if group is None or task_id not in group.numbers:
            return 0
        del group.numbers[task_id]
        group.waiting = [entry for entry in group.waiting if entry.id != task_id]
        group.refresh_head()
        self._schedule(name)
        return 1

    def cancel_group(self, name: bytes) -> int:
        group = self.groups.get(name)
        if group is None or not group.waiting:
            return 0
        cancelled = len(group.waiting)
        group.waiting, group.numbers = [], {}
        self._schedule(name)
        return cancelled

    # --- reading -----------------------------------------------------------------------------

    def stats(self) -> list[Any]:
        left = max(0, self.expires - self.now)
        state = self.counters()
        return [
            *(state[name] for name in ("waiting", "claimed", "bytes")),
            *(state[name] for name in ("flushed", "flushed_tasks", "dead")),
            len(self.groups),
            len(self.batches),
            len(self.retries),
            len(self.dead),
            int(self.paused),
            self.owner if left else b"",
            self.token,
            left,
        ]

    def counters(self) -> dict[str, int]:
        """The counters in the state."""
        return {
            "waiting": sum(len(group.waiting) for group in self.groups.values()),
            "claimed": sum(group.claimed for group in self.groups.values()),
            "bytes": sum(
                length(group.waiting) + sum(length(batch.entries) for batch in group.in_flight)
                for group in self.groups.values()
            ),
            "dead": sum(len(letter.entries) for letter in self.dead.values()),
            "flushed": self.flushed,
            "flushed_tasks": self.flushed_tasks,
        }

    def batch_records(self) -> dict[bytes, BatchRecord]:
        """The records of all batches, by batch id."""
        return {
            each.id: BatchRecord(
                each.group,
                self.groups[each.group].start(each),
                len(each.entries),
                each.attempts,
                each.created,
                each.error,
                length(each.entries),
                each.merged,
            )
            for each in self.batches.values()
        }


@dataclass
class Room:
    """The remaining limits of a `claim` call."""

    batches: int
    tasks: int
    bytes: int

    @property
    def left(self) -> bool:
        return self.batches > 0 and self.tasks > 0 and self.bytes > 0

    def take(self, batch: Batch) -> None:
        self.batches -= 1
        self.tasks -= len(batch.entries)
        self.bytes -= length(batch.entries) + len(batch.merged)


def raws(entries: Iterable[Entry]) -> list[bytes]:
    """The stored bytes of entries."""
    return [entry.raw for entry in entries]
