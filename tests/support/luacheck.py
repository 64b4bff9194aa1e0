"""luacheck over the expanded scripts: python -m tests.support.luacheck

Includes are text, so luacheck needs the expanded scripts. Most scripts use only some names of an
include: a warning about an unused name in an include counts if it is unused in all scripts that
have the include. Warnings are printed with their place in `lua/`. The exit status is 1 if there are
any.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from redisagg.protocol.includes import put_includes

ROOT = Path(__file__).parents[2]
LUA = ROOT / "lua"

_TAG = " --@ "
_INCLUDE = "-- @include "
_LINE = re.compile(r".*?(\w+)\.lua:(\d+):\d+: (\([WE](\d)\d+\) .*)")


class Warning(NamedTuple):
    """A warning of luacheck, at its place in `lua/`."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"lua/{self.path}.lua:{self.line}: {self.text}"


def luacheck(folder: Path = LUA) -> list[Warning]:
    """Runs luacheck over the scripts of a folder.

    Raises:
        FileNotFoundError: Luacheck is not installed.
        RuntimeError: Luacheck itself failed; holds its output.
    """
    scripts = sorted(path.stem for path in folder.glob("*.lua"))
    origins: dict[str, list[tuple[str, int]]] = {}
    with tempfile.TemporaryDirectory() as expanded:
        for script in scripts:
            lines, origins[script] = _expand(folder, script)
            Path(expanded, f"{script}.lua").write_text("\n".join(lines) + "\n", "utf-8")
        output = _run(expanded)
    users = defaultdict(set)  # the scripts that have a file's text
    for script, places in origins.items():
        for path, _ in places:
            users[path].add(script)
    found = defaultdict(set)  # the scripts that get a warning
    unused = set()
    for line in output.splitlines():
        if match := _LINE.fullmatch(line):
            script, number, text, kind = match.groups()
            warning = Warning(*origins[script][int(number) - 1], text)
            found[warning].add(script)
            if kind in "23":  # unused names and values
                unused.add(warning)
    return sorted(
        warning
        for warning, script_names in found.items()
        if warning not in unused or script_names == users[warning.path]
    )


def _expand(folder: Path, script: str) -> tuple[list[str], list[tuple[str, int]]]:
    """The lines of an expanded script, and for each its file and number in `lua/`."""

    def read(path: str) -> str:
        lines = (folder / f"{path}.lua").read_text("utf-8").splitlines()
        return "".join(
            f"{line}\n" if line.startswith(_INCLUDE) else f"{line}{_TAG}{path} {number}\n"
            for number, line in enumerate(lines, 1)
        )

    lines, origins = [], []
    for tagged in put_includes(script, read).splitlines():
        line, _, tag = tagged.partition(_TAG)
        path, _, number = tag.partition(" ")
        lines.append(line)
        origins.append((path or script, int(number or 0)))
    return lines, origins


def _run(folder: str) -> str:
    if shutil.which("luacheck") is None:
        raise FileNotFoundError("luacheck is not installed (Debian's package lua-check)")
    command: list[str | Path] = [
        "luacheck",
        "--config",
        ROOT / ".luacheckrc",
        "--formatter",
        "plain",
        "--codes",
    ]
    done = subprocess.run([*command, "."], cwd=folder, capture_output=True, text=True)
    if done.returncode > 1:  # not even an error in a script
        raise RuntimeError(f"luacheck failed: {done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    """Prints the warnings; returns the exit status."""
    warnings = luacheck()
    print(*warnings, sep="\n", end="\n" if warnings else "")
    print(f"luacheck: {len(warnings)} warnings in lua/")
    return int(bool(warnings))


if __name__ == "__main__":
    sys.exit(main())
