"""The examples run and print the results that they describe."""

from __future__ import annotations

import contextlib
import os
import runpy
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from redisagg import Aggregator, Task
from redisagg.errors import RedisUnavailable
from tests.support.tasks import await_batches, enqueued

_EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(name: str, url: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(_EXAMPLES / name), *arguments],
        env={**os.environ, "REDISAGG_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_digest_prints_a_message_for_each_user(redis_url: str) -> None:
    lines = _run("digest.py", redis_url).splitlines()
    assert sorted(lines) == [
        "{'user': 'user:0', 'texts': ['message 0', 'message 2', 'message 4']}",
        "{'user': 'user:1', 'texts': ['message 1', 'message 5']}",
    ]


def test_the_shop_flushes_both_of_its_aggregators(redis_url: str) -> None:
    *mails, search = _run("shop.py", redis_url).splitlines()
    assert sorted(mails) == [
        "{'to': '42', 'texts': ['message 0', 'message 2']}",
        "{'to': '43', 'texts': ['message 1', 'message 3']}",
    ]
    assert search == "{'index': 'products', 'ids': [0, 1, 2]}"


def test_calls_of_a_batched_function_share_calls_of_the_model(redis_url: str) -> None:
    assert _run("embed.py", redis_url).splitlines() == [
        "5 texts in one call",
        "[[3.0], [8.0], [13.0], [18.0], [23.0]]",
        "1 texts in one call",
        "ValueError: no text",
    ]


def test_bulk_insert_writes_all_rows(redis_url: str, tmp_path: Path) -> None:
    assert _run("bulk_insert.py", redis_url, str(tmp_path / "visits.db")) == "1000 rows\n"


def test_bulk_insert_raises_for_a_row_that_the_database_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "visits.db"
    monkeypatch.setattr(sys, "argv", ["bulk_insert.py", str(path)])
    example = runpy.run_path(str(_EXAMPLES / "bulk_insert.py"))
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(example["_TABLE"])
    good = Task("visit", {"page": "/"}, "visits")
    for _ in range(2):  # a merge can run twice
        example["insert"]("visits", [good])
    with pytest.raises(sqlite3.IntegrityError):
        example["insert"]("visits", [good, Task("visit", {"page": None}, "visits")])
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT id FROM visits").fetchall() == [(good.id,)]


def test_the_outbox_moves_each_task_once(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "orders.db"
    assert _run("outbox.py", redis_url, str(path)) == "10 moved, 10 wait\n"
    example = runpy.run_path(str(_EXAMPLES / "outbox.py"))
    config = replace(example["CONFIG"], group_max_size=4, partitions=16)
    agg = Aggregator("orders", redis_url, config=config)
    with contextlib.closing(sqlite3.connect(path)) as database:
        for n in range(4):
            example["order"](database, n)
        rows = database.execute("SELECT * FROM outbox").fetchall()
        example["move"](database, agg)
        with agg:
            agg.flush_all()
            agg.wait_until_idle(10)
        with database:  # as if the loop had died before it deleted them
            database.executemany("INSERT INTO outbox VALUES (?, ?, ?)", rows)
        example["move"](database, agg)
        assert database.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
        stats = agg.stats()
        assert (stats.flushed, stats.pending) == (14, 0)
        monkeypatch.setattr(agg, "add_tasks", _unavailable)
        example["order"](database, 1)
        with pytest.raises(RedisUnavailable):
            example["move"](database, agg)
        assert database.execute("SELECT count(*) FROM outbox").fetchone() == (1,)
        with pytest.raises(sqlite3.IntegrityError):
            example["order"](database, None)
        assert database.execute("SELECT count(*) FROM outbox").fetchone() == (1,)


def _unavailable(tasks: list[Task]) -> None:
    raise RedisUnavailable("away")


def test_search_index_gets_all_items(redis_url: str) -> None:
    assert _run("search_index.py", redis_url) == "products: 10 items\n"


def test_order_status_reports_the_last_status_of_each_order(redis_url: str) -> None:
    reported = _run("order_status.py", redis_url)
    assert reported == "ups:eu {'A3': 'packed', 'A1': 'sent', 'A2': 'sent'}\n"


def test_the_first_alert_is_sent_at_once(redis_url: str) -> None:
    assert _run("first_at_once.py", redis_url).splitlines() == [
        "3 wait",
        "disk is full",
        "3 more alerts, first: writes fail",
    ]


def test_quiet_hours_are_those_of_the_night(redis_url: str) -> None:
    assert _run("quiet_hours.py", redis_url).splitlines() == [
        "27 March: 8 hours",
        "28 March: 7 hours",
        "24 October: 9 hours",
        "1 batch",
    ]


@pytest.mark.parametrize(
    ("evening", "hours"),
    [
        (datetime(2026, 3, 28, 22, tzinfo=timezone.utc), 7),  # 23:00; the clocks go forward
        (datetime(2026, 10, 24, 21, tzinfo=timezone.utc), 9),  # 23:00; the clocks go back
    ],
)
def test_quiet_hours_end_at_seven_after_clocks_have_changed(
    redis_url: str,
    redis_at: Callable[[datetime], Any],
    monkeypatch: pytest.MonkeyPatch,
    evening: datetime,
    hours: int,
) -> None:
    monkeypatch.setenv("REDISAGG_URL", redis_url)
    example = runpy.run_path(str(_EXAMPLES / "quiet_hours.py"))
    aggregator, message = example["aggregator"], example["message"]
    morning = evening + timedelta(hours=hours)
    with redis_at(evening):
        for _ in range(30):  # more than the maximum of a batch: full
            aggregator.add_task(message("ann", "hello", evening, "Europe/Berlin"))
        [group] = aggregator.get_entries().values()
        assert group.due_at == morning.timestamp()
    with redis_at(morning - timedelta(seconds=0.5)), aggregator:
        await_batches(aggregator, 1)
    assert enqueued(aggregator)[0].count == 20
    aggregator.close()


def test_embeddings_have_at_most_8000_tokens_in_a_call(redis_url: str) -> None:
    lines = _run("embeddings.py", redis_url).splitlines()
    calls = sorted(lines, key=lambda line: int(line.split(" d")[1]))
    assert calls == [
        "7000 tokens of d0 d1 d2 d3",
        "7500 tokens of d4 d5 d6",
        "6000 tokens of d7 d8 d9",
        "6500 tokens of d10 d11",
    ]


def test_bulk_requests_have_at_most_10_mb(redis_url: str) -> None:
    lines = _run("bulk_request.py", redis_url).splitlines()
    found = [line.split() for line in lines]
    assert sum(int(documents) for documents, *_ in found) == 300
    assert sorted(int(documents) for documents, *_ in found) == [3, 99, 99, 99]
    assert all(int(size) <= 10_000_000 for _, _, size, _ in found)


@pytest.mark.parametrize("path", sorted(_EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) < 60
