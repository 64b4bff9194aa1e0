"""Snapshots of Redis and of the model, in one form that can be compared."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgpack
import redis

from redisagg.protocol.keys import PartitionKeys
from redisagg.protocol.records import BatchRecord, batch_record, dead_record, group_record
from tests.model.clock import CLOCK_KEY
from tests.model.model import Group, Partition, packed_letter, raws

Snapshot: TypeAlias = dict[str, dict[Any, Any]]

STREAM = b"model:stream"

# All keys in one call; a test's server holds nothing else.
_DUMP = """
local reply = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, value = redis.call('TYPE', key).ok, nil
  if kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'set' then value = redis.call('SMEMBERS', key)
  elseif kind == 'list' then value = redis.call('LRANGE', key, 0, -1)
  elseif kind == 'stream' then value = redis.call('XRANGE', key, '-', '+')
  else value = redis.call('GET', key) end
  reply[#reply + 1] = { key, value }
end
return reply
"""


def in_redis(client: redis.Redis, keys: PartitionKeys) -> Snapshot:
    """The contents of Redis. Keys of other names are under "stray"."""
    dump = dict(client.execute_command("EVAL", _DUMP, 0))
    dump.pop(CLOCK_KEY, None)
    state = _pairs(dump.pop(keys.state, []))
    groups = _pairs(dump.pop(keys.groups, []))
    snapshot: Snapshot = {
        "state": {
            field.decode(): value if field in (b"owner", b"partitions") else int(value)
            for field, value in state.items()
            if field not in (b"seen_until", b"seen_before_until")  # the window outlasts a test
        },
        "groups": {name: _group(packed) for name, packed in groups.items()},
        "batches": {
            batch_id: _batch(packed)
            for batch_id, packed in _pairs(dump.pop(keys.batches, [])).items()
        },
        "dead": {
            batch_id: dead_record(packed)
            for batch_id, packed in _pairs(dump.pop(keys.dead, [])).items()
        },
        "stream": {
            "": [tuple(fields) for _, fields in dump.pop(STREAM, [])],
        },
        "tasks": {},
        "ids": {},
        "dead tasks": {},
        "copies": {},
        "calls": {},
        "results": {},
        "answers": {},
        "seen": {"": set(dump.pop(keys.seen, []))},
        "stray": {},
    }
    for name in ("claims", "retry", "suspects", "due", "ready"):
        members = _pairs(dump.pop(getattr(keys, name), []))
        snapshot[name] = {member: int(score) for member, score in members.items()}
    tasks, ids, dead, calls = keys.tasks(b""), keys.ids(b""), keys.dead_tasks(b""), keys.call(b"")
    results = keys.result(b"")
    answers = keys.answer(b"", b"").removesuffix(b"0::")
    for key, value in dump.items():
        if key.startswith(tasks):
            snapshot["tasks"][key[len(tasks) :]] = value
        elif key.startswith(ids):
            numbers = _pairs(value).items()
            snapshot["ids"][key[len(ids) :]] = {task_id: int(n) for task_id, n in numbers}
        elif key.startswith(dead):
            part = "copies" if key.endswith((b":selected", b":others")) else "dead tasks"
            snapshot[part][key[len(dead) :]] = value
        elif key.startswith(answers):
            snapshot["answers"][key] = value
        elif key.startswith(results):
            snapshot["results"][key[len(results) :]] = _pairs(value)
        elif key.startswith(calls):
            number, reply = msgpack.unpackb(value, raw=True)
            snapshot["calls"][key[len(calls) :]] = [number, without_hints(reply)]
        else:
            snapshot["stray"][key] = value
    # To a script, a missing field and 0 are the same.
    snapshot["state"] = {field: value for field, value in snapshot["state"].items() if value}
    return snapshot


def in_model(model: Partition, keys: PartitionKeys) -> Snapshot:
    """The contents that Redis should have by the model."""
    state = {
        **model.counters(),
        "partitions": model.partitions,
        "owner": model.owner,
        "token": model.token,
        "expires": model.expires,
        "lease": model.lease,
        "clock": model.clock,
        "wake": model.wake,
        "paused": int(model.paused),
        "paused_by": model.paused_at,
        "sequence": model.sequence,
    }
    groups = model.groups.items()
    in_flight = {
        name: raws([entry for batch in group.in_flight for entry in batch.entries])
        for name, group in groups
    }
    return {
        "state": {field: value for field, value in state.items() if value},
        "groups": {name: _fields(group, model.held(name)) for name, group in groups},
        "batches": model.batch_records(),
        "dead": {each: letter.record for each, letter in model.dead.items()},
        "stream": {"": model.stream},
        "tasks": {
            name: in_flight[name] + raws(group.waiting)
            for name, group in groups
            if group.in_flight or group.waiting
        },
        "ids": {name: group.numbers for name, group in groups if group.numbers},
        "dead tasks": {each: raws(letter.entries) for each, letter in model.letters().items()},
        "copies": {name: raws(entries) for name, entries in model.copies.items() if entries},
        "results": model.results,
        "answers": {keys.answer(*place): record for place, record in model.answers.items()},
        "seen": {"": model.seen},
        "calls": {producer: list(call) for producer, call in model.calls.items()},
        "stray": {},
        "claims": model.claims,
        "retry": model.retries,
        "suspects": model.suspects,
        "due": model.due,
        "ready": model.ready,
    }


def _batch(packed: bytes) -> BatchRecord:
    batch = batch_record(packed)
    return batch._replace(letter=batch.letter and packed_letter(dead_record(batch.letter)))


def _group(packed: bytes) -> dict[str, int]:
    record = group_record(packed)
    fields = record._asdict()
    del fields["rules"]
    rules = record.rules_in_force
    fields["interval"], fields["leading"] = rules.interval, rules.leading
    fields["cool_until"], fields["paused"] = rules.cool_until, rules.paused
    if fields["waiting"]:
        fields["weight"] = rules.weight if rules.segments else record.waiting
        fields |= {name: getattr(rules, name) for name in ("max_bytes", "max_weight", "due")}
        fields["not_before"], fields["postponed"] = rules.not_before, rules.postponed
        return fields
    # The other places describe the waiting tasks.
    places = (
        "waiting",
        "claimed",
        "base",
        "marked",
        "held",
        "held_from",
        "held_until",
        "bytes",
        "ids_from",
        "cancelled",
        "interval",
        "leading",
        "cool_until",
        "paused",
    )
    return {name: fields[name] for name in places}


def _fields(group: Group, held: int) -> dict[str, int]:
    fields = {
        "waiting": len(group.waiting),
        "claimed": group.claimed,
        "base": group.base,
        "marked": group.marked,
        "held": held,
        "held_from": group.held_from,
        "held_until": group.held_until,
        "bytes": group.bytes,
        "ids_from": group.ids_from,
        "cancelled": group.cancelled,
        "interval": group.interval,
        "leading": group.leading,
        "cool_until": group.cool_until,
        "paused": group.paused_at,
    }
    if group.waiting:
        fields["first"] = group.waiting[0].arrival
        fields["last"] = group.last
        fields["deadline"] = group.deadline
        fields["since"], fields["postponed"] = group.since, group.postponed
        limits = group.limits._asdict()
        due = group.limits.due
        fields["due"] = 2 * due + (due != limits["due_at"])
        names = ("grace", "delay", "size", "priority", "max_bytes", "max_weight", "weight")
        fields |= {name: limits[name] for name in (*names, "not_before")}
    return fields


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def differences(redis: Snapshot, model: Snapshot) -> list[str]:
    """One line for each difference."""
    return [
        f"{part} {key!r}: Redis {redis[part].get(key)!r}, the model {model[part].get(key)!r}"
        for part in sorted(redis.keys() | model.keys())
        for key in sorted(redis[part].keys() | model[part].keys())
        if redis[part].get(key) != model[part].get(key)
    ]


def without_hints(reply: list[Any]) -> list[Any]:
    """A reply of `add` without the hints that groups have tasks with other limits."""
    return [each[0] if isinstance(each, list) and each[1] == 0 else each for each in reply]
