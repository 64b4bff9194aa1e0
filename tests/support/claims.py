"""Claimed batches, as the script `claim` hands them out."""

from __future__ import annotations

from collections.abc import Sequence

from redisagg import AggregationConfig, Task
from redisagg.flusher.batch import Claim
from redisagg.protocol.entries import Encoder

_ENCODE = Encoder(AggregationConfig())


def claim_of(
    tasks: Sequence[Task], group: bytes = b"g", *, attempt: int = 1, stored_result: bytes = b""
) -> Claim:
    """A claimed batch of these tasks, which arrived at time 0."""
    encoded = [_ENCODE(task) for task in tasks]
    entries = [bytes(6) + bytes([len(each.id)]) + each.id + each.body for each in encoded]
    return Claim(
        batch_id=b"1-1",
        group=group,
        attempt=attempt,
        error=b"",
        stored_result=stored_result,
        entries=entries,
        task_count=len(entries),
        length=sum(map(len, entries)),
        suspect=0,
        slot=None,
    )
