"""Commands that Redis refuses: retried where the refusal passes, else a clear error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.errors import AuthenticationFailed, KeyConflict, RedisOutOfMemory, RedisReadOnly
from redisagg.testing.embedded import EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_led, enqueued, error_count, numbered, payloads

REFUSALS: dict[str, tuple[str, str]] = {
    "read-only": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    "no replicas": ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
    "out of memory": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
}
"""By name: the command that makes a server refuse writes, and the one that ends it."""

CODES = {"read-only": "READONLY", "no replicas": "NOREPLICAS", "out of memory": "OOM"}


def await_refusal(client: redis.Redis, refusal: str) -> None:
    """Waits until the server has refused a call."""
    before = error_count(client, "ERR")

    def refused() -> bool:
        # Before Redis 7 the error of a script counts as ERR.
        return bool(error_count(client, CODES[refusal]) or error_count(client, "ERR") > before)

    wait_until(refused, timeout=5, what="a call is refused")


@pytest.fixture
def server(server_binary: Path) -> Iterator[EmbeddedRedis]:
    """A server for one test, which changes its settings."""
    with EmbeddedRedis(server_binary) as server:
        yield server


@pytest.mark.parametrize("refusal", ["read-only", "no replicas"])  # full memory: test_full_memory
@pytest.mark.parametrize("sink", ["stream://queue", "list://queue"])
def test_a_batch_is_committed_when_redis_takes_writes_again(
    make: Make, server: EmbeddedRedis, refusal: str, sink: str
) -> None:
    began, go_on = threading.Event(), threading.Event()
    merges = 0

    def merge(group: str, tasks: list[Task]) -> Task:
        nonlocal merges
        merges += 1
        began.set()
        assert go_on.wait(20)
        return Task("merged", {"payloads": [task.payload for task in tasks]})

    agg = make(url=server.url, group_max_size=2, max_attempts=1, group_aggregator=merge, sink=sink)
    refuse, allow = REFUSALS[refusal]
    with server.client() as client, agg:
        agg.add_tasks(numbered("a", 2))
        assert began.wait(5)
        client.execute_command(refuse)
        go_on.set()
        await_refusal(client, refusal)
        client.execute_command(allow)
        wait_until(lambda: enqueued(agg), timeout=3, what="the batch is enqueued")
        assert agg.wait_until_idle(2)
        assert payloads(enqueued(agg)) == [0, 1]
        assert (agg.stats().dead, agg.stats().batches_flushed) == (0, 1)
        assert merges == 1


@pytest.mark.parametrize("refusal", ["read-only", "no replicas"])
def test_a_batch_is_claimed_when_redis_takes_writes_again(
    make: Make, server: EmbeddedRedis, refusal: str
) -> None:
    agg = make(url=server.url, group_grace_period=0.2, lease_time=5)
    refuse, allow = REFUSALS[refusal]
    with server.client() as client, agg:
        await_led(agg)
        agg.add_tasks(numbered("a", 2))
        client.execute_command(refuse)
        await_refusal(client, refusal)
        client.execute_command(allow)
        await_batches(agg, 1, timeout=5)
        assert payloads(enqueued(agg)) == [0, 1]


@pytest.mark.parametrize(
    ("refusal", "error", "add_timeout"),
    [("read-only", RedisReadOnly, 0.5), ("out of memory", RedisOutOfMemory, 20)],
)
def test_an_add_that_is_refused_raises_and_writes_nothing(
    make_both: Make,
    server: EmbeddedRedis,
    refusal: str,
    error: type[Exception],
    add_timeout: float,
) -> None:
    agg = make_both(url=server.url, add_timeout=add_timeout)
    agg.add_task(Task("test", "before", "a"))
    refuse, allow = REFUSALS[refusal]
    with server.client() as client:
        client.execute_command(refuse)
        calls: list[Callable[[], object]] = [
            lambda: agg.add_task(Task("test", 0, "a")),
            lambda: agg.add_tasks(Task("test", n, f"g{n}") for n in range(50)),
        ]
        for call in calls:
            start = time.monotonic()
            with pytest.raises(error):
                call()
            assert time.monotonic() - start < 2
        client.execute_command(allow)
    assert agg.stats().pending == 1
    agg.add_task(Task("test", "after", "a"))
    with agg:
        agg.flush_all()
        assert agg.wait_until_idle(5)
        assert payloads(enqueued(agg)) == ["before", "after"]


def fail_to_save(client: redis.Redis) -> Path:
    """Makes a server refuse writes with MISCONF; returns the folder where its dump should be."""
    settings: Any = client.config_get("d*")
    in_the_way = Path(settings["dir"], settings["dbfilename"])
    in_the_way.mkdir()
    client.config_set("save", "3600 1")
    client.bgsave()

    def failed() -> bool:
        persistence: Any = client.info("persistence")
        return bool(persistence["rdb_last_bgsave_status"] == "err")

    wait_until(failed, what="the save failed")
    return in_the_way


def test_an_add_is_retried_until_redis_can_save_its_data(
    make_both: Make, server: EmbeddedRedis
) -> None:
    agg = make_both(url=server.url, add_timeout=20)
    agg.add_task(Task("test", 0, "a"))
    with server.client() as client, ThreadPoolExecutor() as pool:
        in_the_way = fail_to_save(client)
        adding = pool.submit(agg.add_task, Task("test", 1, "a"))
        wait_until(lambda: error_count(client, "MISCONF"), timeout=5, what="a call is refused")
        assert not adding.done()
        in_the_way.rmdir()
        client.bgsave()
        adding.result(10)
    assert agg.stats().pending == 2


def test_an_add_is_retried_while_redis_runs_a_long_script(
    make_both: Make, server: EmbeddedRedis
) -> None:
    agg = make_both(url=server.url, add_timeout=20)
    agg.add_task(Task("test", 0, "a"))
    endless = "while redis.call('TIME') do end"
    with server.client() as client, ThreadPoolExecutor() as pool:
        client.config_set("lua-time-limit", 20)
        running = pool.submit(client.eval, endless, 0)

        def busy() -> bool:
            try:
                return not client.ping()
            except redis.ResponseError as error:
                return str(error).startswith("BUSY")

        wait_until(busy, what="the server is busy")
        adding = pool.submit(agg.add_task, Task("test", 1, "a"))
        with pytest.raises(FutureTimeout):
            adding.result(0.3)
        client.script_kill()
        adding.result(10)
        assert isinstance(running.exception(10), redis.ResponseError)
    assert agg.stats().pending == 2


def test_a_wrong_password_is_an_error_at_once(make_both: Make, server_binary: Path) -> None:
    with EmbeddedRedis(server_binary, config={"requirepass": "secret"}) as server:
        agg = make_both(url=server.url.replace("secret", "guess"), add_timeout=20)
        start = time.monotonic()
        with pytest.raises(AuthenticationFailed):
            agg.add_task(Task("test", 0, "a"))
        with pytest.raises(AuthenticationFailed):
            agg.start()
        assert time.monotonic() - start < 5
        make_both(url=server.url).add_task(Task("test", 0, "a"))


@pytest.mark.parametrize("part", ["tasks:a", "ids:a", "groups", "due", "ready", "state"])
def test_a_key_of_another_type_is_an_error_and_harms_no_other_group(
    make: Make, sync_redis: redis.Redis, part: str
) -> None:
    agg = make(partitions=1, group_max_size=2)
    agg.add_task(Task("test", 0, "b"))
    [groups] = sync_redis.keys("*:groups")
    key = groups.decode().replace("groups", part)  # type: ignore[union-attr]
    kept: Any = sync_redis.dump(key)
    sync_redis.delete(key)
    sync_redis.set(key, "foreign")
    with pytest.raises(KeyConflict):
        agg.add_task(Task("test", 0, "a"))
    assert sync_redis.get(key) == b"foreign"
    sync_redis.delete(key)
    if kept is not None:
        sync_redis.restore(key, 0, kept)
    # The refused add has written nothing, so the group can be used.
    agg.add_tasks(numbered("a", 2))
    with agg:
        agg.flush_all()
        assert agg.wait_until_idle(5)
    found = {batch.group: batch.payload["payloads"] for batch in enqueued(agg)}
    assert found == {"a": [0, 1], "b": [0]}


def test_a_group_whose_list_has_another_type_does_not_stop_its_partition(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(partitions=1, group_max_size=2)
    agg.add_task(Task("test", 0, "spoilt"))
    [key] = sync_redis.keys("*:tasks:spoilt")
    sync_redis.delete(key)
    sync_redis.set(key, "foreign")
    with agg:
        agg.flush("spoilt")
        agg.add_tasks(numbered("fine", 20))
        await_batches(agg, 10)
        assert agg.get_entries()["spoilt"].size == 1
    assert sync_redis.get(key) == b"foreign"
    assert payloads(enqueued(agg)) == list(range(20))
