"""Embeddings: batches within the tokens and the inputs that one call of a model may have.

The weight of a task is its number of tokens. A batch is the longest run of texts within all limits;
a text above the limit goes alone.
"""

from __future__ import annotations

import os

from redisagg import AggregationConfig, Aggregator, BatchInfo, Task
from redisagg.sinks import StreamSink


def tokens(text: str) -> int:
    """Number of tokens of a text; a real program asks the tokenizer of the model."""
    return len(text.split())


def embed(texts: list[str]) -> list[list[float]]:
    """Stands for the call of the model, which refuses more than 8,000 tokens or 100 inputs."""
    return [[float(tokens(text))] for text in texts]


def embed_batch(model: str, tasks: list[Task], info: BatchInfo) -> Task:
    """Merge function: one call of the model."""
    vectors = embed([task.payload["text"] for task in tasks])
    found = {task.payload["document"]: vector for task, vector in zip(tasks, vectors, strict=True)}
    return Task("vectors", {"vectors": found, "tokens": info.weight, "reason": info.reason})


def main() -> None:
    """Embeds 12 texts of 1,000 to 3,500 tokens, and prints the calls."""
    aggregator = Aggregator(
        "embeddings",
        os.environ.get("REDISAGG_URL", "redis://localhost:6379/0"),
        config=AggregationConfig(
            group_grace_period=1,
            group_max_delay=5,
            group_max_size=100,
            group_max_weight=8000,
            group_aggregator=embed_batch,
        ),
        sink=StreamSink("vectors", format="json"),
    )
    with aggregator:
        for number in range(12):
            text = "word " * (1000 + number % 6 * 500)
            payload = {"document": f"d{number}", "text": text}
            aggregator.add_task(Task("embed", payload, "small", weight=tokens(text)))
        aggregator.flush_all()  # so that the example ends at once
        aggregator.wait_until_idle(timeout=10)
        for batch in aggregator.read_sink().batches:
            print(batch.payload["tokens"], "tokens of", *batch.payload["vectors"])


if __name__ == "__main__":
    main()
