"""The table of results of several runs, and the findings of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from tests.faults.checker import Kind, Verdict
from tests.faults.run import Result

_COUNTS: dict[str, Callable[[Verdict], int]] = {
    "tasks offered": lambda verdict: verdict.offered,
    "acknowledged": lambda verdict: verdict.acknowledged,
    "refused": lambda verdict: verdict.refused,
    "unknown": lambda verdict: verdict.unknown,
    "enqueued": lambda verdict: verdict.enqueued,
    "among the dead letters": lambda verdict: verdict.dead,
    "batches": lambda verdict: verdict.batches,
    "batches redelivered": lambda verdict: verdict.redelivered,
}


def table(results: Sequence[Result]) -> str:
    """A Markdown table with a column for each run and one for their sum."""
    names = [result.plan.topology.name for result in results]
    rows = [["", *names, "all"], ["---", *("--:" for _ in (*names, "all"))]]

    def add(name: str, numbers: list[int]) -> None:
        rows.append([name, *(f"{number:,}" for number in (*numbers, sum(numbers)))])

    injected: Counter[str] = sum((result.faults for result in results), Counter())
    for kind in sorted(injected):
        add(kind, [result.faults[kind] for result in results])
    add("**faults**", [result.faults.total() for result in results])
    for name, count in _COUNTS.items():
        add(name, [count(result.verdict) for result in results])
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
