"""How the tasks of large batches are read: in slices, in turns, and never for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest

from redisagg.errors import RedisUnavailable, StaleLease
from redisagg.flusher.batch import Batch, Failure, State
from redisagg.flusher.leader import task_reader
from redisagg.flusher.leader.session import LeaseSession
from redisagg.flusher.leader.task_reader import TaskReader
from tests.support.claims import claim_of

MIB = 1024 * 1024

Slice = Callable[[bytes, int, int], Any]
"""Gives the tasks of a batch from a place on, about so many bytes."""


class Session:
    """A session whose requests are descriptions of themselves."""

    def __init__(self, answer: Slice) -> None:
        self.requests = self
        self.asked: list[tuple[bytes, int, int]] = []
        self.extended: list[bytes] = []
        self._answer = answer

    def read_tasks(self, batch_id: bytes, group: bytes, start: int, size: int) -> Any:
        return batch_id, start, size

    def extend(self, batch_ids: Iterable[bytes]) -> Any:
        return batch_ids

    async def send(self, batch_ids: Iterable[bytes]) -> None:
        self.extended += batch_ids

    async def send_all(
        self, requests: list[Any], *, once: bool, of_batch: bool = False
    ) -> list[Any]:
        assert once
        assert not of_batch  # `read_tasks` reads keys that batches share
        [request] = requests
        self.asked.append(request)
        await asyncio.sleep(0)
        return [self._answer(*request)]


class Reading:
    """A reader, and what it reports."""

    def __init__(self, answer: Slice) -> None:
        self.session = Session(answer)
        self.read: list[Batch] = []
        self.failed: list[tuple[Batch, Failure]] = []
        self.reader = TaskReader(
            cast(LeaseSession, self.session),
            on_read=self.read.append,
            on_failed=lambda batch, failure: self.failed.append((batch, failure)),
        )

    async def start(self, *counts: int) -> list[Batch]:
        """Reads batches with so many tasks, until none is under way."""
        batches = []
        for number, count in enumerate(counts):
            claim = claim_of([])._replace(batch_id=b"%d" % number, task_count=count)
            batches.append(Batch(claim, lambda batch: None))
            self.reader.start(batches[-1])
        await asyncio.wait(self.reader._running)
        return batches


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_reader, "_RETRY_WAIT", 0)


def tasks(start: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, end)]


async def test_a_batch_is_read_in_slices_and_one_after_the_other() -> None:
    reading = Reading(lambda _, start, size: tasks(start, min(start + 2, 5)))
    first, second = await reading.start(5, 5)
    assert reading.read == [first, second]
    assert first.claim.entries == second.claim.entries == tasks(0, 5)
    places = [(batch_id, start) for batch_id, start, _ in reading.session.asked]
    assert places == [(each, start) for each in (b"0", b"1") for start in (0, 2, 4)]


async def test_a_lost_reply_is_asked_for_again_with_fewer_bytes() -> None:
    lost = [True, True, False, False]

    def answer(_: bytes, start: int, size: int) -> list[bytes]:
        if lost.pop(0):
            raise RedisUnavailable("no reply")
        return tasks(start, start + 1)

    reading = Reading(answer)
    [batch] = await reading.start(2)
    assert reading.read == [batch]
    sizes = [size for *_, size in reading.session.asked]
    assert sizes == [MIB, MIB // 2, MIB // 4, MIB // 2]
    assert reading.session.extended == [b"0", b"0"]  # the claim must not run out meanwhile


async def test_a_batch_that_no_reply_can_hold_fails_and_delays_no_other() -> None:
    def answer(batch_id: bytes, start: int, size: int) -> list[bytes]:
        if batch_id == b"0":
            raise RedisUnavailable("no reply")
        return tasks(start, 2)

    reading = Reading(answer)
    bad, good = await reading.start(2, 2)
    [(failed, failure)] = reading.failed
    assert failed is bad
    assert failure.counts
    assert "no reply" in failure.error
    assert reading.read == [good]


async def test_a_batch_that_is_not_in_flight_is_given_back() -> None:
    reading = Reading(lambda *_: None)
    [batch] = await reading.start(3)
    [(gone, failure)] = reading.failed
    assert gone is batch
    assert not failure.counts
    assert not reading.read


async def test_tasks_that_somebody_removed_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    reading = Reading(lambda _, start, size: tasks(start, 2))
    [batch] = await reading.start(5)
    assert reading.read == [batch]
    assert batch.claim.entries == tasks(0, 2)
    assert "3 tasks of a batch are gone" in caplog.text


async def test_a_batch_that_was_abandoned_is_read_no_further() -> None:
    def answer(_: bytes, start: int, size: int) -> list[bytes]:
        batches[0].abandon()
        return tasks(start, start + 1)

    reading = Reading(answer)
    batches = [Batch(claim_of([])._replace(task_count=9), lambda batch: None)]
    reading.reader.start(batches[0])
    await asyncio.wait(reading.reader._running)
    assert len(reading.session.asked) == 1
    assert batches[0].state is State.ABANDONED
    assert not reading.read
    assert not reading.failed


async def test_a_lost_lease_ends_the_reading() -> None:
    def answer(*_: Any) -> None:
        raise StaleLease("another leader")

    reading = Reading(answer)
    await reading.start(2, 2)
    assert len(reading.session.asked) == 2
    assert not reading.read
    assert not reading.failed


async def test_a_leader_that_ends_cancels_the_reading() -> None:
    def answer(_: bytes, start: int, size: int) -> list[bytes]:
        reading.reader.cancel()
        return tasks(start, start + 1)

    reading = Reading(answer)
    await reading.start(5)
    assert len(reading.session.asked) <= 2
    assert not reading.read
