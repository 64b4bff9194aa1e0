"""Programs in other languages: built once a run, outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_TIMEOUT = 300  # seconds; a first build compiles all dependencies

_NO_LOCKS = "--no-package-lock"  # it would record where packages came from


def build_go(source: Path, target: Path) -> Path:
    """Builds the Go program in the folder `source` as `target`.

    Skips the test if there is no Go, or if its modules are neither here nor to be had.
    """
    go = _find("go")
    _run_or_skip([go, "mod", "download"], source, "the Go modules can't be downloaded")
    # Two cores are shared with the servers and flushers of the tests.
    subprocess.run(
        [go, "build", "-p", "2", "-o", str(target), "."], cwd=source, check=True, timeout=_TIMEOUT
    )
    return target


def install_node(source: Path, target: Path) -> Path:
    """Copies the Node program in the folder `source` to `target` and installs what it needs.

    Skips the test if there is no Node or npm, or if its packages are not to be had.
    """
    npm = _find("npm")
    _find("node")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("node_modules"))
    _run_or_skip(
        [npm, "install", _NO_LOCKS, "--no-audit", "--no-fund", "--ignore-scripts"],
        target,
        "the npm packages can't be installed",
    )
    return target


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"there is no {program} on this machine")
    return found


def _run_or_skip(arguments: list[str], folder: Path, why: str) -> None:
    try:
        result = subprocess.run(
            arguments, cwd=folder, timeout=_TIMEOUT, capture_output=True, text=True, env=os.environ
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{why}: no end after {_TIMEOUT} s")
    if result.returncode:
        pytest.skip(f"{why}: {result.stderr.strip()[-300:]}")
