"""What the leaders of a flusher share: memory for batches, and the permit to try a suspect.

Both are pure state of one event loop.
"""

from __future__ import annotations

from collections.abc import Callable

# Bytes of tasks that the leaders of a flusher hold together, about.
_FLUSHER_BYTES = 64 * 1024 * 1024

# Bytes of tasks that each leader may hold in any case, so that no partition stands still because
# others have large batches.
_LEADER_BYTES = 2 * 1024 * 1024


class MemoryBudget:
    """The bytes of the tasks of all batches that a flusher has in flight.

    A leader may claim while it holds less than its own share, or while all of them together hold
    less than the whole. The claim itself may bring a few megabytes more.

    Args:
        on_free: called when leaders that had to wait may claim again.
    """

    def __init__(self, on_free: Callable[[], None]) -> None:
        self._on_free = on_free
        self.used = 0
        """The bytes of the batches in flight; raised by the leader that has claimed a batch."""

    def left(self, own: int) -> int:
        """How many bytes a leader may claim that holds `own` bytes; 0 or less: none."""
        return max(_LEADER_BYTES - own, _FLUSHER_BYTES - self.used)

    def give_back(self, size: int) -> None:
        """Batches of so many bytes have left."""
        used = self.used
        self.used = used - size
        if used >= _FLUSHER_BYTES > used - size:
            self._on_free()


class Isolation:
    """The permit to have a suspect in flight; there is one for all leaders of a flusher.

    When a flusher dies again while it has a suspect, no other suspect is blamed.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: set[Callable[[], None]] = set()

    def take(self, on_free: Callable[[], None]) -> bool:
        """Takes the permit if it is free; else `on_free` is called once when it is."""
        if self._taken:
            self._waiting.add(on_free)
            return False
        self._taken = True
        return True

    def give_back(self) -> None:
        """Gives the permit back."""
        self._taken = False
        waiting, self._waiting = self._waiting, set()
        for on_free in waiting:
            on_free()
