"""What `pip install redisagg` brings without an extra, in a fresh environment."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from redisagg.protocol.scripts import load
from tests.sinks.environment import CHECKOUT, install, pip_for
from tests.support.builds import build_once, run_folder

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

DEPENDENCIES = {"redis", "msgpack", "tenacity"}

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
    folder = run_folder(tmp_path_factory) / "install"
    build_once(folder, lambda folder: install(folder, str(CHECKOUT)))
    return folder / "bin" / "python"


EXPANDED = {path.stem: load(path.stem).source for path in (CHECKOUT / "lua").glob("*.lua")}


def run(*command: str | Path) -> str:
    """What a command prints, run where the checkout can't be imported from."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def needs(
    installed: Mapping[Any, list[Requirement]], name: str, markers: dict[str, str]
) -> set[str]:
    """The packages that a package asks for in this environment, without its extras."""
    return {
        canonicalize_name(requirement.name)
        for requirement in installed[name]
        if requirement.marker is None or requirement.marker.evaluate({**markers, "extra": ""})
    }


def test_three_dependencies_and_what_they_need(python: Path) -> None:
    report: dict[str, Any] = json.loads(run(*pip_for(python), "inspect"))
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
    assert installed.keys() == expected


def test_sinks_name_the_extra_that_they_lack(python: Path) -> None:
    assert run(python, "-c", NAMES_EXTRAS) == ""


SCRIPTS = """
from redisagg.protocol import scripts

print(scripts._folder(), *(scripts.load(name).sha.decode() for name in ("add", "claim")))
"""
"""Prints where the scripts are, and the SHA-1 of two of them."""

SHAS = [load(name).sha.decode() for name in ("add", "claim")]


def test_a_wheel_has_the_expanded_scripts(python: Path) -> None:
    folder, *shas = run(python, "-c", SCRIPTS).split()
    assert Path(folder).is_relative_to(python.parents[1])
    assert {path.stem: path.read_bytes() for path in Path(folder).rglob("*.lua")} == EXPANDED
    assert shas == SHAS


PAGES = """
from pathlib import Path
import redisagg
for path in (Path(redisagg.__file__).parent / "dashboard").rglob("*"):
    if path.parent.name in ("templates", "static"):
        print(path.parent.name + "/" + path.name)
"""


def test_a_wheel_has_the_files_of_the_dashboard(python: Path) -> None:
    folder = CHECKOUT / "redisagg" / "dashboard"
    expected = {
        f"{name}/{path.name}"
        for name in ("templates", "static")
        for path in (folder / name).iterdir()
    }
    assert {"templates/base.html", "static/htmx.min.js", "static/htmx.LICENSE.txt"} <= expected
    assert set(run(python, "-c", PAGES).split()) == expected


@pytest.mark.slow  # pip takes its time
def test_a_wheel_that_is_built_from_the_sdist_has_them_too(python: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("build") is None:
        pytest.skip("the package build is not installed")
    command: list[str | Path] = [sys.executable, "-m", "build", "--outdir", tmp_path, CHECKOUT]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {
            Path(name).stem: archive.read(name)
            for name in archive.namelist()
            if name.endswith(".lua")
        }
    assert found == EXPANDED


@pytest.mark.slow
def test_an_editable_install_has_the_scripts_of_the_clone(tmp_path: Path) -> None:
    python = install(tmp_path / "venv", "-e", str(CHECKOUT))
    folder, *shas = run(python, "-c", SCRIPTS).split()
    assert Path(folder) == CHECKOUT / "lua"
    assert shas == SHAS
    assert not list((tmp_path / "venv").rglob("redisagg/lua"))
