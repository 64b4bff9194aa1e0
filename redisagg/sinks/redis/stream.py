"""A Redis stream as the queue; read it with XREAD or a consumer group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redisagg.config import check_range
from redisagg.protocol.operations import Operation, ask_all
from redisagg.protocol.replies import as_dict
from redisagg.protocol.scripts import command
from redisagg.sinks.base import Cursor, EnqueuedBatch, MergedTask, ReadableSink, SinkPage
from redisagg.sinks.redis.entries import Format, check_format, dump, enqueued, load
from redisagg.sinks.urls import SinkUrl


class StreamSink(ReadableSink):
    """Appends merged tasks to a stream, exactly once each.

    An entry has the fields ``batch_id``, ``type``, ``group`` (UTF-8 text), ``count`` (decimal),
    ``payload`` and ``headers`` (msgpack, or JSON with ``format="json"``), and ``reason``: why the
    batch was due.

    Args:
        name: the key of the stream; on Redis Cluster there is one for each partition, see
            `ScriptSink`.
        format: the format of payload and headers, ``"msgpack"`` or ``"json"``.
        maxlen: the approximate number of entries that the stream keeps. Older entries are trimmed,
            consumed or not; None keeps all.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
    """

    script = "commit_stream"

    def __init__(self, name: str, *, format: Format = "msgpack", maxlen: int | None = None) -> None:
        super().__init__(name)
        check_format(format)
        if maxlen is not None:
            check_range("maxlen", maxlen, 1, 2**53)
        self.format: Format = format
        self.takes_json = format == "json"
        self.maxlen = maxlen
        self._no_headers = dump({}, format)

    @classmethod
    def from_url(cls, url: SinkUrl) -> StreamSink:
        """Parses ``stream://NAME?format=json&maxlen=100000``."""
        return cls(url.target, **url.given(format=str, maxlen=int))

    def options(self) -> Sequence[Any]:
        return ("" if self.maxlen is None else self.maxlen,)

    def arguments(self, merged: MergedTask) -> Sequence[bytes]:
        task, format = merged.task, self.format
        return (
            *(b"batch_id", merged.batch_id.encode()),
            *(b"type", task.type.encode()),
            *(b"group", merged.group.encode()),
            *(b"count", b"%d" % merged.count),
            *(b"payload", dump(task.payload, format)),
            *(b"headers", dump(dict(task.headers), format) if task.headers else self._no_headers),
            *(b"reason", merged.reason.encode()),
        )

    def read(self, keys: Sequence[bytes], cursor: Cursor, limit: int) -> Operation[SinkPage]:
        def start(key: bytes) -> str:
            last = cursor.get(key.decode())
            return f"({last}" if last else "-"

        replies = yield from ask_all(
            [command("XRANGE", key, start(key), "+", "COUNT", limit) for key in keys]
        )
        after, batches, unreadable = dict(cursor), [], []
        for key, entries in zip(keys, replies, strict=True):
            for entry_id, entry in entries:
                after[key.decode()] = entry_id.decode()
                try:
                    batches.append(self.decode(as_dict(entry)))
                except Exception as error:  # foreign bytes raise errors of many classes
                    unreadable.append(f"{key!r} {entry_id.decode()}: {error}")
        return SinkPage(batches, after, unreadable)

    def decode(self, entry: Mapping[bytes, bytes]) -> EnqueuedBatch:
        """The batch in an entry.

        Args:
            entry: its fields, as a client without decode_responses returns them.

        Raises:
            ValueError: this sink did not write the entry.
        """
        values: dict[str, Any] = {}
        for raw_name, raw in entry.items():
            name = raw_name.decode()
            is_data = name in {"payload", "headers"}
            values[name] = load(raw, self.format) if is_data else raw.decode()
        return enqueued(values)
