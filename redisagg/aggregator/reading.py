"""Reading what was enqueued, where the queue is in the same Redis; waiting until all is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from redisagg.errors import SinkError
from redisagg.namespace import Namespace
from redisagg.protocol.operations import Operation
from redisagg.sinks.base import Cursor, ReadableSink, SinkPage
from redisagg.views import Stats

_BETWEEN_LOOKS = 0.05  # seconds


def sink_keys(namespace: Namespace, *, clustered: bool) -> list[bytes]:
    """The keys of the queue.

    Raises:
        SinkError: the sink is no queue in this Redis.
    """
    return _readable_sink(namespace).keys(namespace.keyspace, clustered=clustered)


def read_sink(
    namespace: Namespace, keys: Sequence[bytes], cursor: Cursor, limit: int
) -> Operation[SinkPage]:
    """Reads on from `cursor`, at most `limit` batches from each key.

    Raises:
        SinkError: the sink is no queue in this Redis.
    """
    return _readable_sink(namespace).read(keys, cursor, limit)


def _readable_sink(namespace: Namespace) -> ReadableSink:
    sink = namespace.sink
    if not isinstance(sink, ReadableSink):
        raise SinkError(f"a {type(sink).__name__} can't be read here, but where it writes")
    return sink


def wait_blocking(stats: Callable[[], Stats], timeout: float) -> bool:
    """Waits until nothing is pending or in flight; False after `timeout` seconds."""
    end = time.monotonic() + timeout
    while _busy(stats()):
        if time.monotonic() > end:
            return False
        time.sleep(_BETWEEN_LOOKS)
    return True


async def wait(stats: Callable[[], Awaitable[Stats]], timeout: float) -> bool:
    """As `wait_blocking`, on the event loop."""
    end = time.monotonic() + timeout
    while _busy(await stats()):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(_BETWEEN_LOOKS)
    return True


def _busy(stats: Stats) -> bool:
    return stats.pending > 0 or stats.in_flight > 0
