"""The fixtures of `redisagg.testing.plugin`, in runs of pytest of their own."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.support.pytest_runs import run_pytest

SHOP = Path(__file__).parents[1] / "support" / "shop"
"""The code of a user with a hundred tests."""


@pytest.mark.slow
def test_a_hundred_tests_of_a_user_in_parallel(tmp_path: Path) -> None:
    """They take about five seconds on an idle machine."""
    ini = tmp_path / "pytest.ini"
    ini.write_text(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    found = entry_points(group="pytest11", name="redisagg")
    by_hand = () if found else ("-p", "redisagg.testing.plugin")
    done = run_pytest(*("-c", ini, f"--confcutdir={SHOP}", *by_hand, "-n", "2"), SHOP / "suite.py")
    assert "102 passed" in done.stdout, done.stdout


def test_the_entry_point() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    if not pyproject.exists():
        pytest.skip("no checkout")
    assert re.search(
        r'\[project\.entry-points\.pytest11\]\nredisagg = "redisagg\.testing\.plugin"',
        pyproject.read_text("utf-8"),
    )
