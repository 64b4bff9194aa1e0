"""The fixtures of `redisagg.testing.plugin`, in runs of pytest of their own."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

APP = """
from redisagg import App, Task

app = App("redis://nowhere.invalid:1/0")


@app.aggregator("digests", group_grace_period=3600, retry_delay=60)
def digest(group, tasks):
    return Task("digest", [task.payload for task in tasks], group)
"""

CONFTEST = """
import pytest
from redisagg import AggregationConfig
from shop import app as shop_app


@pytest.fixture(autouse=True)
def redirected(redisagg_kit):
    redisagg_kit.redirect(shop_app)


@pytest.fixture
def redisagg_config():
    return AggregationConfig(group_grace_period=7200, group_max_delay=None)
"""

TESTS = """
import pytest
from redisagg import Task
from redisagg.testing import assert_batched
from shop import digest


@pytest.mark.parametrize("number", range(8))
def test_digests(clock, flush_due, drain, recording_sink, number):
    digest.add(number, group_key="ann")
    clock.advance(hours=1)
    assert_batched(flush_due(), {"ann": [[number]]})
    digest.add(0, group_key="ann")
    assert_batched(drain(), {"ann": [[0]]})
    assert recording_sink.payloads == [[number], [0]]


def test_fixtures(aggregator, app, clock, flush_due):
    aggregator.add_task(Task("x", 1, "ann"))

    @app.aggregator("more")
    def more(group, tasks):
        return Task("more", len(tasks), group)

    more.add(1, group_key="ben")
    clock.advance(hours=1)
    assert flush_due() == []
    clock.advance(hours=1)
    assert {each.group for each in flush_due()} == {"ann", "ben"}


def test_a_server_of_its_own(redisagg_server, worker_id):
    with open("servers", "a") as servers:
        print(worker_id, redisagg_server.port, file=servers)
"""


def test_the_fixtures_in_parallel(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(shop=APP, conftest=CONFTEST, test_shop=TESTS)
    pytester.makeini(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    found = entry_points(group="pytest11", name="redisagg")
    by_hand = () if found else ("-p", "redisagg.testing.plugin")
    pytester.syspathinsert()
    result = pytester.runpytest_subprocess(*by_hand, "-n", "2")
    result.assert_outcomes(passed=10)


def test_the_entry_point() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    if not pyproject.exists():
        pytest.skip("no checkout")
    assert re.search(
        r'\[project\.entry-points\.pytest11\]\nredisagg = "redisagg\.testing\.plugin"',
        pyproject.read_text("utf-8"),
    )
