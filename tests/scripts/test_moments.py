"""When the scripts have a group due, by its score in the indexes, and the reason with its batch."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.scripts.test_limits import INDEXES, USUAL, Group, P
from tests.support.tasks import await_server_ms, server_ms

NEVER_ALONE = "- 600000 50 0"
HOUR = 3_600_000


@pytest.fixture
def group(sync_redis: redis.Redis) -> Group:
    return Group(sync_redis)


@pytest.fixture
def now(sync_redis: redis.Redis) -> int:
    """The time of Redis, ms, before the test."""
    return server_ms(sync_redis)


def due(group: Group) -> int | None:
    """When the group is due, ms; 0: now; None: it is in no index."""
    if group.client.zscore(P.ready, "g") is not None:
        assert group.client.zscore(P.due, "g") is None
        return 0
    score = group.client.zscore(P.due, "g")
    return None if score is None else int(score)


def poll(group: Group) -> Any:
    return group.call("poll", [*INDEXES, P.seen, P.seen_before], group.token, 10, 1000)


def commit(group: Group) -> None:
    """Completes the batches that were cut."""
    for batch_id in group.client.hkeys(P.batches):
        keys = [P.state, P.groups, P.batches, P.claims, P.due, P.ready, P.tasks(b"g")]
        assert group.call("commit", keys, group.token, batch_id, 0) == [b"OK"]


def postpone(group: Group, moment: int) -> int:
    keys = [P.state, P.groups, P.due, P.ready]
    count: int = group.call("postpone", keys, "wake", 0, "g", moment)
    return count


@pytest.mark.parametrize(
    ("limits", "span", "reason"),
    [
        ("- 60 50 0", 60, b"max_delay"),
        ("60 - 50 0", 60, b"grace"),
        ("50 600000 50 0", 50, b"grace"),
        ("600000 50 50 0", 50, b"max_delay"),
    ],
)
def test_spans(group: Group, now: int, limits: str, span: int, reason: bytes) -> None:
    group.add((limits, 2))
    at = due(group)
    assert at is not None
    assert now + span <= at <= now + span + 10_000
    await_server_ms(group.client, at)
    [batch] = group.claim()
    assert batch.reason == reason


@pytest.mark.parametrize("name", ["due_at", "schedule"])
def test_the_earliest_moment_counts(group: Group, now: int, name: str) -> None:
    group.add((f"- - 50 0;{name}={now + 2 * HOUR}", 1))
    assert due(group) == now + 2 * HOUR
    group.add((f"- - 50 0;{name}={now + 3 * HOUR}", 1))
    assert due(group) == now + 2 * HOUR
    group.add((f"- - 50 0;{name}={now + HOUR}", 1))
    assert due(group) == now + HOUR
    group.add((f"- - 50 0;{name}={now}", 1))
    [batch] = group.claim()
    assert batch.reason == name.encode()


@pytest.mark.parametrize("later", ["- 500000 50 0", f"{USUAL};due_at={2**41}", "60 600000 50 0"])
def test_what_came_when_a_group_was_due_does_not_change_the_reason(
    group: Group, later: str
) -> None:
    group.add(("60 600000 50 0", 1))
    await_server_ms(group.client, due(group) or 0)
    assert poll(group)[1] == [b"", b"g"]
    group.add((later, 1))
    [batch] = group.claim()
    assert (batch.task_count, batch.reason) == (2, b"grace")
    assert batch.due_at <= server_ms(group.client)


def test_a_moment_ends_with_its_task(group: Group, now: int) -> None:
    group.add((f"- - 50 0;schedule={now + HOUR}", 1), (f"- - 50 0;due_at={now + 2 * HOUR}", 1))
    assert due(group) == now + HOUR
    assert group.cancel(0) == 1
    assert group.record.rules_in_force.due == 2 * (now + 2 * HOUR)


def test_not_before_holds_a_full_group_until_it_is_flushed(group: Group, now: int) -> None:
    group.add((f"600000 600000 2 0;not_before={now + HOUR}", 3))
    assert due(group) == now + HOUR
    group.add((f"600000 600000 2 0;not_before={now + 2 * HOUR}", 1))
    group.add((f"600000 600000 2 0;not_before={now + HOUR}", 1))
    assert group.record.rules_in_force.not_before == now + 2 * HOUR
    group.add(("600000 600000 2 0;flush=1", 1))
    assert due(group) == 0
    assert [batch.reason for batch in group.claim(batches=3)] == [b"flush"] * 3


def test_a_flush_is_of_what_waits(group: Group) -> None:
    group.add((USUAL, 2), (f"{USUAL};flush=1", 1))
    assert due(group) == 0
    [batch] = group.claim()
    assert (batch.task_count, batch.reason) == (3, b"flush")
    group.add((USUAL, 1))
    assert due(group) != 0


def test_the_first_leaves_at_once_and_the_rest_after_the_interval(group: Group, now: int) -> None:
    limits = f"{NEVER_ALONE} min_interval={HOUR} leading=1"
    group.add((limits, 1))
    assert due(group) == 0
    [first] = group.claim()
    assert first.reason == b"leading"
    group.add((limits, 60))
    at = due(group)
    assert at is not None
    assert now + HOUR <= at <= now + HOUR + 10_000


def test_a_group_is_not_cut_more_often(group: Group, now: int) -> None:
    limits = f"600000 600000 2 0 min_interval={HOUR}"
    group.add((limits, 1))
    assert due(group) != 0  # it is not leading
    group.add((limits, 1))
    assert due(group) == 0
    [batch] = group.claim()
    assert (batch.task_count, batch.reason) == (2, b"size")
    group.add((limits, 4))
    at = due(group)
    assert at is not None
    assert at >= now + HOUR
    group.add((f"{limits};flush=1", 1))
    assert due(group) == 0


def test_a_group_that_has_cooled_down_is_gone(group: Group, now: int) -> None:
    group.add((f"{NEVER_ALONE} min_interval=300 leading=1", 1))
    group.claim()
    commit(group)
    cool_until = due(group)
    assert cool_until is not None
    assert cool_until >= now + 300
    assert group.record.waiting == 0
    await_server_ms(group.client, cool_until)
    poll(group)
    assert due(group) is None
    assert not group.client.exists(P.groups, P.tasks(b"g"), P.ids(b"g"))


def test_an_operator_postpones_and_takes_it_back(group: Group, now: int) -> None:
    assert postpone(group, now + HOUR) == 0  # there is no such group
    group.add(("600000 600000 2 0", 2))
    assert due(group) == 0
    assert postpone(group, now + HOUR) == 2
    assert due(group) == now + HOUR
    group.add(("600000 600000 2 0", 1))
    assert due(group) == now + HOUR
    assert postpone(group, 0) == 3
    assert due(group) == 0
