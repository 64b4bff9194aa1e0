"""A hundred tests of the shop, as its authors write them with the kit."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from redisagg import Aggregator, App, Task
from redisagg.testing import Clock, Crash, Flushed, Kit, RecordingSink, assert_batched
from tests.support.shop.batching import api, daily, digest, embed, insert, sent, users

Flush = Callable[..., Flushed]


@pytest.mark.parametrize("count", range(1, 31))
def test_a_digest_is_sent_an_hour_after_the_last_item(
    clock: Clock, flush_due: Flush, count: int
) -> None:
    for number in range(count):
        digest.add(number, group_key="ann")
        clock.advance(minutes=59)
        assert flush_due() == []
    clock.advance(minutes=1)
    flush_due()
    assert [each["items"] for each in sent] == [list(range(count))]


@pytest.mark.parametrize("hour", range(24))
def test_a_daily_mail_comes_at_eight_in_berlin(clock: Clock, flush_due: Flush, hour: int) -> None:
    # The clocks go back in this night.
    clock.set(dt.datetime(2026, 10, 24, hour, 30, tzinfo=dt.timezone.utc))
    daily.add(1, group_key="ben")
    day, morning = (25, 7) if hour >= 6 else (24, 6)
    eight = dt.datetime(2026, 10, day, morning, tzinfo=dt.timezone.utc)
    assert flush_due().next_due == (eight - clock.now()).total_seconds()
    clock.set(eight)
    assert_batched(flush_due(), {"ben": [1]})


@pytest.mark.parametrize("size", range(1, 21))
def test_rows_that_are_no_numbers_are_set_aside(drain: Flush, size: int) -> None:
    for number in range(size):
        insert.add(number, group_key="orders")
    insert.add("x", group_key="orders")
    assert_batched(drain(), {"orders": [list(range(size))]})
    assert [each.error for each in insert.dead_letters()] == ["no number"]


@pytest.mark.parametrize("hours", range(1, 11))
def test_calls_of_the_api_are_limited(clock: Clock, flush_due: Flush, hours: int) -> None:
    api.add_tasks([Task("call", n, f"customer {n}") for n in range(10 * hours)])
    for _ in range(hours):
        assert len(flush_due()) == 10
        clock.advance(hours=1, minutes=1)
    assert flush_due() == []


@pytest.mark.parametrize("attempts", range(1, 7))
def test_a_digest_to_a_user_who_comes_back(
    clock: Clock, flush_due: Flush, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    digest.add("news", group_key="cid")
    clock.advance(hours=1)
    for _ in range(attempts):
        [failure] = flush_due().failures
        assert failure.error == "KeyError: 'cid'"
        clock.advance(hours=1)
    monkeypatch.setitem(users, "cid", "cid@example.org")
    flush_due()
    assert [each["to"] for each in sent] == ["cid@example.org"]


@pytest.mark.parametrize("count", range(1, 6))
def test_texts_are_embedded_together(redisagg_kit: Kit, clock: Clock, count: int) -> None:
    receipts = [embed.aggregator.submit(Task("x", "a" * n, "0")) for n in range(count)]
    clock.advance(seconds=1)
    assert redisagg_kit.flush_due(embed).steps > 0
    assert [each.result(5) for each in receipts] == list(range(count))


@pytest.mark.parametrize("items", range(1, 6))
def test_a_digest_is_sent_once_though_the_worker_dies(
    clock: Clock, flush_due: Flush, monkeypatch: pytest.MonkeyPatch, items: int
) -> None:
    def send_and_die(task: Task, batch_id: str) -> None:
        original(task, batch_id)
        raise Crash

    sink = digest._namespace.sink
    original = sink._fn  # type: ignore[union-attr]
    for number in range(items):
        digest.add(number, group_key="ann")
    clock.advance(hours=1)
    monkeypatch.setattr(sink, "_fn", send_and_die)
    with pytest.raises(Crash):
        flush_due()
    monkeypatch.undo()
    clock.advance(hours=1)
    flush_due()
    assert [each["items"] for each in sent] == [list(range(items))]


@pytest.mark.asyncio
async def test_on_an_event_loop(clock: Clock, aflush_due: Callable[..., Any]) -> None:
    await daily.aadd(1, group_key="ann")
    clock.advance(days=1)
    assert_batched(await aflush_due(), {"ann": [1]})


def test_fixtures(
    aggregator: Aggregator, app: App, clock: Clock, flush_due: Flush, recording_sink: RecordingSink
) -> None:
    aggregator.add_task(Task("x", 1, "ann"))

    @app.aggregator("more")
    def more(group: str, tasks: list[Task]) -> Task:
        return Task("more", len(tasks), group)

    more.add(1, group_key="ben")
    clock.advance(hours=1)
    assert flush_due() == []
    clock.advance(hours=1)
    assert {each.group for each in flush_due()} == {"ann", "ben"}
    assert len(recording_sink.batches) == 2
