"""Delivers batches by a sink, as a flusher does: python -m tests.sinks.deliver URL BATCHES

BATCHES is a JSON array of objects with ``id`` and the fields of a `Task`; a batch may occur
twice, as after a crash. It runs in the virtual environment with the library of the sink.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from redisagg import Task
from redisagg.sinks import DeliverySink, MergedTask, sink_from_url


async def deliver(url: str, batches: list[dict[str, Any]]) -> None:
    """Opens the sink, delivers, closes it."""
    sink = sink_from_url(url)
    assert isinstance(sink, DeliverySink)
    await sink.open(None)  # type: ignore[arg-type]  # these sinks do not use it
    for fields in batches:
        batch_id = fields.pop("id")
        await sink.deliver(MergedTask(batch_id, "group", 1, Task(**fields, group_key="group")))
    await sink.close()


if __name__ == "__main__":
    asyncio.run(deliver(sys.argv[1], json.loads(sys.argv[2])))
