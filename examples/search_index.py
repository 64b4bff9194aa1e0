"""Search-index refreshes on asyncio: an item that changes often is indexed once.

Tasks have the item's id: adding an id that waits already changes nothing.
"""

from __future__ import annotations

import asyncio
import os

from redisagg import AggregationConfig, AsyncAggregator, Task
from redisagg.sinks import CallableSink


async def refresh(index: str, tasks: list[Task]) -> Task:
    """Fetches what is to be indexed; a merge on asyncio may await."""
    await asyncio.sleep(0.01)  # a database would be asked here
    return Task("index:refresh", {"index": index, "items": [task.id for task in tasks]})


async def send(task: Task, batch_id: str) -> None:
    """Hands the batch to the search engine, which refuses a batch id that it has seen."""
    print(f"{task.payload['index']}: {len(task.payload['items'])} items")


async def main() -> None:
    """Many changes of few items."""
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
