"""Search-index refreshes on asyncio: an item that changes often is indexed once.

The id of a task is the id of its item. Adding an id that already waits has no effect.
"""

from __future__ import annotations

import asyncio
import os

from redisagg import AggregationConfig, AsyncAggregator, Task
from redisagg.sinks import CallableSink


async def refresh(index: str, tasks: list[Task]) -> Task:
    """Merge function: makes one refresh of all changed items."""
    await asyncio.sleep(0.01)  # stands for a database query
    return Task("index:refresh", {"index": index, "items": [task.id for task in tasks]})


async def send(task: Task, batch_id: str) -> None:
    """Sink: sends the refresh to the search engine, which ignores a repeated batch id."""
    print(f"{task.payload['index']}: {len(task.payload['items'])} items")


async def main() -> None:
    """Adds 200 changes of 10 items and waits until they are sent."""
    aggregator = AsyncAggregator(
        "search",
        os.environ.get("REDISAGG_URL", "redis://localhost:6379/0"),
        config=AggregationConfig(group_grace_period=0.2, group_aggregator=refresh),
        sink=CallableSink(send),
    )
    async with aggregator:
        changes = (Task("changed", None, "products", id=f"item-{n % 10}") for n in range(200))
        await asyncio.gather(*(aggregator.add_task(change) for change in changes))
        await aggregator.wait_until_idle(timeout=10)


if __name__ == "__main__":
    asyncio.run(main())
