"""Short fault runs on every topology; `python -m tests.faults` makes longer ones.

`REDISAGG_FAULTS_SEED` chooses another seed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.checker import Kind
from tests.faults.report import findings, table
from tests.faults.run import Plan, run
from tests.faults.topologies import TOPOLOGIES, Topology

SEED = int(os.environ.get("REDISAGG_FAULTS_SEED", "5"))
SECONDS = 20.0


@pytest.mark.slow
@pytest.mark.serial  # it loads all cores
@pytest.mark.timeout(180)
@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_faults_break_no_guarantee(server_binary: Path, topology: type[Topology]) -> None:
    result = run(Plan(topology, SECONDS, SEED, server=server_binary))
    print(f"python -m tests.faults --minutes {SECONDS / 60:.2f} --seed {SEED}", end=" ")
    print(f"--topology {topology.name}\n{table([result])}")
    assert result.verdict.violations == 0, findings(result)
    # There were faults of many kinds, and tasks went on being enqueued.
    injected = {
        kind: count for kind, count in result.faults.items() if not kind.startswith("merge")
    }
    assert sum(injected.values()) >= 10
    assert len(injected) >= 8
    assert result.verdict.acknowledged > 1_000
    assert result.verdict.enqueued > 1_000
    assert result.verdict.counts[Kind.LOST] == 0


@pytest.mark.slow
@pytest.mark.serial  # it loads all cores
@pytest.mark.timeout(180)
def test_moves_of_the_namespace_break_no_guarantee(server_binary: Path) -> None:
    topology = TOPOLOGIES["redis"]
    result = run(Plan(topology, SECONDS, SEED, server=server_binary, moves=True))
    print(table([result]))
    assert result.verdict.violations == 0, findings(result)
    assert result.verdict.enqueued > 1_000
    assert result.verdict.counts[Kind.LOST] == 0
