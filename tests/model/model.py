"""One partition as it should be, in plain Python.

It holds tasks where the scripts hold numbers: a batch has its tasks, a group its batches and what
still waits. So the places in lists, the counters and the marks that the scripts keep up to date are
worked out here from what is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redisagg.protocol.records import BatchRecord, DeadRecord

PRIORITY_STEP = 2**42
BEHIND = 50  # ms


class Refused(Exception):
    """A script's reply is an error with this text."""


class Limits(NamedTuple):
    """What a task asks of its group; times in ms."""

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


class Terms(NamedTuple):
    """What an `add` says apart from its sections."""

    tasks: int = 0
    """How many may be pending; 0 for any number."""
    bytes: int = 0
    dedupe: bool = False


class Section(NamedTuple):
    """A part of an `add`: tasks of one group, as id and body."""

    group: bytes
    limits: Limits
    tasks: Sequence[tuple[bytes, bytes]]


@dataclass
class Batch:
    id: bytes
    group: bytes
    entries: list[Entry]
    created: int
    attempts: int = 0
    error: bytes = b""
    merged: bytes = b""


class Retry(NamedTuple):
    """A batch that is given back."""

    batch_id: bytes
    delay: int | None
    """None: it is not, only what it was merged to is stored."""
    counts: int
    error: bytes
    merged: bytes


@dataclass
class Letter:
    """A dead letter."""

    record: DeadRecord
    entries: list[Entry]


@dataclass
class Group:
    base: int = 0
    flight: list[Batch] = field(default_factory=list)
    """Batches, in the order in which they have to leave."""
    waiting: list[Entry] = field(default_factory=list)
    numbers: dict[bytes, int] = field(default_factory=dict)
    """Ids that wait, with the number that their task got when it came."""
    deadline: int = 0
    limits: Limits = _NONE
    flush: int = 0
    held_at: int = 0
    """The place of the first batch that waits for a retry, or of one before it."""
    until: int = 0
    """When the last one may be taken back."""

    @property
    def claimed(self) -> int:
        return sum(len(batch.entries) for batch in self.flight)

    @property
    def due_at(self) -> int:
        if self.flush or len(self.waiting) >= self.limits.size:
            return 0
        return min(self.waiting[-1].arrival + self.limits.grace, self.deadline)

    @property
    def score(self) -> int:
        return self.due_at - self.limits.priority * PRIORITY_STEP

    def start(self, batch: Batch) -> int:
        before = self.flight[: self.flight.index(batch)]
        return self.base + sum(len(each.entries) for each in before)

    def head_changed(self) -> None:
        """What waits has lost tasks: mind the oldest of those that are left."""
        self.flush = min(self.flush, len(self.waiting))
        if self.waiting:
            self.deadline = max(self.deadline, self.waiting[0].arrival + self.limits.delay)


def length(entries: Iterable[Entry]) -> int:
    return sum(len(entry.raw) for entry in entries)


def seen_member(group: bytes, task_id: bytes) -> bytes:
    return len(group).to_bytes(2, "big") + group + task_id


def in_order(index: dict[bytes, int]) -> list[bytes]:
    """The members of a sorted set."""
    return sorted(index, key=lambda member: (index[member], member))


class Partition:
    """The state, and a method for each script: it returns the script's reply."""

    def __init__(self, now: int) -> None:
        self.now = now
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
        self.dead: dict[bytes, Letter] = {}
        self.calls: dict[bytes, tuple[int, list[int | bytes]]] = {}
        self.seen: set[bytes] = set()
        """Group and id of what was flushed; the window outlasts a test."""
        self.stream: list[tuple[bytes, ...]] = []

    # --- what the scripts share --------------------------------------------------------------

    def leads(self, token: int) -> bool:
        return token == self.token and self.expires > self.now

    def _fence(self, token: int) -> None:
        if token != self.token:
            raise Refused("STALE the partition has another leader")
        if self.expires <= self.now:
            raise Refused("STALE the lease has expired")

    def held(self, name: bytes) -> int:
        """How many batches of a group wait for a retry, and hold it back."""
        return sum(batch.id in self.retries for batch in self.groups[name].flight)

    def _schedule(self, name: bytes) -> None:
        """Puts a group where it belongs, or forgets it if it is empty."""
        group = self.groups[name]
        self.due.pop(name, None)
        self.ready.pop(name, None)
        if group.waiting and not self.held(name):
            if group.due_at <= self.now:
                self.ready[name] = group.score
            else:
                self.due[name] = group.due_at
        self._tidy(name)

    def _tidy(self, name: bytes) -> None:
        group = self.groups[name]
        if not group.waiting:
            group.flush = 0
        if not group.waiting and not group.flight:
            del self.groups[name]

    def _wake(self, at: float) -> None:
        if at < self.wake:
            self.wake = 0

    # --- producers ---------------------------------------------------------------------------

    def add(
        self, producer: bytes, number: int | None, sections: Iterable[Section], terms: Terms
    ) -> list[int | bytes]:
        if number is not None and producer in self.calls:
            last, reply = self.calls[producer]
            if number == last:
                return reply
            if number < last:
                raise Refused("LATE a later call was made")
        reply: list[int | bytes] = []
        earliest = math.inf
        for section in sections:
            if self._too_full(section, terms):
                reply.append(b"FULL too much is pending")
                continue
            added, due = self._add_section(section, dedupe=terms.dedupe)
            reply.append(added)
            earliest = min(earliest, due)
        if any(isinstance(each, int) and each for each in reply):
            self._wake(earliest)
        if number is not None:
            self.calls[producer] = (number, reply)
        return reply

    def _too_full(self, section: Section, terms: Terms) -> bool:
        group = self.groups.get(section.group, Group())
        new = [
            Entry(0, task_id, body, section.limits)
            for task_id, body in section.tasks
            if task_id not in group.numbers
            and not (terms.dedupe and seen_member(section.group, task_id) in self.seen)
        ]
        counts = self.counters()
        tasks = counts["waiting"] + counts["claimed"] + len(new)
        size = counts["bytes"] + length(new)
        return bool(new) and (0 < terms.tasks < tasks or 0 < terms.bytes < size)

    def _add_section(self, section: Section, *, dedupe: bool) -> tuple[int, float]:
        name, limits = section.group, section.limits
        group = self.groups.setdefault(name, Group())
        new = []
        first = group.base + group.claimed + len(group.waiting)
        for task_id, body in section.tasks:
            known = dedupe and seen_member(name, task_id) in self.seen
            if task_id not in group.numbers and not known:
                group.numbers[task_id] = first + len(new)
                new.append(Entry(self.now, task_id, body, limits))
        if not new:
            self._tidy(name)
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
            # What is in `ready` stays there: once due, a group stays due.
            if was_due is not None and was_due <= group.due_at:
                return len(new), math.inf  # the index may be early; `poll` looks again
            self.due[name] = group.due_at
            return len(new), group.due_at
        self.ready[name] = min(self.ready.get(name, group.score), group.score)
        if was_full:
            return len(new), math.inf
        self.due.pop(name, None)
        return len(new), self.now

    def forget(self, producers: Sequence[bytes]) -> int:
        return sum(self.calls.pop(producer, None) is not None for producer in producers)

    # --- leases ------------------------------------------------------------------------------

    def acquire(self, owner: bytes, lease: int) -> list[int]:
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
        lasts: int,
        room: Room,
        items: Iterable[tuple[bytes, bytes]],
        new_id: Callable[[], bytes],
        *,
        dedupe: bool,
    ) -> list[list[Any]]:
        self._fence(token)
        until = self.now + lasts
        handed: list[Batch] = []

        def hand_out(batch: Batch) -> None:
            batch.attempts += 1
            handed.append(batch)
            room.take(batch)

        for batch_id, name in items:
            if not room.left:
                continue
            if batch_id:
                if self._take_back(batch_id):
                    hand_out(self.batches[batch_id])
            else:
                cut = self._cut(name, room, new_id, hand_out)
                if dedupe:
                    self.seen |= {seen_member(name, entry.id) for entry in cut}
        for batch in handed:
            self.claims[batch.id] = until
        return [
            [
                *(each.id, each.group, each.attempts, each.created, each.error, each.merged),
                raws(each.entries),
            ]
            for each in handed
        ]

    def _take_back(self, batch_id: bytes) -> bool:
        waits = self.retries.get(batch_id)
        at = self.claims.get(batch_id, math.inf) if waits is None else waits
        if at > self.now or (self.paused and waits is not None):
            return False
        batch = self.batches[batch_id]
        group = self.groups[batch.group]
        start = group.start(batch)
        if self.held(batch.group) and start > group.held_at and group.flight[0] is not batch:
            index = self.claims if waits is None else self.retries
            index[batch_id] = max(group.until, self.now + BEHIND)
            return False
        if waits is not None:
            del self.retries[batch_id]
            group.held_at = start + len(batch.entries)
            self._schedule(batch.group)
        return True

    def _cut(
        self,
        name: bytes,
        room: Room,
        new_id: Callable[[], bytes],
        hand_out: Callable[[Batch], None],
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
            group.flush = max(0, group.flush - len(batch.entries))
            group.head_changed()
            group.flight.append(batch)
            self.batches[batch.id] = batch
            self.sequence += 1
            cut += batch.entries
            hand_out(batch)
        self._schedule(name)
        return cut

    def extend(self, token: int, lasts: int, batch_ids: Iterable[bytes]) -> int:
        self._fence(token)
        for batch_id in batch_ids:
            if batch_id in self.claims:
                self.claims[batch_id] = self.now + lasts
        return 1

    # --- the end of batches ------------------------------------------------------------------

    def _may_leave(self, batch_id: bytes) -> bytes:
        if batch_id not in self.claims:
            return b"GONE"
        batch = self.batches[batch_id]
        return b"OK" if self.groups[batch.group].flight[0] is batch else b"ORDER"

    def _close(self, batch_id: bytes) -> Batch:
        batch = self.batches.pop(batch_id)
        del self.claims[batch_id]
        group = self.groups[batch.group]
        del group.flight[0]
        group.base += len(batch.entries)
        self._tidy(batch.group)
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
            self.dead[batch_id] = self._letter(batch, batch.entries, error, traceback)
        return reply

    def _letter(self, batch: Batch, entries: list[Entry], error: bytes, traceback: bytes) -> Letter:
        record = DeadRecord(
            batch.group, len(entries), batch.attempts, batch.created, self.now, error, traceback
        )
        return Letter(record, entries)

    def set_aside(
        self, token: int, batch_id: bytes, letter_id: bytes, error: bytes, places: Sequence[int]
    ) -> bytes:
        self._fence(token)
        if batch_id not in self.batches:
            return b"GONE"
        if letter_id not in self.dead and letter_id not in self.batches:
            batch = self.batches[batch_id]
            entries = [batch.entries[place] for place in places]
            self.dead[letter_id] = self._letter(batch, entries, error, b"")
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
                    self._put_back(batch, delay, counts, error)
        return reply

    def _put_back(self, batch: Batch, delay: int, counts: int, error: bytes) -> None:
        del self.claims[batch.id]
        self._hold(batch, self.now + delay)
        if not counts:
            batch.attempts = max(0, batch.attempts - 1)
        batch.error = error or batch.error
        self._schedule(batch.group)

    def _hold(self, batch: Batch, until: int) -> None:
        group = self.groups[batch.group]
        start = group.start(batch)
        group.held_at = min(group.held_at, start) if self.held(batch.group) else start
        group.until = max(group.until, until)
        self.retries[batch.id] = until

    # --- operators ---------------------------------------------------------------------------

    def requeue(self, letter_id: bytes) -> int:
        if letter_id not in self.dead:
            return 0
        letter = self.dead.pop(letter_id)
        record = letter.record
        batch = Batch(letter_id, record.group, letter.entries, record.created, error=record.error)
        group = self.groups.setdefault(record.group, Group())
        group.flight.insert(0, batch)
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
        told = 0
        for name in names:
            group = self.groups.get(name)
            if group and group.flush < len(group.waiting):
                told += len(group.waiting) - group.flush
                group.flush = len(group.waiting)
                self._schedule(name)
        if told:
            self._wake(self.now)
        return told

    def flush_all(self) -> list[Any]:
        return [b"0", self.flush(list(self.groups))]

    def pause(self, paused: bool) -> int:
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
        group.head_changed()
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

    # --- looking -----------------------------------------------------------------------------

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
                length(group.waiting) + sum(length(batch.entries) for batch in group.flight)
                for group in self.groups.values()
            ),
            "dead": sum(len(letter.entries) for letter in self.dead.values()),
            "flushed": self.flushed,
            "flushed_tasks": self.flushed_tasks,
        }

    def batch_records(self) -> dict[bytes, BatchRecord]:
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
    """What one claim may still take."""

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
    return [entry.raw for entry in entries]
