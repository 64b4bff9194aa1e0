"""The commands of the command line, except `ingest`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from redisagg import AggregationConfig, Aggregator, Policy, Task
from redisagg.cli import admin
from redisagg.cli.output import print_table
from redisagg.views import GroupState
from tests.support.cli import Run, Spawn
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, await_led, numbered

_HOSTILE = "[red]\x1b[31m\nx\x00"


def test_groups_and_their_tasks(run: Run, redis_url: str) -> None:
    ids = Aggregator("default", redis_url).add_tasks([Task("t", {"n": n}, "g") for n in range(3)])
    assert json.loads(run("groups", "--json").stdout)["size"] == 3
    assert "g" in run("groups").stdout
    shown = json.loads(run("peek", "g", "--json").stdout)
    assert [task["id"] for task in shown["tasks"]] == ids
    assert ids[0] in run("peek", "g").stdout
    assert run("peek", "other").exit_code == 1


def test_few_groups_and_tasks_are_listed_by_default(run: Run, redis_url: str) -> None:
    aggregator = Aggregator("default", redis_url)
    aggregator.pause()
    assert run("groups", "--limit", "0").stderr == ""
    aggregator.add_tasks(Task("t", n, f"g{n}", grace_period=100 + n) for n in range(60))
    aggregator.add_tasks(Task("t", n, "large", grace_period=300, max_size=99) for n in range(70))
    aggregator.flush("g3")

    def listed(*arguments: str) -> list[str]:
        lines = run("groups", *arguments, "--json").stdout.splitlines()
        return [json.loads(line)["group_key"] for line in lines]

    order = ["g3", *(f"g{n}" for n in range(60) if n != 3), "large"]
    assert listed() == order[:50]
    assert "the first 50 groups" in run("groups").stderr
    assert run("groups").stdout.count("\n") == 51
    assert listed("--limit", "7") == order[:7]
    assert listed("--due") == order[:1]
    assert set(listed("--limit", "0")) == set(order)
    assert run("groups", "--due").stderr == ""
    assert listed("--prefix", "g1", "--limit", "4") == ["g1", *(f"g{n}" for n in range(10, 13))]
    assert set(listed("--prefix", "l", "--limit", "0")) == {"large"}
    assert listed("--order", "size", "--limit", "1") == ["large"]
    assert set(listed("--order", "age", "--limit", "0")) == set(order)
    assert run("groups", "--due", "--prefix", "g").exit_code == 2

    def peeked(*arguments: str) -> list[int]:
        shown = json.loads(run("peek", "large", *arguments, "--json").stdout)
        assert shown["size"] == 70
        return [task["payload"] for task in shown["tasks"]]

    assert peeked() == list(range(50))
    assert "50 of 70 tasks" in run("peek", "large").stderr
    assert peeked("--offset", "50") == list(range(50, 70))
    assert peeked("--offset", "3", "--limit", "2") == [3, 4]
    assert peeked("--limit", "0") == list(range(70))


@pytest.mark.parametrize("due", [False, True])
def test_all_groups_are_printed_as_they_are_read(
    run: Run,
    redis_url: str,
    sync_redis: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    due: bool,
) -> None:
    keys = {f"g{n}" for n in range(3_000)}
    aggregator = Aggregator("default", redis_url, config=AggregationConfig(partitions=2))
    aggregator.add_tasks(Task("t", None, key, max_size=1 if due else None) for key in keys)
    sync_redis.config_resetstat()
    rows: dict[str, int] = {}

    def print_row(state: GroupState) -> None:
        stats: Any = sync_redis.info("commandstats")
        reads = "cmdstat_hmget" if due else "cmdstat_hscan"
        rows[state.group_key] = stats[reads]["calls"]

    monkeypatch.setattr(admin, "print_json", print_row)
    run("groups", "--limit", "0", "--json", *(["--due"] if due else []))
    assert rows.keys() == keys
    reads = list(rows.values())
    assert reads[0] <= 3 < reads[-1] - reads[0]
    assert len(set(reads)) > 6


def test_rows_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    printed = 0

    def rows() -> Iterator[tuple[object, ...]]:
        nonlocal printed
        for n in range(1_000):
            printed += capsys.readouterr().out.count("\n")
            assert printed > n - 200
            yield n, "ü" * (n % 7), None

    print_table(("number", "text", "nothing"), rows())
    assert printed + capsys.readouterr().out.count("\n") == 1_001


def test_what_comes_from_outside_can_not_touch_the_terminal(run: Run, redis_url: str) -> None:
    Aggregator("default", redis_url).add_task(Task(_HOSTILE, {_HOSTILE: _HOSTILE}, _HOSTILE))
    for arguments in (["groups"], ["peek", _HOSTILE], ["groups", "--json", "--tasks"]):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "\x1b" not in result.output
        assert "\x00" not in result.output
        assert "[red]" in result.output


def test_steering(run: Run, redis_url: str) -> None:
    aggregator = Aggregator("default", redis_url)
    ids = aggregator.add_tasks([Task("t", n, "g") for n in range(3)] + [Task("t", 1, "h")])
    assert json.loads(run("cancel", "g", ids[0], "--json").stdout) == {"cancelled": 1}
    assert json.loads(run("cancel", "g", ids[0], "--json").stdout) == {"cancelled": 0}
    later = "2126-11-27T08:00+01:00"
    assert json.loads(run("postpone", "g", later, "--json").stdout) == {"postponed": 2}
    due = aggregator.get_entries()["g"].due_at
    assert due == datetime.fromisoformat(later).timestamp()
    assert run("postpone", "g", "2126-11-27").exit_code == 2
    assert json.loads(run("flush", "g", "--json").stdout) == {"flushed": 2}
    assert json.loads(run("flush", "--all", "--json").stdout) == {"flushed": 1}
    assert run("flush").exit_code == run("flush", "g", "--all").exit_code == 2
    assert json.loads(run("cancel", "h", "--json").stdout) == {"cancelled": 1}
    run("pause")
    assert json.loads(run("stats", "--json").stdout)["paused"] is True
    assert "paused" in run("stats").stdout
    run("resume")
    assert json.loads(run("stats", "--json").stdout)["paused"] is False


def test_policies(run: Run, redis_url: str) -> None:
    aggregator = Aggregator("default", redis_url)
    aggregator.pause()
    assert run("policy", "list").stdout.split() == ["pattern", "limits"]
    run("policy", "set", "*", "--priority", "3", "--max-bytes", "0")
    given = ("--grace", "1.5", "--max-delay", "9", "--max-size", "2", "--max-weight", "7")
    said = run("policy", "set", "digest:*", *given, "--min-interval", "60", "--leading")
    limits = "grace_period=1.5, max_delay=9, max_size=2, max_weight=7, min_interval=60"
    assert said.stdout == f"set: {limits}, leading=True\n"
    assert aggregator.policies() == {
        "digest:*": Policy(
            grace_period=1.5, max_delay=9, max_size=2, max_weight=7, min_interval=60, leading=True
        ),
        "*": Policy(priority=3, max_bytes=0),
    }
    first, second = run("policy", "list", "--json").stdout.splitlines()
    assert json.loads(first)["min_interval"] == 60
    assert json.loads(second) == {"pattern": "*", "priority": 3, "max_bytes": 0}
    assert f"{limits}, leading=True" in run("policy", "list").stdout
    shown = run("policy", "test", "digest:7").stdout.splitlines()
    rows = {row[0]: row[1:] for row in map(str.split, shown)}
    assert rows["max_size"] == ["2", "digest:*"]
    assert rows["priority"] == ["3", "*"]
    decided = json.loads(run("policy", "test", "g", "--json").stdout)
    assert decided["max_bytes"] == {"value": 0, "pattern": "*"}
    assert decided.keys() == {"max_bytes", "priority"}
    assert "settings" in run("policy", "test", "g").stdout
    assert json.loads(run("policy", "remove", "*", "--json").stdout) == {"removed": 1}
    missing = run("policy", "remove", "*", "digest:*")
    assert (missing.exit_code, missing.stdout) == (1, "1 policies removed\n")
    assert "'*'" in missing.stderr
    assert aggregator.policies() == {}


def test_a_policy_for_open_groups(run: Run, redis_url: str) -> None:
    aggregator = Aggregator("default", redis_url)
    aggregator.add_tasks(numbered("digest:1", 2))
    said = run("policy", "set", "digest:*", "--max-size", "2", "--apply-to-open")
    assert said.stdout == "set: max_size=2\n1 open groups changed, 0 left as they were\n"
    assert list(aggregator.get_groups(due=True)) == ["digest:1"]
    again = run("policy", "set", "digest:*", "--max-size", "2", "--json")
    assert json.loads(again.stdout) == {
        "pattern": "digest:*",
        "max_size": 2,
        "changed": 0,
        "left": 0,
    }


@pytest.mark.parametrize(
    "arguments", [["a?", "--max-size", "1"], ["a"], ["a", "--leading"], ["a", "--grace", "0"]]
)
def test_wrong_policies_are_one_line(run: Run, redis_url: str, arguments: list[str]) -> None:
    Aggregator("default", redis_url).pause()
    result = run("policy", "set", *arguments)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_dead_letters(run: Run, redis_url: str) -> None:
    def fail(group: str, tasks: list[Task]) -> Task:
        raise ValueError(_HOSTILE)

    config = AggregationConfig(group_max_size=2, group_aggregator=fail, max_attempts=1)
    with Aggregator("default", redis_url, config=config) as aggregator:
        aggregator.add_tasks([Task("t", n, "g") for n in range(4)])
        letters = await_dead(aggregator, 2)
    listed = [json.loads(line) for line in run("dead", "list", "--json").stdout.splitlines()]
    assert [letter["batch_id"] for letter in listed] == [letter.batch_id for letter in letters]
    assert "\x1b" not in run("dead", "list").stdout
    shown = run("dead", "show", letters[0].batch_id)
    assert "ValueError" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert json.loads(run("dead", "drop", letters[0].batch_id, "--json").stdout)["tasks"] == 2
    assert "1 batches with 2 tasks requeued" in run("dead", "requeue", "--all").stdout
    assert json.loads(run("dead", "requeue", "--all", "--json").stdout) == {
        "batches": 0,
        "tasks": 0,
    }
    for command in ("requeue", "drop"):
        assert run("dead", command).exit_code == 2
        assert run("dead", command, letters[0].batch_id, "--all").exit_code == 2
    assert run("dead", "drop", "nothing").exit_code == 1
    assert run("dead", "show", "nothing").exit_code == 1


def test_the_recorded_number_of_partitions_is_used(run: Run, redis_url: str) -> None:
    config = AggregationConfig(partitions=3)
    Aggregator("default", redis_url, config=config).add_task(Task("t", 1, "g"))
    assert len(json.loads(run("stats", "--json").stdout)["partitions"]) == 3
    result = run("ingest", "--group-by", "g", "--partitions", "4", input='{"g": 1}')
    assert result.exit_code == 1
    assert "partitions" in result.stderr


_LOOKING: list[tuple[str, ...]] = [
    *(("groups",), ("peek", "g"), ("stats",), ("flush", "--all"), ("flush", "g")),
    *(("cancel", "g"), ("pause",), ("resume",), ("dead", "list"), ("dead", "show", "1-0-1")),
    *(("dead", "requeue", "--all"), ("dead", "drop", "1-0-1")),
    ("tail", "list://out", "--no-follow"),
]


@pytest.mark.parametrize("arguments", _LOOKING)
def test_a_command_that_looks_creates_no_namespace(
    run: Run, redis_url: str, sync_redis: redis.Redis, arguments: tuple[str, ...]
) -> None:
    result = run(*arguments, "-n", "oders")
    assert (result.exit_code, sync_redis.keys()) == (1, [])
    assert "there is no namespace 'oders'; none exists" in result.stderr
    for name in ("orders", "emails"):
        Aggregator(name, redis_url).add_task(Task("t", 1, "}:meta"))
    before = sync_redis.keys("*oders*")
    result = run(*arguments, "-n", "oders")
    assert (result.exit_code, sync_redis.keys("*oders*")) == (1, before)
    assert "those that exist: 'emails', 'orders'" in result.stderr


def test_many_namespaces_are_named_in_part(run: Run, sync_redis: redis.Redis) -> None:
    for n in range(30):
        sync_redis.hset(f"redisagg:{{n{n:02}}}:meta", mapping={"schema": 1, "partitions": 1})
    text = run("stats", "-n", "oders").stderr
    assert "some of those that exist: 'n00', 'n01'" in text
    assert "n19" in text
    assert "n20" not in text


def test_a_user_who_may_not_scan_is_told_so(
    run: Run, redis_url: str, sync_redis: redis.Redis
) -> None:
    sync_redis.execute_command("ACL SETUSER looker on >x ~* +@all -scan")
    result = run("stats", "-n", "oders", "--redis", redis_url.replace("://", "://looker:x@"))
    assert result.exit_code == 1
    assert "there is no namespace 'oders'; the names that there are can't be listed" in (
        result.stderr
    )


def test_a_queue_is_read_without_a_namespace(run: Run, sync_redis: redis.Redis) -> None:
    assert run("tail", "list://out", "--no-follow").exit_code == 0
    assert sync_redis.keys() == []


def test_a_foreign_number_of_partitions_is_named(run: Run, sync_redis: redis.Redis) -> None:
    sync_redis.hset("redisagg:{default}:meta", "partitions", "many")
    result = run("stats")
    assert result.exit_code == 1
    assert "Error: the key redisagg:{default}:meta holds b'many'" in result.stderr


def test_a_pipeline_of_worker_and_tail(run: Run, spawn: Spawn) -> None:
    worker = spawn("worker", "default", "--sink", "list://out?format=json", "--concurrency", "2")
    lines = "".join(f'{{"g":"{n % 3}","n":{n}}}\n' for n in range(30))
    assert run("ingest", "--group-by", "g", "--max-size", "10", input=lines).exit_code == 0
    tail = spawn("tail", "list://out?format=json", "--count", "3", stdout=subprocess.PIPE)
    output, _ = tail.communicate(timeout=20)
    batches = [json.loads(line) for line in output.splitlines()]
    assert sorted(batch["group"] for batch in batches) == ["0", "1", "2"]
    assert {batch["count"] for batch in batches} == {10}
    assert run("tail", "list://out?format=json", "--no-follow").stdout.count("\n") == 3
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0


def test_a_worker_finds_an_aggregator_in_the_working_directory(
    spawn: Spawn, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(
        "from redisagg import *\n"
        "def merge(group, tasks): return Task('mine', len(tasks))\n"
        "config = AggregationConfig(group_max_size=2, group_aggregator=merge)\n"
        f"agg = Aggregator('mine', {redis_url!r}, config=config)\n"
    )
    spawn("worker", "app:agg", cwd=tmp_path)
    aggregator = Aggregator("mine", redis_url)
    await_led(aggregator, timeout=20)
    aggregator.add_tasks([Task("t", n, "g", max_size=2) for n in range(2)])
    wait_until(lambda: len(aggregator.read_sink().batches) == 1, timeout=10, what="a batch")
    assert aggregator.read_sink().batches[0].type == "mine"


_LIMITS = ("--grace", "--max-delay", "--max-size")


@pytest.mark.parametrize(
    ("target", "option"),
    [
        *(("app:agg", each) for each in ("--redis", "--sink", "--partitions", *_LIMITS)),
        *(("default", each) for each in _LIMITS),
    ],
)
def test_a_worker_refuses_options_without_effect(
    run: Run, sync_redis: redis.Redis, target: str, option: str
) -> None:
    result = run("worker", target, option, "3")
    assert result.exit_code == 2
    assert option in result.stderr
    assert sync_redis.keys() == []


def test_tasks_are_listed_as_json_only(run: Run, redis_url: str) -> None:
    Aggregator("default", redis_url).add_task(Task("t", 1, "g"))
    assert run("groups", "--tasks").exit_code == 2


@pytest.mark.parametrize("target", ["nomodule:x", "json:x", "json:dumps", ":x"])
def test_a_worker_without_an_aggregator(run: Run, target: str) -> None:
    result = run("worker", target)
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr


def test_redis_that_is_not_there_is_one_line(run: Run) -> None:
    result = run("stats", "--redis", "redis://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


def test_tail_of_what_is_no_queue_of_ours(run: Run, sync_redis: redis.Redis) -> None:
    sync_redis.xadd("foreign", {"a": "b"}, id="7-1")
    result = run("tail", "stream://foreign", "--no-follow")
    assert result.exit_code == 1
    assert "left out: b'foreign' 7-1: " in result.stderr
    assert "1 entries were left out" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("kind", ["stream", "list"])
def test_tail_leaves_out_what_is_no_batch_of_ours(
    run: Run, redis_url: str, sync_redis: redis.Redis, kind: str
) -> None:
    sink = f"{kind}://out?format=json"

    def spoil() -> None:
        if kind == "stream":
            sync_redis.xadd("out", {"payload": "[" * 99_999})
        else:
            sync_redis.rpush("out", '{"count": 1e999}', b"\xff")

    config = AggregationConfig(group_max_size=1)
    with Aggregator("default", redis_url, config=config, sink=sink) as aggregator:
        for n in range(2):
            spoil()
            aggregator.add_task(Task("t", n, f"g{n}"))
            assert aggregator.wait_until_idle(10)
        spoil()
        page = aggregator.read_sink()
    assert [batch.group for batch in page.batches] == ["g0", "g1"]
    assert len(page.unreadable) == (3 if kind == "stream" else 6)
    result = run("tail", sink, "--no-follow")
    assert result.exit_code == 1
    assert result.stdout.count("\n") == 2
    assert result.stderr.count("left out: b'out' ") == len(page.unreadable)


def test_partitions_that_cannot_be_read_are_named(
    run: Run, redis_url: str, sync_redis: redis.Redis
) -> None:
    Aggregator("default", redis_url).add_task(Task("t", 1, "g"))
    sync_redis.hset("redisagg:{default:5}:state", "waiting", "x")
    assert "partitions that can't be read: 5" in run("stats").stdout
    assert json.loads(run("stats", "--json").stdout)["unreadable"] == [5]


def test_the_demo_counts_every_task() -> None:
    line = [sys.executable, "-m", "redisagg", "demo", "--tasks", "1000", "--json"]
    done = subprocess.run(line, capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["added"], result["enqueued"]) == (1000, 1000)
    assert (result["lost"], result["duplicated"], result["waiting"]) == (0, 0, 0)
    assert result["killed_flushers"] == 1


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ImportError(name='click')")
    line = [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]);"
            "from redisagg.__main__ import main; main()", str(tmp_path)]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "pip install 'redisagg[cli]'" in done.stderr
