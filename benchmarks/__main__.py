"""``python -m benchmarks``: runs the benchmarks and prints their tables; see README.md."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks import (
    adds,
    calls,
    drain,
    fairness,
    idle,
    latency,
    memory,
    replicas,
    report,
    rules,
    scaling,
    slowest_call,
    soak,
    watching,
)
from benchmarks.measure import Check, Series
from benchmarks.processes import Machine
from redisagg.testing.embedded import EmbeddedRedis

_PARTS = {
    "adds": adds.measure,
    "drain": drain.measure,
    "latency": latency.measure,
    "fairness": fairness.measure,
    "idle": idle.measure,
    "memory": memory.measure,
    "scaling": scaling.measure,
    "replicas": replicas.measure,
    "rules": rules.measure,
    "watching": watching.measure,
    "calls": calls.measure,
    "slowest_call": slowest_call.measure,
}


def main() -> int:
    """Runs the benchmarks that the arguments name.

    Returns:
        The exit code: 1 if a requirement was missed, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help="comma-separated names: " + ", ".join([*_PARTS, "soak"]))
    parser.add_argument("--turns", type=int, default=5, help="number of turns")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work in two turns")
    parser.add_argument("--minutes", type=float, default=10.0, help="duration of the soak")
    parser.add_argument("--out", type=Path, help="folder for the tables and charts")
    parser.add_argument("--redis-server", type=Path, help="Redis server binary")
    arguments = parser.parse_args()
    turns, scale = (2, 0.1) if arguments.quick else (arguments.turns, 1.0)
    names = arguments.only.split(",") if arguments.only else list(_PARTS)
    machine = Machine()
    series: list[Series] = []
    checks: list[Check] = []
    for name in names:
        print(name, flush=True)
        with EmbeddedRedis(arguments.redis_server) as server:
            if name == "soak":
                series += soak.measure(server.url, turns, arguments.minutes, checks)
            else:
                series += _PARTS[name](server.url, turns, scale, checks)
    run = report.Run(f"python -m benchmarks {shlex.join(sys.argv[1:])}".strip(), str(machine))
    print(report.markdown(series, checks, run))
    if arguments.out:
        report.write(series, checks, run, arguments.out)
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
