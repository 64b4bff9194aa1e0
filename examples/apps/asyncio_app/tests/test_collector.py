"""pytest asyncio_app, in the folder of the applications."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from asyncio_app import collector
from redisagg.testing import Clock, EmbeddedRedis, Flushed, Kit


@pytest.fixture(autouse=True)
def batching(redisagg_kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the aggregators and the database be of this test."""
    redisagg_kit.clock.freeze()
    redisagg_kit.redirect(collector.app)
    monkeypatch.setattr(collector, "DATABASE", str(tmp_path / "sensors.db"))


def means() -> list[tuple[str, float, int]]:
    """What was written."""
    if not Path(collector.DATABASE).exists():
        return []
    with closing(sqlite3.connect(collector.DATABASE)) as database:
        return database.execute("SELECT sensor, mean, count FROM means ORDER BY 1").fetchall()


async def test_measurements_of_a_minute_are_one_mean(
    clock: Clock, aflush_due: Callable[[], Awaitable[Flushed]]
) -> None:
    assert [await collector.take(line) for line in ("t 1", "t 3.5", "h 40")] == ["ok"] * 3
    clock.advance(seconds=59)
    await aflush_due()
    assert means() == []
    clock.advance(seconds=1)
    await aflush_due()
    assert means() == [("h", 40.0, 1), ("t", 2.25, 2)]


@pytest.mark.parametrize("line", ["", "t", "t x", "t 1 2", f"{'t' * 600} 1"])
async def test_a_wrong_line_is_refused(line: str) -> None:
    assert await collector.take(line) == "wrong"


async def test_a_sender_is_told_that_redis_is_away(
    redisagg_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redisagg_server.stop()
    assert await asyncio.wait_for(collector.take("t 1"), 20) == "later"
