"""The commands `why`, `batches` and `stats`, and what they show of a flusher."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.errors import InvalidConfig
from redisagg.protocol.keys import Keyspace
from redisagg.sinks import CallableSink
from redisagg.views import GroupPlace
from tests.support.aggregators import Make
from tests.support.cli import Run
from tests.support.servers import wait_until
from tests.support.tasks import await_led

HERE = ("-n", "tests")


def _fail(group: str, tasks: list[Task]) -> Task:
    raise ValueError(f"{group} is bad\nin line 2")


def in_retry(make: Make, count: int, **config: Any) -> Aggregator:
    """Makes batches that wait for a retry for a minute."""
    slow: dict[str, Any] = {"retry_delay": 60, "retry_max_delay": 60, "group_max_size": 1}
    agg = make(group_aggregator=_fail, **slow, **config)
    agg.start()
    agg.add_tasks(Task("t", n, f"g{n}") for n in range(count))
    wait_until(lambda: agg.stats().batches_in_retry == count, what="all are in retry")
    return agg


def test_why(run: Run, redis_url: str) -> None:
    agg = Aggregator("tests", redis_url)
    agg.add_task(Task("t", 1, "g"))
    asked = run("why", "g", *HERE)
    assert asked.exit_code == 0
    first, advice, also = asked.stdout.splitlines()
    assert first.startswith("not late: 1 task waits until ")
    assert advice == "to do: To send them now: redisagg flush."
    assert also.startswith("also: No flusher has ever run. Start one: ")
    agg.flush("g")
    wait_until(lambda: run("why", "g", *HERE).exit_code == 4, what="it is late")
    assert run("why", "g", *HERE).stdout.startswith("late by 1.")
    assert json.loads(run("why", "g", *HERE, "--json").stdout)["late"] is True
    assert run("why", "g", "-n", "other").exit_code == 1


def test_batches_are_listed_and_chosen(run: Run, make: Make) -> None:
    agg = in_retry(make, 3)
    lines = run("batches", *HERE).stdout.splitlines()
    assert lines[0].split()[:4] == ["batch", "group", "tasks", "state"]
    assert len(lines) == 4
    assert all("retry" in line and "is bad" in line and "line 2" not in line for line in lines[1:])

    def listed(*options: str) -> list[str]:
        shown = run("batches", *HERE, "--json", *options).stdout.splitlines()
        return sorted(json.loads(line)["group_key"] for line in shown)

    assert listed() == ["g0", "g1", "g2"]
    assert listed("--state", "retry") == ["g0", "g1", "g2"]
    assert listed("--state", "claimed") == []
    assert listed("--group", "g1") == ["g1"]
    assert listed("--error", "G2 IS bad") == ["g2"]
    one = run("batches", *HERE, "--json", "--tasks", "--group", "g0").stdout
    assert json.loads(one)["tasks"][0]["payload"] == 0
    assert run("batches", *HERE, "--tasks").exit_code == 2
    for wrong in ({"state": "odd"}, {"error": 1}, {"place": GroupPlace(9)}):
        with pytest.raises(InvalidConfig):
            agg.read_batches(**wrong)


def test_batches_come_in_pages(run: Run, make_both: Make) -> None:
    agg = in_retry(make_both, 150)
    place, seen = None, []
    while True:
        page = agg.read_batches(place)
        seen += [each.batch_id for each in page.states]
        place = page.next
        if place is None:
            break
    assert len(seen) == len(set(seen)) == 150
    options: tuple[str, ...] = ()
    found: list[str] = []
    for _ in range(99):
        shown = run("batches", *HERE, "--json", "--limit", "20", *options)
        found += [json.loads(line)["batch_id"] for line in shown.stdout.splitlines()]
        if not shown.stderr:
            break
        options = ("--after", shown.stderr.split()[-1])
    assert sorted(found) == sorted(seen)
    assert run("batches", *HERE, "--after", "x:1:1").exit_code == 2


def test_stats_show_the_oldest_the_retries_and_the_flushers(run: Run, make: Make) -> None:
    agg = in_retry(make, 2)
    await_led(agg)
    wait_until(lambda: agg.get_flushers()[0].started_at, what="its status is there")
    wait_until(lambda: (agg.overview().oldest_overdue or 0) > 0.1, what="they are overdue")
    lines = run("stats", *HERE).stdout.splitlines()
    assert any(line.startswith("groups: 0 due, 0 waiting, 2 held") for line in lines)
    [overdue] = [line for line in lines if line.startswith("oldest overdue: ")]
    assert overdue != "oldest overdue: 0.0 s"
    assert "retries: 2 batches; redisagg batches lists them" in lines
    assert "flushers: 1" in lines
    flusher = agg.get_flushers()[0].flusher_id
    [line] = [line for line in lines if line.startswith(flusher)]
    assert line.split()[1] == "2"
    shown = json.loads(run("stats", *HERE, "--json").stdout)
    assert shown["batches_in_retry"] == 2
    assert shown["flusher_states"][0]["partitions"] == [0, 1]
    assert shown["troubles"] == []
    agg.stop()
    wait_until(
        lambda: "trouble: No flusher is alive since " in run("stats", *HERE).stdout,
        what="it says so",
    )


def test_stats_can_be_watched(run: Run, redis_url: str) -> None:
    Aggregator("tests", redis_url).add_task(Task("t", 1, "g"))
    shown = run("stats", *HERE, "--watch", "0.1", "--count", "3").stdout
    assert shown.count("flushers: 0") == 3
    assert run("stats", *HERE, "--count", "3").exit_code == 2


def test_a_sink_that_is_down_is_published_and_forgotten(
    make: Make, sync_redis: redis.Redis
) -> None:
    works: list[bool] = []

    def deliver(task: Task, batch_id: str) -> None:
        if not works:
            raise ConnectionError("refused")

    agg = make(sink=CallableSink(deliver), group_max_size=1, retry_delay=0.2, retry_max_delay=0.2)
    with agg:
        await_led(agg)
        agg.add_tasks(Task("t", n, f"g{n}") for n in range(20))
        wait_until(lambda: agg.get_flushers()[0].sinks_down, what="it is down")
        [sink] = agg.get_flushers()[0].sinks_down
        assert (sink.sink, sink.state in ("open", "half open"), sink.reason) == (
            "CallableSink",
            True,
            "failures",
        )
        assert sink.until >= sink.since
        works.append(True)
        wait_until(lambda: not agg.get_flushers()[0].sinks_down, what="it works again")
        assert agg.get_flushers()[0].sinks_working == 1
        assert agg.wait_until_idle(10)
    status = Keyspace("tests", 2).status.decode()
    wait_until(lambda: not sync_redis.exists(status), what="it left nothing")
