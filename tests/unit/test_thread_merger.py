"""The threads of a merger: a merge that is given up at the moment when it ends."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from redisagg import AggregationConfig, Task
from redisagg.flusher.batch import Batch, MergeOutcome, State
from redisagg.flusher.merging import threads
from redisagg.flusher.merging.threads import ThreadMerger
from redisagg.sinks import StreamSink
from redisagg.sinks.routing import Router
from tests.support.claims import claim_of


async def test_a_merge_that_has_ended_is_not_taken_for_the_next_one_of_its_thread() -> None:
    """Else the batch of the next one would never end."""
    gates = {"first": threading.Event(), "second": threading.Event()}

    def merge(group: str, tasks: list[Task]) -> Task:
        gates[group].wait(10)
        return tasks[0]

    async def until_running(count: int, but: object = None) -> object:
        end = time.monotonic() + 10
        while len(merger._running - {but}) != count:
            assert time.monotonic() < end
            await asyncio.sleep(0.001)
        return next(iter(merger._running - {but}))

    config = AggregationConfig(group_aggregator=merge, concurrency=1)
    merger = ThreadMerger(config, Router(StreamSink("q"), False, 1 << 20))
    ended = asyncio.Event()
    first, second = (
        Batch(claim_of([Task("test", 0, group)], group.encode()), lambda batch: None)
        for group in gates
    )
    second.on_merged = lambda batch: ended.set()
    merger.submit(first)
    merger.submit(second)
    running = await until_running(1)
    gates["first"].set()
    await until_running(1, but=running)
    merger._give_up(running)  # type: ignore[arg-type] # as of a look at what ran before
    gates["second"].set()
    await asyncio.wait_for(ended.wait(), 10)
    assert second.state is State.MERGED
    merger.close()


async def test_a_thread_lives_on_whatever_is_raised_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an exception that another thread raises in it."""

    def broken(*_: object, **named: object) -> MergeOutcome:
        raise SystemExit("from outside")

    monkeypatch.setattr(threads, "merge", broken)
    config = AggregationConfig(concurrency=1)
    merger = ThreadMerger(config, Router(StreamSink("q"), False, 1 << 20))
    ended: asyncio.Queue[Batch] = asyncio.Queue()
    for _ in range(3):
        merger.submit(Batch(claim_of([Task("test", 0, "g")]), ended.put_nowait))
    for _ in range(3):
        batch = await asyncio.wait_for(ended.get(), 10)
        assert batch.outcome is not None
        assert batch.outcome.failure is not None
        assert batch.outcome.failure.error == "SystemExit: from outside"
    assert merger._threads == 1
    merger.close()


async def test_no_thread_begins_before_the_event_loop_has_had_its_turn() -> None:
    """The leader sends its next claim first, so that Redis works while batches are merged."""
    begun = threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        begun.set()
        return tasks[0]

    config = AggregationConfig(group_aggregator=merge)
    merger = ThreadMerger(config, Router(StreamSink("q"), False, 1 << 20))
    ended: asyncio.Queue[Batch] = asyncio.Queue()
    for _ in range(3):
        merger.submit(Batch(claim_of([Task("test", 0, "g")]), ended.put_nowait))
    assert not begun.wait(0.05)
    for _ in range(3):
        batch = await asyncio.wait_for(ended.get(), 10)
        assert batch.state is State.MERGED
    assert begun.is_set()
    merger.close()
