"""A queue in which groups take turns."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Items of several groups. Each group gives one item before one gives its next.

    The items of a group come out in their order. Without this, a batch of a quiet group would wait
    for all batches of a busy group that were claimed before it.
    """

    def __init__(self) -> None:
        self._of_group: dict[bytes, list[T]] = {}
        """In lists, since most groups have one item: a deque takes 600 bytes."""
        self._order: deque[bytes] = deque()
        """The groups that have items, in the order of their turns."""

    def __bool__(self) -> bool:
        return bool(self._order)

    def put(self, group: bytes, item: T) -> None:
        """Adds an item; a group that had none is the last to have its turn."""
        items = self._of_group.get(group)
        if items is None:
            self._of_group[group] = [item]
            self._order.append(group)
        else:
            items.append(item)

    def pop(self) -> T:
        """Takes the next item out; the group goes behind all others.

        Raises:
            IndexError: there is none.
        """
        group = self._order.popleft()
        items = self._of_group[group]
        item = items.pop(0)
        if items:
            self._order.append(group)
        else:
            del self._of_group[group]
        return item
