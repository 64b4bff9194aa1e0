"""The examples run and print the results that they describe."""

from __future__ import annotations

import contextlib
import os
import runpy
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from redisagg import Task

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


def test_search_index_gets_all_items(redis_url: str) -> None:
    assert _run("search_index.py", redis_url) == "products: 10 items\n"


def test_order_status_reports_the_last_status_of_each_order(redis_url: str) -> None:
    reported = _run("order_status.py", redis_url)
    assert reported == "ups:eu {'A3': 'packed', 'A1': 'sent', 'A2': 'sent'}\n"


@pytest.mark.parametrize("path", sorted(_EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) < 60
