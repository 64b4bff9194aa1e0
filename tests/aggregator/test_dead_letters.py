"""Dead letters: counted by error, searched, in pages, and merged on trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redisagg import Aggregator, Partial, Task
from redisagg.errors import InvalidConfig
from redisagg.flusher.dry_run import dry_run
from redisagg.views import BatchInfo, DeadLetter
from tests.support.aggregators import Make
from tests.support.cli import Run
from tests.support.tasks import await_dead, quick_config


def refuse(group: str, tasks: list[Task]) -> None:
    number = tasks[0].payload
    raise ValueError(f"row {number} of Table {group} is refused\nand more")


def refuse_even(group: str, tasks: list[Task]) -> Partial:
    return Partial(Task("odd", 1), {t.id: "even" for t in tasks if t.payload % 2 == 0})


def filled(make: Make) -> Aggregator:
    """An aggregator with dead letters: four of group a, two of group b with another type too."""
    agg = make(group_aggregator=refuse, group_max_size=2, max_attempts=1)
    with agg:
        agg.add_tasks(Task("insert", n, "a") for n in range(8))
        agg.add_tasks(Task("insert" if n % 2 else "update", n, "b") for n in range(4))
        await_dead(agg, 6)
    return agg


def ids(letters: list[DeadLetter]) -> list[str]:
    return [letter.batch_id for letter in letters]


def test_they_are_counted_by_error(make_both: Make) -> None:
    agg = filled(make_both)
    first, second = agg.dead_reasons()
    assert (first.error, first.batches, first.tasks) == (
        "ValueError: row # of Table a is refused",
        4,
        8,
    )
    assert (second.error, second.batches, second.tasks) == (
        "ValueError: row # of Table b is refused",
        2,
        4,
    )
    died = [letter.died_at for letter in agg.dead_letters(group_key="a")]
    assert (first.first_died_at, first.last_died_at) == (min(died), max(died))


def test_they_are_searched(make_both: Make) -> None:
    agg = filled(make_both)
    everything = agg.dead_letters()
    of_b = [letter for letter in everything if letter.group_key == "b"]
    assert ids(agg.dead_letters(group_key="b")) == ids(of_b)
    assert ids(agg.dead_letters(error="TABLE B")) == ids(of_b)
    assert ids(agg.dead_letters(type="update")) == ids(of_b)
    assert agg.dead_letters(type="update", group_key="a") == []
    assert agg.dead_letters(error="nothing like it") == []
    assert all(letter.tasks is None for letter in agg.dead_letters(type="update"))
    assert all(letter.tasks for letter in agg.dead_letters(type="update", tasks=True))


@pytest.mark.parametrize("type_", [None, "insert"])
def test_they_come_in_pages(make_both: Make, type_: str | None) -> None:
    agg = filled(make_both)
    everything = ids(agg.dead_letters())
    pages: list[str] = []
    while page := agg.dead_letters(limit=4, after=pages[-1] if pages else None, type=type_):
        assert len(page) <= 4
        pages += ids(page)
    assert pages == everything
    with pytest.raises(InvalidConfig):
        agg.dead_letters(limit=0)


def test_a_dry_run_shows_what_a_merge_does(make: Make) -> None:
    agg = filled(make)
    [letter, *_] = agg.dead_letters(tasks=True, limit=1)
    tried = dry_run(refuse, letter)
    assert tried.error.startswith("ValueError: row ")
    assert "refuse" in tried.traceback
    tried = dry_run(refuse_even, letter)
    assert [task.type for task in tried.merged] == ["odd"]
    assert list(tried.failed.values()) == ["even"]

    async def later(group: str, tasks: list[Task], info: BatchInfo) -> list[Task]:
        assert info.batch_id == letter.batch_id
        assert len(info.arrivals) == len(tasks)
        return [Task("one", 1), Task("two", 2)]

    assert [task.type for task in dry_run(later, letter).merged] == ["one", "two"]
    assert dry_run(lambda group, tasks: None, letter).merged == []
    assert "returned int" in dry_run(lambda group, tasks: 1, letter).error  # type: ignore[arg-type]
    assert agg.stats().batches_dead == 6


MODULE = """
from redisagg import Aggregator, AggregationConfig, Task

def merge(group, tasks):
    return Task("merged", [task.payload for task in tasks])

agg = Aggregator("default", config=AggregationConfig(group_aggregator=merge))
"""


def test_the_commands(
    run: Run, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(**config: object) -> Aggregator:
        return Aggregator("default", redis_url, config=quick_config(**config))

    agg = filled(make)
    letters = agg.dead_letters()
    of_b = [letter.batch_id for letter in letters if letter.group_key == "b"]

    def listed(*options: str) -> list[str]:
        lines = run("dead", "list", "--json", *options).stdout.splitlines()
        return [json.loads(line)["batch_id"] for line in lines]

    assert listed("--group", "b") == listed("--type", "update") == of_b
    assert listed("--error", "table b", "--limit", "1") == of_b[:1]
    assert listed("--after", ids(letters)[3]) == ids(letters)[4:]
    reasons = run("dead", "reasons", "--json").stdout.splitlines()
    assert json.loads(reasons[0])["tasks"] == 8
    assert "row # of Table b" in run("dead", "reasons").stdout

    (tmp_path / "dead_letters_app.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    shown = run("dead", "try", of_b[0], "dead_letters_app:agg")
    assert "merged: merged [" in shown.stdout
    assert run("dead", "try", "nothing", "dead_letters_app:agg").exit_code == 1
    assert agg.stats().batches_dead == 6

    assert run("dead", "requeue", of_b[0], "--error", "x").exit_code == 2
    dropped = run("dead", "drop", "--all", "--type", "update", "--json").stdout
    assert json.loads(dropped) == {"batches": 2, "tasks": 4}
    requeued = run("dead", "requeue", "--all", "--error", "TABLE A").stdout
    assert "4 batches with 8 tasks requeued" in requeued
    assert agg.stats().batches_dead == 0
