"""Writes the tasks that wait in a namespace as JSON lines, and adds those of such a file.

The first line describes the export. Each other line is a task, an object with

- ``group``, ``id``: texts; or ``group_base64``, ``id_base64`` if they are no UTF-8;
- ``arrived_at``: when it was added, seconds since the epoch;
- ``limits``: its limits as the script `add` takes them: those of a section and, behind a semicolon,
  its own;
- ``type``, ``payload``, and ``headers`` if it has any: the task, if its stored form can be made of
  these again, byte for byte; else ``body``, that stored form, which is msgpack, in base64;
- ``in_flight``: true if a batch held it.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redisagg.errors import InvalidTask, KeyConflict, PayloadError
from redisagg.payload import pack, unpack
from redisagg.protocol.entries import arrival_ms
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import ask, ask_all
from redisagg.protocol.records import NEVER, GroupRecord, group_record
from redisagg.protocol.replies import scan_page
from redisagg.protocol.scripts import Request, call, command
from redisagg.texts import logger
from redisagg.transport.failures import error_from_reply
from redisagg.transport.threads import Transport

_log = logger("dumping")

_VERSION = 1

_PAGE_TASKS = 200
"""Tasks that are read or added at a time."""

_PAGE_BYTES = 256 * 1024
"""Their bytes, about; one task always fits."""

_PAGE_GROUPS = 50
_MOST_LOOKS = 100  # at a slice of a group that changes meanwhile

_WITH_LIMITS = 0x80  # in the first byte of an entry: it stores limits
_REMEMBERED_MS = 600_000


@dataclass(slots=True)
class Exported:
    """What an export has written."""

    tasks: int = 0
    unreadable: int = 0
    """Number of entries and groups that redisagg did not write, and that were left out."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has done."""

    added: int
    known: int
    """Number of tasks whose id waited already, or was flushed within the dedupe window."""


class _Entry(NamedTuple):
    id: bytes
    limits: bytes | None
    """What it stores of its limits."""
    body: bytes


# --- export --------------------------------------------------------------------------------------


def export_lines(transport: Transport, keyspace: Keyspace, counts: Exported) -> Iterator[str]:
    """Reads all tasks that wait or are in flight.

    A task that is there all the time is in the export. One that is added or flushed while the
    export runs may be in it or not. The tasks of a group are in their order.

    Args:
        transport: sends the requests.
        keyspace: the keys of the namespace.
        counts: is changed as the lines are read.
    """
    head = {"redisagg_export": _VERSION, "namespace": keyspace.name, "exported_at": time.time()}
    yield json.dumps(head)
    for p in keyspace.partitions:
        cursor = 0
        seen: set[bytes] = set()  # SCAN may return a group twice
        while True:
            request = command("HSCAN", p.groups, cursor, "COUNT", _PAGE_TASKS)
            cursor, page = scan_page(transport.run(ask(request)))
            new = {key: packed for key, packed in page.items() if key not in seen}
            seen.update(new)
            yield from _export_groups(transport, p, new, counts)
            if not cursor:
                break


def _export_groups(
    transport: Transport, p: PartitionKeys, page: dict[bytes, bytes], counts: Exported
) -> Iterator[str]:
    small: list[tuple[bytes, GroupRecord]] = []
    for key, packed in page.items():
        try:
            record = group_record(packed, key)
        except KeyConflict as error:
            _log.warning("a group is left out: %s", error)
            counts.unreadable += 1
            continue
        if record.waiting + record.claimed > _PAGE_TASKS or record.bytes > _PAGE_BYTES:
            yield from _export_group(transport, p, key, record, counts)
        else:
            small.append((key, record))
    for at in range(0, len(small), _PAGE_GROUPS):
        some = small[at : at + _PAGE_GROUPS]
        requests = [
            request for key, _ in some for request in _look_requests(p, key, 0, _PAGE_TASKS)
        ]
        replies = transport.run(ask_all(requests))
        for number, (key, record) in enumerate(some):
            before, entries, after = replies[3 * number : 3 * number + 3]
            found = _if_same(before, after)
            if found is None or len(entries) == _PAGE_TASKS:
                yield from _export_group(transport, p, key, record, counts)
            else:
                yield from _lines(key, found, 0, entries, counts)


def _export_group(
    transport: Transport, p: PartitionKeys, key: bytes, known: GroupRecord, counts: Exported
) -> Iterator[str]:
    """Reads a group in slices. Its first tasks may leave, and others be cancelled, in between."""
    following, cancelled = known.base, known.cancelled
    size = known.waiting + known.claimed
    step = max(1, min(_PAGE_TASKS, size * _PAGE_BYTES // max(1, known.bytes)))
    looks = 0
    while True:
        start = max(0, following - known.base - max(0, known.cancelled - cancelled))
        requests = _look_requests(p, key, start, step)
        before, entries, after = transport.run(ask_all(requests))
        if before is None:
            return
        found = _if_same(before, after)
        looks += 1
        if looks < _MOST_LOOKS and (
            found is None or (found.base, found.cancelled) != (known.base, known.cancelled)
        ):
            known = group_record(after or before, key)
            continue
        looks = 0
        known = found or group_record(before, key)
        yield from _lines(key, known, start, entries, counts)
        following, cancelled = known.base + start + len(entries), known.cancelled
        if len(entries) < step:
            return


def _look_requests(p: PartitionKeys, key: bytes, start: int, count: int) -> list[Request]:
    record = command("HGET", p.groups, key)
    return [record, command("LRANGE", p.tasks(key), start, start + count - 1), record]


def _if_same(before: bytes | None, after: bytes | None) -> GroupRecord | None:
    """The record, if no task has left the list between two readings of it."""
    if before is None or after is None:
        return None
    first, last = group_record(before), group_record(after)
    same = (first.base, first.cancelled) == (last.base, last.cancelled)
    return last if same else None


def _lines(
    key: bytes, record: GroupRecord, start: int, entries: Sequence[bytes], counts: Exported
) -> Iterator[str]:
    common = _common_limits(record)
    for place, raw in enumerate(entries, start):
        entry = _split(raw)
        if entry is None:
            _log.warning("an entry of the group %r is no task, and is left out", key)
            counts.unreadable += 1
            continue
        counts.tasks += 1
        line = {
            **_text("group", group_of(key)),
            **_text("id", entry.id),
            "arrived_at": arrival_ms(raw) / 1000,
            "limits": _limits(record, common, entry.limits).decode("ascii", "replace"),
            **_task(entry.body),
        }
        if place < record.claimed:
            line["in_flight"] = True
        yield json.dumps(line)


def _split(raw: bytes) -> _Entry | None:
    """The parts of an entry; None for bytes that are none."""
    end = 7 + raw[6] if len(raw) > 7 else 0
    if not end or len(raw) <= end or end == 7:
        return None
    task_id, limits = raw[7:end], None
    if raw[0] >= _WITH_LIMITS:
        limits = raw[end + 1 : end + 1 + raw[end]]
        end += 1 + raw[end]
    body = raw[end:]
    return _Entry(task_id, limits, body) if body else None


def _common_limits(record: GroupRecord) -> bytes:
    """The limits of the entries that store none."""
    if record.rules_in_force.common:
        return record.rules_in_force.common
    grace, delay = (b"-" if ms >= NEVER else b"%d" % ms for ms in (record.grace, record.delay))
    return b"%b %b %d %d" % (grace, delay, record.size, record.priority)


def _limits(record: GroupRecord, common: bytes, stored: bytes | None) -> bytes:
    """The limits of a task, for `add`."""
    if stored is None:
        text = common
    elif stored.startswith(b"=;"):
        text = common + (b" " if b";" in common else b";") + stored[2:]
    else:
        text = stored
    rules = record.rules_in_force
    shared, semicolon, own = text.partition(b";")
    if rules.interval:
        shared += b" min_interval=%d" % rules.interval
        if rules.leading:
            shared += b" leading=1"
    return shared + semicolon + own


def _text(name: str, raw: bytes) -> dict[str, str]:
    try:
        return {name: raw.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(raw).decode()}


def _task(body: bytes) -> dict[str, Any]:
    """A task in JSON, or else its stored form."""
    try:
        kind, payload, *headers = unpack(body)
        task = {"type": kind, "payload": payload}
        if headers:
            [task["headers"]] = headers
        if _pack(json.loads(json.dumps(task, allow_nan=False))) == body:
            return task
    except (ValueError, TypeError, RecursionError, PayloadError):
        pass
    return {"body": base64.b64encode(body).decode()}


def _pack(task: dict[str, Any]) -> bytes:
    headers = (task["headers"],) if "headers" in task else ()
    return pack((task["type"], task["payload"], *headers))


# --- import --------------------------------------------------------------------------------------


class _Parsed(NamedTuple):
    group: bytes
    id: bytes
    limits: bytes
    own: bytes
    body: bytes


def import_lines(transport: Transport, keyspace: Keyspace, lines: Iterable[bytes]) -> Imported:
    """Adds the tasks of an export, in its order.

    A task whose id waits in its group, or was flushed within the dedupe window, is left out. So an
    import that was ended early can be repeated. What counts from the arrival of a task, its grace
    period and max delay, counts from the import on.

    Args:
        transport: sends the requests.
        keyspace: the keys of the namespace, which is registered.
        lines: the lines of the file.

    Raises:
        InvalidTask: the file is no export, or a line is no task; the lines before it were added.
        RedisAggError: Redis refused some tasks, for instance since its memory is full.
    """
    added = total = 0
    page: list[_Parsed] = []
    size = 0
    for number, line in enumerate(lines, 1):
        if number == 1:
            _check_head(line)
            continue
        if not line.strip():
            continue
        parsed = _parse(line, number)
        page.append(parsed)
        size += len(parsed.body)
        total += 1
        if len(page) >= _PAGE_TASKS or size >= _PAGE_BYTES:
            added += _add(transport, keyspace, page)
            page, size = [], 0
    if page:
        added += _add(transport, keyspace, page)
    return Imported(added, total - added)


def _check_head(line: bytes) -> None:
    try:
        head = json.loads(line)
        version = head["redisagg_export"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InvalidTask("the file does not begin as an export does") from None
    if version != _VERSION:
        raise InvalidTask(f"the export has version {version!r}, this redisagg reads {_VERSION}")


def _parse(line: bytes, number: int) -> _Parsed:
    try:
        task = json.loads(line)
        shared, _, own = task["limits"].encode("ascii").partition(b";")
        body = base64.b64decode(task["body"], validate=True) if "body" in task else _pack(task)
        found = _Parsed(_bytes(task, "group"), _bytes(task, "id"), shared, own, body)
    except KeyError as error:
        raise InvalidTask(f"line {number}: there is no field {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError, PayloadError) as error:
        raise InvalidTask(f"line {number}: no task of an export: {error}") from None
    return found


def _bytes(task: dict[str, Any], name: str) -> bytes:
    if f"{name}_base64" in task:
        return base64.b64decode(task[f"{name}_base64"], validate=True)
    raw: bytes = task[name].encode()
    return raw


def _add(transport: Transport, keyspace: Keyspace, page: Sequence[_Parsed]) -> int:
    """Adds tasks; returns how many of them were new."""
    by_partition: dict[int, list[_Parsed]] = {}
    for task in page:
        by_partition.setdefault(keyspace.partition_of(task.group).number, []).append(task)
    requests = [
        _request(keyspace.partitions[number], keyspace, tasks)
        for number, tasks in by_partition.items()
    ]
    new = 0
    for reply in transport.run(ask_all(requests)):
        for status in reply:
            if isinstance(status, bytes):
                raise error_from_reply(status.decode(errors="replace"))
            new += status if isinstance(status, int) else status[0]
    return new


def _request(p: PartitionKeys, keyspace: Keyspace, tasks: Sequence[_Parsed]) -> Request:
    keys = [p.state, p.groups, p.due, p.ready, p.call(b"import"), p.seen, p.seen_before]
    # The limits are those of the file, whatever policies there are.
    args: list[Any] = [b"", _REMEMBERED_MS, keyspace.wake_channel, p.label_with_policies]
    args += (0, 0, b"1")
    at = 0
    while at < len(tasks):
        first = tasks[at]
        end = at
        while end < len(tasks) and tasks[end][:1] + tasks[end][2:3] == first[:1] + first[2:3]:
            end += 1
        keys += (p.tasks(first.group), p.ids(first.group))
        args += (first.group, first.limits, b"%d 3" % (end - at))
        for task in tasks[at:end]:
            args += (task.id, task.body, task.own)
        at = end
    return call("add", keys, *args, registers=p.layout)
