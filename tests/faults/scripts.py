"""Changed copies of the scripts in `lua/`, and their use in place of the originals."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from redisagg.protocol import scripts

_LUA = Path(__file__).parents[2] / "lua"

Changes = Mapping[str, tuple[str, str]]
"""Texts to replace and their replacements, by file name: `includes/fence`, `claim`."""


def changed_copy(folder: Path, changes: Changes) -> Path:
    """Copies `lua/` into `folder`, applies the changes and returns the copy's path."""
    copy = folder / "lua"
    shutil.copytree(_LUA, copy)
    for name, (old, new) in changes.items():
        path = copy / f"{name}.lua"
        text = path.read_text("utf-8")
        assert text.count(old) == 1, f"lua/{name}.lua has changed: {old!r} is not there once"
        path.write_text(text.replace(old, new), "utf-8")
    return copy


def use(folder: Path) -> None:
    """Makes this process load the scripts from `folder`."""
    scripts._folder = lambda: folder  # type: ignore[assignment]
    scripts.load.cache_clear()


@contextlib.contextmanager
def using(folder: Path) -> Iterator[None]:
    """Makes this process load the scripts from `folder` within the `with` block."""
    before = scripts._folder
    use(folder)
    try:
        yield
    finally:
        scripts._folder = before
        scripts.load.cache_clear()
