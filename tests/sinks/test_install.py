"""What `pip install redisagg` brings without an extra, in a fresh environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.sinks.environment import CHECKOUT, install

pytestmark = pytest.mark.timeout(300)

DEPENDENCIES = {"redis", "msgpack", "tenacity"}

TOOLS = {"pip", "setuptools"}  # which venv itself puts there

NAMES_EXTRAS = """
from redisagg.errors import SinkError
from redisagg.sinks import sink_from_url

for scheme in ("celery", "rq", "arq", "dramatiq", "taskiq", "saq", "huey", "streaq"):
    try:
        sink_from_url(f"{scheme}://q?{'broker' if scheme == 'celery' else 'redis'}=redis://localhost")
    except SinkError as error:
        assert f"pip install 'redisagg[{scheme}]'" in str(error), error
    else:
        raise AssertionError(f"{scheme} is installed")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with redisagg alone, not editable."""
    return install(tmp_path_factory.mktemp("install") / "venv", str(CHECKOUT))


def run(python: Path, *arguments: str) -> str:
    """What a command prints, run where the checkout can't be imported from."""
    done = subprocess.run(
        [python, *arguments], cwd=python.parent, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def needs(installed: dict[str, list[Requirement]], name: str, markers: dict[str, str]) -> set[str]:
    """The packages that a package asks for in this environment, without its extras."""
    return {
        canonicalize_name(requirement.name)
        for requirement in installed[name]
        if requirement.marker is None or requirement.marker.evaluate({**markers, "extra": ""})
    }


def test_three_dependencies_and_what_they_need(python: Path) -> None:
    report: dict[str, Any] = json.loads(run(python, "-m", "pip", "inspect"))
    installed = {
        canonicalize_name(package["metadata"]["name"]): [
            Requirement(text) for text in package["metadata"].get("requires_dist", [])
        ]
        for package in report["installed"]
    }
    assert needs(installed, "redisagg", report["environment"]) == DEPENDENCIES
    expected, found = {"redisagg"}, set[str]()
    while expected != found:
        found = expected
        expected = found.union(*(needs(installed, name, report["environment"]) for name in found))
    assert installed.keys() - TOOLS == expected


def test_sinks_name_the_extra_that_they_lack(python: Path) -> None:
    run(python, "-c", NAMES_EXTRAS)
