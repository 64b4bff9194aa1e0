"""Virtual environments for the systems that sinks deliver to.

Most share one environment. ARQ and SAQ, which ask for older versions of redis-py, share another.
What no other test should find installed has its own. Each is built when first needed, holds
redisagg from this checkout with its extras, and is kept in the user's cache for the next run, until
what redisagg requires changes.
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

_SHARED = [
    (
        "bullmq,celery,cli,django,dramatiq,huey,rq,streaq,taskiq,webhook",
        "cloudevents>=1.11,<2",
        "django-rq",
        "faststream[redis,cli]>=0.6",
        "standardwebhooks>=1.0",
    ),
    ("arq,cli,saq",),
]
"""The extras and further requirements of each shared environment: one installation takes pip a
quarter of the time of one for each system."""

_OUT_OF_REACH = re.compile(
    r"Retrying \(Retry|NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError"
    r"|Max retries exceeded|from versions: none"
)
"""What pip says when it can't get at its registry."""


def environment(extra: str, *also: str) -> Path:
    """The Python of an environment with ``redisagg[EXTRA]`` and the requirements in `also`.

    Args:
        extra: one or more extras, with commas in between.
        *also: further requirements.

    Skips the test where pip's registry is out of reach.

    Raises:
        AssertionError: pip failed for another reason; holds what it said.
    """
    for shared, *further in _SHARED:
        if set(shared.split(",")).issuperset(extra.split(",")) and set(further).issuperset(also):
            extra, also = shared, tuple(further)
            break
    requirements = ["-e", f"{CHECKOUT}[{extra}]", *also]
    declared = importlib.metadata.requires("redisagg")
    folder = cache_folder(extra.replace(",", "+")[:40], sys.version, requirements, declared)
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
        # Each module is compiled when it is first imported: most never are.
        [*pip_for(python), "install", "-q", "--no-compile", *requirements],
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
