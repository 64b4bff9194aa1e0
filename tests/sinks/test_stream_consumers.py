"""StreamSink and ListSink, and who reads them: redis-py, FastStream."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from tests.sinks.environment import CHECKOUT, environment
from tests.sinks.harness import GROUPS, System, Trial, verify_received_once
from tests.sinks.test_docs import REDIS, listings, try_out

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

FASTSTREAM = "faststream[redis,cli]>=0.6"

SYSTEMS = {
    "redis-py": System(
        extra="cli",
        sink="stream://digests?format=json",
        worker=("{python}", "-m", "tests.sinks.workers.stream_group", "{url}"),
    ),
    "faststream": System(
        extra="cli",
        sink="stream://digests?format=json",
        worker=("{python}", "-m", "faststream", "run", "tests.sinks.workers.faststream_app:app"),
        env={"REDISAGG_TEST_REDIS": "{url}"},
        also=(FASTSTREAM,),
    ),
}


@pytest.mark.parametrize(
    "system",
    [
        pytest.param(SYSTEMS["redis-py"], id="redis-py"),
        pytest.param(SYSTEMS["faststream"], id="faststream", marks=pytest.mark.slow),
    ],
)
def test_every_task_is_received_once(
    system: System, redis_url: str, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    entries = Trial(system, redis_url, tmp_path).run()
    verify_received_once(entries)
    groups = {f"group-{n}" for n in range(GROUPS)}
    for said in entries:
        entry = said["entry"]
        names = ["batch_id", "type", "group", "count", "payload", "headers", "reason"]
        assert list(entry) == names
        assert entry["reason"] == "size"
        assert (entry["type"], int(entry["count"])) == ("test:aggregated", 5)
        assert entry["group"] in groups
    assert sync_redis.xlen("digests") == len(entries)  # nor is any there that was not received
    pending: object = sync_redis.xpending("digests", "workers")
    assert isinstance(pending, dict)
    assert pending["pending"] == 0


TEXT = (CHECKOUT / "docs" / "sinks" / "stream-and-list.md").read_text()


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("consumer.py", ["consumer.py"]),
        ("app.py", ["-m", "faststream", "run", "app:app"]),
        ("worker.py", ["worker.py"]),
    ],
)
def test_the_examples_work(
    file: str, command: Sequence[str], redis_url: str, tmp_path: Path
) -> None:
    files = listings(TEXT.replace(REDIS, redis_url))
    assert set(files) == {"digests.py", "consumer.py", "app.py", "worker.py"}
    if file == "worker.py":
        files["digests.py"] = files["digests.py"].replace("StreamSink", "ListSink")
    if file == "app.py":
        assert "\n".join(["```sh", "faststream run app:app", "```"]) in TEXT
        python = environment("cli", FASTSTREAM)
    else:
        python = Path(sys.executable)
    try_out(files, [python, *command], python, tmp_path)
