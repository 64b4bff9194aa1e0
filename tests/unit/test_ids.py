"""Task ids."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from redisagg.ids import new_id


def test_ids_are_ulids_that_sort_by_time() -> None:
    before = new_id()
    time.sleep(0.002)
    ids = [before, *(new_id() for _ in range(10_000))]
    assert ids == sorted(ids)
    assert all(re.fullmatch("[0-7][0-9A-HJKMNP-TV-Z]{25}", each) for each in ids)


def test_the_time_is_in_front() -> None:
    value = 0
    for character in new_id()[:10]:
        value = value * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(character)
    assert abs(value / 1000 - time.time()) < 5


def test_threads_never_share_an_id() -> None:
    with ThreadPoolExecutor(8) as pool:
        batches = pool.map(lambda _: [new_id() for _ in range(5_000)], range(8))
        ids = [each for batch in batches for each in batch]
    assert len(set(ids)) == len(ids)


def test_a_forked_child_has_ids_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns() + 1_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now)  # else the child may have a later one
    new_id()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, " ".join(new_id() for _ in range(50)).encode())
        os._exit(0)
    mine = {new_id() for _ in range(50)}
    os.waitpid(child, 0)
    theirs = set(os.read(reading, 65_536).decode().split())
    assert len(theirs) == 50
    assert not mine & theirs
