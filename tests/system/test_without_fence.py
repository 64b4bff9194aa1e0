"""The suite turns red for scripts from which the fence was removed.

A commit also checks that its batch is still in flight, so tasks are enqueued once even without the
fence. The checker reports the writes of a leader without a lease as stale writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from redisagg.testing.embedded import EmbeddedRedis
from tests.faults.checker import Kind, Verdict
from tests.faults.commit_race import LEASE, duelling
from tests.faults.scripts import Changes, changed_copy, using
from tests.support.servers import wait_until

NO_CHECK_IN_COMMITS: Changes = {
    "includes/commit": ("  if stale then return stale end\n", ""),
}
NO_TOKEN_CHECK_ANYWHERE: Changes = {
    "includes/fence": (
        "  if newest_token ~= token then\n"
        "    return redis.error_reply('STALE the partition has another leader')\n"
        "  end\n",
        "",
    ),
}


@contextlib.contextmanager
def scripts_with(changes: Changes, folder: Path) -> Iterator[Path]:
    """A changed copy of the scripts, which this process uses too, within the `with` block."""
    copy = changed_copy(folder, changes)
    with using(copy):
        yield copy


def commit_with_a_lost_lease(server: EmbeddedRedis, folder: Path, lua: Path) -> Verdict:
    """A commit arrives when the next leader is in the middle of merging the same batches."""
    with duelling(server, folder, partitions=8, merge="gate", lua=str(lua)) as duel:
        late, other = duel.flushers
        duel.open_gates(late)
        warm = duel.groups_in(duel.partitions_of(late))
        duel.fill(warm)
        wait_until(lambda: set(warm) <= duel.enqueued_by().keys(), what="the scripts are known")
        groups = duel.groups_in(duel.partitions_of(late))
        hold = late.proxy.hold("commit_stream")
        duel.fill(groups)
        wait_until(lambda: hold.count >= len(groups), timeout=5, what="all commits are under way")
        late.process.freeze()
        wait_until(lambda: len(duel.partitions_of(other)) == 8, what="the other one leads all")
        time.sleep(LEASE / 2)  # it merges, and waits at its gate
        hold.release()
        time.sleep(LEASE / 2)
        duel.open_gates()
        late.process.thaw()
        duel.await_shares(4, 4)
        return duel.verdict()


@pytest.mark.parametrize("changes", [NO_CHECK_IN_COMMITS, NO_TOKEN_CHECK_ANYWHERE])
def test_a_missing_fence_is_caught(
    redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path, changes: Changes
) -> None:
    with scripts_with(changes, tmp_path) as lua:
        verdict = commit_with_a_lost_lease(redis_server, tmp_path, lua)
    assert verdict.counts[Kind.STALE] == 4, verdict.examples
    assert verdict.violations > 0


def test_the_same_with_the_fence_in_place_is_fine(
    redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path
) -> None:
    with scripts_with({}, tmp_path) as lua:
        verdict = commit_with_a_lost_lease(redis_server, tmp_path, lua)
    assert verdict.examples == []
    assert verdict.batches == 8
