"""Task ids: ULIDs, 26 characters that sort by time (https://github.com/ulid/spec).

Within a process the ids of one millisecond count up, as in the specification's monotonic mode, so
the ids of a process sort in the order in which it made them.
"""

from __future__ import annotations

import os
import time
from itertools import count

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_TEN_BITS = 1 << 10


def _encode(number: int, pairs: int) -> str:
    """Writes a number in base 32, as `pairs` pairs of characters."""
    digits = []
    for _ in range(pairs):
        number, low = divmod(number, _TEN_BITS)
        digits.append(_PAIRS[low])
    return "".join(reversed(digits))


class _Millisecond:
    """The ids of one millisecond: a random head, and a counter that starts at random."""

    __slots__ = ("_counter", "_head", "end_ns")

    def __init__(self, time_ms: int) -> None:
        self.end_ns = (time_ms + 1) * 1_000_000
        """The time at which the next one begins."""
        random = int.from_bytes(os.urandom(10), "big")
        self._head = _encode(time_ms, 5) + _encode(random >> 30, 5)
        # The counter has 30 bits and starts at one of 29: at least half a billion ids are left.
        self._counter = count(random & 0x1FFFFFFF)

    def next(self) -> str:
        number = next(self._counter)  # atomic, since CPython's `count` is one C call
        return (
            self._head + _PAIRS[number >> 20] + _PAIRS[number >> 10 & 1023] + _PAIRS[number & 1023]
        )


_current = _Millisecond(0)


def new_id() -> str:
    """Returns a new task id: 26 characters of Crockford's base 32, time first. Thread-safe."""
    global _current
    now = time.time_ns()
    current = _current
    if now >= current.end_ns:  # else the clock may have stepped back: ids still count up
        _current = current = _Millisecond(now // 1_000_000)
    return current.next()


def _reset_after_fork() -> None:
    global _current
    _current = _Millisecond(0)


# A child that continued its parent's counter would make the same ids.
os.register_at_fork(after_in_child=_reset_after_fork)
