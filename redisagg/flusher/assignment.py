"""Which flusher should lead which partition; a pure function of the list of live flushers."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b


def share(flushers: Sequence[str], partitions: int) -> dict[int, str]:
    """Assigns each partition to a flusher, evenly, and moves few of them when the list changes.

    Highest random weight (rendezvous) hashing (Thaler and Ravishankar, 1998), with an upper bound
    for each flusher.

    Args:
        flushers: the ids of the live flushers, in any order.
        partitions: the number of partitions.

    Returns:
        The flusher of each partition; empty without flushers.
    """
    if not flushers:
        return {}
    least, extra = divmod(partitions, len(flushers))
    room = {each: least + (i < extra) for i, each in enumerate(sorted(flushers))}
    owners = {}
    for partition in range(partitions):
        able = [each for each in room if room[each] > 0]
        owner = max(able, key=lambda each: _weight(each, partition))
        room[owner] -= 1
        owners[partition] = owner
    return owners


def _weight(flusher: str, partition: int) -> bytes:
    return blake2b(f"{partition}:{flusher}".encode(), digest_size=8).digest()
