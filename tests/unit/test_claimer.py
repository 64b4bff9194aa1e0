"""Which batches a leader claims to find out whether a sink works again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from redisagg.flusher.leader.claimer import Claimer
from redisagg.flusher.leader.requests import DueItem
from redisagg.flusher.leader.sink_health import Probe


@pytest.mark.parametrize("only_one", [True, False])
def test_a_probe_cuts_no_group_before_its_batches_that_came_back(only_one: bool) -> None:
    """Else its waiting tasks would overtake them."""
    claimer: Any = Claimer.__new__(Claimer)
    claimer._inflight = SimpleNamespace(ids={b"held": None})
    claimer._sinks = SimpleNamespace(only_one=only_one)
    probe = Probe(SimpleNamespace(times_opened=1), left=3)  # type: ignore[arg-type]
    back = [DueItem(b"1", b"old"), DueItem(b"2", b"old")]
    due = [DueItem(b"held", b"own"), *back, DueItem(b"", b"old"), DueItem(b"", b"new")]
    for _ in range(20):
        chosen, count = claimer._choose(due, probe)
        assert chosen[0] == due[0]
        assert sorted(chosen[1:]) == sorted([*back, DueItem(b"", b"new")])
        assert count == 3
