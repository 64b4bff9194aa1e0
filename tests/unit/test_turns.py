"""Groups take turns, and the items of a group keep their order."""

from __future__ import annotations

import pytest

from redisagg.flusher.merging.turns import Turns


def test_each_group_gives_one_item_before_one_gives_its_next() -> None:
    turns: Turns[int] = Turns()
    for number in range(1, 5):
        turns.put(b"busy", number)
    turns.put(b"quiet", 5)
    assert turns
    assert [turns.pop() for _ in range(3)] == [1, 5, 2]
    turns.put(b"quiet", 6)  # has no item left, so it is the last to have its turn
    assert [turns.pop() for _ in range(3)] == [3, 6, 4]
    assert not turns
    with pytest.raises(IndexError):
        turns.pop()
