"""Takes lines ``SENSOR VALUE`` by TCP, and writes the mean of each sensor, with flushers inside.

python -m asyncio_app.collector [PORT]
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from contextlib import closing, suppress
from statistics import fmean

from redisagg import App, BatchInfo, Task
from redisagg.errors import AggregatorFull, InvalidTask, RedisUnavailable

DATABASE = os.environ.get("DATABASE", "sensors.db")
app = App.from_env()


def write(row: tuple[str, str, float, int]) -> None:
    """Writes the mean of a batch, once."""
    with closing(sqlite3.connect(DATABASE, timeout=20)) as database, database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS means (batch PRIMARY KEY, sensor, mean, count)"
        )
        database.execute("INSERT OR IGNORE INTO means VALUES (?, ?, ?, ?)", row)


@app.aggregator(
    "asyncio-means",
    group_max_delay=60,
    group_grace_period=None,
    group_max_size=1000,
    add_timeout=1,  # a sender waits no longer
)
async def mean(sensor: str, tasks: list[Task], info: BatchInfo) -> None:
    """Takes all measurements of a sensor within a minute."""
    values = [float(task.payload) for task in tasks]
    await asyncio.to_thread(write, (info.batch_id, sensor, fmean(values), len(values)))


async def take(line: str) -> str:
    """Adds a measurement; returns the answer to its sender."""
    try:
        sensor, text = line.split()
        await mean.aadd(float(text), group_key=sensor)
    except (ValueError, InvalidTask):
        return "wrong"
    except (RedisUnavailable, AggregatorFull):
        return "later"
    return "ok"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each line of a connection."""
    with suppress(ConnectionError, ValueError):  # ValueError: a line of more than 64 KiB
        while line := await reader.readline():
            writer.write(f"{await take(line.decode(errors='replace'))}\n".encode())
            await writer.drain()
    writer.close()


async def main(port: int) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is being merged."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with app:
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        print("port", server.sockets[0].getsockname()[1], flush=True)
        await stopped.wait()
        server.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7070))
