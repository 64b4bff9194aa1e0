"""The command line escapes control characters in untrusted texts."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result

from redisagg import AggregationConfig, Aggregator, Task
from redisagg.cli.app import cli
from tests.support.cli import Run
from tests.support.shapes import HOSTILE, is_harmless
from tests.support.tasks import await_dead


@pytest.fixture
def run(redis_url: str) -> Run:
    """Runs the command against an empty server; checks that its output is harmless."""

    def run(*arguments: str, **options: Any) -> Result:
        env = {"REDISAGG_URL": redis_url, "COLUMNS": "5000"}
        result = CliRunner(env=env).invoke(cli, arguments, **options)
        assert is_harmless(result.output), (arguments, result.output)
        unexpected = result.exception and not isinstance(result.exception, SystemExit)
        assert not unexpected, (arguments, result.exc_info)
        return result

    return run


def hostile_task(text: str, **fields: Any) -> Task:
    return Task(text, {text: [text, text.encode()]}, text, id=text, headers={text: text}, **fields)


def test_groups_and_tasks(run: Run, redis_url: str) -> None:
    Aggregator("default", redis_url).add_tasks(map(hostile_task, HOSTILE))
    shown = run("groups").stdout
    assert "[red]markup[/red]" in shown
    assert "\\x1b[31mred" in shown
    listed = [
        json.loads(line)
        for line in run("groups", "--json", "--tasks", "--limit", "0").stdout.splitlines()
    ]
    assert {group["group_key"] for group in listed} == set(HOSTILE)
    assert all(group["tasks"][0]["payload"].keys() == {group["group_key"]} for group in listed)
    run("stats")
    for text in HOSTILE:
        assert run("peek", "--", text).exit_code == 0
        assert json.loads(run("peek", "--json", "--", text).stdout)["group_key"] == text
        run("flush", "--", text)
        run("cancel", "--", text, text)


def test_dead_letters_and_queues(run: Run, redis_url: str) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        if tasks[0].options:
            raise ValueError(group)
        return Task(group, {group: group}, headers={group: group})

    config = AggregationConfig(group_max_size=1, group_aggregator=merge, max_attempts=1)
    with Aggregator("default", redis_url, config=config) as aggregator:
        aggregator.add_tasks(hostile_task(text, options={"fail": True}) for text in HOSTILE)
        letters = await_dead(aggregator, len(HOSTILE))
        aggregator.add_tasks(map(hostile_task, HOSTILE))
        assert aggregator.wait_until_idle(10)
    run("dead", "list")
    run("dead", "list", "--json")
    for letter in letters:
        assert "ValueError" in run("dead", "show", letter.batch_id).stdout
        run("dead", "show", letter.batch_id, "--json")
    tail = run("tail", "stream://default-batches", "--no-follow").stdout.splitlines()
    assert sorted(json.loads(line)["group"] for line in tail) == sorted(HOSTILE)


@pytest.mark.parametrize("text", ["\x1b[31m", "\x07\x9b", "\r", "\u202e", "\x1b]0;x\x07", "\ud800"])
def test_arguments(run: Run, text: str) -> None:
    for arguments in (
        *(["peek", text], ["flush", text], ["cancel", text, text], ["groups", "-n", text]),
        *(["dead", "show", text], ["dead", "drop", text], ["dead", "requeue", text], [text]),
        *(["tail", text], ["tail", f"stream://{text}", "--no-follow"], ["stats", f"--{text}"]),
        *(["worker", f"{text}:{text}"], ["worker", text], ["worker", "x", "--sink", text]),
        *(["groups", "--redis", text], ["groups", "--redis", f"redis://{text}"], ["dead", text]),
        *(["ingest", text], ["ingest", "--group-by", "x", text], ["stats", "--partitions", text]),
        ["ingest", "--group-by", text, "--regex", f"({text}"],
        ["ingest", "--group-by", text, "--regex", text],
    ):
        assert run(*arguments, input="").exit_code in (0, 1, 2)


def test_lines_to_ingest(run: Run) -> None:
    lines = [json.dumps({"k": text}) for text in HOSTILE] + [*HOSTILE, '{"k": 1e999}', "[" * 5000]
    data = "\n".join(lines).encode() + b'\n\xff\xfe\n{"k": "\xff"}\n\x00\n'
    result = run("ingest", "--group-by", "k", "--type", "\x1b[31m", input=data)
    assert result.exit_code == 3
    assert "rejected" in result.stderr
    run("groups")
    run("ingest", "--group-by", "k", "--regex", "(?P<k>.*)", input=data)


@pytest.mark.parametrize("foreign", [b"", b"\xc1", b"{", b"\x1b[31m"])
def test_a_queue_with_what_is_no_batch(run: Run, redis_url: str, foreign: bytes) -> None:
    for kind in ("stream", "list"):
        with redis.Redis.from_url(redis_url) as client:
            client.execute_command("RPUSH", "list", foreign)
            client.execute_command("XADD", "stream", "*", foreign, foreign)
        result = run("tail", f"{kind}://{kind}", "--no-follow")
        assert result.exit_code == 1
        assert "Error: " in result.output


def test_payloads_that_have_no_form_in_json_do_not_hide_others(run: Run, redis_url: str) -> None:
    colliding = {1: "a", "1": "b"}
    aggregator = Aggregator("default", redis_url)
    aggregator.add_tasks([Task("t", colliding, "g"), Task("t", "plain", "g")])
    assert "plain" in run("peek", "g").stdout
    assert "plain" in run("peek", "g", "--json").stdout


def test_on_a_terminal(redis_url: str) -> None:
    """Rich writes escapes of its own to a terminal; the hostile ones must not be among them."""
    text = "\x1b]0;title\x07\x1b[2J\x9b31m[red]x[/red]"
    Aggregator("default", redis_url).add_task(hostile_task(text))
    for arguments in (["groups"], ["peek", text], ["groups", "--json", "--tasks"]):
        shown = on_terminal(arguments, redis_url)
        assert b"[red]x[/red]" in shown
        assert not any(each in shown for each in (b"\x1b]", b"\x07", b"\x1b[2J", b"\xc2\x9b"))


def on_terminal(arguments: list[str], redis_url: str) -> bytes:
    """Returns the output of the command on a terminal."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "REDISAGG_URL": redis_url, "TERM": "xterm-256color", "COLUMNS": "400"}
    line = [sys.executable, "-m", "redisagg", *arguments]
    with subprocess.Popen(line, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 20)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        process.kill()
    os.close(ours)
    return shown
