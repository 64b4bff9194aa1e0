"""What is gathered: the views of a page, written as one row."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from flask import current_app

from redisagg import BatchInfo, Task
from redisagg.contrib.flask import RedisAgg

agg = RedisAgg()


def database() -> closing[sqlite3.Connection]:
    """Opens the database of the application."""
    folder = Path(current_app.instance_path)
    folder.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(folder / "views.db", timeout=20)
    connection.execute("CREATE TABLE IF NOT EXISTS views (batch PRIMARY KEY, page, count)")
    return closing(connection)


@agg.aggregator("flask-views", group_max_delay=5, group_grace_period=None, group_max_size=1000)
def count(page: str, tasks: list[Task], info: BatchInfo) -> None:
    """Writes a row for a batch; a second run for the same batch writes nothing."""
    with database() as connection, connection:
        row = (info.batch_id, page, len(tasks))
        connection.execute("INSERT OR IGNORE INTO views VALUES (?, ?, ?)", row)
