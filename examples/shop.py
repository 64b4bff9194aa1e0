"""One app, two aggregators, which share connections and settings.

python examples/shop.py             adds tasks and prints what comes of them
redisagg worker examples.shop:app   runs all flushers; start it in the project's folder

Environment variables change settings, such as REDISAGG_URL and REDISAGG_GROUP_MAX_SIZE.
"""

from __future__ import annotations

import asyncio

from redisagg import App, Task, group_key_parts
from redisagg.sinks import StreamSink

app = App.from_env()


@app.aggregator("shop-mails", group_grace_period=60, group_max_size=50)
def digest(group: str, tasks: list[Task]) -> Task:
    """One mail for each user."""
    _, user = group_key_parts(group)
    return Task("mail:digest", {"to": user, "texts": [task.payload["text"] for task in tasks]})


@app.aggregator("shop-search", group_max_delay=5, sink=StreamSink("searches"))
async def refresh(index: str, tasks: list[Task]) -> Task:
    """One refresh for all products of an index; a product may have changed more than once."""
    await asyncio.sleep(0)  # here one would ask a database
    return Task("search:refresh", {"index": index, "ids": sorted({t.payload for t in tasks})})


async def change_products() -> None:
    """Adds tasks from an event loop; these calls share round trips."""
    await asyncio.gather(*(refresh.aadd(n % 3, group_key="products") for n in range(9)))
    await app.aclose()


def main() -> None:
    """Adds tasks, runs all flushers in this process, and prints the batches."""
    for number in range(4):
        digest.add({"text": f"message {number}"}, group_key=("user", 42 + number % 2))
    asyncio.run(change_products())
    with app:
        for each in app.aggregators.values():
            each.flush_all()  # so that the example ends at once
            each.wait_until_idle(timeout=10)
            for batch in each.read_sink().batches:
                print(batch.payload)


if __name__ == "__main__":
    main()
