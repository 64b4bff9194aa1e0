"""What an observer sees of a namespace: flushers, leases, sinks, limits, memory, clock; troubles.

One round trip reads all of it, by commands of bounded size: five for the namespace and one for each
partition. On a cluster a master that does not answer hides its own partitions only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple, cast

from redisagg.errors import AuthenticationFailed, RedisAggError, RedisUnavailable
from redisagg.operations.measuring import measure
from redisagg.protocol import registration
from redisagg.protocol.keys import MOVER, WITH_POLICIES, Keyspace, PartitionKeys
from redisagg.protocol.operations import Lenient, Operation
from redisagg.protocol.replies import as_dict
from redisagg.protocol.scripts import Request, call, command
from redisagg.protocol.status import (
    MERGE_FUNCTION,
    REFUSED,
    FlusherStatus,
    SinkStatus,
    unpack_status,
)
from redisagg.rate_limit import RateLimit
from redisagg.texts import escape_control
from redisagg.views import FlusherState, Overview, SinkState, Trouble

_STATE = ("partitions", "clock", "paused", "paused_by", "owner", "expires", "lease", "schema")

_FROZEN = b"frozen "
"""What a mover writes before its id in place of the schema; see lua/includes/schema.lua."""

_FULL = 0.995
"""The part of its maxmemory from which Redis counts as full: then it refuses one add or another."""

_STEP_MS = 1000
"""A step of Redis' clock back that is smaller is ignored, as the scripts do."""

_SKEW = 5.0
"""Seconds between the clocks of Redis and of this machine that are worth a word."""

_NO_LEADER_MS = 2000
"""A partition changes its leader within this time."""

_REFUSAL_MS = 600_000
"""For so long a flusher that could not start counts."""

_MOST_NAMED = 8
"""Partitions, sinks or flushers that one sentence names."""

_PERMIT = re.compile(rb"\d+ \d+ \d+ \d+")


class PartitionState(NamedTuple):
    """The state of one partition; times are ms since the epoch."""

    number: int
    partitions: int | None
    """Number of partitions of the namespace, as this partition knows it."""
    polled: int
    """When a leader looked last at what is due; 0: never."""
    paused: bool
    paused_at: int
    paused_by: str
    owner: str
    """Id of the last leader."""
    expires: int
    lease: int
    mover: str
    """Id of the process that has frozen the partition, to move the namespace; or empty."""

    def led(self, now: int) -> bool:
        """Whether the lease is in force; as lua/includes/lease.lua."""
        left = self.expires - now
        return 0 < left <= (self.lease or left)


class Memory(NamedTuple):
    """The memory of a server, in bytes."""

    used: int
    most: int
    """0: no maximum."""
    policy: str

    @property
    def is_full(self) -> bool:
        """Whether it refuses adds, or is about to."""
        return 0 < self.most * _FULL <= self.used


@dataclass(frozen=True, slots=True)
class Permits:
    """The permits of one limit, as far as an observer needs them; times are ms."""

    held: int = 0
    units: int = 0
    """Units of calls that count now."""
    leaving: Mapping[int, int] = field(default_factory=dict)
    """When how many units leave the window."""
    tat: float = 0.0
    waits: Mapping[str, int] = field(default_factory=dict)
    """Since when which flushers wait."""

    def freeat(self, rate: RateLimit, now: int) -> int:
        """When one unit more may begin, about; as lua/includes/permits.lua."""
        at, lacking = now, self.units + 1 - rate.limit
        for leaves, units in sorted(self.leaving.items()):
            if lacking <= 0:
                break
            at, lacking = leaves, lacking - units
        if lacking > 0:
            at = now + rate.per_ms
        interval = rate.per_ms / rate.limit
        return max(at, int(self.tat + (1 - max(rate.burst_units, 1)) * interval))


@dataclass(frozen=True, slots=True)
class Health:
    """What was read; times are ms since the epoch by Redis' clock."""

    now: int
    skew: float
    """Seconds by which this machine's clock is ahead of Redis'."""
    recorded: int | None
    """Number of partitions in `meta`; None if there is none, or it can't be read."""
    live: Sequence[str]
    """Ids of the live flushers."""
    live_known: bool
    movers: Sequence[str]
    """Ids of the live processes that move the namespace."""
    statuses: Mapping[str, FlusherStatus]
    """Of the live flushers."""
    refusals: Mapping[str, FlusherStatus]
    """By host, of flushers that could not start lately."""
    permits: Permits
    partitions: Sequence[PartitionState]
    """Those that can be read."""
    away: Mapping[int, RedisUnavailable]
    """By number, partitions whose master does not answer."""
    foreign: Mapping[int, RedisAggError]
    """By number, partitions whose state can't be read."""
    memory: Sequence[Memory]

    def state_of(self, partition: int) -> PartitionState | None:
        """The state of a partition; None if it can't be read."""
        return next((each for each in self.partitions if each.number == partition), None)

    @property
    def status(self) -> FlusherStatus | None:
        """The status of any live flusher: all have the same settings, as a rule."""
        return next(iter(self.statuses.values()), None)


def health(
    keyspace: Keyspace, *, clustered: bool, extra: Sequence[Request] = ()
) -> Operation[tuple[Health, list[Any]]]:
    """Reads what an observer sees.

    Args:
        clustered: whether the partitions are on several servers.
        extra: further requests of the same round trip.

    Returns:
        What was read, and the replies to `extra`, errors among them.

    Raises:
        NamespaceMismatch: the namespace has another number of partitions or another schema.
        AuthenticationFailed: the user lacks a right of an observer.
    """
    partitions = keyspace.partitions
    servers = partitions if clustered else partitions[:1]
    began = time.time()
    replies = yield Lenient(
        [
            call("now", [keyspace.meta]),
            registration.record(keyspace),
            call("flushers", [keyspace.flushers]),
            command("HGETALL", keyspace.status),
            command("HGETALL", keyspace.permits),
            *(command("HMGET", p.state, *_STATE) for p in partitions),
            *(call("server_memory", [p.state]) for p in servers),
            *extra,
        ]
    )
    local = (began + time.time()) / 2
    for reply in replies:
        if isinstance(reply, AuthenticationFailed):
            raise reply
    now, record, live, status, permits, *others = replies
    states = others[: len(partitions)]
    memory = others[len(partitions) : len(partitions) + len(servers)]
    if not isinstance(record, Exception) and None not in record:
        yield from registration.compare(keyspace, record)
    if isinstance(now, Exception):
        now = int(local * 1000)
    ids: list[str] = []
    movers: list[str] = []
    for each in () if isinstance(live, Exception) else live:
        (movers if each.startswith(MOVER) else ids).append(_text(each))
    statuses, refusals = _statuses(status, ids, now)
    away: dict[int, RedisUnavailable] = {}
    foreign: dict[int, RedisAggError] = {}
    found: list[PartitionState] = []
    for p, state in zip(partitions, states, strict=True):
        if isinstance(state, RedisUnavailable):
            away[p.number] = state
        elif isinstance(state, RedisAggError):
            foreign[p.number] = state
        else:
            found.append(_partition_state(p, state))
    read = Health(
        now=now,
        skew=local - now / 1000,
        recorded=_recorded(record),
        live=ids,
        live_known=not isinstance(live, Exception),
        movers=movers,
        statuses=statuses,
        refusals=refusals,
        permits=permits_of(permits, now),
        partitions=found,
        away=away,
        foreign=foreign,
        memory=[Memory(each[0], each[1], _text(each[2])) for each in memory if _is_memory(each)],
    )
    return read, others[len(partitions) + len(servers) :]


def _is_memory(reply: Any) -> bool:
    return isinstance(reply, list) and len(reply) == 3


def _recorded(record: Any) -> int | None:
    if isinstance(record, Exception) or None in record or not record[1].isdigit():
        return None
    return int(record[1])


def _statuses(
    reply: Any, live: Sequence[str], now: int
) -> tuple[dict[str, FlusherStatus], dict[str, FlusherStatus]]:
    statuses: dict[str, FlusherStatus] = {}
    refusals: dict[str, FlusherStatus] = {}
    if isinstance(reply, Exception):
        return statuses, refusals
    for name, packed in as_dict(reply).items():
        flusher, status = _text(name), unpack_status(packed)
        if status is None:
            continue
        if flusher in live:
            statuses[flusher] = status
        elif flusher.startswith(REFUSED) and now - status.written_ms < _REFUSAL_MS:
            refusals[flusher.removeprefix(REFUSED)] = status
    for flusher, status in statuses.items():
        host = flusher.partition(":")[0]
        if host in refusals and status.started_ms > refusals[host].written_ms:
            del refusals[host]  # it has started since
    return statuses, refusals


def _partition_state(p: PartitionKeys, values: Sequence[bytes | None]) -> PartitionState:
    partitions, clock, paused, paused_by, owner, expires, lease, schema = values
    since, _, by = (paused_by or b"").partition(b" ")
    number = None if partitions is None else _number(partitions.removesuffix(WITH_POLICIES))
    return PartitionState(
        number=p.number,
        partitions=number,
        polled=_number(clock),
        paused=paused is not None,
        paused_at=_number(since),
        paused_by=_text(by),
        owner=_text(owner or b""),
        expires=_number(expires),
        lease=_number(lease),
        mover=_text((schema or b"").partition(_FROZEN)[2]),
    )


def permits_of(reply: Any, now: int) -> Permits:
    """Reads a hash of permits; lua/includes/permits.lua describes it."""
    if isinstance(reply, Exception):
        return Permits()
    held = units = 0
    tat = 0.0
    leaving: dict[int, int] = {}
    waits: dict[str, int] = {}
    for name, value in as_dict(reply).items():
        kind, _, rest = name.partition(b":")
        if kind == b"tat":
            tat = float(value) if re.fullmatch(rb"\d+\.?\d*", value) else 0.0
        elif kind == b"u" and rest.isdigit() and value.isdigit() and int(rest) > now:
            leaving[int(rest)] = int(value)
            units += int(value)
        elif kind in (b"p", b"w") and _PERMIT.fullmatch(value):
            first, second, third, fourth = map(int, value.split())
            if kind == b"w" and second > now:
                waits[_text(rest)] = first
            elif kind == b"p" and third > now:
                held += 1
                units += fourth
    return Permits(held, units, leaving, tat, waits)


def flusher_states(found: Health) -> list[FlusherState]:
    """The live flushers with what they say of themselves."""
    led: dict[str, list[int]] = {}
    for each in found.partitions:
        if each.led(found.now):
            led.setdefault(each.owner, []).append(each.number)
    states = []
    for flusher in sorted(found.live):
        status = found.statuses.get(flusher)
        waits = found.permits.waits.get(flusher)
        states.append(
            FlusherState(
                flusher_id=flusher,
                partitions=led.get(flusher, []),
                started_at=status.started_ms / 1000 if status else None,
                concurrency=status.concurrency if status else None,
                max_attempts=status.max_attempts if status else None,
                sinks_down=[_sink_state(each) for each in status.sinks] if status else (),
                sinks_working=status.sinks_working if status else 0,
                waits_since=None if waits is None else waits / 1000,
            )
        )
    return states


def _sink_state(status: SinkStatus) -> SinkState:
    return SinkState(
        sink=status.sink,
        queue=status.queue,
        state=cast(Literal["open", "half open"], status.state),
        reason=status.reason,
        since=status.since_ms / 1000,
        until=status.until_ms / 1000,
    )


def overview(keyspace: Keyspace, *, clustered: bool) -> Operation[Overview]:
    """Reads a namespace in one look; arguments and errors as of `health`."""
    found, _ = yield from health(keyspace, clustered=clustered)
    measures = None
    if not found.away:
        measures = yield from measure(keyspace)
    memory = max(found.memory, key=lambda each: each.used / (each.most or 2**62), default=None)
    return Overview(
        at=found.now / 1000,
        troubles=troubles(found),
        flushers=flusher_states(found),
        stats=measures and measures.stats,
        groups_due=measures and measures.groups_due,
        groups_waiting=measures and measures.groups_waiting,
        groups_held=measures and measures.groups_held,
        oldest_overdue=measures and measures.oldest_overdue,
        memory_used=memory.used if memory else 0,
        memory_limit=memory.most if memory else 0,
    )


# --- troubles ----------------------------------------------------------------------------------


def troubles(found: Health) -> list[Trouble]:
    """What is wrong in a namespace, the worst first."""
    return [each for each in _troubles(found) if each is not None]


def _troubles(found: Health) -> Iterator[Trouble | None]:
    yield partitions_away(found)
    yield redis_full(found)
    yield wrong_partitions(found)
    yield moving(found)
    yield clock_set_back(found)
    yield no_flusher(found)
    yield paused(found, [each for each in found.partitions if each.paused])
    yield no_leader(found, [each for each in found.partitions if lacks_leader(found, each)])
    yield sinks_down(found, found.statuses)
    yield limited(found)
    yield clocks_differ(found)


def partitions_away(found: Health) -> Trouble | None:
    """The masters of some partitions do not answer."""
    if not found.away:
        return None
    error = next(iter(found.away.values()))
    return Trouble(
        "partition_away",
        f"{named_partitions(found.away)} can't be reached: {one_line(error)}.",
        "Bring the Redis server back that has the slots, or fail over to its replica; tasks that "
        "wait there stay, and other partitions go on.",
        partitions=sorted(found.away),
    )


def redis_full(found: Health) -> Trouble | None:
    """Redis has no memory for further tasks."""
    full = next((each for each in found.memory if each.is_full), None)
    if full is None:
        return None
    part = 100 * full.used / full.most
    what = "adds are refused; tasks that were not added are in no group"
    if full.policy != "noeviction":
        what = f"its policy {full.policy} may remove what redisagg has stored"
    return Trouble(
        "redis_full",
        f"Redis is full: it uses {_mib(full.used)} of its maxmemory of {_mib(full.most)} "
        f"({part:.0f}%), so {what}.",
        "Raise maxmemory, or remove what fills it; producers can wait for room by full_timeout.",
    )


def wrong_partitions(found: Health) -> Trouble | None:
    """Clients or the data have another number of partitions than the namespace."""
    if found.recorded is not None:
        others = [
            each
            for each in found.partitions
            if each.partitions is not None and each.partitions != found.recorded
        ]
        if others:
            return Trouble(
                "wrong_partitions",
                f"{named_partitions(each.number for each in others)} "
                f"{_have(others)} the number of partitions {others[0].partitions}, but the "
                f"namespace was created with {found.recorded}.",
                f"Set partitions={found.recorded} in all clients; the next one that is right "
                "corrects it.",
                partitions=[each.number for each in others],
            )
    if not found.refusals:
        return None
    host, status = next(iter(found.refusals.items()))
    return Trouble(
        "wrong_partitions",
        f"A flusher on {host} was refused at {at(status.written_ms, found.now)}: {status.error}.",
        "Start it with the settings of the namespace.",
        since=status.written_ms / 1000,
    )


def moving(found: Health) -> Trouble | None:
    """The namespace is frozen by a process that moves it."""
    frozen = [each for each in found.partitions if each.mover]
    if not frozen:
        return None
    mover = frozen[0].mover
    where = mover.removeprefix(MOVER.decode())
    numbers = [each.number for each in frozen] if len(frozen) < len(found.partitions) else []
    if mover in found.movers:
        return Trouble(
            "moving",
            f"The namespace is being moved by {where}; adds and flushes wait until that is done.",
            "Wait; producers and flushers follow by themselves.",
            partitions=numbers,
        )
    return Trouble(
        "moving",
        f"The namespace is frozen: {where} has begun to move it, and is not alive any more.",
        "Call the same command again, redisagg move or redisagg repartition: it goes on.",
        partitions=numbers,
    )


def clock_set_back(found: Health) -> Trouble | None:
    """A leader has seen a later time than Redis has now."""
    seen = max((each.polled for each in found.partitions), default=0)
    if seen <= found.now + _STEP_MS:
        return None
    return Trouble(
        "clock",
        f"Redis' clock was set back by {span(seen - found.now)} since a flusher looked last.",
        "Synchronize the clocks of the Redis servers by NTP; a flusher moves what waits to the new "
        "clock, and nothing waits longer than its own limits, counted from now.",
    )


def clocks_differ(found: Health) -> Trouble | None:
    """This machine and Redis do not have the same time."""
    if abs(found.skew) <= _SKEW:
        return None
    side = "ahead of" if found.skew > 0 else "behind"
    return Trouble(
        "clock",
        f"This machine's clock is {span(abs(found.skew) * 1000)} {side} that of Redis.",
        "Synchronize both by NTP: due_at, not_before and times in listings are wrong by that.",
    )


def no_flusher(found: Health) -> Trouble | None:
    """No flusher lives."""
    if found.live or not found.live_known:
        return None
    polled = max((each.polled for each in found.partitions), default=0)
    polled = min(polled, found.now)
    last = max(found.partitions, key=lambda each: each.polled, default=None)
    if polled and last is not None:
        owner = f"; the last one was {last.owner}" if last.owner else ""
        text = f"No flusher is alive since {at(polled, found.now)}{owner}."
    else:
        text = "No flusher has ever run."
    return Trouble(
        "no_flusher",
        text,
        "Start one: redisagg worker, or start() in a process that merges.",
        since=polled / 1000 or None,
    )


def paused(found: Health, states: Sequence[PartitionState]) -> Trouble | None:
    """Partitions are paused by an operator."""
    if not states:
        return None
    first = min(states, key=lambda each: each.paused_at)
    since = f" since {at(first.paused_at, found.now)}" if first.paused_at else ""
    by = f" by {first.paused_by}" if first.paused_by else ""
    return Trouble(
        "paused",
        f"Flushing is paused{since}{by}.",
        "Resume it when the reason is gone: redisagg resume.",
        since=first.paused_at / 1000 or None,
        partitions=[each.number for each in states] if len(states) < len(found.partitions) else (),
    )


def lacks_leader(found: Health, state: PartitionState) -> bool:
    """Whether no live flusher leads a partition, for longer than a change of leaders takes."""
    if not found.live_known or not found.live:
        return False
    if state.led(found.now) and state.owner in found.live:
        return False
    return found.now - state.polled > _NO_LEADER_MS


def no_leader(found: Health, states: Sequence[PartitionState]) -> Trouble | None:
    """Partitions have no leader, though flushers live."""
    if not states:
        return None
    dead = [each for each in states if each.led(found.now)]
    first = (dead or list(states))[0]
    names = named_partitions(each.number for each in states)
    polled = min((each.polled for each in states if each.polled), default=0)
    since = f" since {at(polled, found.now)}" if polled else ""
    until = None
    if dead:
        until = max(each.expires for each in dead)
        text = (
            f"{names} {_have(states)} a lease but no leader{since}: {first.owner} holds it and is "
            f"not alive; another flusher takes over at {at(until, found.now)}."
        )
        advice = "Wait for the end of the lease; a shorter lease_time makes that quicker."
    else:
        text = f"{names} {_have(states)} no leader{since}, though {flushers_text(found)}."
        advice = (
            "Look at the log of the flushers for 'can't be led': a missing right, or settings that "
            "do not fit the namespace."
        )
    return Trouble(
        "no_leader",
        text,
        advice,
        since=polled / 1000 or None,
        until=None if until is None else until / 1000,
        partitions=[each.number for each in states],
    )


def sinks_down(found: Health, statuses: Mapping[str, FlusherStatus]) -> Trouble | None:
    """Sinks that flushers leave alone, since they fail."""
    down = [(flusher, sink) for flusher, status in statuses.items() for sink in status.sinks]
    if not down:
        return None
    names = list(dict.fromkeys(_named_sink(sink) for _, sink in down))
    since = min(sink.since_ms for _, sink in down)
    until = max(min(sink.until_ms for _, sink in down), found.now)
    flushers = len({flusher for flusher, _ in down})
    has = "has" if len(names) == 1 else "have"
    did = "been down"
    if all(sink.reason == "busy" for _, sink in down):
        did = "asked for a pause"
    tried = "it is being tried again now"
    if any(sink.state == "open" for _, sink in down) and until > found.now:
        tried = f"next try at {at(until, found.now)}"
    return Trouble(
        "sink_down",
        f"{_list(names)} {has} {did} since {at(since, found.now)}, as {flushers} of "
        f"{flushers_text(found)} found; {tried}.",
        "Repair it; batches wait with their merged tasks, cost no attempt and go on by themselves.",
        since=since / 1000,
        until=until / 1000,
    )


def limited(found: Health) -> Trouble | None:
    """Flushers wait for permits of the namespace."""
    status = found.status
    if not found.permits.waits or status is None:
        return None
    since = min(found.permits.waits.values())
    waits = (
        f"{len(found.permits.waits)} of {flushers_text(found)} wait since {at(since, found.now)}"
    )
    if status.max_concurrency and found.permits.held >= status.max_concurrency:
        return Trouble(
            "concurrency",
            f"The concurrency limit is reached: {found.permits.held} of {status.max_concurrency} "
            f"batches run (max_concurrency); {waits}.",
            "Wait for one to end, or raise max_concurrency.",
            since=since / 1000,
        )
    if status.rate_limit is None:
        return None
    until = found.permits.freeat(status.rate_limit, found.now)
    return Trouble(
        "rate_limit",
        f"The work is rate limited until {at(until, found.now)}: {rate_text(status.rate_limit)} "
        f"(rate_limit); {waits}.",
        "Wait, or raise rate_limit.",
        since=since / 1000,
        until=until / 1000,
    )


# --- texts -------------------------------------------------------------------------------------


def rate_text(rate: RateLimit) -> str:
    """A rate limit in words."""
    one, many = {
        "batches": ("batch", "batches"),
        "tasks": ("task", "tasks"),
        "weight": ("unit of weight", "units of weight"),
    }[rate.of]
    return f"at most {rate.limit:,} {one if rate.limit == 1 else many} in {span(rate.per_ms)}"


def span(ms: float) -> str:
    """A span of time in words, such as ``4.2 s`` or ``2 h 5 min``."""
    left = ms / 1000
    if left < 10:
        return f"{left:.1f} s"
    if left < 120:
        return f"{left:.0f} s"
    if left < 2 * 3600:
        return f"{left // 60:.0f} min {left % 60:.0f} s"
    if left < 48 * 3600:
        return f"{left // 3600:.0f} h {left % 3600 // 60:.0f} min"
    return f"{left // 86400:,.0f} days"


def at(ms: int, now: int) -> str:
    """A moment by the clock and by its distance from now."""
    moment = datetime.fromtimestamp(ms / 1000, timezone.utc)
    today = datetime.fromtimestamp(now / 1000, timezone.utc)
    form = "%H:%M:%S" if moment.date() == today.date() else "%Y-%m-%d %H:%M:%S"
    distance = f"in {span(ms - now)}" if ms > now else f"{span(now - ms)} ago"
    return f"{moment.strftime(form)} UTC ({distance})"


def one_line(error: object, most: int = 200) -> str:
    """The first line of an error text, escaped and shortened; without a full stop."""
    text = escape_control(str(error).partition("\n")[0]).rstrip(". ")
    return text if len(text) <= most else f"{text[:most]}…"


def named_partitions(numbers: Iterable[int]) -> str:
    """Partitions by number, at the start of a sentence."""
    found = sorted(numbers)
    shown = ", ".join(map(str, found[:_MOST_NAMED])) + (", …" if len(found) > _MOST_NAMED else "")
    return f"Partition {shown}" if len(found) == 1 else f"Partitions {shown}"


def _have(states: Sequence[object]) -> str:
    return "has" if len(states) == 1 else "have"


def flushers_text(found: Health) -> str:
    """The number of live flushers."""
    return "1 flusher" if len(found.live) == 1 else f"{len(found.live)} flushers"


def sink_name(sink: SinkStatus | SinkState) -> str:
    """The name of a sink; the number that tells objects of a process apart is of no use."""
    return f"{sink.sink} {'' if sink.queue.isdigit() else sink.queue}".rstrip()


def _named_sink(sink: SinkStatus) -> str:
    name = sink_name(sink)
    return name if sink.sink == MERGE_FUNCTION else f"the sink {name}"


def _list(names: Sequence[str]) -> str:
    shown = list(names[:_MOST_NAMED])
    if len(names) > _MOST_NAMED:
        shown.append(f"{len(names) - _MOST_NAMED} others")
    text = ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1]
    return text[:1].upper() + text[1:]


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _number(raw: bytes | None) -> int:
    text = (raw or b"0").partition(b".")[0]
    return int(text) if text.isdigit() and len(text) < 18 else 0


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
