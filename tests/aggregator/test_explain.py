"""Why a group is not flushed: the causes that tests/system/test_why.py does not plant."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis

from redisagg import RateLimit, Task
from redisagg.errors import InvalidConfig, NamespaceMismatch
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import call
from redisagg.transport.threads import Transport
from redisagg.views import Cause
from tests.aggregator.test_looking import Gate
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_led, server_ms

SPACE = Keyspace("tests", 2)
NOW: dict[str, Any] = {"group_max_size": 1, "lease_time": 1}


@pytest.fixture
def gate() -> Any:
    gate = Gate()
    yield gate
    gate.open()


def explained(agg: Any, cause: Cause, group: str = "g") -> str:
    """Waits until the cause is named, and returns the sentence."""
    found: list[Any] = []

    def is_named() -> bool:
        found[:] = [agg.explain(group)]
        return bool(found[0].cause == cause)

    try:
        wait_until(is_named, timeout=15, what=cause)
    except TimeoutError as error:
        raise AssertionError(found) from error
    text: str = found[0].trouble.text
    return text


def test_a_group_that_is_not_due(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both(group_grace_period=100, group_max_delay=500)
    agg.add_task(Task("t", 1, "g"))
    found = agg.explain("g")
    assert (found.cause, found.late, found.waiting, found.overdue) == ("not_due", False, 1, 0)
    assert found.due_at is not None
    assert found.due_at == found.trouble.until
    assert re.search(
        r"1 task waits until .* \(in \d+ s\): if no further task comes", explained(agg, "not_due")
    )
    assert [each.cause for each in found.also] == ["no_flusher"]
    assert found.also[0].text == "No flusher has ever run."
    agg.add_task(Task("t", 2, "g", max_delay=50))
    assert "max delay of its oldest task" in explained(agg, "not_due")
    soon = datetime.now(timezone.utc) + timedelta(seconds=30)
    agg.add_task(Task("t", 3, "g", due_at=soon))
    assert "(due_at)" in explained(agg, "not_due")
    agg.add_task(Task("t", 4, "g", not_before=soon + timedelta(hours=1)))
    assert "(not_before)" in explained(agg, "not_due")
    agg.postpone("g", soon + timedelta(hours=20))
    assert "postponed by an operator until" in explained(agg, "postponed")
    agg.pause("g", by="bob\x1b")
    assert re.search(r"The group is paused since .* by bob\x1b\.", explained(agg, "group_paused"))
    agg.resume("g")
    assert agg.explain("g").cause == "postponed"
    agg.flush("g")
    found = agg.explain("g")
    assert found.cause == "no_flusher"


def test_nothing_waits(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both(group_min_interval=500, **NOW)
    found = agg.explain("g")
    assert (found.cause, found.late) == ("unknown", False)
    assert sync_redis.keys() == []  # an observer creates no namespace
    agg.add_task(Task("t", 1, "g"))
    with agg:
        await_batches(agg, 1)
        assert re.search(
            "are done; the next one is not cut before .*in 8 min", explained(agg, "done")
        )
    agg.pause("g", by="bob")
    assert "by bob" in explained(agg, "group_paused")


def test_a_pause_keeps_who_began_it(make_both: Make) -> None:
    agg = make_both(**NOW)
    agg.add_task(Task("t", 1, "g"))
    agg.pause()
    assert re.search(r"Flushing is paused since .* by \S+@\S+\.", explained(agg, "paused"))
    since = agg.explain("g").trouble.since
    agg.pause(by="ann")  # it is paused already
    assert agg.explain("g").trouble.since == since
    assert "ann" not in explained(agg, "paused")
    agg.resume()
    assert agg.explain("g").cause == "no_flusher"
    agg.pause(by="ann")
    assert "by ann." in explained(agg, "paused")
    for wrong in ("x" * 257, 7):
        with pytest.raises(InvalidConfig):
            agg.pause(by=wrong)  # type: ignore[arg-type]


def test_a_batch_in_flight_and_what_waits_behind_it(make: Make, gate: Gate) -> None:
    agg = make(group_aggregator=gate, concurrency=1, group_max_size=2)
    with agg:
        agg.add_tasks([Task("t", n, "g") for n in range(2)])
        text = explained(agg, "in_flight")
        flusher = agg.get_flushers()[0].flusher_id
        assert re.search(rf"The flusher {flusher} works on the batch \S+ \(first claimed at", text)
        agg.add_task(Task("t", 3, "g"))
        assert "; 1 task waits behind it" in explained(agg, "in_flight")
        gate.open()


def test_a_backlog(make: Make, gate: Gate) -> None:
    agg = make(group_aggregator=gate, concurrency=1, partitions=1, group_max_size=1)
    agg.add_tasks(Task("t", n, f"g{n}") for n in range(400))
    with agg:
        wait_until(lambda: agg.stats().in_flight >= 250, what="its places are taken")
        last = max(agg.get_groups(), key=lambda name: agg.explain(name).cause == "backlog")
        text = explained(agg, "backlog", last)
        assert re.search(r"one of \d+ groups in line in partition 0 of the flusher ", text)
        gate.open()


def test_a_retry_holds_what_waits(make: Make) -> None:
    def fail(group: str, tasks: list[Task]) -> Task:
        raise ValueError("no such\ntenant")

    agg = make(group_aggregator=fail, retry_delay=60, retry_max_delay=60, max_attempts=7, **NOW)
    with agg:
        agg.add_task(Task("t", 1, "g"))
        wait_until(lambda: agg.stats().batches_in_retry, what="it is in retry")
        agg.add_task(Task("t", 2, "g"))
        text = explained(agg, "retry")
        assert re.search(
            r"Attempt 1 of 7 to merge the batch \S+ failed with ValueError: no such; next attempt "
            r"at .* \(in \d+ s\); 1 task waits behind it\.",
            text,
        )
        wait_until(lambda: agg.explain("g").late, what="it is late")
        found = agg.explain("g")
        assert found.batch_id is not None
        assert found.batch_id in text
        [page] = [agg.read_batches(state="retry", group_key="g")]
        assert [each.batch_id for each in page.states] == [found.batch_id]


@pytest.mark.parametrize(
    ("limit", "cause", "words"),
    [
        ({"max_concurrency": 1}, "concurrency", "1 of 1 batches run (max_concurrency)"),
        ({"group_concurrency": 1}, "concurrency", "1 of 1 batches run (group_concurrency)"),
        (
            {"group_rate_limit": RateLimit(2, 100, of="tasks", burst=1)},
            "rate_limit",
            "at most 2 tasks in 100 s (group_rate_limit)",
        ),
    ],
)
def test_limits_on_work(make: Make, gate: Gate, limit: Any, cause: Cause, words: str) -> None:
    agg = make(group_aggregator=gate, **NOW, **limit)
    with agg:
        if cause == "rate_limit":
            gate.open()
        agg.add_task(Task("t", 1, "g"))
        wait_until(lambda: agg.stats().pending == 0, what="it is claimed")
        if cause == "rate_limit":
            await_batches(agg, 1)
        agg.add_task(Task("t", 2, "g"))
        assert words in explained(agg, cause)
        gate.open()


def test_what_redisagg_did_not_write(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(**NOW)
    agg.add_task(Task("t", 1, "g"))
    p = SPACE.partition_of(b"g")
    sync_redis.delete(p.tasks(b"g"))
    sync_redis.set(p.tasks(b"g"), "x")
    found = agg.explain("g")
    assert (found.cause, found.late) == ("foreign", True)
    sync_redis.delete(p.tasks(b"g"))
    sync_redis.hset(p.groups.decode(), "g", "x")
    assert agg.explain("g").cause == "foreign"
    sync_redis.hset(SPACE.status.decode(), mapping={"a": "x", "b": "1 []", "c": '1 {"sinks":[1]}'})
    sync_redis.hset(SPACE.permits.decode(), mapping={"p:a": "x", "tat": "1" * 400, "u:1": "x"})
    assert agg.get_flushers() == []
    agg.get_troubles()


def test_a_suspect(make: Make, sync_redis: redis.Redis) -> None:
    """Two leaders vanish with the batch."""
    agg = make(**NOW)
    agg.add_task(Task("t", 1, "g"))
    p = SPACE.partition_of(b"g")
    index = [p.state, p.groups, p.batches, p.claims, p.retry, p.suspects, p.due, p.ready]
    index += [p.seen, p.seen_before]
    transport = Transport(sync_redis, 0)

    def send(name: str, keys: list[bytes], *args: Any) -> Any:
        [reply] = transport.exchange([call(name, keys, *args)])
        assert not isinstance(reply, Exception), reply
        return reply

    for number in range(3):
        sync_redis.hset(p.state.decode(), "expires", 0)
        keys = [p.state, p.claims, p.tasks(b"")]
        token = send("acquire", keys, f"flusher{number}", 60_000, p.label)[0]
        send("join", [SPACE.flushers], f"flusher{number}", 60_000, SPACE.wake_channel)
        for _ in range(2):
            items = send("poll", index, token, 10, 1000)[1]
            if items:
                keys = [*index, p.tasks(b"g"), p.ids(b"g")]
                send("claim", keys, token, 60_000, p.number, 1, 10, 1000, 1000, 0, *items)
                break
    text = explained(agg, "suspect")
    assert re.search(r"The batch \S+ was in flight when 2 flushers in a row died", text)


def test_a_namespace_that_was_made_anew(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(**NOW)
    agg.add_task(Task("t", 1, "g"))
    sync_redis.hset(SPACE.partition_of(b"g").state.decode(), "partitions", 5)
    text = explained(agg, "wrong_partitions")
    assert "has the number of partitions 5, but the namespace was created with 2" in text
    sync_redis.hset(SPACE.meta.decode(), "partitions", 9)
    with pytest.raises(NamespaceMismatch):
        agg.explain("g")


def test_a_namespace_that_is_being_moved(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(**NOW)
    agg.add_task(Task("t", 1, "g"))
    p = SPACE.partition_of(b"g")
    transport = Transport(sync_redis, 0)
    mover = "move:host:7:x"
    join = call("join", [SPACE.flushers], mover, 60_000, SPACE.wake_channel)
    freeze = call("freeze", [p.state, p.claims], mover, "")
    assert transport.exchange([join, freeze])[1] == 1
    assert "is being moved by host:7:x; adds and" in explained(agg, "moving")
    assert agg.get_flushers() == []
    transport.exchange([call("leave", [SPACE.flushers, SPACE.status], mover, SPACE.wake_channel)])
    text = explained(agg, "moving")
    assert text == (
        "The namespace is frozen: host:7:x has begun to move it, and is not alive any more."
    )
    assert agg.get_troubles()[0].partitions == [p.number]


def test_all_is_well(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both(**NOW)
    with agg:
        await_led(agg)
        found: list[Any] = []

        def is_published() -> bool:
            found[:] = agg.get_flushers()
            return found[0].started_at is not None

        wait_until(is_published, what="its status is there")
        [flusher] = found
        assert list(flusher.partitions) == [0, 1]
        assert (flusher.concurrency, flusher.max_attempts, flusher.sinks_down) == (16, 3, [])
        assert abs(flusher.started_at * 1000 - server_ms(sync_redis)) < 60_000
        assert agg.get_troubles() == []
        look = agg.overview()
        assert look.stats is not None
        assert look.oldest_overdue == 0
        assert look.memory_used > 0
    wait_until(lambda: not sync_redis.exists(SPACE.status.decode()), what="it left nothing")


def test_a_status_of_long_ago_is_removed(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(**NOW)
    old: Any = {"dead": f"{server_ms(sync_redis) - 3_600_000} {{}}", "odd": "x"}
    sync_redis.hset(SPACE.status.decode(), mapping=old)
    with agg:
        wait_until(
            lambda: not {b"dead", b"odd"} & set(sync_redis.hkeys(SPACE.status.decode())),
            what="they are removed",
        )
        assert len(sync_redis.hkeys(SPACE.status.decode())) == 1


def test_the_cost_does_not_grow_with_the_groups(make: Make, sync_redis: redis.Redis) -> None:
    agg = make()
    agg.add_task(Task("t", 1, "g"))

    def calls() -> int:
        for look in (lambda: agg.explain("g"), agg.get_troubles, agg.overview):
            look()
        sync_redis.config_resetstat()
        agg.explain("g")
        agg.get_troubles()
        stats: Any = sync_redis.info("commandstats")
        return sum(int(each["calls"]) for each in stats.values())

    few = calls()
    agg.add_tasks(Task("t", n, f"g{n}") for n in range(2_000))
    assert calls() == few
    assert few < 60
