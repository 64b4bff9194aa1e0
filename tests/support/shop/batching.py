"""The aggregators of a shop, as a code base has them: made at import, for a Redis in production."""

from __future__ import annotations

from typing import Any

from redisagg import AggregationConfig, Aggregator, App, Cron, Partial, RateLimit, Task
from redisagg.sinks import CallableSink

app = App("redis://redis.example.invalid:6379/0")

sent: list[dict[str, Any]] = []
"""What the mailer was asked to send."""

users = {"ann": "ann@example.org", "ben": "ben@example.org"}
"""The address of each user; one that is missing can't be mailed to."""


def send(task: Task, batch_id: str) -> None:
    """Sends a digest; ignores one that it has sent."""
    if batch_id not in {each["id"] for each in sent}:
        sent.append({"id": batch_id, **task.payload})


@app.aggregator(
    "digests",
    group_grace_period=3600,
    group_max_delay=None,
    group_max_size=100,
    sink=CallableSink(send),
)
def digest(user: str, tasks: list[Task]) -> Task:
    return Task("digest", {"to": users[user], "items": [task.payload for task in tasks]}, user)


@app.aggregator(
    "daily",
    group_grace_period=None,
    group_max_delay=None,
    group_schedule=Cron("0 8 * * *", "Europe/Berlin"),
)
def daily(user: str, tasks: list[Task]) -> Task:
    return Task("daily", len(tasks), user)


@app.aggregator("rows", group_max_size=100, max_attempts=3, retry_delay=60, retry_max_delay=60)
def insert(table: str, tasks: list[Task]) -> Partial:
    bad = {task.id: "no number" for task in tasks if not isinstance(task.payload, int)}
    good = [task.payload for task in tasks if task.id not in bad]
    return Partial(Task("insert", good, table), failed=bad)


@app.batched(max_size=16, grace=0.01)
def embed(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


api = Aggregator(
    "api",
    "redis://redis.example.invalid:6379/1",
    config=AggregationConfig(
        group_max_size=1, rate_limit=RateLimit(10, per=3600), group_max_delay=None
    ),
)
