"""Builds and runs the Go program in ``asynq/``. Asynq is left out where Go is missing."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit


@cache
def program() -> Path | None:
    """Builds the program into a temporary folder; None where it cannot be built."""
    if shutil.which("go") is None:
        print("Asynq is left out: Go is not installed")
        return None
    binary = Path(tempfile.mkdtemp(prefix="redisagg-bench-"), "asynq")
    source = Path(__file__).parent / "asynq"
    built = subprocess.run(
        ["go", "build", "-o", binary, "."], cwd=source, capture_output=True, text=True
    )
    if built.returncode != 0:
        print(f"Asynq is left out: its program cannot be built: {built.stderr[-300:]}")
        return None
    return binary


def command(url: str, mode: str, **flags: object) -> list[str] | None:
    """The command line of a run; None where the program cannot be built."""
    binary = program()
    if binary is None:
        return None
    address = urlsplit(url).netloc
    return [str(binary), mode, "-redis", address, *_flags(flags)]


def _flags(flags: dict[str, object]) -> list[str]:
    return [part for name, value in flags.items() for part in (f"-{name}", str(value))]


def run(url: str, mode: str, *, timeout: float = 120, **flags: object) -> list[float] | None:
    """The numbers that a run prints; None if it failed or the program cannot be built.

    Args:
        timeout: seconds after which the run is stopped.
    """
    line = command(url, mode, **flags)
    if line is None:
        return None
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=True)
    except subprocess.SubprocessError as error:
        print(f"Asynq: {mode} failed: {error}")
        return None
    return [float(number) for number in done.stdout.split()]
