"""What each kind of sink writes, and how it is read back."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import time
from typing import Any

import msgpack
import pytest
import redis

from redisagg import Task
from redisagg.errors import InvalidConfig, PayloadError, SinkError
from redisagg.sinks import CallableSink, ListSink, StreamSink
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_dead, enqueued, numbered, payloads

PAYLOAD = {"n": 1, "at": dt.datetime(2024, 2, 29, 12, tzinfo=dt.timezone.utc), "raw": b"\x00\xff"}
AS_JSON = {"n": 1, "at": "2024-02-29T12:00:00+00:00", "raw": "AP8="}
GROUP = 'grüße {1}: "a b"\n'


def merge(group: str, tasks: list[Task]) -> Task:
    return Task("merged", PAYLOAD, headers={"trace": "äöü"})


def fill(agg: Any) -> None:
    """Enqueues one batch of two tasks."""
    with agg:
        agg.add_tasks(numbered(GROUP, 2))
        assert agg.wait_until_idle(5)


def test_a_stream_entry_has_the_documented_fields(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(sink=StreamSink("queue"), group_max_size=2, group_aggregator=merge)
    fill(agg)
    entries: Any = sync_redis.xrange("queue")
    [(_, fields)] = entries
    names = [b"batch_id", b"type", b"group", b"count", b"payload", b"headers", b"reason"]
    assert list(fields) == names
    assert fields[b"reason"] == b"size"
    assert fields[b"type"] == b"merged"
    assert fields[b"group"] == GROUP.encode()
    assert fields[b"count"] == b"2"
    assert msgpack.unpackb(fields[b"headers"]) == {"trace": "äöü"}
    packed = msgpack.unpackb(fields[b"payload"])
    assert packed["raw"] == b"\x00\xff"
    assert packed["at"] == msgpack.ExtType(1, b"2024-02-29T12:00:00+00:00")
    [batch] = enqueued(agg)
    assert (batch.payload, batch.headers) == (PAYLOAD, {"trace": "äöü"})
    assert (batch.batch_id.encode(), batch.group) == (fields[b"batch_id"], GROUP)


def test_a_stream_entry_can_be_json(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(sink=StreamSink("queue", format="json"), group_max_size=2, group_aggregator=merge)
    fill(agg)
    entries: Any = sync_redis.xrange("queue")
    [(_, fields)] = entries
    assert json.loads(fields[b"payload"]) == AS_JSON
    assert json.loads(fields[b"headers"]) == {"trace": "äöü"}
    assert fields[b"group"] == GROUP.encode()
    [batch] = enqueued(agg)
    assert (batch.payload, batch.count) == (AS_JSON, 2)


@pytest.mark.parametrize("form", ["msgpack", "json"])
def test_a_list_element_is_one_map(make: Make, sync_redis: redis.Redis, form: Any) -> None:
    agg = make(sink=ListSink("queue", format=form), group_max_size=2, group_aggregator=merge)
    fill(agg)
    elements: Any = sync_redis.lrange("queue", 0, -1)
    [raw] = elements
    element = json.loads(raw) if form == "json" else msgpack.unpackb(raw)
    assert list(element) == ["batch_id", "type", "group", "count", "payload", "headers", "reason"]
    assert (element["type"], element["group"], element["count"]) == ("merged", GROUP, 2)
    assert element["headers"] == {"trace": "äöü"}
    if form == "json":
        assert element["payload"] == AS_JSON
    [batch] = enqueued(agg)
    assert batch.batch_id == element["batch_id"]
    assert batch.payload == (AS_JSON if form == "json" else PAYLOAD)


def test_a_list_has_its_oldest_batch_where_a_worker_pops(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(sink="list://queue?format=json", group_max_size=2)
    with agg:
        agg.add_tasks(numbered("a", 6))
        await_batches(agg, 3)
    popped: Any = sync_redis.lpop("queue", 3)
    assert [json.loads(raw)["payload"]["payloads"] for raw in popped] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("url", ["stream://queue", "list://queue?format=json"])
def test_reading_goes_on_from_the_cursor_and_removes_nothing(make_both: Make, url: str) -> None:
    agg = make_both(sink=url, group_max_size=1)
    with agg:
        agg.add_tasks(numbered("a", 5))
        await_batches(agg, 5)
        first = agg.read_sink(limit=2)
        second = agg.read_sink(first.cursor, limit=2)
        third = agg.read_sink(second.cursor, limit=2)
        assert [payloads(list(page.batches)) for page in (first, second, third)] == [
            *([0, 1], [2, 3], [4])
        ]
        assert agg.read_sink(third.cursor).batches == []
        agg.add_task(Task("test", 5, "a"))
        await_batches(agg, 6)
        assert payloads(list(agg.read_sink(third.cursor).batches)) == [5]
        assert payloads(enqueued(agg)) == [0, 1, 2, 3, 4, 5]
        assert agg.sink_keys() == [b"queue"]


def test_a_stream_can_be_kept_short(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(sink=StreamSink("queue", maxlen=100), group_max_size=1)
    with agg:
        agg.add_tasks(numbered("a", 1_000))
        assert agg.wait_until_idle(10)
    length: Any = sync_redis.xlen("queue")
    assert 100 <= length < 400  # trimmed by whole nodes of 100 entries
    assert payloads(enqueued(agg))[-1] == 999


def test_a_queue_key_of_another_type_fails_the_batch_and_is_left_as_it_is(
    make: Make, sync_redis: redis.Redis
) -> None:
    sync_redis.set("queue", "foreign")
    agg = make(sink="stream://queue", group_max_size=2, max_attempts=2)
    with agg:
        agg.add_tasks(numbered("a", 2))
        [letter] = await_dead(agg)
        assert "KeyConflict" in letter.error
        assert sync_redis.get("queue") == b"foreign"
        sync_redis.delete("queue")
        agg.requeue_dead_letter(letter.batch_id)
        await_batches(agg, 1)
    assert payloads(enqueued(agg)) == [0, 1]


def test_batches_that_are_refused_in_one_commit_are_handled_one_by_one(
    make: Make, sync_redis: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The first four are buried; with the fifth the breaker opens, and the others are kept."""
    caplog.set_level("INFO", "redisagg")
    sync_redis.set("queue", "foreign")
    agg = make(sink="stream://queue", group_max_size=1, max_attempts=1)
    agg.add_tasks(numbered("a", 30))
    with agg:
        letters = await_dead(agg, 4)
        wait_until(
            lambda: caplog.text.count("is tried again") >= 2, what="the queue is tried again"
        )
        assert agg.stats().batches_dead == 4
        assert [letter.error.split(":")[0] for letter in letters] == ["KeyConflict"] * 4
        sync_redis.delete("queue")
        await_batches(agg, 26)
        assert agg.wait_until_idle(5)
    assert payloads(enqueued(agg)) == list(range(4, 30))


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_function_gets_each_merged_task_with_its_batch_id(make: Make, kind: str) -> None:
    calls: list[tuple[Task, str]] = []

    def plain(task: Task, batch_id: str) -> None:
        calls.append((task, batch_id))

    async def later(task: Task, batch_id: str) -> None:
        await asyncio.sleep(0)
        calls.append((task, batch_id))

    agg = make(
        sink=CallableSink(plain if kind == "plain" else later),
        group_aggregator=merge,
        group_max_size=2,
    )
    with agg:
        agg.add_tasks([*numbered("a", 2), *numbered("b", 2)])
        assert agg.wait_until_idle(5)
        assert agg.stats().batches_flushed == 2
    assert sorted(str(task.group_key) for task, _ in calls) == ["a", "b"]
    assert all(task.payload == PAYLOAD for task, _ in calls)
    assert len({batch_id for _, batch_id in calls}) == 2


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_function_that_raises_is_called_again_with_the_same_id(make: Make, kind: str) -> None:
    calls: list[str] = []

    def plain(task: Task, batch_id: str) -> None:
        calls.append(batch_id)
        if len(calls) < 3:
            raise OSError("the queue is away")

    async def later(task: Task, batch_id: str) -> None:
        plain(task, batch_id)

    agg = make(sink=CallableSink(plain if kind == "plain" else later), group_max_size=1)
    with agg:
        agg.add_task(Task("test", 0, "a"))
        assert agg.wait_until_idle(5)
        stats = agg.stats()
    assert len(calls) == 3
    assert len(set(calls)) == 1
    assert (stats.flushed, stats.dead) == (1, 0)


def test_a_function_that_always_raises_leaves_a_dead_letter(make: Make) -> None:
    def deliver(task: Task, batch_id: str) -> None:
        raise OSError(f"no route for {batch_id}")

    agg = make(sink=CallableSink(deliver), group_max_size=1, max_attempts=2)
    with agg:
        agg.add_task(Task("test", 0, "a"))
        [letter] = await_dead(agg)
    assert letter.error == f"OSError: no route for {letter.batch_id}"
    assert "in deliver" in letter.traceback


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_function_that_raises_a_base_exception_has_failed(make: Make, kind: str) -> None:
    calls: list[str] = []

    def plain(task: Task, batch_id: str) -> None:
        calls.append(batch_id)
        if len(calls) == 1:
            raise SystemExit

    async def later(task: Task, batch_id: str) -> None:
        calls.append(batch_id)
        if len(calls) == 1:
            raise asyncio.CancelledError

    agg = make(
        sink=CallableSink(plain if kind == "plain" else later),
        group_max_size=1,
        shutdown_timeout=1,
    )
    with agg:
        agg.add_task(Task("test", 0, "a"))
        assert agg.wait_until_idle(2)
    assert len(calls) == 2


def test_calls_for_one_group_never_overlap_while_groups_do(make: Make) -> None:
    running: set[str] = set()
    overlaps: list[str] = []
    together = 0

    def deliver(task: Task, batch_id: str) -> None:
        nonlocal together
        group = str(task.group_key)
        if group in running:
            overlaps.append(group)
        running.add(group)
        together = max(together, len(running))
        time.sleep(0.01)  # so that calls could overlap
        running.discard(group)

    agg = make(sink=CallableSink(deliver), group_max_size=1)
    with agg:
        agg.add_tasks(Task("test", n, group) for n in range(8) for group in "abcd")
        assert agg.wait_until_idle(10)
    assert overlaps == []
    assert together > 1


def test_a_merge_that_returns_none_calls_no_function(make: Make) -> None:
    calls: list[str] = []

    def deliver(task: Task, batch_id: str) -> None:
        calls.append(batch_id)

    def merge_to_none(group: str, tasks: list[Task]) -> None:
        return None

    agg = make(sink=CallableSink(deliver), group_aggregator=merge_to_none, group_max_size=1)
    with agg:
        agg.add_task(Task("test", 0, "a"))
        assert agg.wait_until_idle(5)
    assert calls == []


def test_a_callable_sink_can_not_be_read(make_both: Make) -> None:
    agg = make_both(sink=CallableSink(print))
    with pytest.raises(SinkError):
        agg.sink_keys()
    with pytest.raises(SinkError):
        agg.read_sink()


@pytest.mark.parametrize(
    "sink",
    ["kafka://x", "stream://x?colour=red", "list://x?maxlen=3", "stream://", 7, "stream://{x}"],
)
def test_a_wrong_sink_is_refused_by_the_constructor(make_both: Make, sink: Any) -> None:
    with pytest.raises(InvalidConfig):
        make_both(sink=sink)


@pytest.mark.parametrize("sink", ["stream://queue?format=json", "list://queue?format=json"])
@pytest.mark.parametrize(
    "payload",
    [{1: "number", "1": "text"}, {"price": math.nan}, [-math.inf]],
    ids=["keys", "nan", "inf"],
)
class TestPayloadsWithoutAFormInJson:
    def test_are_refused_when_they_are_added(self, make: Make, sink: str, payload: Any) -> None:
        agg = make(sink=sink)
        with pytest.raises(PayloadError, match="no form in JSON"):
            agg.add_task(Task("test", payload, "a"))
        agg.add_task(Task("test", {1: 1.5, b"x": {2}}, "a"))
        assert agg.get_entries()["a"].size == 1

    def test_may_be_added_if_a_merge_function_makes_something_else_of_them(
        self, make: Make, sink: str, payload: Any
    ) -> None:
        agg = make(sink=sink, group_max_size=1, group_aggregator=lambda group, tasks: Task("m", 1))
        with agg:
            agg.add_task(Task("test", payload, "a"))
            await_batches(agg, 1)
        assert [batch.payload for batch in enqueued(agg)] == [1]

    def test_of_other_producers_die_alone(self, make: Make, sink: str, payload: Any) -> None:
        producer, agg = make(), make(sink=sink)
        guilty = Task("test", payload, "a", id="guilty")
        producer.add_tasks([*numbered("a", 2), guilty, *numbered("a", 2, start=2)])
        producer.flush("a")
        with agg:
            [letter] = await_dead(agg)
            await_batches(agg, 1)
            assert agg.wait_until_idle(5)
        assert payloads(enqueued(agg)) == [0, 1, 2, 3]
        assert letter.tasks is not None
        assert [stored.task.id for stored in letter.tasks if stored.task] == ["guilty"]
        assert "the payload has no form in JSON" in letter.error


def test_the_deepest_payload_that_can_be_added_harms_no_other(make: Make) -> None:
    agg = make()
    deep: Any = 1
    for _ in range(110):
        deep = [deep]
    for _ in range(110, 200):
        try:
            agg.add_task(Task("test", [deep], "a", id="deep"))
        except PayloadError:
            break
        agg.cancel_task("a", "deep")
        deep = [deep]
    agg.add_tasks([*numbered("a", 2), Task("test", deep, "a", id="deep")])
    agg.flush("a")
    with agg:
        await_batches(agg, 1)
        assert agg.wait_until_idle(5)
        letters = agg.dead_letters(tasks=True)
    enqueued_count = len(payloads(enqueued(agg)))
    assert enqueued_count + len(letters) == 3
    assert enqueued_count >= 2
