"""Policies: limits in Redis, which count for producers that run already."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from redisagg import Aggregator, AppliedPolicy, GroupState, Policy, Task
from redisagg.aggregator import aio, threads
from redisagg.errors import InvalidConfig, InvalidTask, NamespaceMismatch, RedisUnavailable
from redisagg.operations import policing
from redisagg.policies import MAX_POLICIES
from redisagg.protocol import policies as known
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.policies import STALE, KnownPolicies
from tests.support.aggregators import Make
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.tasks import (
    await_batches,
    await_server_ms,
    enqueued,
    numbered,
    payloads,
    server_ms,
)

SPACE = Keyspace("tests", 2)
POLICIES = SPACE.policies.decode()
META = SPACE.meta.decode()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which producers of this process asked for policies."""
    times: list[float] = []
    original = KnownPolicies.read

    def read(self: KnownPolicies) -> Any:
        times.append(time.monotonic())
        return (yield from original(self))

    monkeypatch.setattr(KnownPolicies, "read", read)
    return times


def grace(agg: Aggregator, group: str) -> float:
    """The grace period of a group."""
    state = agg.get_group(group, limit=0)
    assert state is not None
    return grace_of(state)


def grace_of(state: GroupState) -> float:
    assert state.due_at is not None
    assert state.last_task_at is not None
    return round(state.due_at - state.last_task_at, 3)


def await_known(agg: Aggregator, seconds: float) -> None:
    """Adds to new groups until the policies give them a grace period."""
    groups = (f"digest:await:{n}" for n in itertools.count())

    def counts() -> bool:
        agg.add_task(Task("test", 0, group := next(groups)))
        return grace(agg, group) == seconds

    wait_until(counts, timeout=STALE, what="the policy counts")


# --- the order ------------------------------------------------------------------------------------


def test_a_task_comes_first_then_the_longest_pattern_then_the_settings(make_both: Make) -> None:
    agg = make_both()
    agg.set_policy("digest:*", Policy(grace_period=5, max_size=3))
    agg.set_policy("digest:*:eu", Policy(grace_period=7))
    agg.add_task(Task("test", 0, "other"))
    agg.add_task(Task("test", 0, ("digest", 1)))
    agg.add_task(Task("test", 0, ("digest", 1, "eu")))
    agg.add_task(Task("test", 0, ("digest", 2), grace_period=600))
    agg.add_tasks([Task("test", 0, ("digest", 3)), Task("test", 1, ("digest", 3), grace_period=9)])
    found = {name: grace(agg, name) for name in agg.get_groups()}
    assert found == {"other": 600, "digest:1": 5, "digest:1:eu": 7, "digest:2": 600, "digest:3": 9}


def test_a_batch_is_cut_by_the_policy(make_both: Make) -> None:
    agg = make_both(group_max_size=50)
    agg.set_policy("digest:*", Policy(max_size=2))
    with agg:
        agg.add_tasks([*numbered("digest:1", 4), *numbered("g", 4)])
        wait_until(lambda: agg.stats().flushed == 4, what="two batches are cut")
    assert [batch.payload["count"] for batch in agg.read_sink().batches] == [2, 2]
    state = agg.get_group("g")
    assert state is not None
    assert state.size == 4


def test_policies_are_listed_replaced_and_removed(make_both: Make) -> None:
    agg = make_both()
    assert agg.policies() == {}
    assert not agg.remove_policy("digest:*")
    agg.set_policy("*", Policy(priority=1))
    agg.set_policy("digest:*", Policy(max_size=3))
    agg.set_policy("digest:*", Policy(max_size=4, min_interval=60, leading=True))
    expected = {
        "digest:*": Policy(max_size=4, min_interval=60, leading=True),
        "*": Policy(priority=1),
    }
    assert list(agg.policies().items()) == list(expected.items())
    assert agg.remove_policy("digest:*")
    assert agg.policies() == {"*": Policy(priority=1)}


# --- how producers learn of a change --------------------------------------------------------------


def test_without_policies_nothing_is_asked_or_stored(
    make_both: Make, sync_redis: redis.Redis, reads: list[float]
) -> None:
    agg = make_both()
    agg.policies()
    agg.remove_policy("digest:*")
    agg.add_tasks(numbered("g", 10))
    assert not reads
    assert not sync_redis.exists(POLICIES)
    assert sync_redis.hkeys(META) == [b"schema", b"partitions"]
    states = [sync_redis.hget(p.state.decode(), "partitions") for p in SPACE.partitions]
    assert set(states) <= {b"2", None}


def test_the_first_policy_counts_at_once(make_both: Make, make: Make, reads: list[float]) -> None:
    agg = make_both()
    agg.add_tasks(numbered("digest:1", 1))
    make().set_policy("digest:*", Policy(grace_period=5))
    agg.add_tasks([*numbered("digest:2", 3), *numbered("g", 3)])
    assert (grace(agg, "digest:1"), grace(agg, "digest:2"), grace(agg, "g")) == (600, 5, 600)
    assert len(reads) == 1


def test_a_change_counts_within_a_second_for_all_producers(make: Make, make_both: Make) -> None:
    """Two producers add all the time; each add that begins a second later has the new limits."""
    producers, operator = [make(), make_both()], make()
    begun: list[list[tuple[float, str]]] = [[], []]
    stop = threading.Event()

    def add(number: int) -> None:
        for n in itertools.count():
            if stop.is_set():
                return
            group = f"digest:{number}:{n}"
            begun[number].append((time.monotonic(), group))
            producers[number].add_task(Task("test", 0, group))
            stop.wait(0.002)  # a thousand adds tell as much as ten thousand

    def all_began(at: float) -> bool:
        return all(each and each[-1][0] > at for each in begun)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for seconds in (5, 6, 7):
            operator.set_policy("digest:*", Policy(grace_period=seconds))
            changed = time.monotonic()
            wait_until(partial(all_began, changed + STALE), what="both have added since")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    last = operator.get_groups()
    for each in begun:
        graces = [grace_of(last[group]) for _, group in each]
        if graces[0] == 600:  # it began before the first policy was set
            graces = [0.0 if seconds == 600 else seconds for seconds in graces]
        assert graces == sorted(graces)  # no producer goes back to an earlier policy
        assert {5, 6, 7} <= set(graces) <= {0, 5, 6, 7}
        since = [g for began, g in each if began > changed + STALE]
        assert {grace(operator, g) for g in since} == {7}


def test_a_busy_producer_asks_twice_a_second_at_most(make: Make, reads: list[float]) -> None:
    agg = make()
    agg.set_policy("digest:*", Policy(grace_period=5))
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        agg.add_task(Task("test", 0, "g"))
    assert 2 <= len(reads) <= 3
    assert all(later - earlier >= known._FRESH for earlier, later in itertools.pairwise(reads))


def test_an_idle_producer_asks_at_its_next_call(
    make_both: Make, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    agg = make_both()
    agg.set_policy("digest:*", Policy(grace_period=5))
    agg.add_task(Task("test", 0, "digest:1"))
    make().set_policy("digest:*", Policy(grace_period=6))
    monkeypatch.setattr(known, "_FRESH", 0)  # as if a second had passed
    agg.add_task(Task("test", 0, "digest:2"))
    assert (grace(agg, "digest:1"), grace(agg, "digest:2")) == (5, 6)


def test_a_removed_policy_ends_within_a_second(make_both: Make, make: Make) -> None:
    agg = make_both()
    agg.set_policy("digest:*", Policy(grace_period=5))
    await_known(agg, 5)
    assert make().remove_policy("digest:*")
    await_known(agg, 600)


def test_a_stream_that_runs_learns_of_the_first_policy(make_both: Make, make: Make) -> None:
    """Also the tasks of the round that is being filled, however long that takes."""
    agg, operator = make_both(), make()

    def tasks() -> Iterator[Task]:
        yield Task("test", 0, "digest:1", max_size=600)
        operator.set_policy("digest:*", Policy(grace_period=5, max_size=2))
        yield Task("test", 0, "digest:2")
        yield Task("test", 0, "digest:2", grace_period=600)

    agg.add_tasks(tasks())
    assert grace(agg, "digest:1") == 5
    assert list(agg.get_groups(due=True)) == ["digest:2"]


def test_tasks_that_wait_for_room_learn_of_a_policy(
    make_both: Make, make: Make, sync_redis: redis.Redis
) -> None:
    agg, operator = make_both(max_pending_tasks=2, full_timeout=30), make()
    agg.add_tasks(numbered("digest:1", 1))
    thread = threading.Thread(target=agg.add_task, args=(Task("test", 1, "digest:1"),))
    thread.start()
    operator.set_policy("digest:*", Policy(grace_period=5))
    await_server_ms(sync_redis, server_ms(sync_redis) + 1_000)  # then it counts
    operator.cancel_group("digest:1")
    thread.join()
    assert grace(operator, "digest:1") == 5


# --- failures -------------------------------------------------------------------------------------


def test_a_call_whose_reply_is_lost_is_carried_out_once(
    make_both: Make, make: Make, proxy: Proxy
) -> None:
    """The call with the policies has the number of the one without."""
    agg, operator = make_both(url=proxy.url), make()
    agg.add_task(Task("test", 0, "digest:1"))
    operator.set_policy("digest:*", Policy(max_size=1, grace_period=5))
    with operator:
        lost = [proxy.lose_reply("add"), proxy.lose_reply("add")]
        agg.add_task(Task("test", 1, "digest:1"))
        assert all(loss.happened.is_set() for loss in lost)
        agg.add_task(Task("test", 2, "digest:1"))
        operator.flush_all()
        assert operator.wait_until_idle(10)
    assert sorted(payloads(enqueued(operator))) == [0, 1, 2]


def test_policies_are_gone_with_the_data(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both()
    agg.set_policy("digest:*", Policy(grace_period=5))
    await_known(agg, 5)
    sync_redis.flushall()
    agg.add_tasks(numbered("g", 1))
    assert agg.policies() == {}
    await_known(agg, 600)
    agg.set_policy("digest:*", Policy(grace_period=6))
    await_known(agg, 6)


def test_a_partition_whose_data_are_removed_notes_the_policies_again(
    make_both: Make, sync_redis: redis.Redis
) -> None:
    make_both().set_policy("digest:*", Policy(grace_period=5))
    for partition in SPACE.partitions:
        sync_redis.delete(partition.state.decode())
    agg = make_both()
    agg.add_tasks(Task("test", n, f"digest:{n}") for n in range(10))
    assert {grace(agg, f"digest:{n}") for n in range(10)} == {5}
    states = {sync_redis.hget(p.state.decode(), "partitions") for p in SPACE.partitions}
    assert states == {b"2 policies"}


def test_without_its_record_the_partitions_of_a_namespace_decide(
    make_both: Make, sync_redis: redis.Redis
) -> None:
    make_both().set_policy("digest:*", Policy(grace_period=5))
    sync_redis.delete(META, POLICIES)
    with pytest.raises(NamespaceMismatch, match="2 partitions, not 4"):
        make_both(partitions=4).add_task(Task("test", 0, "g"))
    agg = make_both()
    agg.add_task(Task("test", 0, "digest:1"))
    assert grace(agg, "digest:1") == 600


def test_flushers_and_operators_go_on_beside_policies(make: Make) -> None:
    agg = make(group_max_size=1)
    agg.set_policy("*", Policy(priority=3))
    agg.pause()
    agg.pause("h")
    agg.add_tasks(numbered("g", 3))
    agg.resume("h")
    agg.resume()
    with agg:
        assert agg.wait_until_idle(10)
    assert payloads(enqueued(agg)) == [0, 1, 2]


def test_what_is_no_policy_is_left_out_with_a_warning(
    make_both: Make, sync_redis: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    agg = make_both()
    agg.set_policy("digest:*", Policy(grace_period=5))
    sync_redis.hset(POLICIES, mapping={"digest:1*": "junk", b"\xff": "{}", "digest:2*": '{"x":1}'})
    with caplog.at_level(logging.WARNING, "redisagg"):
        agg.add_task(Task("test", 0, "digest:11"))
    assert grace(agg, "digest:11") == 5
    assert {"digest:1*", r"\xff"} <= set("".join(caplog.messages).replace("'", " ").split())
    assert list(agg.policies()) == ["digest:*"]


def test_an_unreadable_table_fails_the_add(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both()
    agg.set_policy("digest:*", Policy(grace_period=5))
    sync_redis.delete(POLICIES)
    sync_redis.set(POLICIES, "foreign")
    with pytest.raises(Exception, match="WRONGTYPE"):
        agg.add_task(Task("test", 0, "digest:1"))
    assert agg.stats().pending == 0


@pytest.mark.parametrize(
    ("pattern", "policy"),
    [
        ("digest:?", Policy(max_size=1)),
        ("digest:**", Policy(max_size=1)),
        ("", Policy(max_size=1)),
        (("digest", "*"), Policy(max_size=1)),
        ("digest:*", {"max_size": 1}),
        ("digest:*", None),
    ],
)
def test_wrong_arguments_write_nothing(
    make_both: Make, sync_redis: redis.Redis, pattern: Any, policy: Any
) -> None:
    with pytest.raises(InvalidConfig):
        make_both().set_policy(pattern, policy)
    assert not sync_redis.keys()


def test_too_many_policies_are_refused(
    make_both: Make, sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_POLICIES == 1_000
    monkeypatch.setattr(policing, "MAX_POLICIES", 2)
    agg = make_both()
    agg.set_policy("a", Policy(max_size=1))
    agg.set_policy("b", Policy(max_size=1))
    before = sync_redis.hgetall(META)
    with pytest.raises(InvalidConfig, match="2 policies already"):
        agg.set_policy("c", Policy(max_size=1))
    assert sync_redis.hgetall(META) == before
    agg.set_policy("b", Policy(max_size=2))
    assert agg.policies() == {"a": Policy(max_size=1), "b": Policy(max_size=2)}


def test_bad_tasks_are_still_refused(make_both: Make) -> None:
    agg = make_both()
    agg.set_policy("*", Policy(max_size=1))
    with pytest.raises(InvalidTask):
        agg.add_task("no task")  # type: ignore[arg-type]


def test_an_outage_is_reported_as_one(make_both: Make, proxy: Proxy) -> None:
    agg = make_both(url=proxy.url, add_timeout=0.5)
    agg.set_policy("*", Policy(max_size=1))
    proxy.cut()
    with pytest.raises(RedisUnavailable):
        agg.add_task(Task("test", 0, "g"))


# --- open groups ----------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other producer runs: `set_policy` need not wait until all know the policy."""
    monkeypatch.setattr(threads, "STALE", 0)
    monkeypatch.setattr(aio, "STALE", 0)


@pytest.mark.usefixtures("at_once")
def test_a_policy_is_applied_to_open_groups(make_both: Make) -> None:
    agg = make_both()
    agg.add_tasks(task for n in range(30) for task in numbered(f"digest:{n}", 3))
    agg.add_tasks(numbered("g", 3))
    assert agg.set_policy("digest:*", Policy(max_delay=500)) == (0, 0)
    policy = Policy(grace_period=5, max_size=4, priority=2)
    assert agg.set_policy("digest:*", policy, apply_to_open=True) == AppliedPolicy(30, 0)
    found = agg.get_groups()
    graces = {name: (grace_of(state), state.priority) for name, state in found.items()}
    assert graces == {**{f"digest:{n}": (5, 2) for n in range(30)}, "g": (600, 0)}
    assert not agg.get_groups(due=True)
    agg.add_tasks(numbered("digest:7", 1, start=3))
    assert list(agg.get_groups(due=True)) == ["digest:7"]
    assert agg.set_policy("digest:*", policy, apply_to_open=True) == AppliedPolicy(0, 0)


@pytest.mark.usefixtures("at_once")
def test_the_limits_of_tasks_stay_each_for_itself(make_both: Make) -> None:
    agg = make_both()
    own: list[dict[str, Any]] = [
        {"grace_period": 50},
        {"max_size": 20},  # the configured value, set by the task
        {"max_delay": 100},
        {"priority": -3},
        {"max_bytes": 10_000},
        {"options": {"queue": "q"}},
        {"headers": {"a": "b"}},
        {},
        {"weight": 3, "due_at": datetime(2100, 1, 1, tzinfo=timezone.utc)},
    ]
    for n, fields in enumerate(own):
        agg.add_task(Task("test", datetime.now(timezone.utc), f"digest:{n}", **fields))
    policy = Policy(grace_period=5, max_delay=300, max_size=1, max_bytes=900, priority=7)
    assert agg.set_policy("digest:*", policy, apply_to_open=True) == AppliedPolicy(9, 0)
    groups = agg.get_groups()
    due = agg.get_groups(due=True)
    assert "digest:1" not in due
    assert due.keys() == groups.keys() - {"digest:1"}
    priorities = [groups[f"digest:{n}"].priority for n in range(9)]
    assert priorities == [7, 7, 7, -3, 7, 7, 7, 7, 7]
    assert grace(agg, "digest:1") == 5


@pytest.mark.usefixtures("at_once")
def test_tasks_with_and_without_limits_in_one_group(make_both: Make) -> None:
    """The batch of those without is cut by the policy, that of those with by their own."""
    agg = make_both(group_max_size=50)
    agg.add_tasks([*numbered("g", 4), *numbered("g", 3, start=4, max_size=50)])
    assert agg.set_policy("g", Policy(max_size=2), apply_to_open=True) == AppliedPolicy(1, 0)
    with agg:
        wait_until(lambda: agg.stats().flushed >= 4, what="the first four are cut")
        agg.flush_all()
        assert agg.wait_until_idle(10)
    assert [batch.payload["payloads"] for batch in enqueued(agg)] == [[0, 1], [2, 3], [4, 5, 6]]


@pytest.mark.usefixtures("at_once")
def test_an_idle_flusher_is_woken_for_what_is_due_now(make_both: Make) -> None:
    agg = make_both()
    with agg:
        agg.add_tasks(numbered("g", 3))
        wait_until(lambda: agg.stats().pending == 3, what="the tasks wait")
        agg.set_policy("g", Policy(max_size=3), apply_to_open=True)
        await_batches(agg, 1, timeout=1.5)
    assert payloads(enqueued(agg)) == [0, 1, 2]


@pytest.mark.usefixtures("at_once")
def test_a_longer_grace_period_holds_a_due_group_back(make_both: Make) -> None:
    agg = make_both()
    agg.add_tasks(numbered("g", 2, max_delay=0.001))
    agg.add_tasks(numbered("h", 2, start=2))
    agg.set_policy("h", Policy(max_size=2), apply_to_open=True)
    assert agg.get_groups(due=True).keys() == {"g", "h"}
    agg.set_policy("*", Policy(max_delay=900), apply_to_open=True)
    agg.set_policy("h", Policy(max_size=3), apply_to_open=True)
    assert agg.get_groups(due=True).keys() == {"g"}  # its tasks have set it themselves


@pytest.mark.usefixtures("at_once")
def test_large_groups_are_left_and_counted(make_both: Make) -> None:
    agg = make_both(group_max_size=10_000)
    for group, count in (("digest:1", 201), ("digest:2", 200)):
        agg.add_tasks(numbered(group, count, max_delay=900))
    agg.add_tasks(Task("test", "x" * 300_000, "digest:3", max_delay=900) for _ in range(2))
    applied = agg.set_policy("digest:*", Policy(grace_period=5), apply_to_open=True)
    assert applied == AppliedPolicy(1, 2)
    assert [grace(agg, f"digest:{n}") for n in (1, 2, 3)] == [600, 5, 600]


@pytest.mark.usefixtures("at_once")
def test_foreign_data_are_left(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both()
    agg.add_tasks(Task("test", n, f"digest:{n}") for n in range(4))
    for n in range(3):
        _, tasks, _ = SPACE.place(f"digest:{n}".encode())
        if n == 0:
            sync_redis.set(tasks.decode(), "foreign")
        elif n == 1:
            sync_redis.rpush(tasks.decode(), "foreign")
        else:
            sync_redis.lset(tasks.decode(), 0, "foreign")
    sync_redis.hset(SPACE.partitions[0].groups.decode(), "digest:x", "foreign")
    applied = agg.set_policy("digest:*", Policy(grace_period=5), apply_to_open=True)
    assert applied == AppliedPolicy(3, 1)
    assert grace(agg, "digest:3") == 5


@pytest.mark.usefixtures("at_once")
def test_groups_that_change_meanwhile_are_read_again(
    make_both: Make, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that has set limits arrives between the reading and the call."""
    agg, other, reads = make_both(), make(), itertools.count(1)
    agg.add_tasks(numbered("g", 2))
    original = policing._limits_text

    def late(limits: Any) -> bytes:
        if next(reads) <= changes:
            other.add_task(Task("test", 0, "g", max_size=50))
        return original(limits)

    monkeypatch.setattr(policing, "_limits_text", late)
    changes = 3
    assert agg.set_policy("g", Policy(max_size=2), apply_to_open=True) == AppliedPolicy(1, 0)
    assert next(reads) == 5
    changes = 100
    assert agg.set_policy("g", Policy(max_size=3), apply_to_open=True) == AppliedPolicy(0, 1)


def test_open_groups_of_producers_that_did_not_know_are_changed(make: Make) -> None:
    """Producers that add while a policy is applied leave no group without it."""
    agg, operator = make(), make()
    operator.set_policy("x", Policy(max_size=1))
    stop = threading.Event()

    def add() -> None:
        for n in itertools.count():
            if stop.is_set():
                return
            agg.add_task(Task("test", 0, f"digest:{n}"))

    thread = threading.Thread(target=add)
    thread.start()
    try:
        wait_until(lambda: operator.stats().groups > 50, what="there are open groups")
        applied = operator.set_policy("digest:*", Policy(grace_period=5), apply_to_open=True)
    finally:
        stop.set()
        thread.join()
    assert applied.changed > 50
    assert {grace_of(state) for state in operator.get_groups().values()} == {5}


@pytest.mark.usefixtures("at_once")
def test_bytes_stay_exact(make: Make) -> None:
    agg = make()
    agg.add_tasks([*numbered("g", 5), *numbered("g", 5, start=5, max_size=99)])
    agg.set_policy("g", Policy(max_bytes=100_000, max_size=50), apply_to_open=True)
    agg.set_policy("g", Policy(max_bytes=90_000, max_size=20), apply_to_open=True)
    with agg:
        agg.flush_all()
        assert agg.wait_until_idle(10)
    assert agg.stats().stored_bytes == 0


# --- the documentation ----------------------------------------------------------------------------


def test_the_example_of_the_page_runs(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/policies.md").read_text("utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    example: dict[str, Any] = {}
    exec(code.replace('Aggregator("emails")', f'Aggregator("emails", "{redis_url}")'), example)
    agg = example["agg"]
    assert {name: grace(agg, name) for name in agg.get_groups()} == {
        "digest:7": 300,
        "digest:8:vip": 10,
        "digest:9": 300,
    }
    assert capsys.readouterr().out.startswith("digest:*:vip Policy(grace_period=10.0")
    agg.close()
