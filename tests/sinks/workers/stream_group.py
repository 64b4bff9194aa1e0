"""A consumer group of redis-py, as a user's: python -m tests.sinks.workers.stream_group URL"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import redis

from tests.sinks.workers.note import note

STREAM, GROUP = "digests", "workers"

if __name__ == "__main__":
    client = redis.Redis.from_url(sys.argv[1], decode_responses=True, protocol=2)
    with contextlib.suppress(redis.ResponseError):  # BUSYGROUP
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    while True:
        reply: Any = client.xreadgroup(GROUP, "one", {STREAM: ">"}, count=7, block=1000)
        for entry_id, entry in reply[0][1] if reply else []:
            payload = json.loads(entry["payload"])
            note(id=entry["batch_id"], payloads=payload["payloads"], entry=entry)
            client.xack(STREAM, GROUP, entry_id)
