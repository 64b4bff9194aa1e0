"""celery-batches: a Celery worker that buffers messages in its own memory.

The worker imports this module too. celery-batches is left out where it is not installed
(``pip install -e '.[bench]'``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

import redis

from benchmarks.workload import PAYLOAD, empty, group_of

_URL, _SIZE = "REDISAGG_BENCH_URL", "REDISAGG_BENCH_SIZE"
_DONE = "celery-batches:done"
_QUEUE, _IDLE = "celery-batches", "celery-batches-idle"


def make_app(url: str, size: int) -> Any:
    """An application with one task, which sorts `size` messages by group and discards them."""
    from celery import Celery
    from celery_batches import Batches

    app = Celery("bench", broker=url)
    # The worker must receive more messages than one batch before it acknowledges any.
    app.conf.update(worker_prefetch_multiplier=0, task_ignore_result=True)
    client: Any = redis.Redis.from_url(url)

    @app.task(name="bench.merge", base=Batches, flush_every=size, flush_interval=1)
    def merge(requests: list[Any]) -> None:
        groups: dict[str, list[Any]] = {}
        for request in requests:
            groups.setdefault(request.kwargs["group"], []).append(request.kwargs["payload"])
        client.incrby(_DONE, len(requests))

    return app


def drain(url: str, count: int, size: int) -> float | None:
    """Tasks per second, from the start of consumption until all tasks are merged."""
    if find_spec("celery_batches") is None:
        print("celery-batches is left out: it is not installed")
        return None
    empty(url)
    app = make_app(url, size)
    payload = PAYLOAD.decode()
    with app.producer_pool.acquire() as producer:
        for n in range(count):
            kwargs = {"group": group_of(n // size), "payload": payload}
            app.send_task("bench.merge", kwargs=kwargs, queue=_QUEUE, producer=producer)
    client: Any = redis.Redis.from_url(url)
    line = [sys.executable, "-m", "celery", "-A", __name__, "worker", "-Q", _IDLE, "-P", "solo"]
    environment = {**os.environ, _URL: url, _SIZE: str(size)}
    with subprocess.Popen(
        [*line, "-l", "ERROR"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as worker:
        try:
            while not app.control.ping(timeout=0.5):
                pass
            app.control.add_consumer(_QUEUE)
            start = time.perf_counter()
            while int(client.get(_DONE) or 0) < count:
                time.sleep(0.005)
            return count / (time.perf_counter() - start)
        finally:
            worker.kill()


if _URL in os.environ:
    app = make_app(os.environ[_URL], int(os.environ[_SIZE]))
