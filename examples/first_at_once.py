"""Alerts: the first of a host at once, those that follow together in one mail.

`group_leading` lets the first alert after a quiet interval leave alone. What follows gathers until
ten minutes have passed since the last mail. A quiet host costs nothing and is first at once again.
"""

from __future__ import annotations

import os

from redisagg import AggregationConfig, Aggregator, BatchInfo, Task
from redisagg.sinks import StreamSink


def mail(host: str, tasks: list[Task], info: BatchInfo) -> Task:
    """Merge function: one mail; its subject tells whether it is the first."""
    first = tasks[0].payload
    subject = first if info.reason == "leading" else f"{len(tasks)} more alerts, first: {first}"
    return Task("mail:alert", {"host": host, "subject": subject})


aggregator = Aggregator(
    "alerts",
    os.environ.get("REDISAGG_URL", "redis://localhost:6379/0"),
    config=AggregationConfig(
        group_leading=True,
        group_min_interval=600,
        group_max_size=1000,  # a storm does not fill the batch earlier
        group_aggregator=mail,
    ),
    sink=StreamSink("mails", format="json"),
)


def main() -> None:
    """Adds alerts of one host and prints the mails."""
    with aggregator:
        aggregator.add_task(Task("alert", "disk is full", "db-1"))
        aggregator.wait_until_idle(timeout=10)  # the first has left
        for alert in ("writes fail", "replica is behind", "writes fail"):
            aggregator.add_task(Task("alert", alert, "db-1"))
        print(aggregator.stats().pending, "wait")
        aggregator.flush_all()  # so that the example ends at once
        aggregator.wait_until_idle(timeout=10)
        for batch in aggregator.read_sink().batches:
            print(batch.payload["subject"])


if __name__ == "__main__":
    main()
