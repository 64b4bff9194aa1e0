"""Which option of whom counts, and which values are refused."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.errors import InvalidConfig
from redisagg.sinks import AsynqSink, sink_from_url
from redisagg.sinks.asynq.message import TaskMessage, decode
from tests.support.aggregators import Make
from tests.support.tasks import await_dead, numbered

WRONG: list[dict[str, Any]] = [
    {"queue": ""},
    {"queue": "  "},
    {"queue": "a{b}"},
    {"queue": 7},
    {"max_retry": -1},
    {"max_retry": 2**31},
    {"max_retry": True},
    {"max_retry": "3"},
    {"timeout": 0},
    {"timeout": -1},
    {"timeout": "30"},
    {"retention": float("nan")},
    {"unique_ttl": timedelta(0)},
    {"process_in": float("inf")},
    {"deadline": datetime(2030, 1, 1)},
    {"deadline": "2030-01-01"},
    {"deadline": 1_800_000_000_000},
    {"process_at": 0},
    {"process_at": 1_800_000_000, "process_in": 1},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_a_sink_refuses_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        AsynqSink(**options)


def test_an_encoder_has_to_be_a_function() -> None:
    no_function: Any = "json"
    with pytest.raises(InvalidConfig, match="encode is a function"):
        AsynqSink(encode=no_function)


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_wrong_options_of_a_merged_task_fail_its_batch(make: Make, options: Any) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        return Task("merged", options=options)

    agg = make(group_max_size=1, group_aggregator=merge, max_attempts=1)
    with agg:
        agg.add_tasks(numbered("a", 1))
        [letter] = await_dead(agg)
    assert letter.error.startswith("InvalidTask: Task.options: ")


def test_a_blank_type_is_refused_as_asynq_does(make: Make) -> None:
    agg = make(group_max_size=1, group_aggregator=lambda *_: Task(" "), max_attempts=1)
    with agg:
        agg.add_tasks(numbered("a", 1))
        [letter] = await_dead(agg)
    assert letter.error == "InvalidTask: Asynq takes no task with a blank type"


@pytest.mark.parametrize(
    "url",
    [
        "asynq://default?max_retry=x",
        "asynq://default?timeout=soon",
        "asynq://default?deadline=tomorrow",
        "asynq://default?deadline=2030-01-01T00:00:00",
        "asynq://default?retries=3",
        "asynq://default?process_at=1800000000&process_in=3",
    ],
)
def test_a_url_with_wrong_options_is_refused(url: str) -> None:
    with pytest.raises(InvalidConfig):
        sink_from_url(url)


def enqueued(client: redis.Redis) -> list[TaskMessage]:
    """All tasks of all queues of Asynq."""
    raws: Any = [client.hget(key, "msg") for key in client.scan_iter("asynq:*:t:*")]
    return [decode(raw) for raw in raws]


def merged_from(make: Make, client: redis.Redis, tasks: list[Task], **options: Any) -> TaskMessage:
    """What a merge that sets `options` makes of tasks of one group."""

    def merge(group: str, tasks: list[Task]) -> Task:
        return Task(tasks[0].type, options=options)

    sink = AsynqSink("fallback", max_retry=1, timeout=1)
    agg = make(sink=sink, group_max_size=len(tasks), group_aggregator=merge)
    with agg:
        agg.add_tasks(tasks)
        assert agg.wait_until_idle(5)
    [message] = enqueued(client)
    return message


ASYNQ_TASK: dict[str, Any] = {
    "queue": "critical",
    "max_retry": 7,
    "timeout": timedelta(seconds=90),
    "deadline": 1_900_000_000,
}


def test_a_task_merged_from_asynq_tasks_keeps_what_they_have(
    make: Make, sync_redis: redis.Redis
) -> None:
    tasks = [Task("email:send", n, "a", options=ASYNQ_TASK) for n in range(3)]
    message = merged_from(make, sync_redis, tasks)
    assert (message.type, message.queue, message.retry) == ("email:send", "critical", 7)
    assert (message.timeout, message.deadline) == (90, 1_900_000_000)


def test_what_the_merge_function_sets_counts_before_what_its_tasks_have(
    make: Make, sync_redis: redis.Redis
) -> None:
    tasks = [Task("email:send", n, "a", options=ASYNQ_TASK) for n in range(3)]
    message = merged_from(make, sync_redis, tasks, queue="bulk", timeout=5, deadline=None)
    assert (message.queue, message.retry) == ("bulk", 7)
    assert (message.timeout, message.deadline) == (5, 0)


def test_the_first_task_that_has_an_option_decides(make: Make, sync_redis: redis.Redis) -> None:
    tasks = [
        Task("a", 0, "g"),
        Task("b", 1, "g", options={"queue": "first", "unknown": 1}),
        Task("c", 2, "g", options={"queue": "second", "max_retry": 9, "retention": 60}),
    ]
    message = merged_from(make, sync_redis, tasks)
    assert (message.queue, message.retry) == ("first", 9)
    assert (message.timeout, message.retention) == (1, 0)  # the sink's; not inherited


def test_without_timeout_and_deadline_asynqs_default_holds(
    make: Make, sync_redis: redis.Redis
) -> None:
    message = merged_from(make, sync_redis, numbered("a", 2), timeout=None)
    assert (message.timeout, message.deadline) == (1_800, 0)


def test_part_of_a_second_is_not_taken_for_no_timeout(make: Make, sync_redis: redis.Redis) -> None:
    message = merged_from(make, sync_redis, numbered("a", 2), timeout=0.2, retention=1.1)
    assert (message.timeout, message.retention) == (1, 2)


def test_processes_that_merge_get_the_sink_too(make: Make, sync_redis: redis.Redis) -> None:
    sink = AsynqSink("heavy", max_retry=3)
    agg = make(sink=sink, group_max_size=2, executor="process")
    with agg:
        agg.add_tasks(numbered("a", 2))
        assert agg.wait_until_idle(20)
    [message] = enqueued(sync_redis)
    assert (message.queue, message.retry, message.type) == ("heavy", 3, "test:aggregated")
