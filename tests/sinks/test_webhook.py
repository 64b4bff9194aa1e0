"""WebhookSink against a real HTTP server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from redisagg import Aggregator
from redisagg.errors import SinkError
from redisagg.sinks import sink_from_url
from tests.sinks.environment import CHECKOUT, environment
from tests.sinks.harness import System, Trial, running, verify_received_once
from tests.support.tasks import await_dead, numbered, quick_config

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

OLD, NEW = (f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def trial(redis_url: str, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setenv("SECRETS", f"{NEW} {OLD}")
    system = System(
        extra="webhook",
        sink=f"webhook+http://127.0.0.1:{free_port}/hook?secret_env=SECRETS&source=/tests&timeout=2",
        worker=("{python}", "-m", "tests.sinks.workers.webhook_receiver", str(free_port)),
    )
    return Trial(system, redis_url, tmp_path)


@contextlib.contextmanager
def receiving(trial: Trial, port: int, *answers: str) -> Iterator[None]:
    """The receiver at work, once it listens."""
    with trial.worker(*answers):
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield


@contextlib.contextmanager
def flushing(trial: Trial) -> Iterator[Aggregator]:
    """A flusher of the sink's own environment; the producer that feeds it."""
    agg = Aggregator("tests", trial.url, config=quick_config(group_max_size=2))
    env = {"REDISAGG_TEST_REDIS": trial.url, "REDISAGG_TEST_SINK": trial.system.sink}
    command = [
        str(trial.python),
        "-m",
        "redisagg",
        "worker",
        "tests.sinks.workers.quick_flusher:agg",
    ]
    with contextlib.closing(agg), running(command, trial.log("flusher"), env=env):
        yield agg


def headers_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """The headers of a request, none of which came twice."""
    headers = dict(entry["headers"])
    assert len(headers) == len(entry["headers"])
    return headers


def signatures(entry: Mapping[str, Any], *secrets: str) -> str:
    """What the specification of Standard Webhooks says that the header has to be."""
    headers = headers_of(entry)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{entry['body']}".encode()
    made = []
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        digest = hmac.new(key, signed, hashlib.sha256).digest()
        made.append("v1," + base64.b64encode(digest).decode())
    return " ".join(made)


@pytest.mark.slow  # a fault run: a flusher is killed while the worker runs
def test_every_task_is_received_under_one_key_a_batch(trial: Trial) -> None:
    entries = trial.run()
    verify_received_once(entries, may_repeat=trial.in_flight)
    bodies = {entry["id"]: entry["body"] for entry in entries}
    for entry in entries:
        headers = headers_of(entry)
        assert headers["idempotency-key"] == headers["webhook-id"] == entry["id"]
        assert headers["webhook-signature"] == signatures(entry, NEW, OLD)
        assert entry["body"] == bodies[entry["id"]]


@pytest.mark.parametrize(
    "answers",
    [["500", "429"], ["408", "425"], ["drop", "503"], ["429;0"], ["hang"], ["drip"], ["307"]],
)
def test_what_fails_is_posted_again_with_the_same_body(
    trial: Trial, free_port: int, answers: list[str]
) -> None:
    with receiving(trial, free_port, *answers), flushing(trial) as agg:
        agg.add_tasks(numbered("a", 2))
        entries = trial.await_received(len(answers) + 1)
        assert agg.wait_until_idle(10)
        stats = agg.stats()
    assert [entry["answer"] for entry in entries] == [*answers, "200"]
    assert len({entry["body"] for entry in entries}) == 1
    assert len({headers_of(entry)["idempotency-key"] for entry in entries}) == 1
    assert {entry["path"] for entry in entries} == {"/hook"}
    for entry in entries:
        assert headers_of(entry)["webhook-signature"] == signatures(entry, NEW, OLD)
    assert (stats.flushed, stats.dead) == (2, 0)


def test_a_receiver_that_says_when_to_come_again_costs_no_attempt(
    trial: Trial, free_port: int
) -> None:
    answers = ["429;1", "503;1"] * 3  # more than the attempts that a batch has
    with receiving(trial, free_port, *answers), flushing(trial) as agg:
        agg.add_tasks(numbered("a", 2))
        entries = trial.await_received(len(answers) + 1, 30)
        assert agg.wait_until_idle(10)
        assert agg.stats().dead == 0
    times = [int(headers_of(entry)["webhook-timestamp"]) for entry in entries]
    assert times[-1] - times[0] >= len(answers) - 1


def test_a_repeat_is_signed_anew_with_its_own_time(trial: Trial, free_port: int) -> None:
    with receiving(trial, free_port, "hang"), flushing(trial) as agg:  # for the timeout of 2 s
        agg.add_tasks(numbered("a", 2))
        first, second = trial.await_received(2)
    times = [int(headers_of(entry)["webhook-timestamp"]) for entry in (first, second)]
    assert times[1] - times[0] in range(1, 10)
    assert abs(times[1] - time.time()) < 20


def test_what_is_refused_for_good_becomes_a_dead_letter(trial: Trial, free_port: int) -> None:
    with receiving(trial, free_port, *["422"] * 4), flushing(trial) as agg:
        agg.add_tasks(numbered("a", 2))
        [letter] = await_dead(agg)
        assert letter.error == "SinkError: the receiver answered 422: 'so\\n'"
        assert len(trial.received()) == 4
        agg.requeue_dead_letter(letter.batch_id)
        assert trial.await_received(5)[4]["payloads"] == [0, 1]


def test_a_receiver_that_says_come_at_once_is_not_asked_for_ever(
    trial: Trial, free_port: int
) -> None:
    answers = ["429;0", "503;Thu, 01 Jan 1970 00:00:00 GMT"] * 2
    with receiving(trial, free_port, *answers), flushing(trial) as agg:
        agg.add_tasks(numbered("a", 2))
        [letter] = await_dead(agg)
    assert letter.attempts == len(answers)


def test_what_finds_no_receiver_becomes_a_dead_letter(trial: Trial) -> None:
    with flushing(trial) as agg:
        agg.add_tasks(numbered("a", 2))
        [letter] = await_dead(agg)
    assert letter.error.startswith("ConnectError: ")


def test_what_the_receiver_sees(trial: Trial, free_port: int) -> None:
    with receiving(trial, free_port):
        trial.deliver(
            {
                "id": "B1",
                "type": "email:digest",
                "payload": {"a": [1, None, "ü"]},
                "headers": {"traceparent": TRACE, "tracestate": "a=1", "X-Tenant": "t"},
            }
        )
        [entry] = trial.await_received(1)
    assert json.loads(entry["body"]) == {
        "specversion": "1.0",
        "id": "B1",
        "source": "/tests",
        "type": "email:digest",
        "subject": "group",
        "redisaggcount": 1,
        "traceparent": TRACE,
        "tracestate": "a=1",
        "xtenant": "t",
        "datacontenttype": "application/json",
        "data": {"a": [1, None, "ü"]},
    }
    headers = headers_of(entry)
    assert headers["content-type"] == "application/cloudevents+json"
    assert (headers["traceparent"], headers["tracestate"]) == (TRACE, "a=1")


def test_what_comes_from_outside_stays_in_the_body(trial: Trial, free_port: int) -> None:
    outside = "x\r\nwebhook-id: other\r\n\r\n\x00\x85\ufffe"
    with receiving(trial, free_port):
        trial.deliver(
            {
                "id": "B1",
                "type": outside,
                "payload": {outside: outside},
                "headers": {"traceparent": outside, "tracestate": outside, "other": outside},
            },
            {"id": "B2", "type": "x", "headers": {"traceparent": TRACE, "tracestate": outside}},
            {"id": "B3", "type": "x", "headers": {"traceparent": "x", "tracestate": "a=1"}},
        )
        first, second, third = trial.await_received(3)
    event = json.loads(first["body"])
    assert event["data"] == {outside: outside}
    allowed = "x\ufffd\ufffdwebhook-id: other" + 7 * "\ufffd"
    assert (event["type"], event["other"]) == (allowed, allowed)
    for entry in (first, third):
        assert not {"traceparent", "tracestate"} & headers_of(entry).keys()
    assert headers_of(first)["webhook-id"] == "B1"
    assert headers_of(second)["traceparent"] == TRACE
    assert "tracestate" not in headers_of(second)


@pytest.mark.parametrize("name", ["id", "Data", "x-y", "--", "redisagg-count"])
def test_a_header_that_would_hide_an_attribute_is_refused(
    trial: Trial, free_port: int, name: str
) -> None:
    batch = {"id": "B1", "type": "x", "headers": {"xy": "1", name: "2"}}
    with receiving(trial, free_port), pytest.raises(subprocess.CalledProcessError):
        trial.deliver(batch)
    assert trial.received() == []


ORACLES = """
import json, sys
from cloudevents.http import from_http
from standardwebhooks import Webhook

headers, body, *secrets = json.loads(sys.argv[1])
for secret in secrets:
    Webhook(secret).verify(body, headers)
event = from_http(headers, body)
print(json.dumps([event["id"], event["subject"], event["traceparent"], event.data]))
"""


def test_libraries_of_both_standards_accept_it(trial: Trial, free_port: int) -> None:
    with receiving(trial, free_port):
        trial.deliver({"id": "B1", "type": "x", "payload": [1], "headers": {"traceparent": TRACE}})
        [entry] = trial.await_received(1)
    python = environment("webhook,cli", "cloudevents>=1.11,<2", "standardwebhooks>=1.0")
    said = json.dumps([headers_of(entry), entry["body"], NEW, OLD])
    output = subprocess.run([python, "-c", ORACLES, said], stdout=subprocess.PIPE, check=True)
    assert json.loads(output.stdout) == ["B1", "group", TRACE, [1]]


def test_without_secrets_there_is_no_signature(trial: Trial, free_port: int) -> None:
    sink = f"webhook+http://127.0.0.1:{free_port}/a%2Fb?source=/tests"
    with receiving(trial, free_port):
        trial.deliver({"id": "B1", "type": "x"}, sink=sink)
        [entry] = trial.await_received(1)
    headers = headers_of(entry)
    assert headers["idempotency-key"] == "B1"
    assert not [name for name in headers if name.startswith("webhook-")]
    assert entry["path"] == "/a%2Fb"


MAKES = """
import json, sys
from redisagg.errors import InvalidConfig
from redisagg.sinks import WebhookSink

for arguments in json.loads(sys.argv[1]):
    try:
        WebhookSink(**{"url": "https://example.org/hook", **arguments})
    except InvalidConfig as error:
        print(error)
    else:
        print("made")
"""

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"url": "ftp://example.org"}, "WebhookSink takes an https:// or http:// URL with a host"),
    ({"url": "https:///hook"}, "WebhookSink takes an https:// or http:// URL with a host"),
    ({"url": 7}, "WebhookSink takes a URL: "),
    ({"secrets": "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}, "a secret is a str that begins with whsec_"),
    ({"secrets": "whsec_!"}, "a secret is whsec_ and base64"),
    ({"secrets": [NEW, "whsec_YWJj"]}, "a secret has 24 to 64 bytes, not 3"),
    ({"source": ""}, "source is a URI reference, not ''"),
    ({"headers": {"a b": "x"}}, "'a b' is not a valid name of a header"),
    ({"headers": {"a": "x\ny"}}, "the value of the header a has to be printable ASCII"),
    ({"headers": {"Webhook-Id": "x"}}, "the sink itself sets the header Webhook-Id"),
    ({"timeout": 0}, "timeout must be from 0.001 to "),
    ({"concurrency": 0}, "concurrency must be a whole number from 1, not 0"),
]


def test_wrong_arguments_are_refused_and_secrets_not_shown() -> None:
    right: dict[str, Any] = {"secrets": [NEW, OLD], "headers": {"Authorization": "Bearer x"}}
    tried = json.dumps([right, *(arguments for arguments, _ in REFUSED)])
    said = subprocess.run(
        [environment("webhook,cli"), "-c", MAKES, tried],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert said[0] == "made"
    assert [line[: len(why)] for line, (_, why) in zip(said[1:], REFUSED, strict=True)] == [
        why for _, why in REFUSED
    ]
    assert "MfKQ" not in "".join(said)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)  # importing it raises ImportError
    with pytest.raises(SinkError, match=r"'httpx': pip install 'redisagg\[webhook\]'"):
        sink_from_url("webhook+https://example.org")


def test_a_url_names_where_the_secrets_are(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRETS")
    with pytest.raises(subprocess.CalledProcessError):
        trial.deliver({"id": "B1", "type": "x"})


def test_a_receiver_that_is_slow_with_some_does_not_fail_those_behind(
    trial: Trial, free_port: int
) -> None:
    """Three that get no answer for their time, one after the other: none has to be tried twice."""
    slow = replace(trial.system, sink=f"{trial.system.sink}&concurrency=1")
    trial = Trial(slow, trial.url, trial.folder)
    with receiving(trial, free_port, "hang"), flushing(trial) as agg:
        for group in "abc":
            agg.add_tasks(numbered(group, 2))
        entries = trial.await_received(6)
        assert agg.wait_until_idle(20)
    assert [entry["answer"] for entry in entries].count("hang") == 3
    assert trial.log("flusher").read_text().count("failed (attempt 1 of 4)") == 3
    assert "attempt 2" not in trial.log("flusher").read_text()
