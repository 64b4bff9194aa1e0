"""The processes of a fault run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

from tests.faults.fleet import Fleet, Node
from tests.support.servers import wait_until


def test_a_flusher_that_stops_is_not_replaced_before_its_end_was_seen(tmp_path: Path) -> None:
    node = Node("flusher", "flusher1", "redis://", tmp_path, {})
    with mock.patch.object(Node, "start") as start:
        node.stopping = True
        Fleet([node]).revive()
        assert not start.called
        node.stopping = False
        Fleet([node]).revive()
        assert start.called


def test_a_process_has_stopped_when_it_ended_and_not_when_somebody_looks(tmp_path: Path) -> None:
    process: Any = mock.Mock(running=True)
    node = Node("flusher", "flusher1", "redis://", tmp_path, {})
    node.process = process
    node.stop()
    assert process.terminate.called
    assert node.await_end(0) is None
    process.running = False
    ended = time.time()
    wait_until(lambda: node.await_end(0), what="the end is noted")
    looked = time.time()
    wait_until(lambda: time.time() > looked + 0.1, what="time has passed")
    at = node.await_end(1)
    assert at is not None
    assert ended <= at <= looked
