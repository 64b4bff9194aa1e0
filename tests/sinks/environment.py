"""Virtual environments for the systems that sinks deliver to.

Their libraries ask for different versions of redis-py, so no one environment can hold them all.
Each is built when first needed, holds redisagg from this checkout with one extra, and is kept in
the user's cache for the next run, until pyproject.toml changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

_OUT_OF_REACH = re.compile(
    r"Retrying \(Retry|NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError"
    r"|Max retries exceeded|from versions: none"
)
"""What pip says when it can't get at its registry."""


def environment(extra: str, *also: str) -> Path:
    """The Python of an environment with ``redisagg[EXTRA]`` and the requirements in `also`.

    Skips the test where pip's registry is out of reach.

    Raises:
        AssertionError: pip failed for another reason; holds what it said.
    """
    requirements = ["-e", f"{CHECKOUT}[{extra}]", *also]
    settings = (CHECKOUT / "pyproject.toml").read_bytes()
    key = hashlib.sha256(repr((sys.version, requirements, settings)).encode()).hexdigest()[:12]
    folder = _cache() / f"{extra}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be building the same one
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            install(folder, *requirements)
            (folder / "complete").touch()
    return folder / "bin" / "python"


def install(folder: Path, *requirements: str) -> Path:
    """Makes an environment in `folder`, lets pip install into it and returns its Python.

    Skips the test where pip's registry is out of reach.

    Raises:
        AssertionError: pip failed for another reason; holds what it said.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = subprocess.run(
        [python, "-m", "pip", "install", "-q", *requirements],
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if pip.returncode and _OUT_OF_REACH.search(pip.stdout):
        pytest.skip(f"pip's registry is out of reach, so there is no {' '.join(requirements)}")
    assert pip.returncode == 0, pip.stdout
    return python


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "redisagg-tests"
