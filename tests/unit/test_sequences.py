"""Sequence numbers of calls."""

from __future__ import annotations

import os

import pytest

from redisagg.producer.sequences import SequencePool, forget_calls
from redisagg.protocol.keys import Keyspace


def test_a_sequence_belongs_to_one_round_trip_at_a_time() -> None:
    pool = SequencePool()
    first, second = pool.take(), pool.take()
    assert first.id != second.id
    assert [first.next_number(3), first.next_number(5)] == [1, 2]
    pool.give_back(first)
    assert pool.take() is first
    assert first.next_number(3) == 3
    assert second.next_number(3) == 1


def test_only_sequences_without_a_round_trip_in_flight_are_drained() -> None:
    pool = SequencePool()
    first, in_flight = pool.take(), pool.take()
    pool.give_back(first)
    assert pool.drain() == [first]
    assert pool.take() not in (first, in_flight)
    pool.give_back(in_flight)
    assert pool.take() is in_flight


def test_a_forked_child_neither_continues_nor_drains_its_parents_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = SequencePool()
    sequence, in_flight = pool.take(), pool.take()
    pool.give_back(sequence)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    pool.give_back(in_flight)  # by the thread that forked
    assert pool.drain() == []
    assert pool.take() not in (sequence, in_flight)


def test_stored_calls_are_deleted_where_they_are() -> None:
    keyspace = Keyspace("tests", 4)
    pool = SequencePool()
    first, second, unused = pool.take(), pool.take(), pool.take()
    first.next_number(1)
    first.next_number(2)
    second.next_number(2)
    requests = next(forget_calls(keyspace, [first, second, unused]))
    assert {tuple(request.keys) for request in requests} == {
        (keyspace.partitions[1].call(first.id),),
        (keyspace.partitions[2].call(first.id), keyspace.partitions[2].call(second.id)),
    }
