"""A Redis list as the queue; read it with BLPOP or BLMOVE."""

from __future__ import annotations

from collections.abc import Sequence

from redisagg.protocol.operations import Operation, ask_all
from redisagg.protocol.scripts import command
from redisagg.sinks.base import Cursor, EnqueuedBatch, MergedTask, ReadableSink, SinkPage
from redisagg.sinks.redis.entries import Format, check_format, dump, enqueued, fields, load
from redisagg.sinks.urls import SinkUrl


class ListSink(ReadableSink):
    """Appends merged tasks to the right end of a list, exactly once each.

    An element is a map with ``batch_id``, ``type``, ``group``, ``count``, ``payload``,
    ``headers`` and ``reason``.

    Args:
        name: the key of the list; on Redis Cluster there is one for each partition, see
            `ScriptSink`.
        format: the format of the whole element, ``"msgpack"`` or ``"json"``.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
    """

    script = "commit_list"

    def __init__(self, name: str, *, format: Format = "msgpack") -> None:
        super().__init__(name)
        check_format(format)
        self.format: Format = format
        self.takes_json = format == "json"

    @classmethod
    def from_url(cls, url: SinkUrl) -> ListSink:
        """Parses ``list://NAME?format=json``."""
        return cls(url.target, **url.given(format=str))

    def arguments(self, merged: MergedTask) -> Sequence[bytes]:
        return (dump(fields(merged), self.format),)

    def read(self, keys: Sequence[bytes], cursor: Cursor, limit: int) -> Operation[SinkPage]:
        # The cursor counts elements from the left, so it is valid until a consumer removes one.
        starts = [int(cursor.get(key.decode(), 0)) for key in keys]
        replies = yield from ask_all(
            [
                command("LRANGE", key, start, start + limit - 1)
                for key, start in zip(keys, starts, strict=True)
            ]
        )
        after = {
            key.decode(): start + len(elements)
            for key, start, elements in zip(keys, starts, replies, strict=True)
        }
        batches, unreadable = [], []
        for key, start, elements in zip(keys, starts, replies, strict=True):
            for place, raw in enumerate(elements, start):
                try:
                    batches.append(self.decode(raw))
                except Exception as error:  # foreign bytes raise errors of many classes
                    unreadable.append(f"{key!r} {place}: {error}")
        return SinkPage(batches, after, unreadable)

    def decode(self, element: bytes) -> EnqueuedBatch:
        """The batch in an element.

        Raises:
            ValueError: this sink did not write the element.
        """
        values = load(element, self.format)
        if not isinstance(values, dict):
            raise ValueError("not an element that redisagg wrote: no map")
        return enqueued(values)
