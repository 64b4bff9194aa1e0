"""Receipts while replies, connections and flushers are lost."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from redisagg import AsyncAggregator, Results, ResultTimeout, Task, TaskFailed
from redisagg.sinks import ListSink
from tests.support.aggregators import Make
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.tasks import await_led, enqueued, quick_config


class Counting:
    """Merges, with a number in each result that tells which call it was."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, group: str, tasks: list[Task]) -> Results:
        self.calls += 1
        return Results({task.id: self.calls for task in tasks}, Task("merged", self.calls))


def warm_up(make: Make) -> None:
    """Has Redis load the scripts."""
    with make(name="warm-up", group_max_size=1, group_aggregator=Counting()) as agg:
        assert agg.submit(Task("t", 0, "a")).result(10) == 1


@pytest.mark.parametrize("script", ["commit_stream", "claim", "poll"])
def test_a_lost_reply_of_the_flusher(make: Make, proxy: Proxy, script: str) -> None:
    warm_up(make)
    counting = Counting()
    config: dict[str, Any] = {"group_max_size": 2, "partitions": 1, "lease_time": 1}
    direct = make(**config)
    with make(url=proxy.url, group_aggregator=counting, **config) as far:
        await_led(direct)
        loss = proxy.lose_reply(script)
        receipts = [direct.submit(Task("t", n, "a")) for n in range(2)]
        loss.wait(20)
        assert [receipt.result(20) for receipt in receipts] == [1, 1]
        assert direct.wait_until_idle(10)
        assert [batch.payload for batch in enqueued(far)] == [1]
    assert counting.calls == 1


def test_a_lost_reply_to_an_add(make_both: Make, make: Make, proxy: Proxy) -> None:
    warm_up(make)
    counting = Counting()
    with make(group_max_size=2, group_aggregator=counting):
        far = make_both(url=proxy.url, group_max_size=2)
        first = far.submit(Task("t", 0, "a"))
        loss = proxy.lose_reply("add")
        second = far.submit(Task("t", 1, "a"))
        loss.wait(0)
        assert (first.result(20), second.result(20)) == (1, 1)


def test_a_flusher_that_dies_before_its_commit(make: Make, proxy: Proxy) -> None:
    """Another one merges again, and its results are those that count, for the queue too."""
    warm_up(make)
    first, second = Counting(), Counting()
    second.calls = 100
    config: dict[str, Any] = {"group_max_size": 2, "partitions": 1, "lease_time": 1}
    observer = make(**config)
    with make(url=proxy.url, group_aggregator=first, **config):
        await_led(observer)
        held = proxy.hold("commit_stream")
        receipts = [observer.submit(Task("t", n, "a")) for n in range(2)]
        wait_until(lambda: held.count > 0, what="the commit is under way")
        proxy.cut()
        with make(group_aggregator=second, **config) as other:
            assert [receipt.result(30) for receipt in receipts] == [101, 101]
            assert other.wait_until_idle(10)
            held.release()  # the late commit is refused
            assert [batch.payload for batch in enqueued(other)] == [101]
            assert observer.receipt("a", receipts[0].task_id).result(0) == 101
        proxy.restore()


def test_messages_that_are_lost(make_both: Make, make: Make, proxy: Proxy) -> None:
    """The connection with the subscription hangs, or is reset."""
    warm_up(make)
    with make(group_max_size=1, group_aggregator=Counting()) as agg:
        far = make_both(url=proxy.url, group_max_size=1)
        assert far.submit(Task("t", 0, "a")).result(20) == 1
        proxy.freeze_links(listening_only=True)
        assert far.submit(Task("t", 0, "a")).result(20) == 2
        proxy.reset()
        assert far.submit(Task("t", 0, "a")).result(20) == 3
        assert agg.wait_until_idle(10)


def test_an_outage_while_a_receipt_waits(make: Make, proxy: Proxy) -> None:
    warm_up(make)
    flusher = make(group_max_size=2, group_aggregator=Counting())
    far = make(url=proxy.url, group_max_size=2, add_timeout=5)
    receipt = far.submit(Task("t", 0, "a"))
    proxy.cut()
    began = time.monotonic()
    with pytest.raises(ResultTimeout):
        receipt.result(1)
    assert time.monotonic() - began < 10
    with ThreadPoolExecutor(1) as pool, flusher:
        waiting = pool.submit(receipt.result, 30)
        flusher.submit(Task("t", 1, "a"))
        assert flusher.wait_until_idle(10)
        proxy.restore()
        assert waiting.result() == 1


async def test_a_server_that_hangs_while_many_coroutines_wait(proxy: Proxy) -> None:
    """Few read at a time; the others do not wait for the server in turn."""
    config = quick_config(group_max_size=500, partitions=1, add_timeout=2)
    async with AsyncAggregator("tests", proxy.url, config=config) as agg:
        receipts = [await agg.submit(Task("t", n, "a")) for n in range(200)]
        proxy.stall()
        began = time.monotonic()
        waits = [receipt.result(0.1) for receipt in receipts]
        found = await asyncio.gather(*waits, return_exceptions=True)
        took = time.monotonic() - began
        proxy.restore()
    assert {type(each) for each in found} == {ResultTimeout}
    assert took < 8  # a read takes 2 seconds; 200 in turns of 4 took 100


def test_random_deaths_of_flushers(make: Make, proxy: Proxy) -> None:
    """Each submitted task has one outcome: that of the batch that is in the queue."""
    merges = threading.Lock()
    number = [0]

    def merge(group: str, tasks: list[Task]) -> Results:
        with merges:
            number[0] += 1
            mine = number[0]
        if tasks[0].payload % 7 == 3:
            raise ValueError("seven")
        return Results(
            {task.id: mine for task in tasks}, Task("m", [mine, [task.id for task in tasks]])
        )

    config: dict[str, Any] = {
        "group_max_size": 3,
        "partitions": 2,
        "lease_time": 0.5,
        "group_aggregator": merge,
        "max_attempts": 2,
        "retry_delay": 0.01,
        "sink": ListSink("q"),
    }
    producer = make(**config)
    warm_up(make)
    with make(url=proxy.url, **config), make(**config) as direct:
        receipts = {}
        for n in range(300):
            receipt = producer.submit(Task("t", n, f"g{n % 10}"))
            receipts[receipt.task_id] = receipt
            if n % 60 == 30:
                proxy.reset() if n % 120 == 30 else proxy.stall()
            elif n % 60 == 59:
                proxy.restore()
            time.sleep(0.005)
        proxy.restore()
        producer.flush_all()
        assert direct.wait_until_idle(60)
        queued = {
            task_id: batch.payload[0] for batch in enqueued(direct) for task_id in batch.payload[1]
        }
        letters = {
            each.task.id: letter.batch_id
            for letter in direct.dead_letters(tasks=True)
            for each in letter.tasks or ()
            if each.task
        }
        for task_id, receipt in receipts.items():
            if task_id in letters:
                with pytest.raises(TaskFailed) as raised:
                    receipt.result(20)
                assert raised.value.dead_letter == letters[task_id]
            else:
                assert receipt.result(20) == queued[task_id]
    assert len(letters) + len(queued) == 300
    assert letters
