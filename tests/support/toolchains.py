"""Programs in other languages: built when first needed, kept in the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.builds import build_once, cache_folder

_TIMEOUT = 300  # seconds; a first build compiles all dependencies

_NO_LOCKS = "--no-package-lock"  # it would record where packages came from


def build_go(source: Path, target: Path | None = None) -> Path:
    """Build the Go program in the folder `source`; return the executable.

    Skips the test if there is no Go, or if its modules can't be downloaded.

    Args:
        source: has the program and its go.mod.
        target: the folder for the executable, by default one in the user's cache.
    """
    go = _find("go")

    def build(folder: Path) -> None:
        _run_or_skip([go, "mod", "download"], source, "the Go modules can't be downloaded")
        # Two cores are shared with the servers and flushers of the tests.
        command = [go, "build", "-p", "2", "-o", f"{folder}/", "."]
        folder.mkdir()
        subprocess.run(command, cwd=source, check=True, timeout=_TIMEOUT)

    target = target or _cached(go, "version", source=source)
    [program] = build_once(target, build).iterdir()
    return program


def install_node(source: Path) -> Path:
    """Install what the Node program in the folder `source` needs; return a folder with both.

    Skips the test if there is no Node or npm, or if its packages can't be installed.
    """
    npm = _find("npm")
    node = _find("node")

    def build(folder: Path) -> None:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules"))
        _run_or_skip(
            [npm, "install", _NO_LOCKS, "--no-audit", "--no-fund", "--ignore-scripts"],
            folder,
            "the npm packages can't be installed",
        )

    return build_once(_cached(node, "--version", source=source), build)


def _cached(*version: str, source: Path) -> Path:
    """The folder for what the toolchain that prints `version` makes of `source`."""
    printed = subprocess.run(version, stdout=subprocess.PIPE, check=True, timeout=60).stdout
    files = sorted(path for path in source.iterdir() if path.is_file())
    contents = [(path.name, path.read_bytes()) for path in files]
    return cache_folder(source.name, printed, contents)


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
