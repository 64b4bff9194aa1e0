"""The Lua scripts: read from `lua/`, includes put in, called by their SHA-1.

A line ``-- @include NAME`` stands for the text of ``lua/includes/NAME.lua``. The scripts lie in
the package in a wheel, and beside it in a clone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any, NamedTuple

_INCLUDE = re.compile(r"^-- @include (\w+)$", re.MULTILINE)


class Script(NamedTuple):
    """A script as Redis gets it."""

    name: str
    source: bytes
    sha: bytes


class Request(NamedTuple):
    """One command for Redis: a script with its keys and arguments, or a plain command."""

    script: Script | None
    keys: Sequence[bytes]
    args: Sequence[Any]

    def command(self) -> tuple[Any, ...]:
        """The command that calls the script by its SHA-1, or the plain command."""
        if self.script is None:
            return tuple(self.args)
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)

    def command_with_source(self) -> tuple[Any, ...]:
        """The command for a server that does not know the script; it will from then on."""
        if self.script is None:
            return tuple(self.args)
        return ("EVAL", self.script.source, len(self.keys), *self.keys, *self.args)


def call(name: str, keys: Sequence[bytes], *args: Any) -> Request:
    """The request that runs the script `name`."""
    return Request(load(name), keys, args)


def command(*args: Any) -> Request:
    """The request for a plain command; for reading only, scripts do all the writing."""
    return Request(None, (), args)


@cache
def load(name: str) -> Script:
    """The script `name` with its includes put in.

    Raises:
        FileNotFoundError: there is no such script, or it includes what is not there.
    """
    folder = _folder()

    def include(match: re.Match[str]) -> str:
        return (folder / "includes" / f"{match[1]}.lua").read_text("utf-8")

    text = _INCLUDE.sub(include, (folder / f"{name}.lua").read_text("utf-8"))
    source = text.encode()
    return Script(name, source, sha1(source, usedforsecurity=False).hexdigest().encode())


def find(sha: bytes) -> Script | None:
    """The script with this SHA-1, or None if it is none of ours."""
    scripts = (load(path.stem) for path in _folder().glob("*.lua"))
    return next((script for script in scripts if script.sha == sha), None)


@cache
def _folder() -> Path:
    package = Path(__file__).parents[1]
    packaged = package / "lua"
    return packaged if packaged.is_dir() else package.parent / "lua"
