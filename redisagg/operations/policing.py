"""Operations that set, remove and read the policies of a namespace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha1
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.durations import to_ms
from redisagg.errors import InvalidConfig, KeyConflict
from redisagg.operations.inspecting import group_records
from redisagg.policies import MAX_POLICIES, Policies, Policy, check_pattern, precedence
from redisagg.protocol.entries import limits_of_entry
from redisagg.protocol.keys import WITH_POLICIES, Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation, ask, ask_all
from redisagg.protocol.policies import policies_of
from redisagg.protocol.records import GroupRecord, group_record
from redisagg.protocol.scripts import call, command
from redisagg.views import AppliedPolicy, GroupPlace

# What one call of `apply_limits` takes at most, so that it keeps Redis busy for a few ms.
_CALL_GROUPS = 25
_CALL_TASKS = 200
_CALL_BYTES = 512 * 1024

_GROUP_TASKS = 200
"""The largest group that the script changes; in a call of its own."""

_MOST_READ = 10
"""How many times a group is read whose tasks change meanwhile."""

_CHANGED, _AGAIN, _LEFT = 1, 2, 3  # replies of `apply_limits`


def check_policy(pattern: object, policy: object, config: AggregationConfig) -> str:
    """Checks the arguments of `set_policy`; returns the pattern.

    Raises:
        InvalidConfig: one of them is wrong, or the policy allows batches that exceed a rate limit.
    """
    if not isinstance(policy, Policy):
        raise InvalidConfig(f"policy must be a redisagg.Policy, not {type(policy).__name__}")
    weight = config.group_max_weight if policy.max_weight is None else policy.max_weight
    config.check_batches(policy.max_size, weight)
    return check_pattern(pattern)


def set_policy(keyspace: Keyspace, pattern: str, policy: Policy) -> Operation[None]:
    """Sets the policy of a pattern, in a namespace that is registered.

    Producers that know of no policies have to learn of them wherever they add. So all partitions
    note that there are policies before the first one is stored. If this ends in between, producers
    ask for policies and find none.

    Raises:
        InvalidConfig: there are too many policies; nothing was written.
    """
    yield from ask(call("set_policies", [keyspace.meta, keyspace.policies], MAX_POLICIES))
    number = b"%d" % len(keyspace.partitions) + WITH_POLICIES
    yield from ask_all([call("register_partition", [p.state], number) for p in keyspace.partitions])
    keys = [keyspace.meta, keyspace.policies]
    raw = pattern.encode()
    reply = yield from ask(call("set_policies", keys, MAX_POLICIES, raw, policy.stored()))
    if reply == b"MANY":
        raise InvalidConfig(
            f"there are {MAX_POLICIES:,} policies already; remove some, or let one pattern stand "
            "for several"
        )


def remove_policy(keyspace: Keyspace, pattern: str) -> Operation[bool]:
    """Removes the policy of a pattern; returns whether there was one."""
    keys = [keyspace.meta, keyspace.policies]
    removed = yield from ask(call("set_policies", keys, MAX_POLICIES, pattern.encode(), b""))
    return bool(removed)


def policies(keyspace: Keyspace) -> Operation[dict[str, Policy]]:
    """Reads the policies by pattern, the longest pattern first."""
    _, *pairs = yield from ask(call("read_policies", [keyspace.meta, keyspace.policies], b"-"))
    found = policies_of(pairs)
    return {pattern: found[pattern] for pattern in sorted(found, key=precedence)}


def apply_policy(keyspace: Keyspace, pattern: str) -> Operation[AppliedPolicy]:
    """Gives the tasks that wait the limits of the policies, in all groups that match a pattern.

    What a task sets itself stays. Each call of the script takes few groups, each round trip one
    call.
    """
    found = yield from policies(keyspace)
    if pattern not in found:  # another call has removed it meanwhile
        return AppliedPolicy(0, 0)
    matching, all_policies = Policies({pattern: found[pattern]}), Policies(found)
    changed = left = 0
    place: GroupPlace | None = GroupPlace()
    while place is not None:
        partition = keyspace.partitions[place.partition]
        records, following = yield from group_records(keyspace, place)
        todo = {
            group: record
            for group, record in records.items()
            if record.waiting and matching.limits_of(group)
        }
        place = following
        counts = yield from _apply(keyspace, partition, todo, all_policies)
        changed, left = changed + counts.changed, left + counts.left
    return AppliedPolicy(changed, left)


def _apply(
    keyspace: Keyspace,
    partition: PartitionKeys,
    todo: Mapping[bytes, GroupRecord],
    found: Policies,
) -> Operation[AppliedPolicy]:
    """Applies policies to groups of one partition."""
    changed = left = 0
    for _ in range(_MOST_READ):
        again: list[bytes] = []
        for records in _calls(todo):
            replies = yield from _apply_call(keyspace, partition, records, found)
            changed += sum(reply == _CHANGED for reply in replies.values())
            left += sum(reply == _LEFT for reply in replies.values())
            again += [group for group, reply in replies.items() if reply == _AGAIN]
        todo = yield from _read_records(partition, again)
        if not todo:
            break
    return AppliedPolicy(changed, left + len(todo))


def _calls(todo: Mapping[bytes, GroupRecord]) -> Iterator[dict[bytes, GroupRecord]]:
    """Divides groups among calls."""
    records: dict[bytes, GroupRecord] = {}
    tasks = size = 0
    for group, record in todo.items():
        tasks, size = tasks + record.waiting, size + record.bytes
        if records and (len(records) >= _CALL_GROUPS or tasks > _CALL_TASKS or size > _CALL_BYTES):
            yield records
            records, tasks, size = {}, record.waiting, record.bytes
        records[group] = record
    if records:
        yield records


def _apply_call(
    keyspace: Keyspace,
    partition: PartitionKeys,
    records: Mapping[bytes, GroupRecord],
    found: Policies,
) -> Operation[dict[bytes, int]]:
    """Reads the tasks of groups and calls the script; returns its replies by group."""
    small = {
        group: record
        for group, record in records.items()
        if record.waiting <= _GROUP_TASKS and record.bytes <= _CALL_BYTES
    }
    lists: dict[bytes, Any] = {}
    if small:
        replies = yield [
            command(
                "LRANGE",
                partition.tasks(group),
                record.claimed,
                record.claimed + record.waiting - 1,
            )
            for group, record in small.items()
        ]
        lists.update(zip(small, replies, strict=True))
    keys = [partition.state, partition.groups, partition.due, partition.ready]
    args: list[Any] = [keyspace.wake_channel, partition.digits]
    for group in records:
        entries = lists.get(group, ())
        if isinstance(entries, Exception):  # a foreign type: the script leaves the group as it is
            entries = ()
        described = [
            (sha1(entry, usedforsecurity=False).hexdigest(), " ".join(names))
            for entry in entries
            if (names := limits_of_entry(entry)) is not None
        ]
        keys.append(partition.tasks(group))
        args += (group, _limits_text(found.limits_of(group)), len(described))
        args += [part for pair in described for part in pair]
    replies = yield from ask(call("apply_limits", keys, *args))
    return dict(zip(records, replies, strict=True))


def _read_records(
    partition: PartitionKeys, groups: list[bytes]
) -> Operation[dict[bytes, GroupRecord]]:
    packed = yield from ask_all([command("HGET", partition.groups, group) for group in groups])
    records: dict[bytes, GroupRecord] = {}
    for group, each in zip(groups, packed, strict=True):
        with suppress(KeyConflict):
            if each is not None and (record := group_record(each, group)).waiting:
                records[group] = record
    return records


def _limits_text(limits: Mapping[str, Any]) -> bytes:
    """The limits as `apply_limits` takes them."""
    return b" ".join(
        b"%s=%d" % (name, to_ms(limits[limit]) if is_time else limits[limit])
        for limit, (name, is_time) in _NAMES.items()
        if limit in limits
    )


_NAMES = {
    "grace_period": (b"grace", True),
    "max_delay": (b"delay", True),
    "max_size": (b"size", False),
    "priority": (b"priority", False),
    "max_bytes": (b"max_bytes", False),
    "max_weight": (b"max_weight", False),
    "min_interval": (b"min_interval", True),
    "leading": (b"leading", False),
}
"""By the name of a limit of a policy its name in the script, and whether it is a time."""
