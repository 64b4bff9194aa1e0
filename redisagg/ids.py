"""Task ids: ULIDs, 26 characters that sort by time (https://github.com/ulid/spec).

Within a process the ids of one millisecond count up, as the specification's monotonic mode does,
so a producer's ids sort in the order in which it made them.
"""

from __future__ import annotations

import os
import time
from itertools import count

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_TEN_BITS = 1 << 10


def _encode(number: int, pairs: int) -> str:
    """`number` in base 32, in `pairs` times two characters."""
    digits = []
    for _ in range(pairs):
        number, low = divmod(number, _TEN_BITS)
        digits.append(_PAIRS[low])
    return "".join(reversed(digits))


class _Millisecond:
    """The ids of one millisecond: a random head, and a counter that starts at random."""

    __slots__ = ("_counter", "_head", "_time")

    def __init__(self, time_ms: int) -> None:
        self._time = time_ms
        random = int.from_bytes(os.urandom(10), "big")
        self._head = _encode(time_ms, 5) + _encode(random >> 30, 5)
        # 29 random bits of 30: half a billion ids fit into the rest of the millisecond.
        self._counter = count(random & 0x1FFFFFFF)

    def matches(self, time_ms: int) -> bool:
        return time_ms <= self._time  # a clock that steps back goes on counting up

    def next(self) -> str:
        number = next(self._counter)  # atomic: CPython's count is one C call
        return (
            self._head + _PAIRS[number >> 20] + _PAIRS[number >> 10 & 1023] + _PAIRS[number & 1023]
        )


_current = _Millisecond(0)


def new_id() -> str:
    """A new task id: 26 characters of Crockford's base 32, time first. Safe in threads."""
    global _current
    now = time.time_ns() // 1_000_000
    current = _current
    if not current.matches(now):
        _current = current = _Millisecond(now)
    return current.next()


def _forget() -> None:
    global _current
    _current = _Millisecond(0)


os.register_at_fork(after_in_child=_forget)  # a child must not go on with its parent's counter
