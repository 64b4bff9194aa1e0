"""`SinkConformance`: the sinks of redisagg pass it, and each of its tests catches a wrong sink."""

from __future__ import annotations

import asyncio
import contextlib
import json
import unittest
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import redis

from redisagg import Task
from redisagg.payload import to_builtin, to_plain
from redisagg.sinks import (
    CallableSink,
    DeliverySink,
    EnqueuedBatch,
    ListSink,
    MergedTask,
    Sink,
    SinkContext,
    SinkUrl,
    StreamSink,
)
from redisagg.sinks.urls import _BUILT_IN
from redisagg.testing import Received, SinkConformance

QUEUE = "queue"


class InRedis(SinkConformance):
    """A queue in the Redis of the tests."""

    refuses_repeats = True
    server: str
    client: redis.Redis

    @pytest.fixture(autouse=True)
    def _connected(self, redis_url: str, sync_redis: redis.Redis) -> None:
        self.server, self.client = redis_url, sync_redis

    def redis_url(self) -> str:
        return self.server

    @contextlib.contextmanager
    def unavailable(self) -> Iterator[None]:
        self.client.set(QUEUE, "a value of another type")
        yield
        self.client.delete(QUEUE)


def as_received(batches: Sequence[EnqueuedBatch]) -> list[Received]:
    return [
        Received(batch.batch_id, batch.payload, batch.type, batch.group, batch.headers)
        for batch in batches
    ]


class TestStreamSink(InRedis):
    def make_sink(self) -> StreamSink:
        return StreamSink(QUEUE)

    def url(self) -> str:
        return f"stream://{QUEUE}"

    def form(self, payload: Any) -> Any:
        return to_builtin(payload)

    def received(self) -> list[Received]:
        entries: Any = self.client.xrange(QUEUE)
        return as_received([self.make_sink().decode(entry) for _, entry in entries])


class TestStreamSinkInJson(TestStreamSink):
    def make_sink(self) -> StreamSink:
        return StreamSink(QUEUE, format="json")

    def form(self, payload: Any) -> Any:
        return to_plain(payload)

    def url(self) -> str:
        return f"stream://{QUEUE}?format=json"


class TestListSink(InRedis):
    def make_sink(self) -> ListSink:
        return ListSink(QUEUE)

    def form(self, payload: Any) -> Any:
        return to_builtin(payload)

    def received(self) -> list[Received]:
        elements: Any = self.client.lrange(QUEUE, 0, -1)
        return as_received([self.make_sink().decode(element) for element in elements])

    def url(self) -> str:
        return f"list://{QUEUE}"


class TestCallableSink(SinkConformance):
    """On the server that the class starts by itself."""

    def prepare(self) -> None:
        self.calls: list[Received] = []
        self.away = False

    def make_sink(self) -> CallableSink:
        return CallableSink(self.call)

    def call(self, task: Task, batch_id: str) -> None:
        if self.away:
            raise OSError("away")
        payload = self.form(task.payload)  # or PayloadError
        self.calls.append(
            Received(batch_id, payload, task.type, str(task.group_key), dict(task.headers))
        )

    def received(self) -> list[Received]:
        return self.calls

    @contextlib.contextmanager
    def unavailable(self) -> Iterator[None]:
        self.away = True
        yield
        self.away = False


class TestAsyncCallableSink(TestCallableSink):
    def make_sink(self) -> CallableSink:
        return CallableSink(self.call_later)

    async def call_later(self, task: Task, batch_id: str) -> None:
        await asyncio.sleep(0)
        self.call(task, batch_id)


# --- wrong sinks -----------------------------------------------------------------------------


class Shelf:
    """A queue in memory."""

    def __init__(self) -> None:
        self.away = False
        self.entries: list[tuple[str, str]] = []


SHELVES: dict[str, Shelf] = {}


class ShelfSink(DeliverySink):
    """A right sink; those below each have one thing wrong."""

    refuses: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.shelf: Shelf | None = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> ShelfSink:
        return cls(url.target)

    async def open(self, context: SinkContext) -> None:
        self.shelf = SHELVES[self.name]
        self.lock = asyncio.Lock()

    async def close(self) -> None:
        self.shelf = None

    async def deliver(self, merged: MergedTask) -> None:
        await asyncio.sleep(0)
        self.put(merged.batch_id, json.dumps(to_plain(merged.task.payload)))

    def put(self, batch_id: str, payload: str) -> None:
        assert self.shelf is not None
        if self.shelf.away:
            raise OSError("away")
        if not self.refuses or batch_id not in dict(self.shelf.entries):
            self.shelf.entries.append((batch_id, payload))


class Refuses(ShelfSink):
    refuses = True


class Loses(ShelfSink):
    def put(self, batch_id: str, payload: str) -> None:
        if payload != "[7, 2]":
            super().put(batch_id, payload)


class Repeats(ShelfSink):
    def put(self, batch_id: str, payload: str) -> None:
        super().put(batch_id, payload)
        super().put(batch_id, payload)


class Reorders(ShelfSink):
    def put(self, batch_id: str, payload: str) -> None:
        super().put(batch_id, payload)
        assert self.shelf is not None
        self.shelf.entries.reverse()


class WritesOtherForms(ShelfSink):
    async def deliver(self, merged: MergedTask) -> None:
        self.put(merged.batch_id, json.dumps(merged.task.payload, default=str))


class WritesAnything(ShelfSink):
    async def deliver(self, merged: MergedTask) -> None:
        try:
            await super().deliver(merged)
        except TypeError:
            self.put(merged.batch_id, json.dumps(repr(merged.task.payload)))


class HidesFailures(ShelfSink):
    def put(self, batch_id: str, payload: str) -> None:
        with contextlib.suppress(OSError):
            super().put(batch_id, payload)


class NeverMends(ShelfSink):
    broken = False

    def put(self, batch_id: str, payload: str) -> None:
        if self.broken:
            return
        self.broken = True
        super().put(batch_id, payload)
        self.broken = False


class OpensOnce(ShelfSink):
    async def close(self) -> None:
        self.shelf = SHELVES[self.name] = Shelf()


class ReadsHalfOfItsUrl(ShelfSink):
    @classmethod
    def from_url(cls, url: SinkUrl) -> ShelfSink:
        SHELVES["other"] = Shelf()
        return cls("other")


class TakesAnyOption(ShelfSink):
    @classmethod
    def from_url(cls, url: SinkUrl) -> ShelfSink:
        url.option("no-such-option", str)
        return cls(url.target)


class DoesItLater(ShelfSink):
    async def deliver(self, merged: MergedTask) -> None:
        asyncio.get_running_loop().call_later(
            0.05, self.put, merged.batch_id, json.dumps(merged.task.payload)
        )


class MakesUpIds(ShelfSink):
    def put(self, batch_id: str, payload: str) -> None:
        assert self.shelf is not None
        super().put(f"{len(self.shelf.entries)}", payload)


class ForgetsTheSuffix(Refuses):
    def put(self, batch_id: str, payload: str) -> None:
        super().put("-".join(batch_id.split("-")[:3]), payload)


class MixesUp(ShelfSink):
    async def deliver(self, merged: MergedTask) -> None:
        self.merged = merged
        await asyncio.sleep(0)
        await super().deliver(self.merged)


class OnShelf(SinkConformance):
    """The tests for one of these sinks; `received` is asynchronous, for once."""

    kind: type[ShelfSink]

    def prepare(self) -> None:
        SHELVES.clear()
        SHELVES["shelf"] = Shelf()

    def make_sink(self) -> Sink:
        return self.kind("shelf")

    async def received(self) -> list[Received]:
        await asyncio.sleep(0)
        return [
            Received(batch_id, json.loads(payload))
            for batch_id, payload in SHELVES["shelf"].entries
        ]

    @contextlib.contextmanager
    def unavailable(self) -> Iterator[None]:
        SHELVES["shelf"].away = True
        yield
        SHELVES["shelf"].away = False

    def url(self) -> str:
        return "shelf://shelf"


CHECKS = [name for name in dir(SinkConformance) if name.startswith("test_")]

CAUGHT: list[tuple[str, type[ShelfSink], str | None]] = [
    ("test_every_batch_arrives_once", Loses, "199 of 200"),
    ("test_every_batch_arrives_once", Repeats, None),
    ("test_a_group_stays_in_order", Reorders, None),
    ("test_values_arrive_as_they_were", WritesOtherForms, None),
    ("test_what_has_no_form_is_refused", WritesAnything, "was accepted"),
    ("test_nothing_is_lost_while_the_queue_is_away", HidesFailures, "queue is unavailable"),
    ("test_nothing_is_lost_while_the_queue_is_away", NeverMends, "queue is unavailable"),
    ("test_it_serves_again_after_a_stop", OpensOnce, None),
    ("test_its_url_names_the_same_queue", ReadsHalfOfItsUrl, "0 of 1"),
    ("test_its_url_names_the_same_queue", TakesAnyOption, "unknown option"),
    ("test_deliver_ends_when_the_queue_has_it", DoesItLater, None),
    ("test_a_repeat_is_refused_or_known_by_its_id", MakesUpIds, None),
    ("test_a_repeat_is_refused_or_known_by_its_id", ForgetsTheSuffix, "2 of 3"),
    ("test_deliveries_side_by_side_do_not_mix", MixesUp, None),
]


def conformance_of(
    sink: type[ShelfSink],
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    says_refuses: bool,
) -> SinkConformance:
    """The tests for a kind of sink."""
    monkeypatch.setitem(_BUILT_IN, "shelf", f"{__name__}:{sink.__name__}")
    tests = type(
        "Tests",
        (OnShelf,),
        {
            "kind": sink,
            "refuses_repeats": says_refuses,
            "redis_url": lambda _: redis_url,
        },
    )
    made: SinkConformance = tests()
    return made


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("sink", [ShelfSink, Refuses])
def test_a_right_sink_passes(
    sink: type[ShelfSink], check: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conformance = conformance_of(sink, redis_url, monkeypatch, says_refuses=sink.refuses)
    assert getattr(conformance, check)() is None  # it raises AssertionError if it fails


@pytest.mark.parametrize(("check", "sink", "why"), CAUGHT)
def test_a_wrong_sink_is_caught(
    check: str,
    sink: type[ShelfSink],
    why: str | None,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(AssertionError, match=why):
        getattr(conformance_of(sink, redis_url, monkeypatch, says_refuses=sink.refuses), check)()


def test_a_sink_that_says_too_much_is_caught(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests: Any = conformance_of(ShelfSink, redis_url, monkeypatch, says_refuses=True)
    with pytest.raises(AssertionError):
        tests.test_a_repeat_is_refused_or_known_by_its_id()


def test_no_check_is_without_a_sink_that_it_catches() -> None:
    assert {check for check, _, _ in CAUGHT} == set(CHECKS)


def test_what_is_not_said_is_skipped() -> None:
    class Silent(OnShelf):
        kind = ShelfSink
        in_order = False

        def url(self) -> Any:
            return None

        def unavailable(self) -> Any:
            return None

    for check in (
        "test_its_url_names_the_same_queue",
        "test_nothing_is_lost_while_the_queue_is_away",
        "test_a_group_stays_in_order",
    ):
        with pytest.raises(unittest.SkipTest):
            getattr(Silent(), check)()
