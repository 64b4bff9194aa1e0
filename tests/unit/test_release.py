"""The changelog has its form, the version one source, and `scripts/release.py` makes a release."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import redisagg
from tests.support.markdown import CHECKOUT, read

SCRIPT = CHECKOUT / "scripts" / "release.py"

RELEASE: dict[str, Any] = runpy.run_path(str(SCRIPT))


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    command = ["git", *settings, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with the files that a release changes."""
    folder = tmp_path / "project"
    (folder / "redisagg").mkdir(parents=True)
    for name in ("CITATION.cff", "redisagg/__init__.py"):
        shutil.copy(CHECKOUT / name, folder / name)
    changes = "### Added\n\n- One thing.\n\n### Fixed\n\n- # another, with a hash\n"
    text = f"# Changelog\n\n## [Unreleased]\n\n{changes}\n## [0.0.1] - 2026-01-01\n\n- First.\n"
    (folder / "CHANGELOG.md").write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "config", "user.name", "A")
    git(folder, "config", "user.email", "a@example.org")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "begin")
    return folder


def make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--no-build", "--root", str(project), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_changelog_has_the_form_that_a_release_needs() -> None:
    unreleased, *released = RELEASE["entries"](read("CHANGELOG.md"))
    assert unreleased.text
    assert [entry.version for entry in released] == sorted(
        (entry.version for entry in released), key=RELEASE["_order"], reverse=True
    )


def test_the_version_has_one_source() -> None:
    assert version("redisagg") == redisagg.__version__
    assert 'dynamic = ["version"]' in read("pyproject.toml")
    assert re.findall(r"^version: (.+)$", read("CITATION.cff"), re.M) == [redisagg.__version__]


def test_each_package_of_an_extra_is_named_once() -> None:
    """Or a comment says why it is not."""
    _, _, rest = read("pyproject.toml").partition("[project.optional-dependencies]\n")
    extras, _, _ = rest.partition("\n[")
    named = re.findall(r'"([A-Za-z][\w.-]*)(?:\[[\w,]*\])?[^"]*"(?!.*#)', extras)
    packages = [name for name in named if name != "redisagg"]
    assert len(packages) > 20
    again = {name for name in packages if packages.count(name) > 1}
    assert again <= {"celery"}  # for the examples, without its extra that limits redis-py


def test_a_dry_run_shows_the_release_and_changes_nothing(project: Path) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*.*") if ".git" not in path.parts}
    done = make(project, "7.8.9", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert '+__version__ = "7.8.9"' in done.stdout
    assert re.search(r"^\+## \[7\.8\.9\] - \d{4}-\d\d-\d\d$", done.stdout, re.M)
    assert "+version: 7.8.9" in done.stdout
    assert done.stdout.endswith("- # another, with a hash\n")
    after = {path: path.read_bytes() for path in project.rglob("*.*") if ".git" not in path.parts}
    assert after == before
    assert git(project, "tag") == ""


def test_a_release_is_a_commit_and_a_tag_with_the_changes(project: Path) -> None:
    done = make(project, "7.8.9")
    assert done.returncode == 0, done.stderr
    assert git(project, "log", "-1", "--format=%s") == "release: 7.8.9\n"
    assert git(project, "status", "--porcelain") == ""
    message = git(project, "tag", "-l", "--format=%(contents)", "v7.8.9")
    assert message.startswith("redisagg 7.8.9\n\n### Added\n\n- One thing.")
    assert "- # another, with a hash" in message
    text = (project / "CHANGELOG.md").read_text()
    assert "## [Unreleased]\n\n## [7.8.9] - " in text
    again = make(project, "7.9.0")
    assert again.returncode == 1
    assert "no changes" in again.stderr


@pytest.mark.parametrize(
    ("wanted", "says"),
    [("0.0.1", "not newer"), ("0.0.0", "not newer"), ("1.0", "three numbers")],
)
def test_a_version_that_is_not_newer_is_refused(project: Path, wanted: str, says: str) -> None:
    done = make(project, wanted, "--dry-run")
    assert done.returncode == 1
    assert says in done.stderr


def test_a_release_needs_a_clean_checkout(project: Path) -> None:
    (project / "CITATION.cff").write_text("")
    assert "not committed" in make(project, "7.8.9").stderr


@pytest.mark.parametrize("line", ["### Improved\n", "## [1.0.0]\n", "## Unreleased\n"])
def test_another_form_of_the_changelog_is_refused(line: str) -> None:
    text = "# Changelog\n\n## [Unreleased]\n\n- One.\n"
    text = text.replace("## [Unreleased]\n", line) if "Unrel" in line else text + line
    with pytest.raises(RELEASE["ReleaseError"]):
        RELEASE["entries"](text)
