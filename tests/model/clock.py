"""The scripts on a clock that the test sets, from `lua/` or from a changed copy of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any

import redis

from redisagg.protocol.scripts import Request, Script

LUA = Path(__file__).parents[2] / "lua"
CLOCK_KEY = b"model:clock"

# One clock for all scripts, of which the test is the hand.
_CLOCK = f"local function clock() return tonumber(redis.call('GET', '{CLOCK_KEY.decode()}')) end\n"
_INCLUDE = re.compile(r"^-- @include (\w+)$", re.MULTILINE)


class Scripts:
    """All scripts of a folder, called by name.

    Args:
        client: of the server; answers in bytes.
        changes: texts to put in place of others, by file name (`includes/fence`, `claim`): to try
            what a test makes of scripts that are wrong.
    """

    def __init__(
        self,
        client: redis.Redis,
        changes: Mapping[str, tuple[str, str]] | None = None,
        folder: Path = LUA,
    ) -> None:
        self.client = client
        self._folder = folder
        self._changes = changes or {}
        self._scripts: dict[str, Script] = {}

    def call(self, name: str, keys: Sequence[bytes], *args: Any) -> Any:
        """Runs a script.

        Raises:
            redis.ResponseError: its reply is an error.
        """
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self._build(name)
            self.client.execute_command("SCRIPT LOAD", script.source)
        return self.client.execute_command(*Request(script, keys, args).command())

    def set_clock(self, now: int) -> None:
        self.client.set(CLOCK_KEY, now)

    def _build(self, name: str) -> Script:
        def include(match: re.Match[str]) -> str:
            return _CLOCK if match[1] == "clock" else self._text(f"includes/{match[1]}")

        source = _INCLUDE.sub(include, self._text(name)).encode()
        return Script(name, source, sha1(source, usedforsecurity=False).hexdigest().encode())

    def _text(self, name: str) -> str:
        text = (self._folder / f"{name}.lua").read_text("utf-8")
        if name in self._changes:
            old, new = self._changes[name]
            if text.count(old) != 1:  # no AssertionError, which is what the model raises
                raise LookupError(f"lua/{name}.lua has changed: {old!r} is not there once")
            text = text.replace(old, new)
        return text
