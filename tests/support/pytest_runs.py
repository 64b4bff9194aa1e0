"""Runs of pytest of their own, started by a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_OF_THE_OUTER_RUN = ("PYTEST_", "COV_CORE_")
"""What its options and its plugins leave in the environment: they are not those of the inner run.

With `PYTEST_ADDOPTS=--cov`, as in `.ci/run`, its output would have a table of our modules.
"""


def run_pytest(
    *arguments: str | Path,
    cwd: Path | None = None,
    python: Path | str = sys.executable,
    environment: Mapping[str, str | None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """What it said, stderr within stdout.

    Args:
        arguments: of pytest's command line.
        cwd: the folder it starts in.
        python: of the environment that has what it needs.
        environment: variables it gets beside ours; those that are None are left out.
    """
    variables: dict[str, str | None] = {**os.environ, **(environment or {})}
    return subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=cwd,
        env={
            name: value
            for name, value in variables.items()
            if value is not None and not name.startswith(_OF_THE_OUTER_RUN)
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
