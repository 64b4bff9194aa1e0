"""The processes of a fault run."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from tests.faults.fleet import Fleet, Node


def test_a_flusher_that_stops_is_not_replaced_before_its_end_was_seen(tmp_path: Path) -> None:
    node = Node("flusher", "flusher1", "redis://", tmp_path, {})
    with mock.patch.object(Node, "start") as start:
        node.stopping = True
        Fleet([node]).revive()
        assert not start.called
        node.stopping = False
        Fleet([node]).revive()
        assert start.called
