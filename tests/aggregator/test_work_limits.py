"""Limits on the work of all flushers together: concurrency and rates."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis

from redisagg import AggregationConfig, BatchInfo, Policy, RateLimit, Task, sinks
from redisagg.errors import InvalidConfig
from redisagg.flusher.batch import Batch, Claim, MergeOutcome, State
from redisagg.flusher.leader.deliverer import Deliverer
from redisagg.flusher.leader.inflight import Deliver
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import load
from redisagg.sinks import CallableSink, DeliverySink, MergedTask
from tests.support.aggregators import Make
from tests.support.provider import ProviderCall, most_at_once, most_in_window, running_provider
from tests.support.servers import wait_until
from tests.support.tasks import await_asleep, await_dead, enqueued, numbered, payloads
from tests.support.worker import merge_by_provider

SPACE = Keyspace("tests", 2)


class Calls:
    """A merge function, or the function of a sink, that records its calls.

    Args:
        takes: seconds that a call takes.
    """

    def __init__(self, takes: float = 0.02) -> None:
        self.calls: list[ProviderCall] = []
        self.takes = takes

    def __call__(self, group: str, tasks: list[Task]) -> Task:
        call = ProviderCall(group, len(tasks), time.monotonic())
        self.calls.append(call)
        time.sleep(self.takes)
        call.ended = time.monotonic()
        return Task("merged", {"payloads": [task.payload for task in tasks]})

    def deliver(self, task: Task, batch_id: str) -> None:
        """A call of a sink."""
        self(str(task.group_key), [task])

    async def wait(self, group: str) -> None:
        """A call of an `async` function."""
        call = ProviderCall(group, 1, time.monotonic())
        self.calls.append(call)
        await asyncio.sleep(self.takes)
        call.ended = time.monotonic()

    def of(self, group: str) -> list[ProviderCall]:
        """The calls of one group."""
        return [call for call in self.calls if call.group == group]


def spread(count: int, groups: int = 5, **fields: Any) -> list[Task]:
    """Tasks of several groups."""
    return [Task("test", n, f"g{n % groups}", **fields) for n in range(count)]


# --- concurrency ----------------------------------------------------------------------------------


def test_two_flushers_merge_so_many_batches_at_the_same_time(make: Make) -> None:
    merge = Calls()
    settings: dict[str, Any] = {"max_concurrency": 3, "group_max_size": 1, "partitions": 8}
    agg, other = (make(group_aggregator=merge, **settings) for _ in range(2))
    with agg, other:
        agg.add_tasks(spread(60))
        assert agg.wait_until_idle(20)
    assert most_at_once(merge.calls) == 3
    assert sorted(payloads(enqueued(agg))) == list(range(60))


def test_an_async_merge_is_limited_too(make: Make) -> None:
    calls = Calls()

    async def merge(group: str, tasks: list[Task]) -> None:
        await calls.wait(group)

    agg = make(group_aggregator=merge, max_concurrency=2, group_max_size=1)
    with agg:
        agg.add_tasks(spread(20))
        assert agg.wait_until_idle(20)
    assert most_at_once(calls.calls) == 2


def test_batches_of_one_group_are_merged_one_at_a_time(make: Make) -> None:
    merge = Calls()
    agg = make(group_aggregator=merge, group_concurrency=1, group_max_size=1)
    with agg:
        agg.add_tasks(spread(30, groups=3))
        assert agg.wait_until_idle(20)
    assert all(most_at_once(merge.of(f"g{n}")) == 1 for n in range(3))
    assert most_at_once(merge.calls) > 1
    for group in range(3):
        of_group = [batch for batch in enqueued(agg) if batch.group == f"g{group}"]
        assert payloads(of_group) == list(range(group, 30, 3))


def test_the_batches_of_a_group_follow_at_once(make: Make) -> None:
    merge = Calls(0.002)
    agg = make(group_aggregator=merge, group_concurrency=1, group_max_size=1)
    agg.add_tasks(numbered("g", 20))
    with agg:
        assert agg.wait_until_idle(20)
    assert merge.calls[-1].ended - merge.calls[0].began < 2.5


def test_failed_batches_wait_for_their_turn(make: Make) -> None:
    merge = Calls(0.01)
    failed: set[str] = set()

    def fail_first(group: str, tasks: list[Task]) -> Task:
        merged = merge(group, tasks)
        if str(tasks[0].payload) not in failed:
            failed.add(str(tasks[0].payload))
            raise ValueError("the first attempt")
        return merged

    agg = make(group_aggregator=fail_first, group_concurrency=2, group_max_size=1)
    with agg:
        agg.add_tasks(spread(12, groups=2))
        assert agg.wait_until_idle(20)
    assert all(most_at_once(merge.of(f"g{n}")) <= 2 for n in range(2))
    assert sorted(payloads(enqueued(agg))) == list(range(12))


@pytest.mark.parametrize("limit", ["max_concurrency", "group_concurrency"])
def test_deliveries_are_limited(make: Make, limit: str) -> None:
    sink = Calls()
    settings: dict[str, Any] = {limit: 1}
    agg = make(sink=CallableSink(sink.deliver), group_max_size=1, **settings)
    with agg:
        agg.add_tasks(spread(10, groups=2))
        assert agg.wait_until_idle(20)
    assert len(sink.calls) == 10
    if limit == "max_concurrency":
        assert most_at_once(sink.calls) == 1
    assert all(most_at_once(sink.of(f"g{n}")) == 1 for n in range(2))


def test_tasks_gather_while_they_wait(make: Make) -> None:
    begun, go = threading.Event(), threading.Event()
    sizes: list[int] = []

    def merge(group: str, tasks: list[Task]) -> None:
        sizes.append(len(tasks))
        begun.set()
        go.wait(10)

    agg = make(
        group_aggregator=merge, max_concurrency=1, group_grace_period=0.05, group_max_size=50
    )
    with agg:
        agg.add_tasks(numbered("g", 1))
        assert begun.wait(10)
        for n in range(20):
            agg.add_tasks(numbered("g", 1, start=n))
            time.sleep(0.01)
        assert agg.get_entries()["g"].size == 20
        go.set()
        assert agg.wait_until_idle(20)
    assert sizes == [1, 20]


def test_a_flusher_that_stops_gives_its_permits_back(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_aggregator=Calls(), max_concurrency=1, group_concurrency=1, group_max_size=1)
    for number in range(2):
        with agg:
            agg.add_tasks(numbered("g", 2, start=2 * number))
            assert agg.wait_until_idle(20)
    client: Any = sync_redis
    left = [*client.hkeys(SPACE.permits), *client.hkeys(SPACE.partition_of(b"g").permits(b"g"))]
    assert [field for field in left if field.startswith(b"p:")] == []


def test_a_flusher_that_waits_for_a_permit_stops(make: Make) -> None:
    begun, go = threading.Event(), threading.Event()

    def merge(group: str, tasks: list[Task]) -> None:
        begun.set()
        go.wait(20)

    agg = make(group_aggregator=merge, max_concurrency=1, group_max_size=1)
    other = make(group_aggregator=Calls(), max_concurrency=1, group_max_size=1)
    try:
        agg.start()
        agg.add_tasks(spread(8))
        assert begun.wait(10)
        other.start()
        wait_until(
            lambda: len({each.leader for each in agg.stats().partitions} - {None}) == 2,
            what="both lead",
        )
        began = time.monotonic()
        other.stop()
        assert time.monotonic() - began < 3
    finally:
        go.set()
        agg.stop()


class OwnSink(DeliverySink):
    """An asyncio sink that records its calls."""

    def __init__(self, calls: Calls, concurrency: int | None = None) -> None:
        self._calls = calls
        self._limit_to(concurrency)

    async def deliver(self, merged: MergedTask) -> None:
        await self._calls.wait(merged.group)


@pytest.mark.parametrize("kind", ["own", "async function", "function"])
def test_a_sink_limits_the_deliveries_of_a_flusher(make: Make, kind: str) -> None:
    calls = Calls()

    async def deliver(task: Task, batch_id: str) -> None:
        await calls.wait(str(task.group_key))

    by_kind: dict[str, Callable[[int | None], DeliverySink]] = {
        "own": lambda most: OwnSink(calls, most),
        "async function": lambda most: CallableSink(deliver, concurrency=most, timeout=0.5),
        "function": lambda most: CallableSink(calls.deliver, concurrency=most, timeout=0.5),
    }
    agg = make(sink=by_kind[kind](2), group_max_size=1)
    with agg:
        agg.add_tasks(spread(60, groups=30))  # the wait of the last is longer than the timeout
        assert agg.wait_until_idle(20)
        assert agg.stats().dead == 0
    assert len(calls.calls) == 60
    assert most_at_once(calls.calls) == 2
    calls.calls.clear()
    calls.takes = 0.3
    free = make(sink=by_kind[kind](None), group_max_size=1, name="free")
    with free:
        free.add_tasks(spread(30, groups=30))
        assert free.wait_until_idle(20)
    most = most_at_once(calls.calls)
    assert most <= 16 if kind == "function" else most > 16


# --- rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "tasks"),
    [
        (RateLimit(10, per=0.5), False),
        (RateLimit(20, per=timedelta(seconds=0.5), of="tasks"), True),
    ],
)
def test_no_window_has_more_than_the_limit(make: Make, rate: RateLimit, tasks: bool) -> None:
    with running_provider(0.005) as provider:
        merge = merge_by_provider(provider.port)
        agg, other = (
            make(group_aggregator=merge, rate_limit=rate, group_max_size=2) for _ in range(2)
        )
        with agg, other:
            agg.add_tasks(spread(60))
            assert agg.wait_until_idle(20)
        assert most_in_window(provider.calls, 0.5, tasks=tasks) <= rate.limit
        assert sorted(payloads(enqueued(agg))) == list(range(60))


def test_weight_counts(make: Make) -> None:
    told: list[tuple[float, int]] = []

    def merge(group: str, tasks: list[Task], info: BatchInfo) -> None:
        told.append((time.monotonic(), info.weight))

    settings: dict[str, Any] = {
        "rate_limit": RateLimit(10, per=0.5, of="weight"),
        "group_max_weight": 6,
    }
    agg = make(group_aggregator=merge, **settings)
    with agg:
        agg.add_tasks(spread(12, groups=12, weight=6, max_size=1))
        assert agg.wait_until_idle(20)
    began = [at for at, _ in told]
    assert [weight for _, weight in told] == [6] * 12
    assert all(second - first > 0.5 for first, second in itertools.pairwise(began))
    calls = Calls()
    plain = make(name="plain", group_aggregator=calls, **settings)  # takes no info
    with plain:
        plain.add_tasks(spread(2, groups=2, weight=3, max_size=1))
        assert plain.wait_until_idle(20)
    assert len(calls.calls) == 2


def test_each_group_has_its_own_rate(make: Make) -> None:
    merge = Calls(0.001)
    agg = make(group_aggregator=merge, group_rate_limit=RateLimit(2, per=0.4), group_max_size=1)
    with agg:
        agg.add_tasks(spread(12, groups=2))
        assert agg.wait_until_idle(20)
    for group in ("g0", "g1"):
        calls = merge.of(group)
        assert most_in_window(calls, 0.4) == 2
        assert 0.8 < calls[-1].began - calls[0].began < 3


def calls_of(client: redis.Redis, command: str) -> int:
    """The number of calls of a command on the server."""
    stats: Any = client.info("commandstats")
    return int(stats[f"cmdstat_{command}"]["calls"])


def test_groups_that_have_to_wait_keep_no_others_back(make: Make, sync_redis: redis.Redis) -> None:
    merge = Calls(0.001)
    agg = make(
        group_aggregator=merge,
        group_rate_limit=RateLimit(1, per=60),
        group_max_size=1,
        partitions=1,
    )
    with agg:
        agg.add_tasks(spread(200, groups=100))
        wait_until(lambda: len(merge.calls) == 100, what="each group has had its call")
        agg.add_tasks(numbered("another", 1))
        wait_until(lambda: bool(merge.of("another")), what="the other group is merged")
        assert agg.stats().pending == 100
        before = calls_of(sync_redis, "evalsha")
        time.sleep(0.5)
        assert calls_of(sync_redis, "evalsha") - before < 20  # nobody asks in vain
        assert len(merge.calls) == 101


def test_batches_in_retry_wait_for_their_group(make: Make, sync_redis: redis.Redis) -> None:
    merge = Calls(0.001)
    fails = [True]

    def fail_first(group: str, tasks: list[Task]) -> Task:
        if fails:
            raise ValueError("no")
        return merge(group, tasks)

    settings: dict[str, Any] = {"group_max_size": 1, "max_attempts": 1, "partitions": 1}
    agg = make(group_aggregator=fail_first, **settings)
    with agg:
        agg.add_tasks(numbered("g", 5))
        letters = await_dead(agg, 5)
    fails.clear()
    for letter in letters:
        agg.requeue_dead_letter(letter.batch_id)
    limited = make(group_aggregator=merge, group_rate_limit=RateLimit(2, per=60), **settings)
    with limited:
        wait_until(lambda: len(merge.calls) == 2, what="two are merged")
        limited.add_tasks(numbered("another", 1))
        wait_until(lambda: bool(merge.of("another")), what="another group is merged")
        before = calls_of(sync_redis, "evalsha")
        time.sleep(0.5)
        assert calls_of(sync_redis, "evalsha") - before < 20  # nobody asks in vain
        assert limited.stats().batches_in_retry == 3
    assert len(merge.of("g")) == 2


def test_deliveries_count_with_their_merge(make: Make) -> None:
    sink = Calls(0.005)
    agg = make(sink=CallableSink(sink.deliver), rate_limit=RateLimit(5, per=0.4), group_max_size=1)
    with agg:
        agg.add_tasks(spread(15))
        assert agg.wait_until_idle(20)
    assert len(sink.calls) == 15
    assert most_in_window(sink.calls, 0.4) <= 5


def test_a_repeated_delivery_counts(make: Make) -> None:
    times: list[float] = []

    def deliver(task: Task, batch_id: str) -> None:
        times.append(time.monotonic())
        if len(times) < 3:
            raise OSError("away")

    agg = make(sink=CallableSink(deliver), rate_limit=RateLimit(1, per=0.3), group_max_size=1)
    with agg:
        agg.add_tasks(numbered("g", 1))
        assert agg.wait_until_idle(20)
    assert len(times) == 3
    assert all(second - first > 0.3 for first, second in itertools.pairwise(times))


def test_what_a_queue_in_redis_refuses_takes_no_permit_again(
    make: Make, sync_redis: redis.Redis
) -> None:
    merge = Calls(0.001)
    sync_redis.set("tests-batches", "foreign")
    agg = make(
        group_aggregator=merge,
        rate_limit=RateLimit(2, per=60),
        group_max_size=1,
        max_attempts=9,
        partitions=1,
    )
    with agg:
        agg.add_tasks(numbered("g", 1))
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="the queue refused")
        time.sleep(0.3)  # several further attempts, of which none is a merge
        sync_redis.delete("tests-batches")
        assert agg.wait_until_idle(20)
        agg.add_tasks(numbered("h", 1))
        assert agg.wait_until_idle(20)
    assert len(merge.calls) == 2


def test_a_batch_with_more_than_the_limit_is_split(make: Make) -> None:
    merge = Calls()
    rate = RateLimit(5, per=0.2, of="tasks")
    agg = make(group_aggregator=merge, rate_limit=rate, group_max_size=5, max_attempts=1)
    with agg:
        agg.add_tasks(numbered("large", 12, max_size=12))
        assert agg.wait_until_idle(20)
        assert agg.stats().dead == 0
    assert [call.tasks for call in merge.calls] == [3, 3, 3, 3]
    assert payloads(enqueued(agg)) == list(range(12))


def test_a_task_with_more_than_the_limit_is_a_dead_letter(make: Make) -> None:
    merge = Calls()
    rate = RateLimit(5, per=0.2, of="weight")
    agg = make(group_aggregator=merge, rate_limit=rate, group_max_weight=5)
    with agg:
        agg.add_tasks([Task("test", n, "g", weight=weight) for n, weight in enumerate((1, 6, 5))])
        [letter] = await_dead(agg)
        assert "the batch has 6 units of weight, more than rate_limit allows" in letter.error
        assert agg.wait_until_idle(20)
    assert payloads(enqueued(agg)) == [0, 2]


def test_a_policy_above_a_rate_limit_is_refused(make: Make) -> None:
    agg = make(rate_limit=RateLimit(5, per=60, of="tasks"), group_max_size=5)
    with pytest.raises(InvalidConfig, match=r"6 tasks \(max_size\), more than rate_limit allows"):
        agg.set_policy("g*", Policy(max_size=6))
    agg.set_policy("g*", Policy(max_size=5))
    weighed = make(group_rate_limit=RateLimit(5, per=60, of="weight"), group_max_weight=5)
    for weight in (0, 6):
        with pytest.raises(InvalidConfig, match="group_rate_limit counts weight, so max_weight"):
            weighed.set_policy("g*", Policy(max_weight=weight))
    weighed.set_policy("g*", Policy(max_size=1000))


def test_freed_batches_wait_for_their_group(make: Make, sync_redis: redis.Redis) -> None:
    merge = Calls(0.001)
    rate = RateLimit(1, per=60)
    agg = make(group_aggregator=merge, group_rate_limit=rate, group_max_size=1, partitions=1)
    agg.add_tasks(numbered("g", 3))
    claim_and_vanish(sync_redis, b"g")
    with agg:
        wait_until(lambda: len(merge.calls) == 1, what="one is merged")
        agg.add_tasks(numbered("another", 1))
        wait_until(lambda: bool(merge.of("another")), what="another group is merged")
        before = calls_of(sync_redis, "evalsha")
        time.sleep(0.5)
        assert calls_of(sync_redis, "evalsha") - before < 20  # nobody asks in vain
        assert agg.stats().batches_in_retry == 2
    assert len(merge.of("g")) == 1


def claim_and_vanish(client: Any, group: bytes) -> None:
    """Claims all batches of a group as a leader that then vanishes."""
    p = Keyspace("tests", 1).partitions[0]

    def call(name: str, keys: list[bytes], *args: Any) -> Any:
        return client.eval(load(name).source, len(keys), *keys, *args)

    token, _ = call("acquire", [p.state, p.claims, p.tasks(b"")], "gone", 100, p.label)
    keys = [p.state, p.groups, p.batches, p.claims, p.retry, p.suspects, p.due, p.ready]
    keys += [p.seen, p.seen_before, p.tasks(group), p.ids(group)]
    limits = (64, 1000, 1 << 20, 1000, 0)
    assert len(call("claim", keys, token, 60_000, 0, *limits, b"", group)) == 3


def test_an_unusable_key_of_a_group_stops_no_other(make: Make, sync_redis: redis.Redis) -> None:
    merge = Calls(0.001)
    agg = make(group_aggregator=merge, group_concurrency=1, group_max_size=1, partitions=1)
    sync_redis.set(Keyspace("tests", 1).partitions[0].permits(b"foreign"), "foreign")
    with agg:
        agg.add_tasks([*numbered("foreign", 2), *spread(20)])
        wait_until(lambda: len(merge.calls) == 20, what="the other groups are merged")
        assert not merge.of("foreign")
        assert agg.stats().pending == 2


def test_a_delivery_that_is_cancelled_before_it_begins_ends_its_permit() -> None:
    class Ending:
        ended = False

        def end(self) -> None:
            self.ended = True

    async def test() -> None:
        unused: Any = None
        batch = Batch(Claim(b"b", b"g", 1, b"", b"", [], 1, 1, 0, None), lambda batch: None)
        batch.outcome, batch.state = MergeOutcome(), State.DELIVERING
        permit: Any = Ending()
        batch.permit = permit
        deliverer = Deliverer(unused, unused, unused, unused, on_delivered=lambda: None)
        deliverer.start(Deliver(batch))
        batch.abandon()
        deliverer.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert permit.ended

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_large_batch_is_read_first(make: Make) -> None:
    merge = Calls(0.001)
    agg = make(
        group_aggregator=merge,
        rate_limit=RateLimit(1500, per=0.3, of="tasks"),
        group_concurrency=1,
        group_max_size=1500,
    )
    with agg:
        agg.add_tasks(numbered("g", 3000))
        assert agg.wait_until_idle(20)
    assert [call.tasks for call in merge.calls] == [1500, 1500]
    assert most_in_window(merge.calls, 0.3, tasks=True) == 1500
    assert sorted(payloads(enqueued(agg))) == list(range(3000))


def merge_in_process(group: str, tasks: list[Task]) -> Task:
    return Task("merged", {"payloads": [task.payload for task in tasks], "at": time.time()})


def test_merges_in_processes_are_limited(make: Make) -> None:
    agg = make(
        group_aggregator=merge_in_process,
        executor="process",
        rate_limit=RateLimit(3, per=0.5),
        group_max_size=1,
    )
    with agg:
        agg.add_tasks(spread(9))
        assert agg.wait_until_idle(30)
    times = sorted(batch.payload["at"] for batch in enqueued(agg))
    assert len(times) == 9
    assert all(last - first > 0.5 for first, last in zip(times, times[3:], strict=False))


def test_a_merge_that_begins_too_late_is_no_attempt(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redisagg.flusher.permits import Permits

    late = [True]
    uses = 0
    use: Callable[..., None] = Permits.use

    def use_late(self: Permits, permit: Any, batch: Any) -> None:
        nonlocal uses
        uses += 1
        use(self, permit, batch)
        if late:
            late.clear()
            batch.claim = batch.claim._replace(begin_by=time.monotonic() - 1)

    monkeypatch.setattr(Permits, "use", use_late)
    merge = Calls()
    attempts: list[int] = []

    def note(group: str, tasks: list[Task], info: BatchInfo) -> Task:
        attempts.append(info.attempt)
        return merge(group, tasks)

    agg = make(group_aggregator=note, max_concurrency=1, group_max_size=1)
    with agg:
        agg.add_tasks(numbered("g", 1))
        assert agg.wait_until_idle(20)
    assert attempts == [1]
    assert uses == 2  # the batch was claimed again


def test_who_has_no_limits_asks_redis_for_none(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=1)
    with agg:
        agg.add_tasks(spread(10))
        assert agg.wait_until_idle(20)
        await_asleep(sync_redis)
    stats: Any = sync_redis.info("commandstats")
    assert "cmdstat_hgetall" not in stats or not sync_redis.keys("*permits*")
    assert not AggregationConfig().limits_work


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        *({"limit": 0}, {"limit": 1.5}, {"limit": True}, {"limit": 2**50 + 1}),
        *({"per": 0}, {"per": "1"}, {"burst": 0}, {"burst": 6}, {"of": "bytes"}),
    ],
)
def test_wrong_arguments_of_a_rate(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        RateLimit(**{"limit": 5, "per": 1, **arguments})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_concurrency": 0}, "max_concurrency must be a whole number from 1"),
        ({"group_concurrency": "1"}, "group_concurrency must be a whole number"),
        ({"rate_limit": 60}, "rate_limit must be a RateLimit"),
        ({"rate_limit": RateLimit(19, 1, of="tasks")}, "may have 20 tasks"),
        ({"group_rate_limit": RateLimit(9, 1, of="weight")}, "group_max_weight is needed"),
        (
            {"rate_limit": RateLimit(9, 1, of="weight"), "group_max_weight": 10},
            "group_max_weight is needed, at most 9",
        ),
    ],
)
def test_wrong_settings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidConfig, match=match):
        AggregationConfig(**settings)


# --- where the permits are ------------------------------------------------------------------------


def test_limits_hold_on_a_cluster(make: Make, cluster_url: str) -> None:
    merge = Calls(0.01)
    agg = make(
        url=cluster_url.replace("redis://", "redis+cluster://").removesuffix("/0"),
        group_aggregator=merge,
        max_concurrency=2,
        group_rate_limit=RateLimit(3, per=0.4),
        group_max_size=1,
        partitions=8,
    )
    with agg:
        agg.add_tasks(spread(40, groups=10))
        assert agg.wait_until_idle(30)
    assert len(merge.calls) == 40
    assert most_at_once(merge.calls) == 2
    assert all(most_in_window(merge.of(f"g{n}"), 0.4) <= 3 for n in range(10))


SINKS = ["Arq", "BullMQ", "Callable", "Celery", "Dramatiq", "Huey", "RQ", "SAQ", "Streaq", "Taskiq"]


@pytest.mark.parametrize("name", [*SINKS, "Webhook"])
def test_every_delivery_sink_takes_its_limits(name: str) -> None:
    kind = getattr(sinks, f"{name}Sink")
    parameters = inspect.signature(kind).parameters
    assert "concurrency" in parameters
    assert {"timeout", "delivery_timeout"} & parameters.keys()
    if name != "Callable":
        assert "concurrency=int" in inspect.getsource(kind.from_url)
