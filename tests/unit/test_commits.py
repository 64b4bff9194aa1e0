"""Which batches one commit carries, and how much of a large one."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from redisagg.config import AggregationConfig
from redisagg.flusher.batch import Batch, Claim, Enqueue, MergeOutcome
from redisagg.flusher.breaker import Breaker
from redisagg.flusher.leader.committer import Committer
from redisagg.flusher.leader.slices import is_large, slice_of
from redisagg.sinks.base import RedisQueue

MIB = 1024 * 1024
SHAPES = {"commit_list": (1, 0, 300), "commit_stream": (14, 0, 300), "commit_asynq": (6, 4, 200)}
"""Of each script: the arguments and keys of an entry, and the most entries of a call."""


class AnySink:
    """The sinks of a leader: all work."""

    def breaker_for(self, queue: RedisQueue) -> Breaker:
        return cast("Breaker", self)

    def admit(self, *, reserved: bool) -> int:
        return 0


def enqueue_of(script: str, count: int, size: int = 1) -> Enqueue:
    arity, keys, _ = SHAPES[script]
    entry = [b"", *[b"x"] * (arity - 1)][:arity]
    entry[0] = b"x" * (size - arity + 1)
    queue = RedisQueue("", script, (), ())
    return Enqueue(queue, [b"k"] * keys * count, entry * count, sum(map(len, entry)) * count)


def batch_of(number: int, enqueue: Enqueue, count: int) -> Batch:
    claim = Claim(b"1-%d" % number, b"g%d" % number, 1, b"", b"", (), 1, 1, 0, None)
    batch = Batch(claim, lambda batch: None)
    batch.outcome = MergeOutcome(enqueue=enqueue, merged={str(n): b"" for n in range(count)})
    return batch


def selected(script: str, *sizes: tuple[int, int]) -> int:
    """How many batches, each with a number of entries of a number of bytes, one call carries."""
    nothing: Any = None

    async def select() -> int:
        committer = Committer(
            config=AggregationConfig(),
            session=nothing,
            inflight=nothing,
            sinks=cast("Any", AnySink()),
            deliverer=nothing,
            on_room=lambda: None,
        )
        batches = [
            batch_of(n, enqueue_of(script, count, size), count)
            for n, (count, size) in enumerate(sizes)
        ]
        return len(committer._select(batches).batches)

    return asyncio.run(select())


@pytest.mark.parametrize("script", SHAPES)
def test_a_large_batch_is_cut_by_the_time_of_its_script(script: str) -> None:
    arity, keys, most = SHAPES[script]
    for count, too_large in ((most, False), (most + 1, True)):
        batch = batch_of(1, enqueue_of(script, count), count)
        assert batch.outcome is not None
        assert is_large(batch.outcome) is too_large
    enqueue, end = slice_of(enqueue_of(script, 1_000), 1_000, 0)
    assert (end, len(enqueue.arguments), len(enqueue.entry_keys)) == (
        most,
        most * arity,
        most * keys,
    )
    enqueue, end = slice_of(enqueue_of(script, 1_000), 1_000, 990)
    assert (end, len(enqueue.arguments)) == (1_000, 10 * arity)


@pytest.mark.parametrize("script", SHAPES)
def test_a_call_has_no_more_entries_than_a_slice(script: str) -> None:
    most = SHAPES[script][2]
    assert selected(script, (most // 2, 20), (most // 2, 20), (2, 20)) == 2
    assert selected(script, (most // 2 + 1, 20), (most // 2, 20)) == 1
    assert selected(script, *[(1, 20)] * 70) == 64


def test_a_call_has_a_mebibyte_at_most_or_one_entry() -> None:
    assert selected("commit_list", (1, MIB // 2), (1, MIB // 2), (1, 1)) == 2
    assert selected("commit_list", (1, MIB // 2), (1, MIB // 2 + 1)) == 1
    assert selected("commit_list", (1, 5 * MIB), (1, 1)) == 1
