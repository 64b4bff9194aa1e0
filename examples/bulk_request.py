"""Bulk requests of at most 10 MB, as Elasticsearch and its relatives take them.

A payload is the two lines of a document as they are sent. A task counts with its packed size, which
is larger than its payload, so the body of a request is never larger than `group_max_bytes`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from redisagg import AggregationConfig, Aggregator, Task

_MOST_BYTES = 10_000_000


def lines(index: str, document_id: str, document: dict[str, Any]) -> bytes:
    """The lines that index a document. The id makes a repeated request harmless."""
    action = {"index": {"_index": index, "_id": document_id}}
    return b"".join(json.dumps(line).encode() + b"\n" for line in (action, document))


def post(body: bytes) -> None:
    """Stands for `POST /_bulk`, which must raise for a status other than 200."""
    if len(body) > _MOST_BYTES:
        raise ValueError(f"413: {len(body)} bytes")
    print(body.count(b"\n") // 2, "documents,", len(body), "bytes")


def index_documents(cluster: str, tasks: list[Task]) -> None:
    """Merge function that does the work itself: one request. It can run twice."""
    post(b"".join(task.payload for task in tasks))


def main() -> None:
    """Indexes 300 documents of 100,000 bytes."""
    aggregator = Aggregator(
        "bulk",
        os.environ.get("REDISAGG_URL", "redis://localhost:6379/0"),
        config=AggregationConfig(
            group_max_bytes=_MOST_BYTES,
            group_max_size=10_000,
            concurrency=2,  # requests at the same time
            group_aggregator=index_documents,
        ),
    )
    with aggregator:
        for number in range(300):
            body = lines("pages", f"p{number}", {"text": "x" * 100_000})
            aggregator.add_task(Task("index", body, "cluster-1"))
        aggregator.flush_all()  # so that the example ends at once
        aggregator.wait_until_idle(timeout=30)


if __name__ == "__main__":
    main()
