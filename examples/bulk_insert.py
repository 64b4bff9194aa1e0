"""Bulk inserts: many small writes become few large ones.

The merge function does the work itself and returns None, so nothing is enqueued. It can run twice
for a batch, so its insert is idempotent: the primary key of a row is the id of its task, and a row
that is there already is left alone. Any other error of the database is raised: the batch is retried
and becomes a dead letter in the end.

Usage: python examples/bulk_insert.py [DATABASE]
"""

from __future__ import annotations

import os
import sqlite3
import sys

from redisagg import AggregationConfig, Aggregator, Task


def insert(table: str, tasks: list[Task]) -> None:
    """Merge function: inserts all rows of a batch in one transaction."""
    with sqlite3.connect(_PATH) as database:
        database.executemany(
            # INSERT OR IGNORE would also drop rows that violate a constraint.
            "INSERT INTO visits (id, page) VALUES (?, ?) ON CONFLICT (id) DO NOTHING",
            [(task.id, task.payload["page"]) for task in tasks],
        )


_PATH = sys.argv[1] if len(sys.argv) > 1 else "visits.db"
_TABLE = "CREATE TABLE IF NOT EXISTS visits (id TEXT PRIMARY KEY, page TEXT NOT NULL)"


def main() -> None:
    """Adds 1,000 visits, waits until they are inserted and prints the number of rows."""
    with sqlite3.connect(_PATH) as database:
        database.execute(_TABLE)
    config = AggregationConfig(
        group_max_size=200, group_aggregator=insert, group_grace_period=1, concurrency=1
    )
    url = os.environ.get("REDISAGG_URL", "redis://localhost:6379/0")
    with Aggregator("visits", url, config=config) as aggregator:
        aggregator.add_tasks(Task("visit", {"page": f"/{n % 7}"}, "visits") for n in range(1000))
        aggregator.wait_until_idle(timeout=10)
    with sqlite3.connect(_PATH) as database:
        print(database.execute("SELECT count(*) FROM visits").fetchone()[0], "rows")


if __name__ == "__main__":
    main()
