"""Reads the tasks and merge results of batches that are too large for the reply to a claim."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from redisagg.errors import KeyConflict, RedisUnavailable, StaleLease
from redisagg.flusher.batch import Batch, Failure, State
from redisagg.flusher.leader.requests import PART_BYTES
from redisagg.flusher.leader.session import LeaseSession
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.scripts import Request
from redisagg.texts import group_text, logger

_log = logger("batches")

# About how many bytes one reply has. Fewer are asked for after a reply that did not come in time.
_SLICE_BYTES = 1024 * 1024
_LEAST_SLICE_BYTES = 16 * 1024
_READ_BYTES = 512 * 1024  # of a reply for a batch that is not to be merged

# After so many lost replies in a row to the smallest slice the attempt fails, while Redis works.
_MOST_LOST = 5

# Seconds until a slice is asked for again.
_RETRY_WAIT = 0.2

_GONE = Failure("Redis says that it is not in flight", "", pause=0)
_NO_RESULT = Failure("the stored result of its merge is gone; somebody else removed it", "")


async def read_slices(
    session: LeaseSession, batch: Batch, *, once: bool = False
) -> AsyncIterator[list[bytes]]:
    """Reads the tasks of a batch that was claimed without them, a limited number at a time.

    Args:
        once: whether a lost connection is an error instead of being retried.

    Raises:
        StaleLease: the partition has another leader.
        RedisUnavailable: `once` is set and no reply came.
    """
    place = 0
    while place < batch.claim.task_count:
        read = session.requests.read_tasks(batch.batch_id, batch.group, place, _READ_BYTES)
        [entries] = await session.send_all([read], once=once)
        if not entries:
            return
        yield entries
        place += len(entries)


class TaskReader:
    """Reads large batches for one leader, one after the other, while other batches go on.

    Args:
        on_read: called with each batch whose tasks or merge result have been read.
        on_failed: called with each batch that can't be read, and why.
    """

    def __init__(
        self,
        session: LeaseSession,
        on_read: Callable[[Batch], None],
        on_failed: Callable[[Batch, Failure], None],
    ) -> None:
        self._session = session
        self._on_read = on_read
        self._on_failed = on_failed
        self._turn = asyncio.Lock()
        self._slice_bytes = _SLICE_BYTES
        self._running: set[asyncio.Task[None]] = set()

    def start(self, batch: Batch) -> None:
        """Reads the merge result of a batch soon, or its tasks if it has none."""
        reading = asyncio.create_task(self._read(batch))
        self._running.add(reading)
        reading.add_done_callback(self._running.discard)

    def cancel(self) -> None:
        """Cancels all that is under way; the batches have been abandoned."""
        for reading in self._running:
            reading.cancel()

    async def _read(self, batch: Batch) -> None:
        read = self._read_result if batch.claim.has_result else self._read_tasks
        async with self._turn:
            try:
                failure = await read(batch)
            except StaleLease:
                return  # the leader ends, and with it this batch
            except (RedisUnavailable, KeyConflict) as error:
                failure = Failure.of(error)
        if batch.state is not State.CLAIMED:
            return
        if failure is not None:
            self._on_failed(batch, failure)
        else:
            self._on_read(batch)

    async def _read_tasks(self, batch: Batch) -> Failure | None:
        entries: list[bytes] = []
        requests = self._session.requests

        def request(size: int) -> Request:
            return requests.read_tasks(batch.batch_id, batch.group, len(entries), size)

        while len(entries) < batch.claim.task_count and batch.state is State.CLAIMED:
            tasks: list[bytes] | None = await self._read_slice(batch, request)
            if tasks is None:
                return _GONE
            if not tasks:
                break
            entries += tasks
        if batch.state is State.CLAIMED:
            if len(entries) < batch.claim.task_count:
                _log.error(
                    "group '%s': %d tasks of a batch are gone; somebody else removed them",
                    *(group_text(group_of(batch.group)), batch.claim.task_count - len(entries)),
                )
            batch.claim = batch.claim._replace(entries=entries)
        return None

    async def _read_result(self, batch: Batch) -> Failure | None:
        parts: list[bytes] = []
        requests, label = self._session.requests, batch.claim.result

        def request(size: int) -> Request:
            count = max(1, size // PART_BYTES)
            return requests.read_result(batch.batch_id, label, len(parts), count)

        while batch.state is State.CLAIMED:
            some: list[bytes | None] = await self._read_slice(batch, request, of_batch=True)
            parts += [part for part in some if part is not None]
            if some[-1] is None:
                break
        if not parts:
            return _NO_RESULT
        batch.claim = batch.claim._replace(stored_result=b"".join(parts))
        return None

    async def _read_slice(
        self, batch: Batch, request: Callable[[int], Request], *, of_batch: bool = False
    ) -> Any:
        """Returns the reply to a request for so many bytes.

        Args:
            of_batch: whether the request reads keys of this batch only.

        Raises:
            StaleLease: the partition has another leader.
            RedisUnavailable: no reply comes, although Redis works.
            KeyConflict: `of_batch` is set and the key holds a foreign type.
        """
        requests = self._session.requests
        lost = 0
        while True:
            size = self._slice_bytes
            try:
                together = [request(size)]
                [read] = await self._session.send_all(together, once=True, of_batch=of_batch)
            except RedisUnavailable:
                lost += size == _LEAST_SLICE_BYTES
                if lost == _MOST_LOST:
                    raise
                self._slice_bytes = max(_LEAST_SLICE_BYTES, size // 2)
                await asyncio.sleep(_RETRY_WAIT)
                # Its reply comes when Redis works again, so an outage is not counted.
                await self._session.send(requests.extend([batch.batch_id]))
                continue
            self._slice_bytes = min(_SLICE_BYTES, size * 2)
            return read
