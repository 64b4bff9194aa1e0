"""The Celery application and its batch task.

celery -A celery_app.clicks worker
redisagg worker celery_app.clicks:batches
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from contextlib import closing

from celery import Celery

from redisagg.contrib.celery import Batches, Request

URL = os.environ.get("REDISAGG_URL", "redis://localhost:6379/0")
DATABASE = os.environ.get("DATABASE", "clicks.db")
TABLE = "CREATE TABLE IF NOT EXISTS clicks (batch, link, count, PRIMARY KEY (batch, link))"
TOTAL = "SELECT sum(count) FROM clicks WHERE link = ?"

app = Celery("clicks", broker=URL, backend=URL)
app.conf.broker_connection_retry_on_startup = True
batches = Batches(app, URL)


def site(link: str) -> str:
    """Returns the group of a call: clicks on one site are counted together."""
    return link.partition("/")[0]


@batches.task(
    flush_every=100,
    flush_interval=10,
    group_by=site,
    namespace="celery-clicks",
    add_timeout=1,
    options={"acks_late": True},
)
def click(requests: list[Request]) -> None:
    """Counts clicks in one transaction; each caller may ask for the count of its link.

    A batch that is delivered again has the same id, and is counted once.
    """
    counts = Counter(str(request.args[0]) for request in requests)
    rows = [(str(click.request.id), link, number) for link, number in counts.items()]
    with closing(sqlite3.connect(DATABASE, timeout=20)) as database, database:
        database.execute(TABLE)
        database.executemany("INSERT OR IGNORE INTO clicks VALUES (?, ?, ?)", rows)
        totals = {link: database.execute(TOTAL, (link,)).fetchone()[0] for link in counts}
    for request in requests:
        app.backend.mark_as_done(request.id, totals[str(request.args[0])], request=request)
