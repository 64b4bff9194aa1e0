"""Records the history of a namespace: what its partitions count, in each step.

A flusher reads a sample of each partition that it leads, and adds all of them to the history with
one call. The script adds what a partition has counted since its last sample, whoever took that. So
it does no harm if a partition changes hands, or if a call comes twice or late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from zlib import crc32

from redisagg.errors import RedisAggError, RedisOutOfMemory
from redisagg.protocol.history import FINE, MOST_PARTITIONS, record, sample
from redisagg.protocol.keys import Keyspace
from redisagg.texts import logger
from redisagg.transport.aio import AsyncTransport

_log = logger("flusher")

_STEP = FINE.step_ms / 1000

_FIRST_WAIT = 1.0
"""Seconds until the first samples, and between two looks while no partition is led."""

_SPREAD_MS = 3_000
"""Over so many ms the calls of all flushers are spread."""

_PARTITIONS = 64
"""Partitions that are read in one round trip."""


class Recorder:
    """Records the history for one flusher.

    Args:
        leading: the numbers of the partitions that the flusher leads at a time.
    """

    def __init__(
        self,
        *,
        flusher_id: str,
        keyspace: Keyspace,
        transport: AsyncTransport,
        leading: Collection[int],
    ) -> None:
        self._keyspace = keyspace
        self._transport = transport
        self._leading = leading
        self._offset = crc32(flusher_id.encode()) % _SPREAD_MS / 1000
        self._failed = False

    async def run(self) -> None:
        """Records until it is cancelled."""
        wait = _FIRST_WAIT
        while True:
            await asyncio.sleep(wait)
            wait = await self.record() if self._leading else _FIRST_WAIT

    async def record(self) -> float:
        """Records one step; returns the seconds until the next one."""
        wait = _STEP
        try:
            # On a cluster, a master that is down must not keep back the others.
            size = 1 if self._transport.clustered else _PARTITIONS
            numbers = sorted(self._leading)
            parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            samples = await asyncio.gather(*map(self._samples, parts))
            read = [item for some in samples for item in some]
            for start in range(0, len(read), MOST_PARTITIONS):
                request = record(self._keyspace, read[start : start + MOST_PARTITIONS])
                [reply] = await self._transport.exchange([request], once=True)
                if isinstance(reply, Exception):
                    raise reply
                wait = reply / 1000 + self._offset
        except RedisAggError as error:
            self._report(error)
        else:
            self._failed = False
        return wait

    async def _samples(self, numbers: Sequence[int]) -> list[tuple[int, list[int]]]:
        """The samples of some partitions by their numbers, but for those that can't be read."""
        requests = [sample(self._keyspace.partitions[number]) for number in numbers]
        try:
            replies = await self._transport.exchange(requests, once=True)
        except RedisAggError as error:
            replies = [error]
        for reply in replies:
            if isinstance(reply, RedisAggError):
                self._report(reply)
        read = zip(numbers, replies, strict=False)
        return [(number, reply) for number, reply in read if not isinstance(reply, Exception)]

    def _report(self, error: RedisAggError) -> None:
        """Logs the first of several errors; a full memory and an outage are logged elsewhere."""
        if not self._failed and not isinstance(error, RedisOutOfMemory):
            _log.warning("the history of %r is not recorded: %s", self._keyspace.name, error)
        self._failed = True
