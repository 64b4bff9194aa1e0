"""Each flusher computes the same, even share of the partitions, and few move at a change."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from redisagg.flusher.assignment import share

FLUSHERS = [f"host{n}:{1000 + n}:{n:08x}" for n in range(8)]
COUNTS = range(1, len(FLUSHERS) + 1)
PARTITIONS = [1, 2, 5, 16, 100]


@pytest.mark.parametrize("partitions", PARTITIONS)
@pytest.mark.parametrize("count", COUNTS)
def test_each_partition_has_an_owner_and_shares_differ_by_one_at_most(
    count: int, partitions: int
) -> None:
    owners = share(FLUSHERS[:count], partitions)
    assert sorted(owners) == list(range(partitions))
    assert set(owners.values()) <= set(FLUSHERS[:count])
    shares = Counter(owners.values())
    sizes = [shares[flusher] for flusher in FLUSHERS[:count]]
    assert max(sizes) - min(sizes) <= 1


def test_the_order_of_the_list_makes_no_difference() -> None:
    expected = share(FLUSHERS, 100)
    shuffled = list(FLUSHERS)
    for seed in range(20):
        random.Random(seed).shuffle(shuffled)
        assert share(shuffled, 100) == expected


def test_without_flushers_no_partition_has_an_owner() -> None:
    assert share([], 16) == {}


def moved(before: list[str], after: list[str], partitions: int) -> int:
    """Number of partitions that change their owner."""
    old, new = share(before, partitions), share(after, partitions)
    return sum(old[partition] != new[partition] for partition in range(partitions))


@pytest.mark.parametrize("partitions", [16, 100])
@pytest.mark.parametrize("count", COUNTS[1:])
def test_few_partitions_move_when_a_flusher_joins_or_leaves(count: int, partitions: int) -> None:
    """At least the share of that flusher has to move; `partition % count` would move most."""
    members = FLUSHERS[:count]
    for flusher in members:
        others = [member for member in members if member != flusher]
        least = partitions // count
        most = 2 * least + 2
        assert least <= moved(others, members, partitions) <= most
        assert least <= moved(members, others, partitions) <= most
