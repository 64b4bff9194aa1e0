"""An outbox: a task is stored with the data that it belongs to, in one transaction.

A loop moves tasks from the table to Redis. If it dies before it deletes them there, it adds them
again under the same ids, which have no effect for `dedupe_window` seconds after they were flushed.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing

from redisagg import AggregationConfig, Aggregator, Task
from redisagg.errors import RedisAggError

TABLES = """
CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, user INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (id TEXT PRIMARY KEY, group_key TEXT, payload TEXT);
"""
CONFIG = AggregationConfig(group_max_size=100, add_timeout=1, dedupe_window=3600)


def order(database: sqlite3.Connection, user: int) -> None:
    """Stores an order and its task; both or none of them."""
    with database:
        number = database.execute("INSERT INTO orders (user) VALUES (?)", (user,)).lastrowid
        row = (f"order-{number}", f"user:{user}", json.dumps({"order": number}))
        database.execute("INSERT INTO outbox VALUES (?, ?, ?)", row)


def move(database: sqlite3.Connection, aggregator: Aggregator) -> int:
    """Moves up to 500 tasks to Redis; returns their number. Call it in a loop."""
    rows = database.execute("SELECT * FROM outbox ORDER BY rowid LIMIT 500").fetchall()
    aggregator.add_tasks([Task("mail", json.loads(text), key, id=id) for id, key, text in rows])
    with database:
        database.executemany("DELETE FROM outbox WHERE id = ?", [(id,) for id, *_ in rows])
    return len(rows)


def main() -> None:
    """Stores orders, moves their tasks, and prints how many there are."""
    url = os.environ.get("REDISAGG_URL", "redis://localhost:6379/0")
    path = sys.argv[1] if len(sys.argv) > 1 else "orders.db"
    agg = Aggregator("orders", url, config=CONFIG)
    with closing(sqlite3.connect(path)) as database, closing(agg):
        database.executescript(TABLES)
        for n in range(10):
            order(database, n % 3)
        try:
            print(move(database, agg), "moved,", agg.stats().pending, "wait")
        except RedisAggError as error:
            print("to be moved later:", error)


if __name__ == "__main__":
    main()
