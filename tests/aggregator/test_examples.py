"""The examples run and print the results that they describe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_search_index_gets_all_items(redis_url: str) -> None:
    assert _run("search_index.py", redis_url) == "products: 10 items\n"
