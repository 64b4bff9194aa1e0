"""Log lines: what there is at which level, their fields, and that nothing forges one."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys

import pytest
import redis

from redisagg import Task
from redisagg.testing.embedded import EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.markdown import CHECKOUT, read, rows
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_dead, await_led, numbered


def failing(group: str, tasks: list[Task]) -> Task:
    raise ValueError("no \x1b[31m")


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    return {name: vars(record)[name] for name in vars(record) if name not in _STANDARD}


_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}


def test_the_life_of_a_flusher(make_both: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "redisagg")
    agg = make_both(group_max_size=1)
    with agg:
        agg.add_tasks(numbered("a", 3))
        await_batches(agg, 3)
        wait_until(lambda: "leads 2 partitions: 0-1" in caplog.text, what="the line about leases")
    lines = [re.sub(r"\S+:\d+:\w{8}", "ID", line) for line in caplog.messages]
    assert lines[:2] == [
        "the flusher of 'tests' starts as ID: 2 partitions, concurrency 16",
        "the flusher of 'tests' leads 2 partitions: 0-1",
    ]
    assert re.fullmatch(r"the flusher of 'tests' has stopped after [\d.]+ s", lines[-1])
    assert [record.name for record in caplog.records] == [
        *("redisagg.flusher", "redisagg.leases", "redisagg.flusher")
    ]
    started = fields_of(caplog.records[0])
    assert started == {
        "event": "FlusherStarted",
        "namespace": "tests",
        "flusher": started["flusher"],
        "partitions": 2,
        "concurrency": 16,
    }


def test_each_batch_at_debug(make_both: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "redisagg.batches")
    agg = make_both(group_max_size=2)
    with agg:
        agg.add_tasks(numbered("a\nb", 2))
        wait_until(lambda: "is enqueued" in caplog.text, what="the batch is logged")
    records = [each for each in caplog.records if each.name == "redisagg.batches"]
    assert [each.getMessage().partition("tasks ")[2] for each in records] == [
        *("is claimed", "is merged", "is enqueued")
    ]
    assert all(r"of group 'a\nb' with 2" in each.getMessage() for each in records)
    last = fields_of(records[-1])
    assert (last["event"], last["group_key"], last["size"]) == ("BatchEnqueued", r"a\nb", 2)
    assert (last["sink"], last["reason"], last["namespace"]) == ("StreamSink", "size", "tests")


def test_a_batch_that_dies(make_both: Make, caplog: pytest.LogCaptureFixture) -> None:
    agg = make_both(group_max_size=2, group_aggregator=failing, max_attempts=2)
    with agg:
        agg.add_tasks(numbered("a\x1b", 2))
        await_dead(agg)
        wait_until(lambda: "dead letters" in caplog.text, what="the death is logged")
    retried, died = [each for each in caplog.records if each.name == "redisagg.batches"]
    assert r"of group 'a\x1b' failed (attempt 1 of 2)" in retried.getMessage()
    assert (retried.levelname, died.levelname) == ("WARNING", "ERROR")
    fields = fields_of(died)
    assert {name: fields[name] for name in ("event", "group_key", "attempt", "size", "error")} == {
        "event": "BatchBuried",
        "group_key": r"a\x1b",
        "attempt": 2,
        "size": 2,
        "error": r"ValueError: no \x1b[31m",
    }
    assert isinstance(died.exc_info, tuple)
    assert "in failing" in caplog.text
    assert "\x1b" not in caplog.text


def test_an_outage_of_redis(
    make: Make, redis_server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "redisagg")
    agg = make(lease_time=1)
    with agg:
        await_led(agg)
        redis_server.stop()
        wait_until(lambda: "does not acknowledge" in caplog.text, what="the outage is logged")
        # What was a line each second would be several of them.
        wait_until(lambda: _seconds_of(caplog) > 3, what="the outage lasts")
        redis_server.start()
        wait_until(lambda: "Redis answers again after" in caplog.text, what="its end is logged")
    of_redis = [each for each in caplog.records if each.name == "redisagg.redis"]
    assert [each.levelname for each in of_redis] == ["WARNING", "INFO"], caplog.text
    assert float(str(fields_of(of_redis[1])["seconds"])) > 2


def _seconds_of(caplog: pytest.LogCaptureFixture) -> float:
    """Seconds since the first line about Redis."""
    [first] = [each for each in caplog.records if "does not acknowledge" in each.getMessage()]
    return logging.makeLogRecord({}).created - first.created


def test_a_worker_logs_json(redis_url: str, sync_redis: redis.Redis) -> None:
    line = [sys.executable, "-m", "redisagg", "worker", "tests", "--redis", redis_url]
    options = ["--partitions", "1", "--log-format", "json", "--log-level", "debug"]
    with subprocess.Popen([*line, *options], cwd=CHECKOUT, stderr=subprocess.PIPE) as process:
        try:
            wait_until(
                lambda: sync_redis.hget("redisagg:{tests:0}:state", "owner"), what="it leads"
            )
            process.send_signal(signal.SIGTERM)
            _, shown = process.communicate(timeout=60)
        finally:
            process.kill()
    lines = [json.loads(each) for each in shown.splitlines() if each.startswith(b"{")]
    events = {each["event"]: each for each in lines if "event" in each}
    assert events.keys() >= {"FlusherStarted", "LeaseTaken", "LeaseReleased", "FlusherStopped"}
    started = events["FlusherStarted"]
    assert (started["level"], started["logger"]) == ("info", "redisagg.flusher")
    assert started["partitions"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}\+00:00", started["time"])


def test_the_level_of_a_worker(redis_url: str, sync_redis: redis.Redis) -> None:
    line = [sys.executable, "-m", "redisagg", "worker", "tests", "--redis", redis_url]
    options = ["--partitions", "1", "--log-level", "warning"]
    with subprocess.Popen([*line, *options], cwd=CHECKOUT, stderr=subprocess.PIPE) as process:
        try:
            wait_until(
                lambda: sync_redis.hget("redisagg:{tests:0}:state", "owner"), what="it leads"
            )
            process.send_signal(signal.SIGTERM)
            _, shown = process.communicate(timeout=60)
        finally:
            process.kill()
    assert shown.decode().splitlines() == ["redisagg: flushing 'tests'"]


def test_the_list_of_loggers_is_complete() -> None:
    page = read("docs/logging.md")
    documented = {name.strip("`") for name, _ in rows(page[: page.index("| level |")])}
    code = [path.read_text() for path in (CHECKOUT / "redisagg").rglob("*.py")]
    used = {name for text in code for name in re.findall(r'\blogger\("(\w+)"\)', text)}
    assert documented == {f"redisagg.{name}" for name in used}
    assert not [
        text
        for text in code
        if "= logging.getLogger("
        in text.replace('found = logging.getLogger(f"redisagg.{name}")', "")
    ]
