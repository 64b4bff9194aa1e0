"""The scripts from another folder than `lua/`: a copy with something taken out of it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from redisagg.protocol import scripts

_LUA = Path(__file__).parents[2] / "lua"

Changes = Mapping[str, tuple[str, str]]
"""Texts to put in place of others, by file name: `includes/fence`, `claim`."""


def changed_copy(folder: Path, changes: Changes) -> Path:
    """Copies `lua/` into `folder` with some texts replaced; returns where it is."""
    copy = folder / "lua"
    shutil.copytree(_LUA, copy)
    for name, (old, new) in changes.items():
        path = copy / f"{name}.lua"
        text = path.read_text("utf-8")
        assert text.count(old) == 1, f"lua/{name}.lua has changed: {old!r} is not there once"
        path.write_text(text.replace(old, new), "utf-8")
    return copy


def use(folder: Path) -> None:
    """Has this process load the scripts from `folder` from now on."""
    scripts._folder = lambda: folder  # type: ignore[assignment]
    scripts.load.cache_clear()


@contextlib.contextmanager
def using(folder: Path) -> Iterator[None]:
    """The same, as long as the `with` block lasts."""
    before = scripts._folder
    use(folder)
    try:
        yield
    finally:
        scripts._folder = before
        scripts.load.cache_clear()
