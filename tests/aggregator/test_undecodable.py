"""Stored bytes that are no task go to the dead letters unchanged, and block no other task."""

from __future__ import annotations

import itertools
from typing import Any

import msgpack
import pytest
import redis

from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_dead, enqueued, numbered, payloads

HEAD = b"\x01\x8d\x00\x00\x00\x00\x02id"  # arrival and id as in any entry

RUBBISH = {
    "empty": b"",
    "short": b"\x00\x01",
    "text": b"surely no task of ours",
    "id beyond the end": b"\x01\x8d\x00\x00\x00\x00\xffid",
    "no body": HEAD,
    "torn body": HEAD + b"\x92\xa4test",
    "no array": HEAD + b"\xc0",
    "empty array": HEAD + b"\x90",
    "no type": HEAD + b"\x92\xc0\x01",
    "odd headers": HEAD + b"\x93\xa4test\x01\x07",
    "unknown option": HEAD + b"\x94\xa4test\x01\xc0\x81\xa1z\x01",
    "id not in UTF-8": b"\x01\x8d\x00\x00\x00\x00\x02\xff\xfe\x92\xa4test\x01",
    "keys of the same hash": HEAD
    + b"\x92\xa4test"
    + b"\xdf\x00\x00\x10\x00"
    + b"".join(msgpack.packb(each) + b"\xc0" for each in itertools.product((-1, -2), repeat=12)),
    "nested too deep": HEAD + b"\x92\xa4test" + b"\x91" * 2_000 + b"\xc0",
}


def spoil(client: redis.Redis, group: str, place: int, raw: bytes) -> None:
    """Replaces a stored task with other bytes."""
    [key] = client.keys(f"*:tasks:{group}")
    client.lset(key, place, raw)  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", RUBBISH.values(), ids=RUBBISH.keys())
def test_the_other_tasks_of_the_batch_are_enqueued(
    make: Make, sync_redis: redis.Redis, raw: bytes
) -> None:
    agg = make(group_max_size=4)
    agg.pause()
    agg.add_tasks([*numbered("a", 8), *numbered("b", 4)])
    spoil(sync_redis, "a", 1, raw)
    with agg:
        agg.resume()
        await_batches(agg, 3)
        [letter] = await_dead(agg)
        assert agg.wait_until_idle(5)
        stats = agg.stats()
    found = {batch.batch_id: batch for batch in enqueued(agg)}
    assert sorted(payloads([b for b in found.values() if b.group == "a"])) == [0, 2, 3, 4, 5, 6, 7]
    assert sorted(payloads([b for b in found.values() if b.group == "b"])) == [0, 1, 2, 3]
    assert letter.group_key == "a"
    assert letter.tasks is not None
    assert [(stored.task, stored.raw) for stored in letter.tasks] == [(None, raw)]
    assert "can't be decoded" in letter.error
    assert (stats.dead, stats.batches_dead, stats.pending, stats.in_flight) == (1, 1, 0, 0)


def test_many_are_set_aside_in_parts(make: Make, sync_redis: redis.Redis) -> None:
    """One call for all of them would keep Redis busy: each is looked up in a long list."""
    agg = make(group_max_size=1_201)
    agg.pause()
    for start in range(0, 1_200, 200):
        agg.add_tasks(numbered("a", 200, start=start))
    agg.add_tasks(numbered("a", 1, start=1_200))
    for place in range(1_200):
        spoil(sync_redis, "a", place, b"rubbish %d" % place)
    with agg:
        agg.resume()
        await_batches(agg, 1)
        assert agg.wait_until_idle(5)
    letters = agg.dead_letters(tasks=True)
    assert [letter.size for letter in letters] == [500, 500, 200]
    raw = [stored.raw for letter in letters for stored in letter.tasks or ()]
    assert raw == [b"rubbish %d" % place for place in range(1_200)]
    assert payloads(enqueued(agg)) == [1_200]
    assert agg.stats().dead == 1_200


def test_a_group_of_undecodable_tasks_only_is_set_aside_again_after_a_requeue(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(group_max_size=3)
    agg.pause()
    agg.add_tasks([*numbered("rubbish", 3), *numbered("fine", 3)])
    for place in range(3):
        spoil(sync_redis, "rubbish", place, b"rubbish %d" % place)
    assert agg.get_entries(tasks=True)["rubbish"].tasks is not None  # can be read
    with agg:
        agg.resume()
        await_batches(agg, 1)
        [letter] = await_dead(agg)
        assert agg.wait_until_idle(5)
        assert [batch.group for batch in enqueued(agg)] == ["fine"]
        raw = [stored.raw for stored in letter.tasks or ()]
        assert raw == [b"rubbish 0", b"rubbish 1", b"rubbish 2"]
        # The bytes are still no task after a requeue, and become a dead letter again.
        assert agg.requeue_dead_letter(letter.batch_id) == 3
        wait_until(
            lambda: [letter.size for letter in agg.dead_letters()] == [3],
            what="the rubbish is dead again",
        )
        assert agg.wait_until_idle(5)
        [again] = agg.dead_letters(tasks=True)
        assert [stored.raw for stored in again.tasks or ()] == raw
        assert agg.drop_dead_letter(again.batch_id) == 3
    assert (agg.stats().dead, agg.stats().batches_dead) == (0, 0)


def test_undecodable_tasks_of_a_batch_that_is_buried_are_kept(
    make: Make, sync_redis: redis.Redis
) -> None:
    def merge(group: str, tasks: Any) -> None:
        raise RuntimeError("never")

    agg = make(group_max_size=3, group_aggregator=merge, max_attempts=2)
    agg.pause()
    agg.add_tasks(numbered("a", 3))
    spoil(sync_redis, "a", 2, b"rubbish")
    with agg:
        agg.resume()
        letters = await_dead(agg)
        assert agg.wait_until_idle(5)
        letters = agg.dead_letters(tasks=True)
    raw = [stored.raw for letter in letters for stored in letter.tasks or ()]
    assert raw.count(b"rubbish") == 1
    assert len(raw) == 3
    assert agg.stats().dead == 3
