"""A minimal case of a fault that `python -m tests.faults --topology delivery --seed 2` found."""

from __future__ import annotations

import contextlib
import threading
import time

from redisagg import Aggregator, Task
from redisagg.sinks import CallableSink
from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.support.proxy import running_proxy
from tests.support.tasks import await_led, quick_config


def test_no_batch_is_delivered_before_one_whose_retry_is_being_sent(
    redis_server: EmbeddedRedis, redis_url: str
) -> None:
    """A delivery fails, and the next batch of the group is due before Redis knows of that."""
    delivered: list[int] = []
    failed = threading.Event()

    def deliver(task: Task, batch_id: str) -> None:
        if task.payload == 0 and not failed.is_set():
            failed.set()
            raise ConnectionError("for once")
        delivered.append(task.payload)

    config = quick_config(
        partitions=1, group_max_size=1, group_aggregator=lambda _, tasks: tasks[0]
    )
    with (
        running_proxy(HOST, redis_server.port) as proxy,
        Aggregator("tests", proxy.url, config=config, sink=CallableSink(deliver)) as agg,
        contextlib.closing(Aggregator("tests", redis_url, config=config)) as producer,
    ):
        await_led(agg)
        hold = proxy.hold("retry")
        producer.add_task(Task("test", 0, "a"))
        assert failed.wait(5)
        producer.add_task(Task("test", 1, "a"))
        time.sleep(0.2)  # nothing happens meanwhile that a test could wait for
        hold.release()
        assert producer.wait_until_idle(10)
    assert delivered == [0, 1]
