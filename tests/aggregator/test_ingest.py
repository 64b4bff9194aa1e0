"""The command `ingest`: lines of a file become tasks, and batches in the queue."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from redisagg import Aggregator
from tests.support.cli import Run, Spawn
from tests.support.servers import wait_until
from tests.support.tasks import enqueued

_LOG = Path(
    os.environ.get("REDISAGG_ACCESS_LOG")
    or Path(__file__).parents[3] / "shared" / "data" / "access.log.gz"
)
_REGEX = r'^(?P<client>\S+) .* "(?P<request>[^"]*)" (?P<status>\d+)'


def _waiting(url: str, name: str = "default") -> dict[str, int]:
    return {key: state.size for key, state in Aggregator(name, url).get_groups().items()}


def test_json_lines_become_tasks(run: Run, redis_url: str) -> None:
    lines = '{"user":{"id":1},"n":1}\n\n{"user":{"id":1},"n":2}\n{"user":{"id":"x"},"n":3}\n'
    result = run("ingest", "--group-by", "user.id", "--type", "mail", "--json", input=lines)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"added": 3, "rejected": 0}
    entries = Aggregator("default", redis_url).get_groups(tasks=True)
    assert {key: state.size for key, state in entries.items()} == {"1": 2, "x": 1}
    first = (entries["1"].tasks or [])[0].task
    assert first is not None
    assert (first.type, first.payload) == ("mail", {"user": {"id": 1}, "n": 1})


def test_several_fields_make_a_tuple(run: Run, redis_url: str) -> None:
    run("ingest", "--group-by", "a", "--group-by", "b", input='{"a":"x:y","b":1}\n')
    assert _waiting(redis_url) == {r"x\:y:1": 1}


def test_lines_that_are_none_are_reported_and_stop_nothing(run: Run, redis_url: str) -> None:
    huge = json.dumps({"a": "big", "x": "y" * (1024 * 1024)})
    lines = [
        '{"a":"good"}',
        "no json",
        '{"b":1}',
        "[1]",
        '{"a":null}',
        '{"a":""}',
        '{"a":{"b":1}}',
        "[" * 100_000,
        huge,
        '{"a":"\x1b[31m[red]"}',
        '{"a":"good"}',
    ]
    raw = "\n".join(lines).encode() + b'\n{"a":"\xff"}\n'
    result = run("ingest", "--group-by", "a", input=raw)
    assert result.exit_code == 3
    assert _waiting(redis_url) == {"good": 2}
    for number in (2, 3, 4, 5, 6, 7, 8, 9, 10, 12):
        assert f"line {number}: " in result.stderr
    assert "2 tasks added, 10 lines rejected" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("how", ["file", "gzip", "stdin", "gzip on stdin"])
def test_it_reads_files_and_standard_input(
    how: str, run: Run, redis_url: str, tmp_path: Path
) -> None:
    raw = b'1.2.3.4 - - "GET / HTTP/1.1" 200\nbroken\xff\n1.2.3.4 - - "GET /\xff" 404\n'
    if "gzip" in how:
        raw = gzip.compress(raw)
    path = tmp_path / "log"
    path.write_bytes(raw)
    options = ["--regex", _REGEX, "--group-by", "client"]
    result = (
        run("ingest", *options, input=raw) if "stdin" in how else run("ingest", str(path), *options)
    )
    assert result.exit_code == 3
    assert "line 2: " in result.stderr
    assert _waiting(redis_url) == {"1.2.3.4": 2}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--regex", "(", "--group-by", "a"], "can't be compiled"),
        (["--regex", "(?P<b>.)", "--group-by", "a"], "no group named 'a'"),
        ([], "--group-by"),
        (["--group-by", "a", "--grace", "nan"], "group_grace_period"),
        (["--group-by", "a", "--max-size", "0"], "group_max_size"),
        (["--group-by", "a", "--redis", "http://x"], "scheme"),
    ],
)
def test_bad_options_are_named(run: Run, options: list[str], what: str) -> None:
    result = run("ingest", *options, input="")
    assert result.exit_code in {1, 2}
    assert what in result.stderr
    assert "Traceback" not in result.stderr


def test_a_truncated_file_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(os.urandom(10_000))[:5_000])
    result = run("ingest", str(path), "--regex", "(?P<a>.)", "--group-by", "a")
    assert result.exit_code == 1
    assert "can't be read to its end" in result.stderr


@pytest.mark.skipif(not _LOG.exists(), reason=f"the access log is not here: {_LOG.name}")
def test_a_real_log_through_two_workers(run: Run, spawn: Spawn, redis_url: str) -> None:
    with gzip.open(_LOG) as log:
        in_file = Counter(line.split(b" ")[0].decode() for line in log)
    assert sum(in_file.values()) == 10_000
    workers = [
        spawn("worker", "default", "--sink", "stream://out", stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    limits = ("--grace", "0.5", "--max-size", "7")
    result = run("ingest", str(_LOG), "--regex", _REGEX, "--group-by", "client", *limits)
    assert result.exit_code == 0, result.stderr
    aggregator = Aggregator("default", redis_url, sink="stream://out")
    wait_until(lambda: aggregator.stats().flushed == 10_000, timeout=30, what="all are flushed")
    batches = enqueued(aggregator)
    in_batches: Counter[str] = Counter()
    for batch in batches:
        in_batches[batch.group] += batch.count
        clients = {payload["client"] for payload in batch.payload["payloads"]}
        assert clients == {batch.group}
        assert len(batch.payload["payloads"]) == batch.count <= 7
    assert in_batches == in_file
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    assert [worker.wait(10) for worker in workers] == [0, 0]
