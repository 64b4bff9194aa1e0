"""Fixtures that run the command line, in this process or in a new one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from click.testing import CliRunner, Result

from redisagg.cli.app import cli

Run: TypeAlias = Callable[..., Result]


@pytest.fixture
def run(redis_url: str) -> Run:
    """Runs the command in this process against an empty server."""

    def run(*arguments: str, **options: Any) -> Result:
        return CliRunner(env={"REDISAGG_URL": redis_url}).invoke(cli, arguments, **options)

    return run


Spawn: TypeAlias = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn(redis_url: str) -> Any:
    """Starts the command as a process; kills the remaining ones at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def spawn(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "redisagg", *arguments]
        env = {**os.environ, "REDISAGG_URL": redis_url}
        process = subprocess.Popen(line, env=env, **options)
        started.append(process)
        return process

    yield spawn
    for process in started:
        process.kill()
        process.wait()
