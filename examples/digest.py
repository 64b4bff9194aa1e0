"""Notification digests: one mail for several notifications of a user.

python examples/digest.py                     adds notifications and prints the digests
redisagg worker examples.digest:aggregator    runs a flusher; start it in the project's folder
"""

from __future__ import annotations

import os

from redisagg import AggregationConfig, Aggregator, Task
from redisagg.sinks import StreamSink


def digest(user: str, tasks: list[Task]) -> Task | None:
    """Merge function: one mail with all unread texts; None if all were read in the meantime."""
    unread = [task.payload["text"] for task in tasks if not task.payload["read"]]
    if not unread:
        return None
    return Task(type="mail:digest", payload={"user": user, "texts": unread})


aggregator = Aggregator(
    "notifications",
    redis=os.environ.get("REDISAGG_URL", "redis://localhost:6379/0"),
    config=AggregationConfig(
        group_grace_period=60,  # due 60 seconds after the newest notification,
        group_max_delay=600,  # at the latest 600 seconds after the oldest,
        group_max_size=50,  # and at once with 50
        group_aggregator=digest,
    ),
    sink=StreamSink("mails", format="json"),
)


def main() -> None:
    """Adds notifications for two users, waits for their digests and prints them."""
    with aggregator:
        for number in range(6):
            payload = {"text": f"message {number}", "read": number == 3}
            aggregator.add_task(Task("notify", payload, group_key=("user", number % 2)))
        aggregator.flush_all()  # so that the example ends at once
        aggregator.wait_until_idle(timeout=10)
        for batch in aggregator.read_sink().batches:
            print(batch.payload)


if __name__ == "__main__":
    main()
