"""Batch tasks of Celery: what `delay` adds, and what a function gets in a real worker."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import Retry
from kombu.exceptions import EncodeError

from redisagg import Settings, Task
from redisagg.app.running import aggregators_of
from redisagg.contrib.celery import Batches, Request
from redisagg.errors import InvalidConfig, PayloadError
from tests.sinks.harness import running
from tests.support.markdown import code_blocks, read
from tests.support.servers import wait_until
from tests.support.tasks import quick_config

NOTED = "noted"


def make(url: str, **arguments: Any) -> Batches:
    """Batch tasks of a new Celery app."""
    settings = Settings(config=quick_config())
    return Batches(Celery("project", broker=url), url, settings=settings, **arguments)


@pytest.fixture
def batches(redis_url: str) -> Iterator[Batches]:
    """Batch tasks of a new Celery app."""
    made = make(redis_url)
    yield made
    made.close()


def waiting(task: Any, group: str = "all") -> list[Any]:
    """The payloads of the calls that wait."""
    state = task.aggregator.get_group(group)
    return [each.task.payload for each in (state.tasks if state else ()) if each.task]


def collect(requests: list[Request]) -> Any:
    return [(each.args, each.kwargs) for each in requests]


# --- calls ---------------------------------------------------------------------------------------


def test_a_call_is_added(batches: Batches) -> None:
    task = batches.task(name="count")(collect)
    result = task.delay(1, user="ann")
    assert task.aggregator.locate("all", result.id).place == 0
    assert waiting(task) == [{"args": [1], "kwargs": {"user": "ann"}}]
    assert task.apply_async((2,), task_id="T", ignore_result=True).id == "T"
    assert task.s(3).delay().id
    assert [each["args"] for each in waiting(task)] == [[1], [2], [3]]


def test_the_settings_are_those_of_celery_batches(batches: Batches) -> None:
    config = batches.task(name="default")(collect).aggregator.config
    assert (config.group_max_size, config.group_max_delay) == (10, 30)
    assert config.group_grace_period is None
    task = batches.task(name="a", flush_every=3, flush_interval=5, rate_limit=None)(collect)
    assert task.aggregator.config.group_max_size == 3
    assert task.aggregator.config.group_max_delay == 5
    assert list(batches.aggregators) == ["default", "a"]
    assert list(aggregators_of([batches])) == list(batches.aggregators.values())


def test_calls_are_grouped_by_their_arguments(batches: Batches) -> None:
    task = batches.task(name="count", group_by=lambda user, **more: ("user", user))(collect)
    task.delay(42, n=1)
    task.apply_async((42,), group_key="urgent")
    assert [len(waiting(task, key)) for key in ("user:42", "urgent", "all")] == [1, 1, 0]


@pytest.mark.parametrize("option", ["countdown", "eta", "expires", "link", "link_error"])
def test_what_a_call_in_a_batch_cannot_have_is_refused(batches: Batches, option: str) -> None:
    task = batches.task(name="count")(collect)
    options: dict[str, Any] = {option: 3}
    with pytest.raises(TypeError, match=option):
        task.apply_async((1,), **options)
    assert waiting(task) == []


def test_arguments_without_a_form_are_refused(batches: Batches) -> None:
    task = batches.task(name="count")(collect)
    with pytest.raises(EncodeError):  # JSON, as Celery itself says
        task.delay({1, 2})
    pickled = batches.task(name="other", options={"serializer": "pickle"})(collect)
    with pytest.raises(PayloadError):
        pickled.delay(Celery)
    pickled.delay({1, 2})
    assert waiting(pickled) == [{"args": [{1, 2}], "kwargs": {}}]


def test_two_tasks_of_one_namespace_are_refused(batches: Batches) -> None:
    batches.task(name="count")(collect)
    with pytest.raises(InvalidConfig):
        batches.task(name="other", namespace="count")(make)  # type: ignore[arg-type]


def test_a_call_without_a_worker_calls_the_function(batches: Batches) -> None:
    task = batches.task(name="count")(collect)
    request = Request("1", "count", (1,))
    assert task([request]) == [((1,), {})]
    assert task.apply((1,), {"a": 2}).get() == [((1,), {"a": 2})]
    assert waiting(task) == []
    task.app.conf.task_always_eager = True
    assert task.delay(1, a=2).get() == [((1,), {"a": 2})]
    assert waiting(task) == []


def test_the_merged_task_has_the_calls() -> None:
    batches = make("redis://localhost:1/0")
    task = batches.task(name="count")(collect)
    merged = task.aggregator("all", [Task("count", {"args": [1], "kwargs": {}}, "all", id="T")])
    assert merged == Task(
        "count", {"redisagg_requests": [{"id": "T", "args": [1], "kwargs": {}}]}, id=merged.id
    )


def test_a_retry_of_a_batch_goes_to_the_queue(batches: Batches, sync_redis: redis.Redis) -> None:
    task = batches.task(name="count")(collect)
    task.push_request(
        args=[], kwargs={"redisagg_requests": []}, called_directly=False, id="B", delivery_info={}
    )
    with pytest.raises(Retry):
        task.retry(countdown=1)
    task.pop_request()
    assert sync_redis.llen("celery") == 1
    assert waiting(task) == []


def test_the_example_of_the_docs_is_a_batch_task() -> None:
    [clicks] = [
        block
        for block in code_blocks(read("docs/celery-batches.md"), "python")
        if block.startswith("# clicks.py")
    ]
    names: dict[str, Any] = {"__name__": "clicks"}
    exec(compile(clicks, "clicks.py", "exec"), names)
    assert list(names["batches"].aggregators) == ["clicks.count_clicks"]


# --- in a real worker ----------------------------------------------------------------------------


@contextmanager
def celery_worker(url: str, folder: Path, *arguments: str, **env: str) -> Iterator[Any]:
    """A worker of `tests.contrib.celery_project`."""
    command = [
        *(sys.executable, "-m", "celery", "-A", "tests.contrib.celery_project", "worker"),
        *("--loglevel=info", "--without-gossip", "--without-mingle", *arguments),
    ]
    with running(
        command, folder / "worker.log", env={"REDISAGG_TEST_REDIS": url, **env}
    ) as process:
        yield process


def project(url: str) -> Any:
    """The module of the project, for the Redis of a test."""
    from tests.contrib import celery_project

    celery_project.app.conf.update(broker_url=url, result_backend=url)
    settings = celery_project.batches.settings
    celery_project.batches.configure(Settings(url=url, sink=settings.sink, config=settings.config))
    return celery_project


def noted(client: redis.Redis, count: int) -> list[Any]:
    """What the tasks noted, when there are so many notes."""
    wait_until(lambda: client.llen(NOTED) >= count, timeout=60, what=f"{count} notes")
    found: Any = client.lrange(NOTED, 0, -1)
    return [ast.literal_eval(each.decode()) for each in found]


@pytest.mark.timeout(120)
def test_a_worker_gets_batches_that_a_worker_of_redisagg_made(
    redis_url: str, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    shop = project(redis_url)
    flusher = [sys.executable, "-m", "redisagg", "worker", "tests.contrib.celery_project:batches"]
    env = {"REDISAGG_TEST_REDIS": redis_url}
    with (
        celery_worker(redis_url, tmp_path, "--concurrency=2"),
        running(flusher, tmp_path / "flusher.log", env=env),
    ):
        results = [shop.count.delay(n, 10, key=n) for n in range(3)]
        assert [each.get(timeout=60) for each in results] == [10, 11, 12]
        assert noted(sync_redis, 1) == [
            [(each.id, (n, 10), {"key": n}) for n, each in enumerate(results)]
        ]
        sync_redis.delete(NOTED)
        for n, user in enumerate(("ann", "bob", "ann")):
            shop.mail.delay(user, n)
        assert noted(sync_redis, 2) == [[("ann", 0), ("ann", 2)]] * 2  # the batch was tried again
        sync_redis.delete(NOTED)
        moment = datetime(2026, 1, 2, tzinfo=timezone.utc)
        shop.app.send_task(shop.typed.name, (moment,), {"k": 1}, task_id="T")
        assert noted(sync_redis, 2) == [moment.isoformat(), (shop.typed.name, True, {"k": 1})]
        assert shop.app.AsyncResult("T").state == "PENDING"  # the function says when it is done


@pytest.mark.timeout(120)
def test_a_worker_may_flush_itself_while_its_children_are_replaced(
    redis_url: str, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    shop = project(redis_url)
    arguments = ("--concurrency=2", "--max-tasks-per-child=1")
    with celery_worker(redis_url, tmp_path, *arguments, FLUSH_IN_WORKER="1") as worker:
        for n in range(30):
            shop.count.delay(n)
        found = noted(sync_redis, 10)
        assert sorted(args[0] for batch in found for _, args, _ in batch) == list(range(30))
        worker.terminate()
        assert worker.wait(30) == 0
        wait_until(lambda: not shop.count.aggregator.stats().flushers, what="the flusher has left")
