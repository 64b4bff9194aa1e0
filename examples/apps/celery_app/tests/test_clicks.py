"""pytest celery_app, in the folder of the applications."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from celery_app import clicks
from celery_app.clicks import app, batches, click
from redisagg.contrib.celery import Request
from redisagg.testing import Clock, Flushed, Kit


@pytest.fixture(autouse=True)
def batching(redisagg_kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the batch tasks, the results and the database be of this test."""
    redisagg_kit.clock.freeze()
    redisagg_kit.redirect(batches)
    monkeypatch.setattr(clicks, "DATABASE", str(tmp_path / "clicks.db"))
    app.conf.update(result_backend="cache+memory://")


def test_clicks_of_a_site_are_one_batch(clock: Clock, flush_due: Callable[[], Flushed]) -> None:
    results = [click.delay(link) for link in ("a/1", "b/1", "a/2", "a/1")]
    clock.advance(seconds=9)
    assert flush_due() == []
    clock.advance(seconds=1)
    batches = sorted(flush_due(), key=lambda each: each.group)
    assert [(each.group, each.count) for each in batches] == [("a", 3), ("b", 1)]
    for each in batches:  # as a worker of Celery does
        click.apply(kwargs=each.task.payload, task_id=each.batch_id)
    assert [each.get() for each in results] == [2, 1, 1, 2]


def test_a_batch_that_comes_twice_is_counted_once(drain: Callable[[], Flushed]) -> None:
    result = click.delay("a/1")
    [batch] = drain()
    for _ in range(2):
        click.apply(kwargs=batch.task.payload, task_id=batch.batch_id)
    assert result.get() == 1


def test_a_hundred_clicks_are_a_batch_at_once(flush_due: Callable[[], Flushed]) -> None:
    for _ in range(101):
        click.delay("a/1")
    assert [each.count for each in flush_due()] == [100]


def test_the_function_takes_requests() -> None:
    click([Request("1", "click", ("a/1",)), Request("2", "click", ("a/1",))])
    assert app.AsyncResult("1").get() == 2
