"""How Asynq's inspector and handlers see what was enqueued, and what is refused or left out."""

from __future__ import annotations

import base64
import datetime as dt
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.sinks import AsynqSink
from tests.sinks.asynq.program import Asynq
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, numbered

pytestmark = pytest.mark.registry

MAIL = {
    "user_id": 42,
    "name": "Änne",
    "at": dt.datetime(2024, 2, 29, 12, tzinfo=dt.timezone.utc),
    "tags": ["a", "b"],
    "raw": b"\x00\xff",
}


def flush(agg: Any, *tasks: Task) -> None:
    """Adds tasks to an aggregator and waits until they are in the queue."""
    agg.add_tasks(tasks)
    assert agg.wait_until_idle(10)


def single(task: Task) -> dict[str, Any]:
    """The configuration by which each task becomes `task`."""
    return {"group_max_size": 1, "group_aggregator": lambda group, tasks: task}


def test_a_go_handler_decodes_json_into_a_struct(make: Make, asynq: Asynq) -> None:
    merged = Task("email:send", MAIL, headers={"trace": "äöü"}, options={"max_retry": 4})
    server = asynq.serve()
    with make(sink=AsynqSink(timeout=120), **single(merged)) as agg:
        flush(agg, *numbered("a", 1))
    [said] = server.await_lines(1)
    assert said["email"] == {
        "user_id": 42,
        "name": "Änne",
        "at": "2024-02-29T12:00:00Z",
        "tags": ["a", "b"],
        "raw": base64.b64encode(b"\x00\xff").decode(),
    }
    assert (said["type"], said["queue"], said["max_retry"]) == ("email:send", "default", 4)
    assert said["headers"] == {"trace": "äöü"}
    assert abs(said["deadline"] - time.time() - 120) < 5


def test_a_handler_has_the_deadline_of_the_task(make: Make, asynq: Asynq) -> None:
    deadline = int(time.time()) + 77
    server = asynq.serve()
    with make(sink=AsynqSink(deadline=deadline), group_max_size=1) as agg:
        flush(agg, *numbered("a", 1))
    [said] = server.await_lines(1)
    assert said["deadline"] == deadline


def test_the_inspector_lists_what_is_pending_and_scheduled(make: Make, asynq: Asynq) -> None:
    later = int(time.time()) + 600

    def merge(group: str, tasks: list[Task]) -> Task:
        options = {"process_at": later} if group == "later" else {}
        return Task("merged", [task.payload for task in tasks], options=options)

    with make(group_max_size=2, group_aggregator=merge) as agg:
        flush(agg, *numbered("now", 4), *numbered("later", 2))
    seen = asynq.inspect()
    assert (seen["queues"], seen["size"]) == (["default"], 3)
    payloads = [json.loads(base64.b64decode(task["payload"])) for task in seen["pending"]]
    assert payloads == [[0, 1], [2, 3]]
    for task in seen["pending"]:
        assert (task["state"], task["queue"], task["max_retry"]) == ("pending", "default", 25)
        assert (task["timeout"], task["retention"]) == (1800, 0)
    [scheduled] = seen["scheduled"]
    assert (scheduled["state"], scheduled["next"]) == ("scheduled", later)


def test_a_task_for_later_is_processed_then(make: Make, asynq: Asynq) -> None:
    server = asynq.serve()
    with make(sink=AsynqSink(process_in=2, unique_ttl=5), group_max_size=1) as agg:
        flush(agg, *numbered("a", 1))
        enqueued_at = time.monotonic()
    assert len(asynq.inspect()["scheduled"]) == 1
    server.await_lines(1)
    assert 0.9 <= time.monotonic() - enqueued_at <= 5  # Asynq keeps whole seconds


def test_merged_tasks_may_go_to_several_queues(make: Make, asynq: Asynq) -> None:
    """Also those of one batch, and of one commit."""

    def merge(group: str, tasks: list[Task]) -> list[Task]:
        return [Task(queue, group, options={"queue": queue}) for queue in ("high", "low")]

    server = asynq.serve("high", "low")
    with make(group_max_size=1, group_aggregator=merge) as agg:
        flush(agg, *numbered("a", 1), *numbered("b", 1))
    said = server.await_lines(4)
    assert sorted((task["queue"], task["type"]) for task in said) == [
        *(("high", "high"), ("high", "high"), ("low", "low"), ("low", "low"))
    ]
    assert sorted(asynq.inspect("low")["queues"]) == ["high", "low"]


def test_retention_keeps_a_task_that_succeeded(make: Make, asynq: Asynq) -> None:
    server = asynq.serve()
    with make(sink=AsynqSink(retention=60), group_max_size=1) as agg:
        flush(agg, *numbered("a", 1))
    [said] = server.await_lines(1)
    wait_until(lambda: asynq.inspect()["completed"] != [], what="it is noted as completed")
    [task] = asynq.inspect()["completed"]
    assert (task["id"], task["state"], task["retention"]) == (said["id"], "completed", 60)


def test_without_retention_nothing_is_left_of_a_task_that_succeeded(
    make: Make, asynq: Asynq, sync_redis: redis.Redis
) -> None:
    server = asynq.serve()
    with make(group_max_size=1) as agg:
        flush(agg, *numbered("a", 1))
    [said] = server.await_lines(1)
    task = f"asynq:{{default}}:t:{said['id']}"
    wait_until(lambda: not sync_redis.exists(task), what="Asynq forgets the task")
    assert asynq.inspect()["completed"] == []


def test_its_like_is_kept_out_until_it_succeeded(
    make: Make, asynq: Asynq, sync_redis: redis.Redis
) -> None:
    merged = Task("merged", {"same": True})
    with make(sink=AsynqSink(unique_ttl=60), **single(merged)) as agg:
        flush(agg, *numbered("a", 1))
        flush(agg, *numbered("a", 1, start=1), *numbered("b", 1))
        assert agg.stats().batches_dead == 0  # dropped, as Asynq's client does
        assert len(asynq.inspect()["pending"]) == 1
        order = {"type": "merged", "payload": base64.b64encode(b'{"same":true}').decode()}
        assert asynq.enqueue({**order, "unique": 60}) == ["task already exists"]
        server = asynq.serve()
        server.await_lines(1)
        wait_until(lambda: not list(sync_redis.scan_iter("*:unique:*")), what="it is unlocked")
        flush(agg, *numbered("a", 1, start=2))
        server.await_lines(2)


def test_its_like_is_kept_out_for_as_long_as_was_said(
    make: Make, asynq: Asynq, sync_redis: redis.Redis
) -> None:
    with make(sink=AsynqSink(unique_ttl=1), **single(Task("merged"))) as agg:
        flush(agg, *numbered("a", 1))
        time.sleep(1.1)
        flush(agg, *numbered("a", 1, start=1))
    assert len(asynq.inspect()["pending"]) == 2


FOREIGN: list[tuple[str, Callable[[redis.Redis], Any], Any]] = [
    ("pending", lambda client: client.set("asynq:{default}:pending", "foreign"), {}),
    ("scheduled", lambda client: client.set("asynq:{default}:scheduled", "x"), {"process_in": 9}),
    ("queues", lambda client: client.set("asynq:queues", "foreign"), {}),
]


@pytest.mark.parametrize(("name", "spoil", "options"), FOREIGN, ids=[name for name, *_ in FOREIGN])
def test_a_key_of_a_foreign_type_leaves_the_batch_and_asynq_as_they_were(
    make: Make, sync_redis: redis.Redis, name: str, spoil: Any, options: Any
) -> None:
    """Also when it is the second of two tasks of the batch that is refused."""

    def merge(group: str, tasks: list[Task]) -> list[Task]:
        return [Task("first", options={"queue": "other"}), Task("second", options=options)]

    spoil(sync_redis)
    before = set(sync_redis.keys("asynq:*"))
    with make(group_max_size=2, group_aggregator=merge, max_attempts=2) as agg:
        agg.add_tasks(numbered("a", 2))
        [letter] = await_dead(agg)
        assert letter.error.startswith("KeyConflict: ")
        assert letter.tasks is not None
        assert [stored.task.payload for stored in letter.tasks if stored.task] == [0, 1]
        left = set(sync_redis.keys("asynq:*")) - before
        assert left <= {b"asynq:queues"}
        sync_redis.delete(*before)
        agg.requeue_dead_letter(letter.batch_id)
        assert agg.wait_until_idle(5)
    assert sync_redis.llen("asynq:{other}:pending") == 1
    assert sync_redis.exists("asynq:{default}:pending", "asynq:{default}:scheduled") == 1


def test_an_id_that_asynq_has_already_counts_as_enqueued(
    make: Make, sync_redis: redis.Redis, asynq: Asynq
) -> None:
    """As when Redis lost the commit and kept the queue; Asynq's client has an error for it."""
    gate = threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        gate.wait(10)
        return Task("ours")

    with make(group_max_size=2, group_aggregator=merge) as agg:
        agg.add_tasks(numbered("a", 2))
        wait_until(lambda: bool(agg.get_batches()), what="the batch is claimed")
        [batch] = agg.get_batches()
        assert asynq.enqueue({"type": "theirs", "id": batch.batch_id}) == [""]
        gate.set()
        assert agg.wait_until_idle(5)
        assert agg.stats().batches_dead == 0
    [task] = asynq.inspect()["pending"]
    assert (task["id"], task["type"]) == (batch.batch_id, "theirs")
