"""Bytes of Redis memory of a waiting task, in addition to its packed payload."""

from __future__ import annotations

from typing import Any

import msgpack

from benchmarks import asynq_side
from benchmarks.measure import Check, Series
from benchmarks.workload import NEVER_FULL, client_of
from redisagg import Aggregator, Task

_COUNT = 20_000

# The size of the nodes of a Redis list. By default a node holds 8 KB: seven payloads of 1,000 bytes,
# and the rest of the node is unused. Redis 7 renamed the option and still accepts this name.
_NODE_SIZE = "list-max-ziplist-size"
_NODES_OF_8_KB, _NODES_OF_32_KB = -2, -4

# Length of the payload in bytes, node size, and a remark for the tables.
_CASES = (
    (0, _NODES_OF_8_KB, ""),
    (100, _NODES_OF_8_KB, ""),
    (200, _NODES_OF_8_KB, ""),
    (1_000, _NODES_OF_8_KB, ""),
    (1_000, _NODES_OF_32_KB, ", nodes of 32 KB"),
)


def overhead(url: str, size: int, payload: bytes) -> float:
    """Bytes per task in addition to the packed payload, in groups of `size`."""
    client: Any = client_of(url)
    client.flushall()
    aggregator = Aggregator("bench", url, config=NEVER_FULL)
    aggregator.stats()
    before = client.info("memory")["used_memory"]
    aggregator.add_tasks((Task("t", payload, f"g{n // size}") for n in range(_COUNT)), ids=False)
    used: int = client.info("memory")["used_memory"] - before
    return used / _COUNT - len(msgpack.packb(payload))


def asynq(url: str, size: int) -> float | None:
    """The same for Asynq with 200 bytes of payload; None where Asynq cannot run."""
    client: Any = client_of(url)
    client.flushall()
    before = client.info("memory")["used_memory"]
    if asynq_side.run(url, "add", n=_COUNT, c=8, groups=_COUNT // size) is None:
        return None
    used: int = client.info("memory")["used_memory"] - before
    return used / _COUNT - 200


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """Payloads of 0, 100, 200 and 1,000 bytes in groups of 1, 100 and 1,000."""
    series = Series("memory over the packed payload", "bytes/task")
    client: Any = client_of(url)
    for size in (1, 100, 1_000):
        for length, nodes, remark in _CASES:
            client.config_set(_NODE_SIZE, nodes)
            value = overhead(url, size, b"x" * length)
            series.values[f"redisagg, {length:,} bytes in groups of {size:,}{remark}"] = [value]
            if size == 100:
                what = f"memory: bytes over a payload of {length:,}, groups of 100{remark}"
                checks.append(Check(what, "<= 110", f"{value:.0f}", value <= 110))
        client.config_set(_NODE_SIZE, _NODES_OF_8_KB)
        other = asynq(url, size)
        if other is not None:
            series.values[f"Asynq, 200 bytes in groups of {size:,}"] = [other]
    return [series]
