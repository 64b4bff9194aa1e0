"""The Lua scripts, and the requests that call them by their SHA-1.

A wheel has the expanded scripts in ``redisagg/lua``. In a clone they are in ``lua``, beside the
package, and are expanded when they are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from redisagg.protocol.includes import expand_file
from redisagg.protocol.keys import Layout

if TYPE_CHECKING:
    from redisagg.protocol.policies import KnownPolicies


class Script(NamedTuple):
    """An expanded script."""

    name: str
    source: bytes
    sha: bytes
    """The SHA-1 of the source in hexadecimal digits."""

    @classmethod
    def of(cls, name: str, source: bytes) -> Script:
        """Makes a script of its source."""
        return cls(name, source, sha1(source, usedforsecurity=False).hexdigest().encode())


class Request(NamedTuple):
    """One command for Redis: a script with its keys and arguments, or a plain command."""

    script: Script | None
    keys: Sequence[bytes]
    args: Sequence[Any]
    registers: Layout | None = None
    """The namespace to register if the script replies ``UNREGISTERED``; its state is `keys[0]`."""
    policed: Policed | None = None
    """What applies policies to it; None if none apply."""

    def command(self) -> tuple[Any, ...]:
        """The command that calls the script by its SHA-1, or the plain command."""
        if self.script is None:
            return tuple(self.args)
        return (b"EVALSHA", self.script.sha, b"%d" % len(self.keys), *self.keys, *self.args)

    def command_with_source(self) -> tuple[Any, ...]:
        """The command for a server that does not know the script yet; it loads the script."""
        if self.script is None:
            return tuple(self.args)
        return (b"EVAL", self.script.source, b"%d" % len(self.keys), *self.keys, *self.args)


class Policed(Protocol):
    """What a request is made of, if policies of the namespace apply to it."""

    @property
    def policies(self) -> KnownPolicies:
        """What its producer knows of the policies."""
        ...

    def under_policies(self, request: Request) -> Request:
        """Returns the request with the limits that the policies give."""
        ...


def call(name: str, keys: Sequence[bytes], *args: Any, registers: Layout | None = None) -> Request:
    """The request that runs the script `name`."""
    return Request(load(name), keys, args, registers)


def command(*args: Any) -> Request:
    """The request for a plain command that only reads: all writing is done by scripts."""
    return Request(None, (), args)


@cache
def load(name: str) -> Script:
    """Loads the script `name`, and expands it unless its folder has expanded scripts.

    Raises:
        FileNotFoundError: The script or one of its includes does not exist.
        ValueError: An include includes itself, directly or through others.
    """
    folder = _folder()
    if not (folder / "includes").is_dir():
        return Script.of(name, (folder / f"{name}.lua").read_bytes())
    return Script.of(name, expand_file(folder, name).encode())


def find(sha: bytes) -> Script | None:
    """Finds the script with a SHA-1, given in hexadecimal digits; None if there is none."""
    scripts = (load(path.stem) for path in _folder().glob("*.lua"))
    return next((script for script in scripts if script.sha == sha), None)


@cache
def _folder() -> Path:
    """The folder of the scripts: in the package in a wheel, beside it in a clone."""
    package = Path(__file__).parents[1]
    packaged = package / "lua"
    return packaged if packaged.is_dir() else package.parent / "lua"
