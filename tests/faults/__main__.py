"""``python -m tests.faults``: injects faults for a given time and prints one table of results.

Ends with status 1 if there is a violation. The row "lost where Redis may lose" does not count.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
import traceback
from pathlib import Path

from tests.faults.report import findings, read_result, table, write_result
from tests.faults.run import Plan, Result, run
from tests.faults.topologies import TOPOLOGIES
from tests.support.servers import select


def main() -> int:
    """Makes a run on each topology that the arguments name; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=float,
        default=5.0,
        help="duration of the faults on all topologies together",
    )
    parser.add_argument("--seed", type=int, help="of all random choices; a random one by default")
    parser.add_argument(
        "--topology",
        action="append",
        choices=TOPOLOGIES,
        help="servers to run on; may be repeated; all by default",
    )
    parser.add_argument(
        "--tasks", type=int, default=0, help="approximate number of tasks to offer, in total"
    )
    parser.add_argument(
        "--faults",
        type=int,
        default=0,
        help="smallest number of faults to inject in total, evenly over the time (a run takes up "
        "to twice its time for that); as many as possible by default",
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder for the result of each topology. A run with the same arguments that was "
        "interrupted leaves out the topologies whose results are there",
    )
    parser.add_argument(
        "--config",
        type=json.loads,
        default={},
        help="settings of all nodes, as in '{\"lease_time\": 2}'",
    )
    parser.add_argument(
        "--durable",
        action="store_true",
        help="count every lost task, because the config prevents the losses that a topology allows",
    )
    parser.add_argument(
        "--moves",
        action="store_true",
        help="give the namespace other numbers of partitions meanwhile, by movers that die",
    )
    arguments = parser.parse_args()
    if arguments.results and arguments.seed is None:
        parser.error("--results needs --seed")
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    wanted = os.environ.get("REDISAGG_TEST_SERVER")
    names = list(dict.fromkeys(arguments.topology or TOPOLOGIES))
    seconds = arguments.minutes * 60 / len(names)
    print(f"seed {seed}: {seconds:.0f} s of faults on each of {', '.join(names)}", flush=True)
    results: list[Result] = []
    broken: list[str] = []
    for name in names:
        plan = Plan(
            topology=TOPOLOGIES[name],
            seconds=seconds,
            seed=seed,
            rate=arguments.tasks / len(names) / seconds or Plan.rate,
            faults=math.ceil(arguments.faults / len(names)),
            config=arguments.config,
            durable=arguments.durable,
            server=select(wanted) if wanted else None,
            moves=arguments.moves,
        )
        since = time.monotonic()
        file = arguments.results and arguments.results / name
        if file and file.exists():
            results.append(read_result(file, plan))
            print(f"{name}: result read from {file}", flush=True)
            continue
        try:
            results.append(result := run(plan))
        except Exception:  # the other topologies are run and reported all the same
            traceback.print_exc()
            broken.append(name)
            continue
        took = time.monotonic() - since
        faults, tasks = result.faults.total(), result.verdict.offered
        print(f"{name}: {faults} faults, {tasks:,} tasks in {took:.0f} s", flush=True)
        if text := findings(result):
            print(text, flush=True)
        if file:
            write_result(file, result)
    print(f"{table(results)}\n\nAcknowledged tasks that each topology may lose:")
    for result in results:
        print(f"- {result.plan.topology.promise}")
    print(f"\nMade by python -m tests.faults {' '.join(sys.argv[1:])} (seed {seed})")
    for name in broken:
        print(f"The run on {name} ended with an error.")
    return 1 if broken or any(result.verdict.violations for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
