"""Found by autodiscovery."""

from __future__ import annotations

from django.db import connection

from redisagg import Task
from redisagg.contrib.django import app


@app.aggregator("mails", group_max_size=2)
def digest(group: str, tasks: list[Task]) -> Task:
    """Collects the payloads; asks the database, in a thread of the flusher."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return Task("mail", [task.payload for task in tasks])


@app.aggregator("searches", group_max_size=2)
async def refresh(group: str, tasks: list[Task]) -> Task:
    """Collects the payloads."""
    return Task("search", [task.payload for task in tasks])
