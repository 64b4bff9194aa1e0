"""Tasks that were submitted: their receipts, and what became of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import pytest
import redis

from redisagg import (
    AsyncAggregator,
    NoResult,
    Partial,
    Results,
    ResultTimeout,
    Task,
    TaskCancelled,
    TaskFailed,
)
from redisagg.sinks import CallableSink, ListSink
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, enqueued, quick_config


def doubled(group: str, tasks: list[Task]) -> Results:
    return Results({task.id: 2 * task.payload for task in tasks})


async def doubled_later(group: str, tasks: list[Task]) -> Results:
    return doubled(group, tasks)


def doubled_and_merged(group: str, tasks: list[Task]) -> Results:
    merged = Task("sum", sum(task.payload for task in tasks))
    return Results({task.id: 2 * task.payload for task in tasks}, merged)


RIGHTS = ("on", "nopass", "~*", "resetchannels", "+@all")


def answers(client: Any) -> list[bytes]:
    keys: list[bytes] = client.keys("redisagg:*:answer:*")
    return keys


@pytest.mark.parametrize("function", [doubled, doubled_later, doubled_and_merged])
@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_result_is_what_the_merge_returned_for_the_task(
    make_both: Make, function: Any, executor: str
) -> None:
    if executor == "process" and function is doubled_later:
        pytest.skip("an async function runs on the loop")
    with make_both(group_aggregator=function, group_max_size=4, executor=executor) as agg:
        receipts = [agg.submit(Task("n", n, "a")) for n in range(4)]
        assert [receipt.result(20) for receipt in receipts] == [0, 2, 4, 6]
        assert [receipt.result(0) for receipt in receipts] == [0, 2, 4, 6]
        assert agg.wait_until_idle(10)
        batches = [batch.payload for batch in enqueued(agg)]
    assert batches == ([6] if function is doubled_and_merged else [])


def test_values_keep_their_types(make_both: Make) -> None:
    value = {"at": datetime(2026, 11, 27, tzinfo=timezone.utc), "vector": [0.5, 1.5], "raw": b"\0"}
    value["large"] = "x" * 5000  # longer than what a message carries
    with make_both(
        group_aggregator=lambda group, tasks: Results({t.id: value for t in tasks}),
        group_max_size=1,
    ) as agg:
        assert agg.submit(Task("n", 1, "a")).result(10) == value


def test_tasks_that_were_added_have_no_answer(make: Make, sync_redis: redis.Redis) -> None:
    with make(group_aggregator=doubled, group_max_size=2) as agg:
        agg.add_task(Task("n", 1, "a", "added"))
        receipt = agg.submit(Task("n", 2, "a", "submitted"))
        assert receipt.result(10) == 4
        [key] = answers(sync_redis)
        assert key.endswith(b":answer:1:a:submitted")


def test_a_submitted_task_is_a_task_as_any_other(make_both: Make) -> None:
    task = Task("n", 1, "a", headers={"h": "x"}, options={"queue": "q"}, priority=3, weight=2)
    seen: list[Task] = []

    def merge(group: str, tasks: list[Task]) -> None:
        seen.extend(tasks)

    with make_both(group_aggregator=merge, group_max_size=2) as agg:
        agg.submit(task)
        agg.submit(Task("n", 2, "a", headers={"h": "y"}))
        assert agg.wait_until_idle(10)
    assert [(each.type, each.payload, dict(each.headers)) for each in seen] == [
        ("n", 1, {"h": "x"}),
        ("n", 2, {"h": "y"}),
    ]
    assert (dict(seen[0].options), seen[0].priority, seen[0].weight) == ({"queue": "q"}, 3, 2)


@pytest.mark.parametrize(
    ("returned", "dropped"), [(None, True), ([], True), (Task("m"), False), (Results({}), True)]
)
def test_a_merge_without_a_result(make_both: Make, returned: Any, dropped: bool) -> None:
    with make_both(group_aggregator=lambda group, tasks: returned, group_max_size=1) as agg:
        receipt = agg.submit(Task("n", 1, "a"))
        with pytest.raises(NoResult) as raised:
            receipt.result(10)
    assert raised.value.dropped is dropped
    assert raised.value.batch_id


def test_an_exception_as_a_value_fails_the_task_without_a_dead_letter(make_both: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Results:
        return Results({task.id: task.payload or ValueError("zero") for task in tasks})

    with make_both(group_aggregator=merge, group_max_size=2) as agg:
        bad, good = agg.submit(Task("n", 0, "a")), agg.submit(Task("n", 7, "a"))
        assert good.result(10) == 7
        with pytest.raises(TaskFailed) as raised:
            bad.result(10)
        assert agg.wait_until_idle(10)
        assert agg.stats().dead == 0
    assert (raised.value.reason, raised.value.dead_letter) == ("ValueError: zero", None)


@pytest.mark.parametrize("outer", [Partial, Results])
def test_tasks_that_fail_alone(make_both: Make, outer: type) -> None:
    def merge(group: str, tasks: list[Task]) -> Partial | Results:
        failed = {task.id: "odd" for task in tasks if task.payload % 2}
        values = {task.id: -task.payload for task in tasks if task.payload % 2 == 0}
        if outer is Partial:
            return Partial(Results(values), failed)
        return Results(values, Partial(None, failed))

    with make_both(group_aggregator=merge, group_max_size=4) as agg:
        receipts = [agg.submit(Task("n", n, "a")) for n in range(4)]
        assert (receipts[0].result(10), receipts[2].result(10)) == (0, -2)
        letters = await_dead(agg, 2)
        for receipt, letter in zip(receipts[1::2], letters, strict=True):
            with pytest.raises(TaskFailed) as raised:
                receipt.result(10)
            assert (raised.value.reason, raised.value.dead_letter) == ("odd", letter.batch_id)


@pytest.mark.parametrize("works_in", [2, 9])
def test_tasks_that_fail_alone_and_are_tried_again(make_both: Make, works_in: int) -> None:
    calls = Counter[int]()

    def merge(group: str, tasks: list[Task]) -> Results:
        calls.update(task.payload for task in tasks)
        values = {task.id: calls[task.payload] for task in tasks}
        bad = [task.id for task in tasks if task.payload % 2 and calls[task.payload] < works_in]
        if len(bad) == len(tasks):
            raise ValueError("all")
        return Results(values, Partial(Task("m"), dict.fromkeys(bad, "odd")))

    config: dict[str, Any] = {"on_task_failure": "retry", "max_attempts": 3, "retry_delay": 0.01}
    with make_both(group_aggregator=merge, group_max_size=4, **config) as agg:
        receipts = [agg.submit(Task("n", n, "a")) for n in range(4)]
        assert (receipts[0].result(10), receipts[2].result(10)) == (1, 1)
        for receipt in receipts[1::2]:
            if works_in == 2:
                assert receipt.result(20) == 2
            else:
                with pytest.raises(TaskFailed) as raised:
                    receipt.result(20)
                assert raised.value.reason == "ValueError: all"


def test_a_batch_that_becomes_a_dead_letter(make_both: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        raise ValueError("no")

    with make_both(group_aggregator=merge, group_max_size=2) as agg:
        receipts = [agg.submit(Task("n", n, "a")) for n in range(2)]
        for receipt in receipts:
            with pytest.raises(TaskFailed) as raised:
                receipt.result(20)
            [letter] = await_dead(agg)
            assert raised.value.reason == "ValueError: no"
            assert raised.value.dead_letter == raised.value.batch_id == letter.batch_id


def test_a_requeued_dead_letter_has_another_outcome(make_both: Make) -> None:
    works: list[int] = []

    def merge(group: str, tasks: list[Task]) -> Results:
        if not works:
            raise ValueError("no")
        return doubled(group, tasks)

    with make_both(group_aggregator=merge, group_max_size=1) as agg:
        receipt = agg.submit(Task("n", 4, "a"))
        with pytest.raises(TaskFailed):
            receipt.result(20)
        works.append(1)
        [letter] = await_dead(agg)
        agg.requeue_dead_letter(letter.batch_id)
        assert agg.wait_until_idle(10)
        again = agg.receipt("a", receipt.task_id)
        wait_until(lambda: _outcome(again) == 8, what="the new outcome")


def _outcome(receipt: Any) -> Any:
    try:
        return receipt.result(0)
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("values", "error"),
    [({"nobody": 1}, "that the batch does not have"), ([1], "takes a mapping")],
)
def test_wrong_results_fail_the_attempt(make: Make, values: Any, error: str) -> None:
    with make(group_aggregator=lambda group, tasks: Results(values), group_max_size=1) as agg:
        receipt = agg.submit(Task("n", 1, "a"))
        with pytest.raises(TaskFailed, match=error):
            receipt.result(20)


def test_a_result_without_a_form_fails_the_attempt(make: Make) -> None:
    """And it is the merge that is repeated, not the sink."""
    merges: list[str] = []

    def merge(group: str, tasks: list[Task]) -> Results:
        merges.append(group)
        return Results({task.id: object() for task in tasks}, Task("m"))

    with make(group_aggregator=merge, group_max_size=1, max_attempts=2) as agg:
        receipt = agg.submit(Task("n", 1, "a"))
        with pytest.raises(TaskFailed, match="the result of task"):
            receipt.result(20)
    assert merges == ["a", "a"]


@pytest.mark.parametrize("weight", [1, 5])
def test_cancelling(make_both: Make, sync_redis: redis.Redis, weight: int) -> None:
    agg = make_both(group_max_size=10)
    agg.add_task(Task("n", 0, "a"))
    receipt = agg.submit(Task("n", 1, "a", weight=weight))  # its entry may have limits
    assert agg.cancel_task("a", receipt.task_id)
    with pytest.raises(TaskCancelled):
        receipt.result(10)
    agg.add_task(Task("n", 1, "a", "other"))
    assert agg.cancel_task("a", "other")
    assert len(answers(sync_redis)) == 1


def test_a_timeout(make_both: Make) -> None:
    agg = make_both()
    receipt = agg.submit(Task("n", 1, "a"))
    began = time.monotonic()
    with pytest.raises(ResultTimeout) as raised:
        receipt.result(0.3)
    assert isinstance(raised.value, TimeoutError)
    assert 0.3 <= time.monotonic() - began < 5
    with pytest.raises(ResultTimeout):
        receipt.result(0)


def test_a_receipt_of_another_process(make_both: Make, make: Make) -> None:
    """Before the outcome, and after it."""
    with make_both(group_aggregator=doubled, group_max_size=2) as agg:
        other = make()
        first = agg.submit(Task("n", 5, "ä:b", "x:1"))
        early = other.receipt("ä:b", "x:1")
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(early.result, 20)
            agg.submit(Task("n", 6, "ä:b"))
            assert waiting.result() == 10
        assert first.result(10) == 10
        assert make().receipt("ä:b", "x:1").result(0) == 10


def test_a_deduplicated_task_has_the_result_of_the_one_that_is_kept(make_both: Make) -> None:
    with make_both(group_aggregator=doubled, group_max_size=2, dedupe_window=60) as agg:
        first = agg.submit(Task("n", 1, "a", "same"))
        second = agg.submit(Task("n", 50, "a", "same"))
        agg.submit(Task("n", 2, "a"))
        assert (first.result(10), second.result(10)) == (2, 2)
        flushed = agg.submit(Task("n", 60, "a", "same"))  # the window keeps it out
        assert flushed.result(10) == 2


def test_a_result_is_kept_for_its_time(make: Make, sync_redis: redis.Redis) -> None:
    with make(group_aggregator=doubled, group_max_size=1, result_ttl=0.5) as agg:
        receipt = agg.submit(Task("n", 1, "a"))
        assert receipt.result(10) == 2
        wait_until(lambda: not answers(sync_redis), what="the answer expires")
        assert receipt.result(0) == 2  # this process knows it
        with pytest.raises(ResultTimeout):
            agg.receipt("b", receipt.task_id).result(0)


def test_a_result_of_a_batch_that_waited_for_its_sink(make_both: Make) -> None:
    merges, refused = [], [True]

    def merge(group: str, tasks: list[Task]) -> Results:
        merges.append(group)
        return doubled_and_merged(group, tasks)

    def sink(task: Task, batch_id: str) -> None:
        if refused:
            raise ConnectionError("away")

    with make_both(
        sink=CallableSink(sink), group_aggregator=merge, group_max_size=2, max_attempts=1000
    ) as agg:
        receipts = [agg.submit(Task("n", n, "a")) for n in (1, 2)]
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="the sink fails")
        with pytest.raises(ResultTimeout):
            receipts[0].result(0)
        refused.clear()
        assert [receipt.result(20) for receipt in receipts] == [2, 4]
    assert merges == ["a"]


def test_a_batch_whose_sink_gave_up(make: Make) -> None:
    def sink(task: Task, batch_id: str) -> None:
        raise ConnectionError("away")

    with make(
        sink=CallableSink(sink), group_aggregator=doubled_and_merged, group_max_size=1
    ) as agg:
        receipt = agg.submit(Task("n", 1, "a"))
        with pytest.raises(TaskFailed, match="away"):
            receipt.result(30)


def test_a_sink_may_fail_submitted_tasks_alone(make: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Results:
        merged = Task("rows", [[task.id, task.payload] for task in tasks])
        return Results({task.id: "ok" for task in tasks}, merged)

    def sink(task: Task, batch_id: str) -> Partial:
        return Partial(failed={task_id: "odd" for task_id, n in task.payload if n % 2})

    with make(sink=CallableSink(sink), group_aggregator=merge, group_max_size=2) as agg:
        even, odd = agg.submit(Task("n", 2, "a")), agg.submit(Task("n", 3, "a"))
        assert even.result(20) == "ok"
        with pytest.raises(TaskFailed, match="odd"):
            odd.result(20)


@pytest.mark.parametrize("size", [10, 3000])
def test_large_results_and_large_batches(make: Make, size: int) -> None:
    """More than one call carries."""
    count = 1200

    def merge(group: str, tasks: list[Task]) -> Results:
        return Results({task.id: str(task.payload) * size for task in tasks}, Task("m", 1))

    sink = ListSink("q")
    with make(group_aggregator=merge, group_max_size=count, partitions=1, sink=sink) as agg:
        with ThreadPoolExecutor(32) as pool:
            receipts = list(pool.map(lambda n: agg.submit(Task("n", n, "a")), range(count)))
        assert [each.result(60) for each in receipts] == [str(n) * size for n in range(count)]
        assert agg.wait_until_idle(10)
        assert len(enqueued(agg)) == 1


def test_a_large_batch_that_is_buried(make: Make) -> None:
    count = 1100

    def merge(group: str, tasks: list[Task]) -> Task:
        raise ValueError("no")

    with make(group_aggregator=merge, group_max_size=count, partitions=1, max_attempts=1) as agg:
        with ThreadPoolExecutor(32) as pool:
            receipts = list(pool.map(lambda n: agg.submit(Task("n", n, "a")), range(count)))
        [letter] = await_dead(agg)
        assert letter.size == count
        for receipt in receipts:
            with pytest.raises(TaskFailed, match="ValueError: no"):
                receipt.result(20)


def test_an_undecodable_task_that_was_submitted(make: Make, sync_redis: redis.Redis) -> None:
    client: Any = sync_redis
    agg = make(group_aggregator=doubled, group_max_size=2, partitions=1)
    receipt = agg.submit(Task("n", 1, "a"))
    [key] = client.keys("redisagg:*:tasks:a")
    entry = client.lindex(key, 0)
    place = entry.index(b"\xa1n\x01")
    client.lset(key, 0, entry[:place] + b"\xc1" + entry[place + 1 :])
    with agg:
        assert agg.submit(Task("n", 2, "a")).result(10) == 4
        with pytest.raises(TaskFailed) as raised:
            receipt.result(10)
        [letter] = await_dead(agg)
    assert raised.value.dead_letter == letter.batch_id


def test_many_threads_wait_on_one_subscription(make: Make, sync_redis: redis.Redis) -> None:
    client: Any = sync_redis
    with make(group_aggregator=doubled, group_max_size=10, group_grace_period=0.05) as agg:

        def one(n: int) -> int:
            result: int = agg.submit(Task("n", n, f"g{n % 3}")).result(30)
            return result

        with ThreadPoolExecutor(20) as pool:
            assert list(pool.map(one, range(500))) == [2 * n for n in range(500)]
        kinds = [each for each in client.client_list() if int(each["sub"]) > 0]
    assert [each["sub"] for each in kinds] == ["2"]  # the flusher's channel is on it too


def test_many_coroutines_wait(redis_url: str, sync_redis: redis.Redis) -> None:
    """They do not take a connection each, although all read when the subscription begins."""

    async def main() -> list[int]:
        config = quick_config(group_aggregator=doubled, group_max_size=50, group_grace_period=0.05)
        async with AsyncAggregator("tests", redis_url, config=config) as agg:

            async def one(n: int) -> int:
                receipt = await agg.submit(Task("n", n, "a"))
                result: int = await receipt.result(30)
                return result

            return await asyncio.gather(*map(one, range(2000)))

    def connections() -> int:
        stats: Any = sync_redis.info("stats")
        return int(stats["total_connections_received"])

    before = connections()
    assert asyncio.run(main()) == [2 * n for n in range(2000)]
    assert connections() - before < 50


def test_a_receipt_may_be_awaited_on_another_loop(redis_url: str) -> None:
    config = quick_config(group_aggregator=doubled, group_max_size=1)
    agg = AsyncAggregator("tests", redis_url, config=config)

    async def submit() -> Any:
        return await agg.submit(Task("n", 3, "a"))

    async def flush_and_wait(receipt: Any) -> Any:
        async with agg:
            return await receipt.result(20)

    receipt = asyncio.run(submit())
    assert asyncio.run(flush_and_wait(receipt)) == 6


def test_a_wait_may_be_cancelled(redis_url: str) -> None:
    async def main() -> None:
        agg = AsyncAggregator("tests", redis_url, config=quick_config())
        receipt = await agg.submit(Task("n", 3, "a"))
        waiting = asyncio.create_task(receipt.result())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not receipt._slot.wakers
        await agg.close()

    asyncio.run(main())


def test_without_the_right_to_subscribe_receipts_look(make: Make, sync_redis: redis.Redis) -> None:
    """The channels of messages are a matter of speed."""
    client: Any = sync_redis
    with make(group_aggregator=doubled, group_max_size=2) as agg:
        client.execute_command("ACL", "SETUSER", "quiet", *RIGHTS)
        host = agg._namespace.endpoint.options
        url = f"redis://quiet:x@{host['host']}:{host['port']}/0"
        other = make(url=url)
        receipt = other.submit(Task("n", 1, "a"))
        threading.Timer(0.5, lambda: agg.submit(Task("n", 2, "a"))).start()
        assert receipt.result(30) == 2


def test_nothing_is_left_behind(make_both: Make, sync_redis: redis.Redis) -> None:
    with make_both(group_aggregator=doubled, group_max_size=2, result_ttl=0.3) as agg:
        for receipt in [agg.submit(Task("n", n, "a")) for n in range(2)]:
            receipt.result(10)
        assert agg.wait_until_idle(10)
    client: Any = sync_redis
    wait_until(
        lambda: all(key.endswith(b":state") for key in client.keys("redisagg:{tests:*")),
        what="the answers expire",
    )


def test_tasks_that_are_tried_again_are_located(make_both: Make) -> None:
    failing = {1, 3}

    def merge(group: str, tasks: list[Task]) -> Partial | Results:
        failed = {task.id: "not yet" for task in tasks if task.payload in failing}
        if len(failed) == len(tasks):
            raise ValueError("none")
        return Partial(Results({task.id: -task.payload for task in tasks}), failed)

    with make_both(
        group_aggregator=merge, group_max_size=4, on_task_failure="retry", retry_delay=2
    ) as agg:
        receipts = [agg.submit(Task("n", n, "a")) for n in range(4)]
        assert (receipts[0].result(10), receipts[2].result(10)) == (0, -2)
        with pytest.raises(ResultTimeout):
            receipts[1].result(0)
        found = agg.locate("a", receipts[3].task_id)
        assert (found.state, found.batch_state) == ("in_batch", "retry")
        failing.remove(1)
        assert receipts[1].result(30) == -1
        with pytest.raises(TaskFailed) as raised:
            receipts[3].result(30)
        [letter] = await_dead(agg)
        assert agg.locate("a", receipts[3].task_id).dead_letter == letter.batch_id
    assert (raised.value.dead_letter, raised.value.reason) == (letter.batch_id, letter.error)


def test_some_tasks_of_a_dead_letter_that_are_requeued(make: Make) -> None:
    """They keep their marks."""
    works: list[int] = []

    def merge(group: str, tasks: list[Task]) -> Results:
        if not works:
            raise ValueError("no")
        return doubled(group, tasks)

    with make(group_aggregator=merge, group_max_size=3, max_attempts=1) as agg:
        receipts = [agg.submit(Task("n", n, "a")) for n in range(3)]
        [letter] = await_dead(agg)
        works.append(1)
        agg.requeue_dead_letter(letter.batch_id, only=[receipts[1].task_id])
        again = agg.receipt("a", receipts[1].task_id)
        wait_until(lambda: _outcome(again) == 2, what="the outcome of that task")
        assert isinstance(_outcome(agg.receipt("a", receipts[0].task_id)), TaskFailed)
