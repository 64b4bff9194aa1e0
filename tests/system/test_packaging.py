"""What is built: the wheel has all that its users need, and the sdist makes the same wheel."""

from __future__ import annotations

import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import build_once, run_folder
from tests.support.markdown import CHECKOUT

pytestmark = [pytest.mark.slow, pytest.mark.registry, pytest.mark.timeout(300)]

RELEASE: dict[str, Any] = runpy.run_path(str(CHECKOUT / "scripts" / "release.py"))


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel, as a release builds and checks them."""

    def build(folder: Path) -> None:
        copy = folder / "copy"
        subprocess.run(["git", "clone", "-q", "--depth", "1", CHECKOUT.as_uri(), copy], check=True)
        RELEASE["build"](copy)

    return build_once(run_folder(tmp_path_factory) / "built", build) / "copy" / "dist"


def wheel(folder: Path) -> set[str]:
    [path] = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_has_types_scripts_and_the_licence(dist: Path) -> None:
    names = wheel(dist)
    assert "redisagg/py.typed" in names
    scripts = {f"redisagg/lua/{path.name}" for path in (CHECKOUT / "lua").glob("*.lua")}
    assert scripts <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"redisagg"}


def test_the_sdist_makes_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    [path] = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        assert any(name.endswith("/tests/unit/test_release.py") for name in archive.getnames())
    command = [sys.executable, "-P", "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*command, str(path)], check=True)
    assert wheel(tmp_path) == wheel(dist)
