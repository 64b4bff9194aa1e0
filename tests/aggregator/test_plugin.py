"""The fixtures of `redisagg.testing.plugin`, in runs of pytest of their own."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import pytest

SHOP = Path(__file__).parents[1] / "support" / "shop"
"""The code of a user with a hundred tests."""

MORE = """
import pytest
from redisagg import AggregationConfig, Task


@pytest.fixture
def redisagg_config():
    return AggregationConfig(group_grace_period=7200, group_max_delay=None)


def test_fixtures(aggregator, app, clock, flush_due, recording_sink):
    aggregator.add_task(Task("x", 1, "ann"))

    @app.aggregator("more")
    def more(group, tasks):
        return Task("more", len(tasks), group)

    more.add(1, group_key="ben")
    clock.advance(hours=1)
    assert flush_due() == []
    clock.advance(hours=1)
    assert {each.group for each in flush_due()} == {"ann", "ben"}
    assert len(recording_sink.batches) == 2
"""


def test_a_hundred_tests_of_a_user_in_parallel(pytester: pytest.Pytester) -> None:
    for path in SHOP.glob("*.py"):
        shutil.copy(path, pytester.path)
    pytester.makepyfile(test_more=MORE)
    pytester.makeini(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    found = entry_points(group="pytest11", name="redisagg")
    by_hand = () if found else ("-p", "redisagg.testing.plugin")
    pytester.syspathinsert()
    result = pytester.runpytest_subprocess(*by_hand, "-n", "2")
    result.assert_outcomes(passed=101)


def test_the_entry_point() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    if not pyproject.exists():
        pytest.skip("no checkout")
    assert re.search(
        r'\[project\.entry-points\.pytest11\]\nredisagg = "redisagg\.testing\.plugin"',
        pyproject.read_text("utf-8"),
    )
