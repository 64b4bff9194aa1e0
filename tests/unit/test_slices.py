"""How much of a batch one call carries."""

from __future__ import annotations

import pytest

from redisagg.flusher.batch import Claim, Enqueue, MergeOutcome
from redisagg.flusher.leader.requests import Parts
from redisagg.flusher.leader.slices import fits_one_call, most_set_aside, parts_of
from redisagg.sinks.base import RedisQueue


def claimed(count: int, length: int, *, read: bool = True) -> Claim:
    entries = [b"x" * (length // count)] * count if read else []
    return Claim(b"b", b"g", 1, b"", b"", entries, count, length, 0, None)


def failed(count: int, reason: str = "") -> list[tuple[int, str]]:
    return [(position, reason) for position in range(count)]


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize(
    ("count", "length", "reason", "most"),
    [
        (1000, 1000, "no", 200),
        (1000, 100_000_000, "no", 5),
        (1000, 1000, "é" * 2000, 131),
        (10, 10_000_000, "no", 1),
        (1_000_000, 1_000_000, "no", 20),
        (100_000_000, 0, "no", 1),
    ],
)
def test_a_call_moves_a_bounded_part_of_the_failed_tasks(
    read: bool, count: int, length: int, reason: str, most: int
) -> None:
    """Bounded in tasks, in bytes with those of the reasons, and in the tasks that Redis passes."""
    read = read and count <= 1_000_000
    every = failed(300, reason)[: count - 1]
    parts = parts_of(claimed(count, length, read=read), every, 0)
    assert (len(parts.failed), parts.left) == (min(most, len(every)), max(0, len(every) - most))


def test_a_call_with_entries_moves_fewer_failed_tasks() -> None:
    claim, every = claimed(100, 10_000_000), failed(99)
    assert len(parts_of(claim, every, 0).failed) == 5
    assert len(parts_of(claim, every, 0, 300_000).failed) == 2
    assert parts_of(claim, every, 0, 2_000_000) == Parts(every[:1], 0, 98)


@pytest.mark.parametrize(
    ("claim", "fits"),
    [
        (claimed(100, 1000), True),
        (claimed(100, 1000, read=False), True),
        (claimed(100, 600_000), True),  # each of the two has 6,000
        (claimed(100, 600_000, read=False), False),  # they may have all
        (claimed(2000, 1000, read=False), False),  # the length is an estimate
    ],
)
def test_failed_tasks_of_unknown_size_leave_in_calls_of_their_own(claim: Claim, fits: bool) -> None:
    assert fits_one_call(claim, MergeOutcome(failed=failed(2))) is fits


def test_entries_and_failed_tasks_share_the_room_of_a_call() -> None:
    enqueue = Enqueue(RedisQueue("", "commit_list", [b"q"], []), [], [b"x" * 500_000], 500_000)
    outcome = MergeOutcome(enqueue=enqueue, failed=failed(2), merged={"b": b""})
    assert fits_one_call(claimed(100, 1000), outcome)
    assert not fits_one_call(claimed(100, 2_000_000), outcome)


@pytest.mark.parametrize(("count", "most"), [(1, 500), (40_000, 500), (1_000_000, 20)])
def test_few_entries_of_a_large_batch_are_looked_up_in_a_call(count: int, most: int) -> None:
    assert most_set_aside(count) == most
