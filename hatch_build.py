"""Puts the expanded Lua scripts into the wheel, as redisagg/lua/*.lua.

An editable install takes the scripts from `lua/` of the clone.
"""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ExpandScripts(BuildHookInterface):  # type: ignore[type-arg]
    """The build hook of the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Expands the scripts into a temporary folder and adds them to the wheel."""
        if version == "editable":
            return
        root = Path(self.root)
        # By its path: redisagg's dependencies, which importing it needs, are missing in a build.
        includes = runpy.run_path(str(root / "redisagg" / "protocol" / "includes.py"))
        self._folder = tempfile.TemporaryDirectory()
        for path in includes["expand_folder"](root / "lua", Path(self._folder.name)):
            build_data["force_include"][str(path)] = f"redisagg/lua/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes the temporary folder."""
        if version != "editable":
            self._folder.cleanup()
