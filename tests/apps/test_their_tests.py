"""The tests of each application in examples/apps pass: they are written as its authors would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.apps.test_started import APPS

NAMES = sorted(path.name for path in APPS.glob("*_app"))


@pytest.mark.parametrize("name", NAMES)
def test_the_tests_of_an_application_pass(name: str, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
        *("--basetemp", str(tmp_path / "tests"), name),
    ]
    done = subprocess.run(command, cwd=APPS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_five() -> None:
    assert len(NAMES) == 5
