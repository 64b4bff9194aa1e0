"""The table of results of several runs, and the findings of one."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.checker import Kind, Verdict
from tests.faults.run import Plan, Result

_COUNTS: dict[str, Callable[[Verdict], int]] = {
    "tasks offered": lambda verdict: verdict.offered,
    "acknowledged": lambda verdict: verdict.acknowledged,
    "refused": lambda verdict: verdict.refused,
    "unknown": lambda verdict: verdict.unknown,
    "enqueued": lambda verdict: verdict.enqueued,
    "among the dead letters": lambda verdict: verdict.dead,
    "batches": lambda verdict: verdict.batches,
    "batches redelivered": lambda verdict: verdict.redelivered,
    "offered again": lambda verdict: verdict.repeated,
    "cancelled or dropped": lambda verdict: verdict.cancelled,
    "failed alone": lambda verdict: verdict.parted,
    "batches of tasks that failed alone": lambda verdict: verdict.retried,
    "parts of split batches": lambda verdict: verdict.halves,
    "outcomes kept of submitted tasks": lambda verdict: verdict.answered,
    "outcomes that receipts told": lambda verdict: verdict.told,
    "merges": lambda verdict: verdict.merges,
    "merges that asked for time or gave up": lambda verdict: verdict.put_off,
    "takeovers": lambda verdict: verdict.takeovers,
}

_WORST: dict[str, Callable[[Verdict], float]] = {
    "worst lateness, s": lambda verdict: verdict.lateness,
    "slowest takeover, s": lambda verdict: verdict.takeover,
}


def table(results: Sequence[Result]) -> str:
    """A Markdown table with a column for each run and one for their sum."""
    names = [result.plan.topology.name for result in results]
    rows = [["", *names, "all"], ["---", *("--:" for _ in (*names, "all"))]]

    def add(name: str, numbers: list[int]) -> None:
        rows.append([name, *(f"{number:,}" for number in (*numbers, sum(numbers)))])

    def add_faults(name: str, faults: Sequence[Counter[str]]) -> None:
        for kind in sorted(sum(faults, Counter())):
            add(kind, [each[kind] for each in faults])
        add(f"**{name}**", [each.total() for each in faults])

    add_faults("faults", [result.faults for result in results])
    add_faults("failed merges and deliveries", [result.node_faults for result in results])
    for name, count in _COUNTS.items():
        add(name, [count(result.verdict) for result in results])
    add_faults("calls of the operator", [result.verdict.operations for result in results])
    add_faults("batches with limits of all kinds", [result.verdict.reasons for result in results])
    for name, worst in _WORST.items():
        times = [worst(result.verdict) for result in results]
        rows.append([name, *(f"{each:.2f}" for each in (*times, max(times, default=0.0)))])
    for what in Kind:
        name = what.value if what is Kind.LOST_IN_WINDOW else f"**{what.value}**"
        add(name, [result.verdict.counts[what] for result in results])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def findings(result: Result) -> str:
    """Examples of the violations in a run, and where its journals are; empty if there are none."""
    if not result.verdict.violations:
        return ""
    plan = result.plan
    lines = [
        f"{plan.topology.name}: {result.verdict.violations} violations with seed {plan.seed}; "
        f"journals and logs are in {result.kept}"
    ]
    lines += [f"  {each.kind.value}: {each.text}" for each in result.verdict.examples]
    return "\n".join(lines)


def write_result(path: Path, result: Result) -> None:
    """Writes a result to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(pickle.dumps(result))
    temporary.rename(path)


def read_result(path: Path, plan: Plan) -> Result:
    """Reads a result from a file.

    Raises:
        ValueError: it is that of another plan.
    """
    result: Result = pickle.loads(path.read_bytes())
    if result.plan != plan:
        raise ValueError(f"{path} has the result of another run, {result.plan}; remove it")
    return result
