"""Virtual environments for the systems that sinks deliver to.

Their libraries ask for different versions of redis-py, so no one environment can hold them all.
Each is built when first needed, holds redisagg from this checkout with one extra, and is kept in
the user's cache for the next run, until what redisagg requires changes.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.builds import build_once, cache_folder

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
    declared = importlib.metadata.requires("redisagg")
    folder = cache_folder(extra, sys.version, requirements, declared)
    build_once(folder, lambda folder: install(folder, *requirements))
    return folder / "bin" / "python"


def install(folder: Path, *requirements: str) -> Path:
    """Make an environment in `folder`, let pip install into it, return its Python.

    Skips the test where pip's registry is out of reach.

    Raises:
        AssertionError: pip failed for another reason; holds what it said.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = subprocess.run(
        [*pip_for(python), "install", "-q", *requirements],
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if pip.returncode and _OUT_OF_REACH.search(pip.stdout):
        pytest.skip(f"pip's registry is out of reach, so there is no {' '.join(requirements)}")
    assert pip.returncode == 0, pip.stdout
    return python


def pip_for(python: Path) -> list[str | Path]:
    """Return the command line of this environment's pip for that of `python`, which has none."""
    return [sys.executable, "-m", "pip", "--python", python]
