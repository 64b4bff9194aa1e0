"""Twelve planted troubles: `redisagg why` names the cause of each, with the rights of an observer.

The troubles are in tests/support/troubles.py, where the dashboard and the alerts find them too.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from click.testing import CliRunner

from redisagg.cli.app import cli
from redisagg.protocol.keys import Keyspace
from tests.support.fixtures import Plants
from tests.support.servers import wait_until
from tests.support.troubles import NAME, TROUBLES

WITHIN = 15.0
"""Seconds within which the cause has to be named."""

WORDS = {
    "no_flusher": r"No flusher is alive since \d\d:\d\d:\d\d UTC .* ago\); the last one was \S+\.",
    "paused": r"Flushing is paused since .* by ann\.",
    "sink_down": r"The sink CallableSink has been down since .*; next try at ",
    "poison_group": r"with 1 task, is a dead letter; .* died .* after 2 attempts with ValueError",
    "retry": r"Attempt 1 of 10 to merge the batch \S+ failed with ValueError: no such tenant; "
    r"next attempt at .* \(in \d+ s\)",
    "rate_limit": r"rate limited until .*: at most 1 batch in 10 min 0 s",
    "lease_without_leader": r"Partition \d has a lease but no leader: ghost holds it",
    "redis_full": r"Redis is full: it uses .* of its maxmemory of ",
    "partition_away": r"Partition.* can't be reached: ",
    "cooling_group": r"The group cools down until .* \(in 9 min \d+ s\)",
    "wrong_partitions": r"A flusher on \S+ was refused .* created with 2 partitions, not 3",
    "clock_off": r"Redis' clock was set back by (1 h 0 min|59 min \d+ s|60 min 0 s)",
}


@pytest.mark.parametrize("name", TROUBLES)
def test_the_cause_of_a_planted_trouble_is_named(plant: Plants, name: str) -> None:
    trouble = plant(name)
    began = time.monotonic()
    found: dict[str, Any] = {}

    def is_named() -> bool:
        arguments = ["why", trouble.group, "--redis", trouble.url, "--name", NAME]
        asked = CliRunner().invoke(cli, [*arguments, "--json"])
        assert asked.stdout, asked.output
        found.update(json.loads(asked.stdout))
        found["code"] = asked.exit_code
        return (found["trouble"]["cause"], found["late"]) == (trouble.cause, trouble.late)

    try:
        wait_until(is_named, timeout=WITHIN, what=f"{trouble.cause} is named")
    except TimeoutError as error:
        raise AssertionError(found) from error
    assert time.monotonic() - began < WITHIN
    assert re.search(WORDS[name], found["trouble"]["text"]), found["trouble"]["text"]
    assert found["trouble"]["advice"].endswith(".")
    assert found["code"] == (4 if trouble.late else 0)


def test_a_partition_that_is_away_hides_no_other_trouble(plant: Plants) -> None:
    trouble = plant("partition_away")
    found = trouble.observer.get_troubles()
    assert [each.cause for each in found] == ["partition_away", "no_flusher"]
    assert found[0].partitions
    look = trouble.observer.overview()
    assert (look.stats, look.oldest_overdue) == (None, None)
    assert [each.cause for each in look.troubles] == ["partition_away", "no_flusher"]
    reachable = Keyspace(NAME, 16)
    for number in range(100):
        group = f"other:{number}"
        if reachable.partition_of(group.encode()).number not in found[0].partitions:
            break
    explained = trouble.observer.explain(group)
    assert explained.cause == "unknown"
    assert "partition_away" in [each.cause for each in explained.also]
    asked = CliRunner().invoke(cli, ["doctor", "--redis", trouble.url, "--name", NAME])
    assert asked.exit_code == 4, asked.output
    for words in (
        "It does not answer: ",
        "namespace: Partition",
        "not checked.",
    ):
        assert words in asked.output
