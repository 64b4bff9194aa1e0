"""Raises an exception at any one step of a call, as a signal handler may."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import redisagg

_PACKAGE = str(Path(redisagg.__file__).parent)


class Interruption(BaseException):
    """What is raised; such as KeyboardInterrupt, which pytest would take for its own."""


def interrupted_at(step: int, call: Callable[[], object], *, opcodes: bool) -> str | None:
    """Makes a call, in which an `Interruption` is raised at one step of the package's code.

    Args:
        step: number of the step, from 0.
        call: what is called; other exceptions of it are raised.
        opcodes: whether steps are single instructions of the interpreter; else they are lines, and
            the begins and ends of functions.

    Returns:
        Where the interruption was raised, or None if the call had fewer steps.
    """
    seen, where = 0, None

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal seen, where
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        frame.f_trace_opcodes = opcodes
        if event == "exception" or where is not None:
            return trace
        seen += 1
        if seen > step:
            where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {event}"
            raise Interruption
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interruption:
        pass
    finally:
        sys.settrace(before)
    return where
