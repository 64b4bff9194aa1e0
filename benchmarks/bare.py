"""The bare scripts, called by redis-py from one Python process: an upper limit for redisagg.

No checks, no retries, one call after the other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import Any

import msgpack
import redis
import redis.asyncio

from benchmarks.workload import GROUPS, PAYLOAD, group_of
from redisagg.ids import new_id
from redisagg.producer.rounds import STREAM_ROUND_TASKS
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import load

_SPACE = Keyspace("bare", 16)
_LIMITS = b"120000 600000 1000000 0"
_PLACES = [_SPACE.place(group_of(n).encode()) for n in range(GROUPS)]
_NAMES = [group_of(n).encode() for n in range(GROUPS)]


def _body() -> bytes:
    packed: bytes = msgpack.packb(("t", PAYLOAD))
    return packed


def _add_command(places: list[int]) -> tuple[Any, ...]:
    """One call of `add` for tasks of one partition, one for each group number in `places`."""
    partition = _PLACES[places[0]][0]
    keys = [partition.state, partition.groups, partition.due, partition.ready]
    keys += (partition.call(b"bare"), partition.seen, partition.seen_before)
    args: list[Any] = ["", 600_000, _SPACE.wake_channel, partition.label, 0, 0, ""]
    for place in places:
        keys += _PLACES[place][1:]
        args += (_NAMES[place], _LIMITS, 1, new_id(), _body())
    return ("EVALSHA", load("add").sha, len(keys), *keys, *args)


def lone_adds(url: str, count: int) -> float:
    """Adds/s by calls of the bare script, one at a time."""
    client = _client(url)
    start = time.perf_counter()
    for number in range(count):
        client.execute_command(*_add_command([number % GROUPS]))
    return count / (time.perf_counter() - start)


def threaded_adds(url: str, count: int, threads: int) -> float:
    """Adds/s from threads that call the bare script."""
    client = _client(url)

    def work(first: int) -> None:
        for number in range(first, count, threads):
            client.execute_command(*_add_command([number % GROUPS]))

    return _timed_threads(work, threads, count)


def _timed_threads(work: Any, threads: int, count: int) -> float:
    running = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    start = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return count / (time.perf_counter() - start)


def pushes(url: str, count: int) -> float:
    """RPUSH commands/s, one at a time."""
    client = _client(url)
    start = time.perf_counter()
    for number in range(count):
        client.rpush(_NAMES[number % GROUPS], PAYLOAD)
    return count / (time.perf_counter() - start)


def bulk_adds(url: str, count: int, batch: int = STREAM_ROUND_TASKS) -> float:
    """Adds/s in pipelines of `batch` tasks; the default is the round trip of `add_tasks`."""
    client = _client(url)
    start = time.perf_counter()
    for first in range(0, count, batch):
        by_partition: dict[int, list[int]] = {}
        for number in range(first, min(first + batch, count)):
            place = number % GROUPS
            by_partition.setdefault(_PLACES[place][0].number, []).append(place)
        pipeline = client.pipeline(transaction=False)
        for places in by_partition.values():
            pipeline.execute_command(*_add_command(places))
        pipeline.execute()
    return count / (time.perf_counter() - start)


class GroupCommit:
    """A minimal group commit: adds that arrive during a round trip share the next one."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._sender: asyncio.Task[None] | None = None

    def add(self, place: int) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((place, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return future

    async def _send(self) -> None:
        while self._waiting:
            by_partition: dict[int, list[int]] = {}
            futures: list[asyncio.Future[None]] = []
            while self._waiting and len(futures) < 500:
                place, future = self._waiting.popleft()
                by_partition.setdefault(_PLACES[place][0].number, []).append(place)
                futures.append(future)
            pipeline = self._client.pipeline(transaction=False)
            for places in by_partition.values():
                pipeline.execute_command(*_add_command(places))
            await pipeline.execute()
            for future in futures:
                future.set_result(None)


def group_commit(url: str, count: int, coroutines: int) -> float:
    """Adds/s of `GroupCommit` from coroutines."""
    _client(url)
    return asyncio.run(_group_commit(url, count, coroutines))


async def _group_commit(url: str, count: int, coroutines: int) -> float:
    async with redis.asyncio.Redis.from_url(url) as client:
        commit = GroupCommit(client)

        async def work(first: int) -> None:
            for number in range(first, count, coroutines):
                await commit.add(number % GROUPS)

        start = time.perf_counter()
        await asyncio.gather(*map(work, range(coroutines)))
        return count / (time.perf_counter() - start)


def drain(url: str, name: str, partitions: int = 16) -> float:
    """Tasks/s of bare claims and commits.

    Payloads are unpacked, because every merge needs them. Each batch enqueues a small entry.
    """
    client: Any = redis.Redis.from_url(url)
    space = Keyspace(name, partitions)
    for script in ("acquire", "poll", "claim", "commit_stream"):
        client.script_load(load(script).source)
    tokens = [
        client.evalsha(
            load("acquire").sha, 3, p.state, p.claims, p.tasks(b""), "bare", 600_000, p.label
        )[0]
        for p in space.partitions
    ]
    done = 0
    start = time.perf_counter()
    for p, token in zip(space.partitions, tokens, strict=True):
        indexes = [p.state, p.groups, p.batches, p.claims, p.retry, p.suspects, p.due, p.ready]
        indexes += [p.seen, p.seen_before]
        while True:
            _, flat, _ = client.evalsha(load("poll").sha, len(indexes), *indexes, token, 64, 1000)
            if not flat:
                break
            keys = [*indexes]
            args = [token, 60_000, p.digits, 64, 2_000, 2**21, 1000, 0]
            for batch_id, group in zip(flat[::2], flat[1::2], strict=True):
                keys += (p.tasks(group), p.ids(group))
                args += (batch_id, group)
            claimed = client.evalsha(load("claim").sha, len(keys), *keys, *args)
            keys = [p.state, p.groups, p.batches, p.claims, p.due, p.ready, b"bare-out"]
            args = [token, ""]
            for batch_id, group, _, _, _, entries, *_ in claimed:
                keys.append(p.tasks(group))
                entry = (
                    *("batch_id", batch_id, "type", "m", "group", group, "count", 1),
                    *("payload", b"1", "headers", b"\x80", "reason", "size"),
                )
                args += (batch_id, len(entry), *entry)
                done += len([msgpack.unpackb(entry[7 + entry[6] :]) for entry in entries])
            client.evalsha(load("commit_stream").sha, len(keys), *keys, *args)
    return done / (time.perf_counter() - start)


def _client(url: str) -> redis.Redis:
    """A client of the server, which is emptied and loads the script `add`."""
    client: redis.Redis = redis.Redis.from_url(url)
    client.flushall()
    client.script_load(load("add").source)
    for partition in _SPACE.partitions:
        client.hset(partition.state.decode(), "partitions", len(_SPACE.partitions))
    return client
