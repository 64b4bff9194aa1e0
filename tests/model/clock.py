"""The scripts with a clock that the test sets and lower limits, from `lua/` or a changed copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis

from redisagg.protocol.includes import expand
from redisagg.protocol.scripts import Request, Script
from tests.model.model import LONGEST_PAUSE_MS, SLICE_TASKS, TURN

LUA = Path(__file__).parents[2] / "lua"
CLOCK_KEY = b"model:clock"

# The text in place of includes/clock.lua.
_CLOCK = f"local function clock() return tonumber(redis.call('GET', '{CLOCK_KEY.decode()}')) end\n"

# Limits that a test's few tasks exceed.
_SMALLER = {
    "includes/slice": ("SLICE_TASKS = 1000", f"SLICE_TASKS = {SLICE_TASKS}"),
    "read_tasks": ("MOST_READ = 250", f"MOST_READ = {SLICE_TASKS}"),
    "claim": ("TURN = 8", f"TURN = {TURN}"),
    "requeue": ("LONGEST_PAUSE_MS = 10000", f"LONGEST_PAUSE_MS = {LONGEST_PAUSE_MS}"),
}


class Scripts:
    """All scripts of a folder, called by name.

    Args:
        client: A client of the server that replies with bytes.
        changes: Texts to replace and their replacements, by file name (`includes/fence`, `claim`),
            to test scripts that are wrong.
        folder: The folder of the scripts.
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
        self.now = 0
        """The clock that was set last."""

    def call(self, name: str, keys: Sequence[bytes], *args: Any) -> Any:
        """Runs a script.

        Raises:
            redis.ResponseError: The script replied with an error.
        """
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = Script.of(name, expand(name, self._read).encode())
            self.client.execute_command("SCRIPT LOAD", script.source)
        return self.client.execute_command(*Request(script, keys, args).command())

    def set_clock(self, now: int) -> None:
        """Sets the clock of the scripts to `now`, ms."""
        self.now = now
        self.client.set(CLOCK_KEY, now)

    def _read(self, name: str) -> str:
        if name == "includes/clock":
            return _CLOCK
        text = (self._folder / f"{name}.lua").read_text("utf-8")
        for old, new in filter(None, (_SMALLER.get(name), self._changes.get(name))):
            if text.count(old) != 1:  # no AssertionError, which the tests of the model expect
                raise LookupError(f"lua/{name}.lua has changed: {old!r} is not there once")
            text = text.replace(old, new)
        return text
