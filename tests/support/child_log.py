"""What a child process writes to its standard error, to be read while it goes on writing."""

from __future__ import annotations

import tempfile
from pathlib import Path


class ChildLog:
    """A file that goes away when it is closed; `file` is for `subprocess`."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`

    def read(self) -> str:
        """All that was written so far."""
        # Opened anew: the child shares the place in ours, and would go on writing where we read.
        return Path(f"/proc/self/fd/{self.file.fileno()}").read_text()

    def close(self) -> None:
        """Ends it; what was written is gone."""
        self.file.close()
