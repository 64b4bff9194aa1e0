"""What tests build once, and then share: virtual environments, programs in other languages."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def build_once(folder: Path, build: Callable[[Path], object]) -> Path:
    """Return `folder`, filled by `build` unless an earlier call did so.

    Safe against other processes that want the same folder at the same time: they wait.

    Args:
        folder: where the result belongs. A build that failed or was killed is begun anew.
        build: makes the folder, which does not exist yet, and fills it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    complete = folder.with_name(f"{folder.name}.complete")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder)
            complete.touch()
    return folder


def cache_folder(name: str, *inputs: object) -> Path:
    """Return a folder in the user's cache, for `build_once`; later runs find it again.

    Args:
        name: how the folder's name begins.
        inputs: everything that decides what the build results in.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]
    return Path(home) / "redisagg-tests" / f"{name}-{digest}"


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder of this run, which all workers of pytest-xdist share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
