"""Single keys from a terminal, without waiting for Enter."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_termios: ModuleType | None
_tty: ModuleType | None
try:
    import termios as _termios
    import tty as _tty
except ImportError:  # not on Windows
    _termios = _tty = None

_NAMES = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1bOA": "up", b"\x1bOB": "down", b"k": "up"}
_NAMES |= {b"j": "down", b"q": "quit", b"\x1b": "quit", b"\x03": "quit"}

_LONGEST = 8  # bytes of a key


class Keyboard:
    """Reads keys; none, where there is no terminal.

    Args:
        descriptor: of the terminal; None if there is none.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def wait(self, seconds: float) -> str | None:
        """Waits for a key.

        Returns:
            ``"up"``, ``"down"``, ``"quit"`` or ``"other"``; None if no key came in time.
        """
        if self._descriptor is None:
            time.sleep(seconds)
            return None
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return None
        raw = os.read(self._descriptor, _LONGEST)
        return _NAMES.get(raw, "other") if raw else "quit"


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Hands out single keys within the block, and restores the terminal behind it."""
    if _termios is None or _tty is None or not sys.stdin.isatty():
        yield Keyboard(None)
        return
    descriptor = sys.stdin.fileno()
    before = _termios.tcgetattr(descriptor)
    try:
        _tty.setcbreak(descriptor)
        yield Keyboard(descriptor)
    finally:
        _termios.tcsetattr(descriptor, _termios.TCSADRAIN, before)
