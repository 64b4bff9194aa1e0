"""Why a group is late: one cause, what to do, and what else is wrong.

The first round trip reads the group and what `observing` reads. A second one finds the batch that
holds the group, and a third its dead letters, both in a bounded number of pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redisagg.errors import AuthenticationFailed, KeyConflict, RedisAggError, RedisUnavailable
from redisagg.operations import observing
from redisagg.operations.observing import Health, PartitionState, at, one_line, rate_text, span
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import Lenient, Operation
from redisagg.protocol.records import (
    NEVER,
    BatchRecord,
    DeadRecord,
    GroupRecord,
    batch_record,
    dead_record,
    group_record,
)
from redisagg.protocol.replies import scan_page
from redisagg.protocol.scripts import command
from redisagg.protocol.status import MERGE_FUNCTION, FlusherStatus
from redisagg.views import FIRST_SCAN, Explanation, Trouble

LATE_AFTER = 1.0
"""Seconds that a group may be overdue before it counts as late."""

_MOST_PAGES = 40
"""Pages of batches, and of dead letters, that are looked through for those of the group."""

_MOST_SCANNED = 500
"""Fields of one page."""

_PAGE_BYTES = 1 << 20
"""Bytes of a page beyond which the next one is smaller."""

_SAME_TIME = 100
"""Batches with the same time in an index that are read."""

_DIED, _FREED = 0, 1
"""Scores in `claims` of batches that no flusher holds."""


class _Batch(NamedTuple):
    """A batch of the group."""

    id: bytes
    record: BatchRecord


@dataclass(slots=True)
class _Group:
    """What was read of a group; times are ms since the epoch."""

    key: bytes
    keys: PartitionKeys
    found: Health
    state: PartitionState | None
    record: GroupRecord | None = None
    foreign: RedisAggError | None = None
    due_score: int | None = None
    """Its score in `due`."""
    ready: int = 0
    """Number of groups in `ready`."""
    is_ready: bool = False
    batches: list[_Batch] = field(default_factory=list)
    """Its batches that were found."""
    scores: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    """By batch id, the index it is in and its score there."""
    permits: observing.Permits = field(default_factory=observing.Permits)
    """Those of the group."""
    dead: list[tuple[bytes, DeadRecord]] = field(default_factory=list)

    @property
    def now(self) -> int:
        """The time of Redis."""
        return self.found.now

    @property
    def leader(self) -> FlusherStatus | None:
        """The status of the leader of its partition; of any flusher if it has none."""
        owner = self.state.owner if self.state else ""
        return self.found.statuses.get(owner, self.found.status)


def explain(keyspace: Keyspace, group: bytes, *, clustered: bool) -> Operation[Explanation]:
    """Says why the tasks of a group are not flushed yet.

    Args:
        clustered: whether the partitions are on several servers.

    Raises:
        NamespaceMismatch: the namespace has another number of partitions or another schema.
        RedisUnavailable: without a cluster, Redis does not answer.
    """
    p = keyspace.partition_of(group)
    found, replies = yield from observing.health(
        keyspace,
        clustered=clustered,
        extra=[
            command("HGET", p.groups, group),
            command("ZSCORE", p.due, group),
            command("ZSCORE", p.ready, group),
            command("ZCARD", p.ready),
            command("LRANGE", p.tasks(group), 1, 0),  # reads nothing, but fails if it is no list
        ],
    )
    g = _Group(group, p, found, found.state_of(p.number))
    packed, due, ready, number, tasks = replies
    if p.number not in found.away:
        _read_record(g, packed, tasks)
        g.due_score = None if not _is_score(due) else int(float(due))
        g.is_ready = _is_score(ready)
        g.ready = number if isinstance(number, int) else 0
        yield from _read_more(g)
    return _explanation(g)


def _is_score(reply: Any) -> bool:
    return reply is not None and not isinstance(reply, Exception)


def _read_record(g: _Group, packed: Any, tasks: Any) -> None:
    for reply in (packed, tasks):
        if isinstance(reply, KeyConflict):
            g.foreign = reply
        elif isinstance(reply, RedisUnavailable):
            return
        elif isinstance(reply, Exception):
            raise reply
    if isinstance(packed, bytes):
        try:
            g.record = group_record(packed, g.key)
        except KeyConflict as error:
            g.foreign = error


def _read_more(g: _Group) -> Operation[None]:
    """Finds the batches of the group, its permits and its dead letters."""
    record = g.record
    if record is not None and record.claimed:
        yield from _find_batches(g, record)
    ids = [each.id for each in g.batches]
    indexes = {"claims": g.keys.claims, "retry": g.keys.retry, "suspects": g.keys.suspects}
    replies = yield Lenient(
        [
            command("HGETALL", g.keys.permits(g.key)),
            *(command("ZSCORE", key, each) for each in ids for key in indexes.values()),
        ]
    )
    permits, *scores = replies
    if isinstance(permits, AuthenticationFailed):
        raise permits
    g.permits = observing.permits_of(permits, g.now)
    for place, score in enumerate(scores):
        if _is_score(score):
            name = list(indexes)[place % len(indexes)]
            g.scores[ids[place // len(indexes)]] = (name, int(float(score)))
    dead = yield from _scan(
        g.keys.dead, lambda name, packed: _of_group(dead_record, g.key, name, packed)
    )
    g.dead = sorted(dead)


def _find_batches(g: _Group, record: GroupRecord) -> Operation[None]:
    """Finds the batches of the group; by the time of its retry first, which costs little."""
    if record.held:
        at_ms = record.held_until
        [ids] = yield Lenient(
            [command("ZRANGE", g.keys.retry, at_ms, at_ms, "BYSCORE", "LIMIT", 0, _SAME_TIME)]
        )
        if ids and not isinstance(ids, Exception):
            [packed] = yield Lenient([command("HMGET", g.keys.batches, *ids)])
            if not isinstance(packed, Exception):
                for name, each in zip(ids, packed, strict=True):
                    if each and (one := _of_group(batch_record, g.key, name, each)):
                        g.batches.append(_Batch(*one))
        if any(each.record.start == record.base for each in g.batches):
            return
    batches = yield from _scan(
        g.keys.batches, lambda name, each: _of_group(batch_record, g.key, name, each)
    )
    known = {each.id for each in g.batches}
    g.batches += [_Batch(*each) for each in batches if each[0] not in known]
    g.batches.sort(key=lambda each: each.record.start)


def _of_group(decode: Any, group: bytes, name: bytes, packed: bytes) -> Any:
    """The record and its name, if it is of the group."""
    try:
        record = decode(packed, name)
    except KeyConflict:
        return None
    return (name, record) if group_of(record.group) == group else None


def _scan(key: bytes, choose: Any) -> Operation[list[Any]]:
    """Looks through the fields of a hash, a bounded number of pages."""
    chosen: list[Any] = []
    cursor, count = 0, FIRST_SCAN
    for _ in range(_MOST_PAGES):
        [reply] = yield Lenient([command("HSCAN", key, cursor, "COUNT", count)])
        if isinstance(reply, Exception):
            break
        cursor, page = scan_page(reply)
        chosen += [one for item in page.items() if (one := choose(*item)) is not None]
        large = sum(map(len, page.values())) > _PAGE_BYTES // 4
        count = max(1, count // 2) if large else min(_MOST_SCANNED, count * 4)
        if cursor == 0:
            break
    return chosen


# --- the cause ---------------------------------------------------------------------------------


def _explanation(g: _Group) -> Explanation:
    record, found = g.record, g.found
    general = observing.troubles(found)
    mine = [each for each in _causes(g) if each is not None]
    first = mine[0]
    others = [each for each in (*mine[1:], *general) if each.cause != first.cause]
    overdue = _overdue(g)
    late = overdue > LATE_AFTER or first.cause in ("dead_letters", "foreign", "partition_away")
    waits = record is not None and record.waiting > 0
    return Explanation(
        group_key=g.key.decode("utf-8", "replace"),
        late=late,
        overdue=overdue,
        trouble=first,
        also=list({each.text: each for each in others}.values()),
        waiting=record.waiting if record else 0,
        in_flight=record.claimed if record else 0,
        due_at=_due_at(record) if waits and record else None,
        partition=g.keys.number,
        batch_id=g.batches[0].id.decode("utf-8", "replace") if g.batches else None,
    )


def _due_at(record: GroupRecord) -> float | None:
    due = record.due_at or record.since
    return due / 1000 if due < NEVER else None


def _overdue(g: _Group) -> float:
    """Seconds since the earliest task that is not done was due."""
    times = [each.record.due_at for each in g.batches]
    if g.record is not None and g.record.waiting:
        times.append(g.record.due_at or g.record.since)
    times = [each for each in times if 0 < each <= g.now]
    return (g.now - min(times)) / 1000 if times else 0.0


def _causes(g: _Group) -> Iterator[Trouble | None]:
    """What holds the group, the first cause first; the last one is always there."""
    found, record, state = g.found, g.record, g.state
    number = g.keys.number
    if number in found.away:
        yield observing.partitions_away(found)
        return
    if g.foreign is not None:
        yield _foreign(g.foreign)
        return
    if record is None:
        yield _dead(g)
        yield observing.redis_full(found)
        yield _unknown(g)
        return
    if record.waiting + record.claimed == 0:
        yield _dead(g)
        yield _empty(g, record)
        return
    clock = observing.clock_set_back(found) or _from_the_future(g, record)
    if clock is not None:
        yield clock
    mismatch = observing.wrong_partitions(found)
    if mismatch is not None and (number in mismatch.partitions or not found.live):
        yield mismatch
    if state is not None and state.mover:
        yield observing.moving(found)
    is_due = record.waiting > 0 and (g.is_ready or record.due_at <= g.now)
    if record.claimed == 0 and not is_due:
        yield _group_paused(g, record)
        yield _not_due(g, record)
        yield _dead(g)
        return
    if state is not None:
        yield observing.paused(found, [state] if state.paused else [])
    yield _group_paused(g, record)
    yield observing.no_flusher(found)
    if state is not None:
        lacking = [state] if observing.lacks_leader(found, state) else []
        yield observing.no_leader(found, lacking)
    yield _sink_down(g)
    if record.held:
        yield _suspect(g)
        yield _group_limited(g, record)
        yield _retry(g, record)
    if is_due and not record.held:
        yield _group_limited(g, record)
    yield observing.limited(found)
    if record.claimed and not record.held:
        yield _in_flight(g, record)
    yield _dead(g)
    yield _backlog(g, record) if is_due else _not_due(g, record)


def _foreign(error: RedisAggError) -> Trouble:
    return Trouble(
        "foreign",
        f"A key of the group holds what redisagg did not write: {one_line(error)}.",
        "Find out who writes to redisagg's keys, and remove the key; flushers leave the group out "
        "until then.",
    )


def _unknown(g: _Group) -> Trouble:
    return Trouble(
        "unknown",
        f"No task of this group waits or is in flight in partition {g.keys.number}: all are done, "
        "were cancelled, or none was added.",
        "If one was added, compare the group key and the name of the namespace with those of the "
        "producer; redisagg locate says where a task is.",
    )


def _empty(g: _Group, record: GroupRecord) -> Trouble:
    rules = record.rules_in_force
    if rules.paused:
        paused = _group_paused(g, record)
        assert paused is not None
        return paused
    until = rules.cool_until if rules.cool_until > g.now else None
    text = f"; the next one is not cut before {at(until, g.now)}" if until else ""
    return Trouble(
        "done",
        f"All tasks of the group are done{text}.",
        "",
        until=until and until / 1000,
    )


def _from_the_future(g: _Group, record: GroupRecord) -> Trouble | None:
    """A task of the group arrived at a time that Redis' clock has not reached."""
    if not record.waiting or record.last <= g.now + 1000:
        return None
    ahead = record.last - g.now
    return Trouble(
        "clock",
        f"Redis' clock was set back by {span(ahead)} or more since the last task came; by the new "
        f"clock the group is due at {at(min(record.due_at, NEVER), g.now)}."
        if record.due_at < NEVER
        else f"Redis' clock was set back by {span(ahead)} or more since the last task came.",
        "Synchronize the clocks of the Redis servers by NTP; to send the tasks now: redisagg "
        "flush.",
    )


def _not_due(g: _Group, record: GroupRecord) -> Trouble:
    """When the waiting tasks are due, and why then."""
    rules, due = record.rules_in_force, record.due_at
    tasks = _tasks(record.waiting)
    if due >= NEVER:
        return Trouble(
            "not_due",
            f"{tasks} no time: the group is due when {record.size:,} tasks wait.",
            "To send them now: redisagg flush.",
        )
    until = due / 1000
    if rules.postponed == due:
        return Trouble(
            "postponed",
            f"The group was postponed by an operator until {at(due, g.now)}.",
            "To send its tasks now: redisagg flush.",
            until=until,
        )
    if rules.cool_until == due:
        return Trouble(
            "cooling",
            f"The group cools down until {at(due, g.now)}: batches are {span(rules.interval)} "
            "apart at least (min_interval).",
            "Wait, or send its tasks now: redisagg flush.",
            until=until,
        )
    if rules.not_before == due:
        reason = "a task asks for no batch before that time (not_before)"
    elif rules.due and rules.due // 2 == due:
        reason = "a task asks for that time (due_at)"
    elif record.deadline == due:
        reason = "the max delay of its oldest task ends then"
    else:
        reason = f"if no further task comes; a full batch of {record.size:,} is due at once"
    return Trouble(
        "not_due",
        f"{tasks} until {at(due, g.now)}: {reason}.",
        "To send them now: redisagg flush.",
        until=until,
    )


def _tasks(count: int) -> str:
    return "1 task waits" if count == 1 else f"{count:,} tasks wait"


def _group_paused(g: _Group, record: GroupRecord) -> Trouble | None:
    rules = record.rules_in_force
    if not rules.paused:
        return None
    since = rules.paused if rules.paused > 1 else 0
    text = f" since {at(since, g.now)}" if since else ""
    by = rules.paused_by.decode("utf-8", "replace")
    return Trouble(
        "group_paused",
        f"The group is paused{text}{f' by {by}' if by else ''}.",
        "Resume it when the reason is gone: redisagg resume GROUP.",
        since=since / 1000 or None,
    )


def _sink_down(g: _Group) -> Trouble | None:
    """The sinks of the leader are down, or the one that the batch of the group waits for."""
    leader = g.leader
    if leader is None or not leader.sinks:
        return None
    merges = any(each.sink == MERGE_FUNCTION for each in leader.sinks)
    merged = any(each.record.merged or each.record.result for each in g.batches)
    if leader.sinks_working and not merges and not merged:
        return None
    return observing.sinks_down(g.found, {"": leader})


def _suspect(g: _Group) -> Trouble | None:
    for each in g.batches:
        index, _ = g.scores.get(each.id, ("", 0))
        if index == "suspects":
            return Trouble(
                "suspect",
                f"The batch {_name(each)} was in flight when {each.record.deaths} flushers in a "
                "row died, so it is tried alone, when its turn comes.",
                "Look at why the flushers died, such as memory that its merge takes; after "
                "max_attempts it becomes a dead letter.",
            )
    return None


def _retry(g: _Group, record: GroupRecord) -> Trouble:
    """The batch that holds the group waits for its next attempt."""
    batch = next((each for each in g.batches if g.scores.get(each.id, ("", 0))[0] == "retry"), None)
    due = record.held_until if batch is None else g.scores[batch.id][1]
    then = f"next attempt at {at(due, g.now)}" if due > g.now else "the next attempt is due now"
    behind = ""
    if record.waiting:
        behind = f"; {_tasks(record.waiting)} behind it"
    if batch is None:
        text = f"A batch of the group waits for another attempt; {then}{behind}."
    elif not batch.record.attempts:
        error = f": {one_line(batch.record.error.decode('utf-8', 'replace'))}"
        why = error if batch.record.error else ""
        text = (
            f"The batch {_name(batch)} was given back without an attempt that counts{why}; "
            f"{then}{behind}."
        )
    else:
        most = f" of {g.leader.max_attempts}" if g.leader and g.leader.max_attempts else ""
        error = one_line(batch.record.error.decode("utf-8", "replace"))
        step = "to enqueue" if batch.record.merged or batch.record.result else "to merge"
        text = (
            f"Attempt {batch.record.attempts}{most} {step} the batch {_name(batch)} failed with "
            f"{error}; {then}{behind}."
        )
    return Trouble(
        "retry",
        text,
        "Repair what fails; the group goes on in order behind this batch, which becomes a dead "
        "letter after max_attempts.",
        until=due / 1000,
    )


def _group_limited(g: _Group, record: GroupRecord) -> Trouble | None:
    """The group waits for a permit of its own."""
    leader = g.leader
    if leader is None or not (leader.group_concurrency or leader.group_rate_limit):
        return None
    if any(each.record.error for each in g.batches):
        return None
    if leader.group_concurrency and g.permits.held >= leader.group_concurrency:
        return Trouble(
            "concurrency",
            f"The concurrency limit of the group is reached: {g.permits.held} of "
            f"{leader.group_concurrency} batches run (group_concurrency).",
            "Wait for one to end, or raise group_concurrency.",
        )
    rate = leader.group_rate_limit
    until = record.held_until if record.held else g.due_score
    if rate is None or until is None or not g.permits.units:
        return None
    return Trouble(
        "rate_limit",
        f"The group is rate limited until {at(max(until, g.now), g.now)}: {rate_text(rate)} "
        "(group_rate_limit).",
        "Wait, or raise group_rate_limit.",
        until=until / 1000,
    )


def _in_flight(g: _Group, record: GroupRecord) -> Trouble:
    """A flusher works on a batch of the group."""
    owner = g.state.owner if g.state else ""
    behind = f"; {_tasks(record.waiting)} behind it" if record.waiting else ""
    batch = g.batches[0] if g.batches else None
    if batch is None:
        return Trouble(
            "in_flight", f"The flusher {owner} works on a batch of the group{behind}.", ""
        )
    _, score = g.scores.get(batch.id, ("", 0))
    if score in (_DIED, _FREED):
        text = f"The batch {_name(batch)} was given back, and waits to be claimed again{behind}."
    else:
        attempt = f"attempt {batch.record.attempts + 1}, " if batch.record.attempts else ""
        text = (
            f"The flusher {owner} works on the batch {_name(batch)} ({attempt}first claimed "
            f"at {at(batch.record.created, g.now)}){behind}."
        )
    return Trouble(
        "in_flight",
        text,
        "If it takes too long, look at the merge function or the sink; merge_timeout ends a merge.",
        since=batch.record.created / 1000,
    )


def _dead(g: _Group) -> Trouble | None:
    """Batches of the group are dead letters."""
    if not g.dead:
        return None
    newest, record = max(g.dead, key=lambda each: each[1].died)
    error = one_line(record.error.decode("utf-8", "replace"))
    number = "A batch" if len(g.dead) == 1 else f"{len(g.dead)} batches"
    are = "is a dead letter" if len(g.dead) == 1 else "are dead letters"
    tasks = sum(each.task_count for _, each in g.dead)
    name = newest.decode("utf-8", "replace")
    return Trouble(
        "dead_letters",
        f"{number} of the group, with {tasks:,} {'task' if tasks == 1 else 'tasks'}, {are}; "
        f"{name} died at {at(record.died, g.now)} after {record.attempts} "
        f"{'attempt' if record.attempts == 1 else 'attempts'} with {error}.",
        f"Repair the cause, then: redisagg dead show {name}, redisagg dead requeue {name}.",
        since=record.died / 1000,
    )


def _backlog(g: _Group, record: GroupRecord) -> Trouble:
    """The group is due, and nothing but work holds it."""
    owner = g.state.owner if g.state else ""
    due = record.due_at or record.since
    since = at(due, g.now) if 0 < due <= g.now else "now"
    line = f"one of {g.ready:,} groups in line" if g.ready > 1 else "the only group in line"
    polled = f", which looked last {at(g.state.polled, g.now)}" if g.state else ""
    return Trouble(
        "backlog",
        f"The group is due since {since}, and is {line} in partition {g.keys.number} of the "
        f"flusher {owner}{polled}.",
        "If it stays so, the merges take longer than tasks come: raise concurrency, start more "
        "flushers, or look at what takes a merge long.",
        since=due / 1000 if due else None,
    )


def _name(batch: _Batch) -> str:
    return batch.id.decode("utf-8", "replace")
