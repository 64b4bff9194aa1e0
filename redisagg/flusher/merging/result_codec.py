"""What a merge came to, as it is kept with its batch in Redis until it has been enqueued.

A msgpack array of the places of entries that are no tasks, each with what is wrong with it, and of
the merged tasks, each packed on its own, so that one that was delivered can be left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from redisagg.errors import KeyConflict
from redisagg.payload import pack, unpack
from redisagg.sinks.base import MergedTask
from redisagg.task import Task

# As the constructor takes them.
_FIELDS = (
    *("type", "payload", "group_key", "id", "headers", "options"),
    *("priority", "grace_period", "max_delay", "max_size"),
)
_values = attrgetter(*_FIELDS)


def pack_batch(batch: MergedTask) -> bytes:
    """One merged task with all that a sink can see of it.

    Raises:
        PayloadError: its payload or an option has no form in msgpack.
    """
    return pack((batch.batch_id, batch.group, batch.count, _values(batch.task)))


def pack_merged(undecodable: Iterable[tuple[int, str]], batches: Iterable[bytes]) -> bytes:
    """What `retry` stores."""
    texts = [(place, text.encode("utf-8", "replace")) for place, text in undecodable]
    return pack((texts, tuple(batches)))


def unpack_merged(packed: bytes) -> tuple[list[tuple[int, str]], list[tuple[MergedTask, bytes]]]:
    """What `pack_merged` packed: what is undecodable, and the merged tasks, each as it is packed.

    Raises:
        KeyConflict: it did not.
    """
    try:
        texts, batches = unpack(packed)
        undecodable = [(place, text.decode()) for place, text in texts]
        return undecodable, [(_unpack_batch(each), each) for each in batches]
    except Exception as error:  # whatever there is to say about foreign bytes
        raise KeyConflict(f"what a batch was merged to can't be read: {error}") from error


def _unpack_batch(packed: bytes) -> MergedTask:
    batch_id, group, count, values = unpack(packed)
    return MergedTask(batch_id, group, count, Task(**dict(zip(_FIELDS, values, strict=True))))
