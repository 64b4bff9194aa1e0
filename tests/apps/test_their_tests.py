"""The tests of each application in examples/apps pass: they are written as its authors would."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.apps.test_started import APPS
from tests.support.pytest_runs import run_pytest

NAMES = sorted(path.name for path in APPS.glob("*_app"))


@pytest.mark.parametrize("name", NAMES)
def test_the_tests_of_an_application_pass(name: str, tmp_path: Path) -> None:
    done = run_pytest(*("-q", "-p", "no:xdist", "--basetemp", tmp_path / "tests", name), cwd=APPS)
    assert done.returncode == 0, done.stdout


def test_there_are_five() -> None:
    assert len(NAMES) == 5
