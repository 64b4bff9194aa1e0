"""Expands the Lua scripts: puts the texts of their includes in.

A line ``-- @include NAME`` stands for ``includes/NAME.lua``, which may have such lines itself.

``python redisagg/protocol/includes.py FOLDER`` writes the expanded scripts of a clone into a
folder, for clients in other languages. This module uses the standard library only: the build of a
wheel runs it without redisagg's dependencies.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

_INCLUDE = re.compile(r"^-- @include (\w+)\n", re.MULTILINE)


def expand(name: str, read: Callable[[str], str]) -> str:
    """Puts the includes of a script in, each once, behind those that it includes itself.

    Args:
        name: The script, such as ``claim``.
        read: Returns the text of a file by its name without suffix: ``claim``, ``includes/clock``.

    Returns:
        The text of the script without include lines.

    Raises:
        ValueError: An include includes itself, directly or through others.
    """
    done: set[str] = set()

    def text_of(path: str, including: tuple[str, ...]) -> str:
        if path in including:
            raise ValueError(f"a cycle of includes: {' -> '.join([*including, path])}")
        if path in done:
            return ""
        including = (*including, path)
        text = _INCLUDE.sub(lambda match: text_of(f"includes/{match[1]}", including), read(path))
        done.add(path)
        return f"{text.strip()}\n\n"

    # An include line that expands to nothing leaves empty lines.
    return re.sub(r"\n{3,}", "\n\n", text_of(name, ())).rstrip() + "\n"


def expand_file(folder: Path, name: str) -> str:
    """Expands the script ``NAME.lua`` of a folder.

    Raises:
        FileNotFoundError: The script or one of its includes does not exist.
        ValueError: An include includes itself, directly or through others.
    """
    return expand(name, lambda path: (folder / f"{path}.lua").read_text("utf-8"))


def expand_folder(source: Path, target: Path) -> list[Path]:
    """Writes the expanded scripts of `source` into `target`, which is created if it is missing.

    Returns:
        The written files.
    """
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for script in sorted(source.glob("*.lua")):
        path = target / script.name
        path.write_text(expand_file(source, script.stem), "utf-8")
        written.append(path)
    return written


def _main() -> None:
    parser = argparse.ArgumentParser(description="Writes the expanded Lua scripts of this clone.")
    parser.add_argument("folder", type=Path, help="where to write them; created if missing")
    folder = parser.parse_args().folder
    print(f"{len(expand_folder(Path(__file__).parents[2] / 'lua', folder))} scripts in {folder}")


if __name__ == "__main__":
    _main()
