"""The last status of each order: a partner gets one call for all changes of a few seconds.

Each order may change many times. `merges.latest` keeps its newest status, and `report` puts those
of all orders into one call. Changes of one partner are a group, so they are reported in order.
"""

from __future__ import annotations

import os

from redisagg import AggregationConfig, Aggregator, Task, group_key_parts, merges
from redisagg.sinks import CallableSink


def report(group: str, tasks: list[Task]) -> Task:
    """Merge function for the newest task of each order."""
    _, partner = group_key_parts(group)
    statuses = {task.payload["order"]: task.payload["status"] for task in tasks}
    return Task("orders:report", {"partner": partner, "statuses": statuses})


def call(task: Task, batch_id: str) -> None:
    """Sink: calls the partner, who ignores a repeated batch id."""
    print(task.payload["partner"], task.payload["statuses"])


def main() -> None:
    """Adds the changes of three orders and waits until they are reported."""
    aggregator = Aggregator(
        "orders",
        os.environ.get("REDISAGG_URL", "redis://localhost:6379/0"),
        config=AggregationConfig(
            group_grace_period=5,
            group_max_delay=30,
            group_max_size=1000,
            group_aggregator=merges.latest(by="order", then=report),
        ),
        sink=CallableSink(call),
    )
    with aggregator:
        for status in ("placed", "paid", "packed", "sent"):
            orders = ("A1", "A2") if status == "sent" else ("A1", "A2", "A3")
            aggregator.add_tasks(
                Task("order", {"order": order, "status": status}, ("partner", "ups:eu"))
                for order in orders
            )
        aggregator.flush_all()  # so that the example ends at once
        aggregator.wait_until_idle(timeout=10)


if __name__ == "__main__":
    main()
