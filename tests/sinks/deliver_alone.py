"""Delivers a task without the time limit of a flusher: python -m tests.sinks.deliver_alone URL

It runs in the virtual environment with the library of the sink, and does not end by itself.
"""

from __future__ import annotations

import asyncio
import sys
import traceback

from redisagg import Task
from redisagg.sinks import BlockingSink, DeliverySink, MergedTask, sink_from_url


async def deliver(url: str) -> None:
    """Opens the sink of a URL and delivers."""
    sink = sink_from_url(url)
    assert isinstance(sink, DeliverySink)
    merged = MergedTask("B1", "group", 1, Task("test", {"a": 1}, "group"))
    try:
        await sink.open(None)  # type: ignore[arg-type]  # these sinks do not use it
        if isinstance(sink, BlockingSink):
            await asyncio.to_thread(sink.deliver_blocking, merged)
        else:
            await sink.deliver(merged)
    except Exception:
        traceback.print_exc()
    await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(deliver(sys.argv[1]))
