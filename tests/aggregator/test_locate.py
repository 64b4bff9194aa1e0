"""Where a task is: `locate`."""

from __future__ import annotations

import json
import threading
from typing import Any

import msgpack
import pytest
import redis

from redisagg import Aggregator, Partial, Results, Task
from redisagg.views import Location
from tests.support.aggregators import Make
from tests.support.cli import Run
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, numbered


def test_a_task_that_waits(make_both: Make) -> None:
    agg = make_both(group_grace_period=100, group_max_size=50)
    ids = agg.add_tasks(numbered("a", 20))
    agg.cancel_task("a", ids[3])
    found = agg.locate("a", ids[10])
    assert (found.state, found.place, found.group_key, found.task_id) == (
        "waiting",
        9,
        "a",
        ids[10],
    )
    group = agg.get_group("a")
    assert group is not None
    assert found.due_at == group.due_at
    assert agg.locate("a", ids[0]).place == 0
    assert agg.locate("a", ids[3]) == Location("unknown", "a", ids[3])
    assert agg.locate("nobody", "x").state == "unknown"


@pytest.mark.parametrize("count", [6, 2500])
def test_a_task_in_a_batch(make_both: Make, count: int) -> None:
    """Of the first batch and of a later one, also if they are large."""
    merging, go_on = threading.Event(), threading.Event()

    def merge(group: str, tasks: list[Task]) -> None:
        merging.set()
        go_on.wait(30)

    with make_both(group_aggregator=merge, group_max_size=count // 2, partitions=1) as agg:
        ids = agg.add_tasks(numbered("a", count))
        assert merging.wait(10)
        wait_until(lambda: len(agg.get_batches()) == 2, what="both are claimed")
        first, second = agg.get_batches()
        for task_id, batch in ((ids[0], first), (ids[-1], second), (ids[count // 2], second)):
            found = agg.locate("a", task_id)
            assert (found.state, found.batch_id) == ("in_batch", batch.batch_id)
            assert (found.batch_state, found.attempt) == ("claimed", 1)
        go_on.set()
        assert agg.wait_until_idle(20)
        assert agg.locate("a", ids[0]).state == "unknown"


def test_a_task_in_retry(make: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> None:
        raise ValueError("not yet")

    with make(group_aggregator=merge, group_max_size=1, retry_delay=60) as agg:
        task_id = agg.add_task(Task("t", 1, "a"))
        wait_until(lambda: agg.locate("a", task_id).batch_state == "retry", what="it is in retry")
        assert agg.locate("a", task_id).error == "ValueError: not yet"


@pytest.mark.parametrize("submits", [False, True])
def test_a_task_that_failed(make_both: Make, submits: bool) -> None:
    def merge(group: str, tasks: list[Task]) -> Partial:
        if group == "all":
            raise ValueError("no")
        return Partial(None, {tasks[1].id: "odd"})

    with make_both(group_aggregator=merge, group_max_size=2, max_attempts=1) as agg:
        add = agg.submit if submits else agg.add_task
        for name in ("all", "one"):
            for n in range(2):
                add(Task("t", n, name, f"{n}"))
        letters = {letter.group_key: letter for letter in await_dead(agg, 2)}
        found = agg.locate("all", "1")
        assert (found.state, found.error) == ("failed", "ValueError: no")
        assert found.dead_letter == found.batch_id == letters["all"].batch_id
        found = agg.locate("one", "1")
        assert (found.state, found.error) == ("failed", "odd")
        assert found.dead_letter == letters["one"].batch_id
        assert agg.locate("one", "0").state == ("flushed" if submits else "unknown")


def test_a_submitted_task_that_was_flushed(make_both: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Results:
        return Results({task.id: task.payload or ValueError("zero") for task in tasks})

    with make_both(group_aggregator=merge, group_max_size=2) as agg:
        bad, good = agg.submit(Task("t", 0, "a")), agg.submit(Task("t", 1, "a"))
        assert good.result(10) == 1
        found = agg.locate("a", good.task_id)
        assert found.state == "flushed"
        assert found.batch_id
        failed = agg.locate("a", bad.task_id)
        assert (failed.state, failed.error) == ("failed", "ValueError: zero")
        assert (failed.dead_letter, failed.batch_id) == (None, found.batch_id)
    waiting = agg.submit(Task("t", 1, "a"))
    agg.cancel_task("a", waiting.task_id)
    assert agg.locate("a", waiting.task_id).state == "cancelled"


def test_a_large_group_is_looked_through_in_pieces(make: Make, sync_redis: redis.Redis) -> None:
    client: Any = sync_redis
    agg = make(partitions=1, group_max_size=1_000_000, group_grace_period=1000)
    agg.add_tasks(numbered("a", 50_000))
    [groups_key] = client.keys("*:groups")
    record = msgpack.unpackb(client.hget(groups_key, "a"), raw=True)
    record[0], record[1] = 0, record[0]  # waiting, claimed: all are in batches
    client.hset(groups_key, "a", msgpack.packb(record))
    agg.locate("a", "nobody")
    client.config_resetstat()
    assert agg.locate("a", "nobody").state == "unknown"
    stats = client.info("commandstats")
    assert 50 <= stats["cmdstat_evalsha"]["calls"] < 60
    assert stats["cmdstat_lrange"]["calls"] < 65


def test_the_command(run: Run, redis_url: str) -> None:
    aggregator = Aggregator("default", redis_url)
    aggregator.add_tasks([Task("t", n, "g", f"id{n}") for n in range(3)])
    assert "waiting behind 2 tasks" in run("locate", "g", "id2").stdout
    assert json.loads(run("locate", "g", "id1", "--json").stdout)["place"] == 1
    unknown = run("locate", "g", "nobody")
    assert (unknown.exit_code, unknown.stdout.strip()) == (1, "unknown")
    receipt = aggregator.submit(Task("t", 1, "g"))
    aggregator.cancel_task("g", receipt.task_id)
    assert run("locate", "g", receipt.task_id).stdout.strip() == "cancelled"
    aggregator.close()  # and so its subscription
