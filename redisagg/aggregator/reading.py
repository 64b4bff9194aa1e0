"""Reading the queue of merged tasks back, if it is a stream or list in the same Redis."""

from __future__ import annotations

from collections.abc import Sequence

from redisagg.config import check_range
from redisagg.errors import SinkError
from redisagg.namespace import Namespace
from redisagg.protocol.operations import Operation
from redisagg.sinks.base import Cursor, ReadableSink, SinkPage


def sink_keys(namespace: Namespace, *, clustered: bool) -> list[bytes]:
    """Returns the keys of the queue.

    Raises:
        SinkError: the sink is not a stream or list in this Redis.
    """
    return _readable_sink(namespace).keys(namespace.keyspace, clustered=clustered)


def read_sink(
    namespace: Namespace, keys: Sequence[bytes], cursor: Cursor, limit: int
) -> Operation[SinkPage]:
    """Reads the queue from `cursor` on, at most `limit` batches from each key.

    Raises:
        SinkError: the sink is not a stream or list in this Redis.
        InvalidConfig: the limit is no number from 1.
    """
    check_range("limit", limit, 1)
    return _readable_sink(namespace).read(keys, cursor, limit)


def _readable_sink(namespace: Namespace) -> ReadableSink:
    sink = namespace.sink
    if not isinstance(sink, ReadableSink):
        raise SinkError(
            f"a {type(sink).__name__} can't be read back; read the queue with the system that it "
            "belongs to, or use a StreamSink or ListSink"
        )
    return sink
