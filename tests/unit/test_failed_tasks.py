"""The ids and groups of batches that are made of tasks that failed alone."""

from __future__ import annotations

import pytest

from redisagg.flusher.batch import Claim
from redisagg.flusher.batch_reports import facts_of
from redisagg.operations.inspecting import place_of_batch
from redisagg.protocol.failed_tasks import attempts_of, failed_batch, group_of
from redisagg.protocol.keys import Keyspace


@pytest.mark.parametrize("group", [b"g", b"", b"\xff", b"a\xffb", "ü:42".encode()])
def test_a_group_of_its_own_names_the_group_of_the_tasks(group: bytes) -> None:
    new = failed_batch(b"018-3-0a", group, 5)
    assert new.batch_id == b"018-3-0a-failed-1-5"
    assert group_of(new.group) == group
    assert (attempts_of(new.group), new.attempts) == (1, 1)
    again = failed_batch(new.batch_id, new.group, 2)
    assert again.batch_id == b"018-3-0a-failed-2-7"
    assert group_of(again.group) == group
    assert (attempts_of(again.group), again.attempts) == (2, 2)
    with pytest.raises(UnicodeDecodeError):
        new.group.decode()


@pytest.mark.parametrize("group", [b"g", b"\xff", b"\xffx", b"\xffa\xffb", b"x-failed-3-1"])
def test_other_groups_are_left_as_they_are(group: bytes) -> None:
    assert (group_of(group), attempts_of(group)) == (group, 0)


def test_no_id_is_given_twice() -> None:
    """A batch of 64 tasks fails in three batches, and each of these in three, in halves too."""
    seen: list[bytes] = []

    def fail(batch_id: bytes, group: bytes, size: int) -> None:
        third = size // 3
        for position in (0, third, 2 * third) if third else ():
            new = failed_batch(batch_id, group, position)
            seen.append(new.batch_id)
            fail(new.batch_id, new.group, third)
            for half in (b".0", b".1"):
                fail(new.batch_id + half, new.group, third // 2)

    fail(b"018-3-0a", b"g", 64)
    assert len(seen) == len(set(seen)) > 100


def test_events_name_the_group_of_the_tasks() -> None:
    new = failed_batch(b"018-3-0a", b"g", 5)
    claim = Claim(new.batch_id, new.group, 2, b"", b"", [], 1, 1, 0, None)
    assert facts_of(claim, 3).group_key == "g"


def test_its_id_names_the_partition() -> None:
    space = Keyspace("tests", 4)
    place = place_of_batch(space, failed_batch(b"018-3-0a", b"g", 5).batch_id.decode())
    assert place is not None
    assert place[0] is space.partitions[3]
