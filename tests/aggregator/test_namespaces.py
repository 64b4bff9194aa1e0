"""The commands that list, move and remove namespaces."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from redisagg import Task
from tests.support.aggregators import Make
from tests.support.cli import Run
from tests.support.tasks import await_dead, await_led


def failing(group: str, tasks: list[Task]) -> None:
    raise RuntimeError("fails")


def test_namespaces_are_listed_with_their_counts(
    run: Run, make: Make, sync_redis: redis.Redis
) -> None:
    assert run("namespaces").stdout.split("\n")[1:] == [""]
    make(name="one", partitions=3).add_tasks(Task("t", n, f"g{n}") for n in range(7))
    make(name="two").add_task(Task("t", 1, "a"))
    sync_redis.hset("redisagg:{foreign}:meta", "schema", "1")
    moved = json.loads(run("move", "two", "three", "--json").stdout)
    assert moved == {**moved, "name": "three", "partitions": 2, "groups": 1, "dead_letters": 0}
    again = json.loads(run("repartition", "-n", "one", "--partitions", "5", "--json").stdout)
    assert (again["name"], again["partitions"]) == ("one", 5)
    listed = [json.loads(line) for line in run("namespaces", "--json").stdout.splitlines()]
    assert [each["name"] for each in listed] == ["foreign", "one", "three", "two"]
    foreign, one, three, two = listed
    assert "no number of partitions" in foreign["error"]
    assert (one["partitions"], one["groups"], one["pending"], one["flushers"]) == (5, 7, 7, 0)
    assert three["pending"] == 1
    assert two["moved_to"] == "three"
    table = run("namespaces").stdout
    assert "moved to three" in table
    # Who uses the old name follows.
    assert "1 tasks are due now" in run("flush", "--all", "-n", "two").stdout


def test_a_namespace_in_use_is_not_removed(run: Run, make: Make, sync_redis: redis.Redis) -> None:
    client: Any = sync_redis
    with make(partitions=3, group_max_size=1, group_aggregator=failing, max_attempts=1) as agg:
        agg.add_task(Task("t", 1, "a"))
        await_dead(agg)
        await_led(agg)
        assert "1 flushers run in the namespace 'tests'" in run("remove", "tests").stderr
        assert "flushers run" in run("remove", "tests", "--force").stderr
    agg.add_task(Task("t", 2, "b"))
    before = client.hgetall("redisagg:{tests:1}:state")
    refused = run("remove", "tests")
    assert "has 1 tasks and 1 tasks in dead letters" in refused.stderr
    assert refused.exit_code == 1
    assert client.hgetall("redisagg:{tests:1}:state") == before
    agg.add_task(Task("t", 3, "b"))
    assert agg.stats().pending == 2
    make(name="tests2").add_task(Task("t", 3, "b"))
    removed = json.loads(run("remove", "tests", "--force", "--json").stdout)
    assert removed["removed"] > 5
    kept = [key for key in client.keys("redisagg:{tests[:}]*") if b":call:" not in key]
    assert kept == []
    assert make(name="tests2").stats().pending == 1
    assert "there is no namespace 'tests'" in run("remove", "tests").stderr
    make(partitions=5).add_task(Task("t", 1, "a"))  # it can be made anew


@pytest.mark.parametrize("taken", ["tests", "new"])
def test_a_namespace_that_is_being_moved_is_not_removed(
    run: Run, make: Make, sync_redis: redis.Redis, taken: str
) -> None:
    make(name=taken).add_task(Task("t", 1, "a"))
    sync_redis.hset(f"redisagg:{{{taken}}}:meta", "move", "x 2 3 copying")
    assert "is being moved" in run("remove", taken, "--force").stderr
    assert make(name=taken).stats().pending == 1


def test_a_task_that_comes_while_a_namespace_is_removed_is_not_lost(
    make: Make, sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    from redisagg.operations import removing

    agg = make(partitions=3)
    agg.add_task(Task("t", 1, "a"))
    agg.cancel_group("a")
    unused = removing._raise_if_used
    looks = []

    def look(*arguments: Any) -> None:
        looks.append(arguments)
        unused(*arguments)
        if len(looks) == 1:
            agg.add_task(Task("t", 2, "b"))

    monkeypatch.setattr(removing, "_raise_if_used", look)
    assert "has 1 tasks" in run("remove", "tests").stderr
    agg.add_task(Task("t", 3, "b"))
    assert agg.stats().pending == 2
