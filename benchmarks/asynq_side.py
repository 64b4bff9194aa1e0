"""The Asynq side: builds its small Go program and runs it. Left out where Go is missing."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit


@cache
def program() -> Path | None:
    """The program, built into a temporary folder; None where it can't be built."""
    if shutil.which("go") is None:
        print("no Go here: Asynq is left out")
        return None
    binary = Path(tempfile.mkdtemp(prefix="redisagg-bench-"), "asynq")
    source = Path(__file__).parent / "asynq"
    built = subprocess.run(
        ["go", "build", "-o", binary, "."], cwd=source, capture_output=True, text=True
    )
    if built.returncode != 0:
        print(f"Asynq is left out, its program can't be built: {built.stderr[-300:]}")
        return None
    return binary


def command(url: str, mode: str, **flags: object) -> list[str] | None:
    """The command line of a run, or None."""
    binary = program()
    if binary is None:
        return None
    address = urlsplit(url).netloc
    return [str(binary), mode, "-redis", address, *_flags(flags)]


def _flags(flags: dict[str, object]) -> list[str]:
    return [part for name, value in flags.items() for part in (f"-{name}", str(value))]


def run(url: str, mode: str, *, timeout: float = 120, **flags: object) -> list[float] | None:
    """The numbers that a run prints, or None where there are none."""
    line = command(url, mode, **flags)
    if line is None:
        return None
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=True)
    except subprocess.SubprocessError as error:
        print(f"Asynq's {mode} gave no result: {error}")
        return None
    return [float(number) for number in done.stdout.split()]
