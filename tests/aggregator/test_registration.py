"""The number of partitions when the data are removed, or the namespace is made anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.errors import NamespaceMismatch
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import load
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_led, numbered

META = "redisagg:{tests}:meta"


def recorded(client: redis.Redis) -> bytes | None:
    return cast("bytes | None", client.hget(META, "partitions"))


def states(client: redis.Redis, partitions: int = 32) -> set[bytes]:
    """The numbers of partitions in the states."""
    found = {client.hget(p.state.decode(), "partitions") for p in _space(partitions).partitions}
    return cast("set[bytes]", found - {None})


def _space(partitions: int) -> Keyspace:
    return Keyspace("tests", partitions)


def test_an_add_after_the_data_were_removed_registers_again(
    make_both: Make, sync_redis: redis.Redis
) -> None:
    agg = make_both(partitions=4)
    agg.add_task(Task("test", 0, "a"))
    sync_redis.flushall()
    agg.add_task(Task("test", 1, "a"))
    agg.add_tasks(Task("test", n, f"g{n}") for n in range(40))
    assert (recorded(sync_redis), states(sync_redis)) == (b"4", {b"4"})
    assert agg.stats().pending == 41
    with pytest.raises(NamespaceMismatch, match="4 partitions, not 16"):
        make_both(partitions=16).add_task(Task("test", 2, "a"))


def test_an_idle_flusher_registers_again(make: Make, sync_redis: redis.Redis) -> None:
    with make(partitions=4, lease_time=1) as agg:
        await_led(agg)
        sync_redis.flushall()
        wait_until(lambda: recorded(sync_redis) == b"4", timeout=3, what="it is registered")
        await_led(agg)
        assert states(sync_redis) == {b"4"}


OPERATIONS: dict[str, Callable[[Aggregator], object]] = {
    "add_task": lambda agg: agg.add_task(Task("test", 1, "a")),
    "add_tasks": lambda agg: agg.add_tasks(numbered("a", 3)),
    "cancel_group": lambda agg: agg.cancel_group("a"),
    "flush_all": lambda agg: agg.flush_all(),
    "pause": lambda agg: agg.pause(),
    "resume": lambda agg: agg.resume(),
    "stats": lambda agg: agg.stats(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_who_ran_on_while_it_was_made_anew_is_told(
    make_both: Make, sync_redis: redis.Redis, name: str
) -> None:
    old = make_both(partitions=2)
    old.add_task(Task("test", 0, "a"))
    sync_redis.flushall()
    new = make_both(partitions=3)
    new.add_tasks(Task("test", n, f"g{n}") for n in range(30))
    assert states(sync_redis) == {b"3"}
    with pytest.raises(NamespaceMismatch, match="3 partitions, not 2"):
        OPERATIONS[name](old)
    assert (new.stats().pending, new.stats().paused) == (30, False)
    assert states(sync_redis) == {b"3"}


def test_a_flusher_with_another_number_ends(make: Make, sync_redis: redis.Redis) -> None:
    """Else the others would leave partitions to it that it does not know."""
    old = make(partitions=2, lease_time=1)
    old.start()
    await_led(old)
    sync_redis.flushall()
    with make(partitions=5, lease_time=1, group_max_size=1) as new:
        wait_until(lambda: not old.is_running, timeout=5, what="the old flusher ends")
        await_led(new)
        new.add_tasks(Task("test", n, f"g{n}") for n in range(30))
        await_batches(new, 30)
        assert new.stats().pending == 0


def test_a_lost_record_is_restored_from_the_partitions(
    make_both: Make, sync_redis: redis.Redis
) -> None:
    """Such as when one master of a cluster starts without its data."""
    make_both(partitions=3).add_tasks(Task("test", n, f"g{n}") for n in range(30))
    sync_redis.delete(META)
    with pytest.raises(NamespaceMismatch, match="3 partitions, not 16"):
        make_both(partitions=16).add_task(Task("test", 2, "a"))
    assert recorded(sync_redis) is None
    make_both(partitions=3).add_task(Task("test", 3, "a"))
    assert recorded(sync_redis) == b"3"


def test_a_number_that_a_suspended_client_wrote_is_corrected(
    make_both: Make, sync_redis: redis.Redis
) -> None:
    old, new = make_both(partitions=2), make_both(partitions=3)
    old.add_task(Task("test", 0, "a"))
    sync_redis.flushall()
    new.add_task(Task("test", 1, "a"))
    # The old client compared its number before the removal, and goes on after it.
    for p in _space(3).partitions:
        late = load("register_partition").source.decode()
        assert sync_redis.eval(late, 1, p.state.decode(), "2") == 1
    new.add_tasks(Task("test", n, f"g{n}") for n in range(30))
    assert states(sync_redis) == {b"3"}
    with pytest.raises(NamespaceMismatch):
        old.add_task(Task("test", 2, "a"))
    assert new.stats().pending == 31
