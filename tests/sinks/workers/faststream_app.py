"""A FastStream subscriber as users write one, for ``faststream run ...:app``."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import redis.asyncio as redis
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub
from pydantic import BaseModel, Json

from tests.sinks.workers.note import note

URL = os.environ["REDISAGG_TEST_REDIS"]

broker = RedisBroker(URL)
app = FastStream(broker)


class Entry(BaseModel):
    """The fields of an entry, in JSON."""

    batch_id: str
    type: str
    group: str
    count: int
    payload: Json[Any]
    headers: Json[dict[str, str]]
    reason: str


@app.on_startup
async def make_group() -> None:
    """Starts the group at the first entry of the stream."""
    async with redis.Redis.from_url(URL) as client:
        with contextlib.suppress(redis.ResponseError):  # BUSYGROUP
            await client.xgroup_create("digests", "workers", id="0", mkstream=True)


@broker.subscriber(stream=StreamSub("digests", group="workers", consumer="one"))
async def digest(entry: Entry) -> None:
    """Records an entry."""
    note(id=entry.batch_id, payloads=entry.payload["payloads"], entry=entry.model_dump())
