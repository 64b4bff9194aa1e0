"""Conformance tests for sinks, as a class to inherit from. Needs a Redis server and pytest."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import datetime as dt
import inspect
import time
import unittest
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, ClassVar, TypeVar

from redisagg.aggregator import Aggregator
from redisagg.config import AggregationConfig
from redisagg.errors import InvalidConfig
from redisagg.payload import to_plain
from redisagg.protocol.keys import Keyspace
from redisagg.sinks.base import DeliverySink, MergedTask, ScriptSink, Sink, SinkContext
from redisagg.sinks.urls import sink_from_url
from redisagg.task import Task
from redisagg.testing.embedded import EmbeddedRedis
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.endpoint import aclose, endpoint_of

T = TypeVar("T")

_TIMEOUT = 30.0  # seconds for steps that take milliseconds with a correct sink

_TEXT = "grüße {1}: \"a b\" %s 'c'\r\n\t€ 𝄞"

_VALUES: Sequence[Any] = (
    *(None, True, 0, -1, 2**53, 1.5, "", _TEXT, [], {}, [[]], {"a": {"b": [None]}}, {_TEXT: 1}),
    *(b"", b"\x00\xff", (1, 2), {3}, Decimal("1.10"), uuid.UUID(int=1), {4: 5}),
    dt.datetime(2024, 2, 29, 12, tzinfo=dt.timezone.utc),
    dt.date(2024, 2, 29),
    dt.time(12, 30),
    dt.timedelta(seconds=1.5),
)


@dataclass(frozen=True, slots=True)
class Received:
    """A merged task as a reader of the queue gets it; a field that the queue lacks is None.

    Args:
        batch_id: id of the batch.
        payload: payload as readers of the queue get it; see `SinkConformance.form`.
        type: type of the merged task.
        group: key of the group.
        headers: headers of the merged task.
    """

    batch_id: str
    payload: Any
    type: str | None = None
    group: str | None = None
    headers: Mapping[str, str] | None = None


class SinkConformance:
    """Tests for a sink: make a subclass whose name begins with ``Test``, and run pytest.

    Each test has its own object and calls `prepare` first. A subclass must override `make_sink` and
    `received`, and may override the other methods. Only `received` may be an ``async def``.
    """

    refuses_repeats: ClassVar[bool] = False
    """Whether the queue refuses a batch id that it has had before."""
    in_order: ClassVar[bool] = True
    """Whether `received` returns the batches of a group in the order of their enqueueing."""
    patience: ClassVar[float] = 0.0
    """Longest time in seconds until `received` returns a batch that was enqueued."""

    # --- to be overridden -------------------------------------------------------------------

    def prepare(self) -> None:
        """Empties the queue, for instance by choosing a new name for it."""

    def make_sink(self) -> Sink:
        """Returns a new sink for the queue; tests may make several, one after the other."""
        raise NotImplementedError

    def received(self) -> Sequence[Received] | Awaitable[Sequence[Received]]:
        """Returns all batches enqueued since `prepare`, oldest first; removes nothing."""
        raise NotImplementedError

    def form(self, payload: Any) -> Any:
        """Returns a payload as readers of the queue get it; by default in the types of JSON."""
        return to_plain(payload)

    def unavailable(self) -> AbstractContextManager[object] | None:
        """Returns a context in which the queue takes nothing; None skips the test that needs it."""
        return None

    def url(self) -> str | None:
        """Returns a URL of the same sink; None skips the test that needs it."""
        return None

    def redis_url(self) -> str:
        """Returns the URL of a Redis server for the tests, which add keys and delete none.

        By default a private server, which ends with the process.

        Raises:
            EmbeddedServerError: there is no binary of a server; see
                `redisagg.testing.embedded.find_server`.
        """
        return _server().url

    # --- for all sinks ----------------------------------------------------------------------

    def test_every_batch_arrives_once(self) -> None:
        """Catches a sink that loses, repeats or mixes up batches of many groups."""
        self.prepare()
        wanted = {f"group-{n}": [Task("x", [n, m]) for m in range(5)] for n in range(40)}
        with self._flushing(wanted, self.make_sink()) as agg:
            _await_idle(agg)
        found = self._await_received(200)
        assert Counter(repr(each.payload) for each in found) == Counter(
            repr(self.form(task.payload)) for tasks in wanted.values() for task in tasks
        )
        assert len({each.batch_id for each in found}) == 200, "batches share ids"

    def test_a_group_stays_in_order(self) -> None:
        """Catches a sink whose `deliver` returns before the batch has its place in the queue."""
        if not self.in_order:
            raise unittest.SkipTest("in_order is False")
        self.prepare()
        wanted = {group: [Task("x", [group, n]) for n in range(30)] for group in "abc"}
        with self._flushing(wanted, self.make_sink()) as agg:
            _await_idle(agg)
        found = [each.payload for each in self._await_received(90)]
        for group, tasks in wanted.items():
            own = [payload for payload in found if payload[0] == group]
            assert own == [self.form(task.payload) for task in tasks]

    def test_values_arrive_as_they_were(self) -> None:
        """Catches a sink that changes payloads, types, groups or headers, or can not write them."""
        self.prepare()
        tasks = [Task(_TEXT, value, headers={"trace": _TEXT}) for value in _VALUES]
        with self._flushing({_TEXT: tasks}, self.make_sink()) as agg:
            _await_idle(agg)
            dead = [letter.error for letter in agg.dead_letters()]
        assert not dead, f"the sink refused a payload that redisagg can pack: {dead[0]}"
        found = self._await_received(len(tasks))
        assert sorted(repr(each.payload) for each in found) == sorted(
            repr(self.form(value)) for value in _VALUES
        )
        for each in found:
            assert each.type in {None, _TEXT}
            assert each.group in {None, _TEXT}
            assert each.headers in (None, {"trace": _TEXT})

    def test_what_has_no_form_is_refused(self) -> None:
        """Catches a sink that enqueues something else in place of a payload that it can't write."""
        self.prepare()
        # Delivered here, since a flusher can't pack such a task.
        merged = MergedTask("B1", "a", 1, Task("x", object(), "a"))

        async def deliver() -> None:
            async with self._opened() as sink:
                await _within_timeout(sink.deliver(merged))

        sink = self.make_sink()
        try:
            sink.arguments(merged) if isinstance(sink, ScriptSink) else self._run(deliver)
        except Exception:  # of any class
            pass
        else:
            raise AssertionError("a payload without a form was accepted")
        time.sleep(self.patience)
        assert self._received() == [], "a payload without a form was enqueued"

    def test_nothing_is_lost_while_the_queue_is_away(self) -> None:
        """Catches a sink that hides a failure, or does not recover from one."""
        self.prepare()
        away = self.unavailable()
        if away is None:
            raise unittest.SkipTest("unavailable is not overridden")
        with contextlib.ExitStack() as stack:
            stack.enter_context(away)
            wanted = {group: [Task("x", group)] for group in "abc"}
            agg = self._flushing(wanted, self.make_sink(), max_attempts=10_000)
            with agg as running:
                time.sleep(1)
                assert running.stats().flushed == 0, "flushed although the queue is unavailable"
                stack.close()
                _await_idle(running)
        found = self._await_received(3)
        assert {each.payload for each in found} == {"a", "b", "c"}
        ids = {each.batch_id for each in found}
        assert len(ids) == 3, "a batch came again under another id"
        assert len(found) == 3 or not self.refuses_repeats

    def test_it_serves_again_after_a_stop(self) -> None:
        """Catches a sink that keeps a connection of a closed event loop."""
        self.prepare()
        sink = self.make_sink()
        for n in range(3):
            with self._flushing({"a": [Task("x", n)]}, sink) as agg:
                _await_idle(agg)
            assert [each.payload for each in self._await_received(n + 1)] == list(range(n + 1))

    def test_its_url_names_the_same_queue(self) -> None:
        """Catches a URL that names another queue, or whose unknown options are ignored."""
        self.prepare()
        url = self.url()
        if url is None:
            raise unittest.SkipTest("url is not overridden")
        sink = sink_from_url(url)
        assert type(sink) is type(self.make_sink())
        with self._flushing({"a": [Task("x", 1)]}, sink) as agg:
            _await_idle(agg)
        assert [each.payload for each in self._await_received(1)] == [1]
        try:
            sink_from_url(f"{url}{'&' if '?' in url else '?'}no-such-option=1")
        except InvalidConfig:
            return
        raise AssertionError("an unknown option in the URL was ignored")

    # --- for delivery sinks only ------------------------------------------------------------

    def test_deliver_ends_when_the_queue_has_it(self) -> None:
        """Catches a sink that is still enqueueing when `deliver` returns."""
        self.prepare()
        merged = _merged(1)

        async def check() -> Sequence[Received]:
            async with self._opened() as sink:
                await _within_timeout(sink.deliver(merged))
                return await _result_of(self.received())

        found = self._run(check)
        if not found and self.patience:
            found = self._await_received(1)
        assert [each.batch_id for each in found] == [merged.batch_id]
        assert found[0].payload == self.form(merged.task.payload)

    def test_a_repeat_is_refused_or_known_by_its_id(self) -> None:
        """Catches a sink that changes ids, or repeats a batch although `refuses_repeats` is set."""
        self.prepare()
        tasks = [_merged(1), _merged(2, "-1"), _merged(2, "-2")]

        async def check() -> None:
            async with self._opened() as sink:
                for merged in tasks:
                    await _within_timeout(sink.deliver(merged))

        for _ in range(2):  # as after a crash, when another flusher delivers again
            self._run(check)
        times = 1 if self.refuses_repeats else 2
        time.sleep(self.patience)
        found = self._await_received(len(tasks) * times)
        assert Counter(each.batch_id for each in found) == {
            merged.batch_id: times for merged in tasks
        }
        payloads = {merged.batch_id: self.form(merged.task.payload) for merged in tasks}
        assert all(each.payload == payloads[each.batch_id] for each in found)

    def test_deliveries_side_by_side_do_not_mix(self) -> None:
        """Catches a sink whose concurrent deliveries share state."""
        self.prepare()
        tasks = [_merged(n) for n in range(50)]

        async def check() -> None:
            async with self._opened() as sink:
                await _within_timeout(asyncio.gather(*map(sink.deliver, tasks)))

        self._run(check)
        found = self._await_received(len(tasks))
        assert sorted((each.batch_id, repr(each.payload)) for each in found) == sorted(
            (merged.batch_id, repr(self.form(merged.task.payload))) for merged in tasks
        )

    # --- helpers ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _flushing(
        self, wanted: Mapping[str, Sequence[Task]], sink: Sink, **config: Any
    ) -> Iterator[Aggregator]:
        """Runs an aggregator whose merge function returns the wanted tasks, one for each batch."""

        def merge(group: str, tasks: list[Task]) -> Task:
            number: int = tasks[0].payload
            return wanted[group][number]

        settings: dict[str, Any] = {
            "group_max_size": 1,
            "group_aggregator": merge,
            "partitions": 2,
            "retry_delay": 0.02,
            "retry_max_delay": 0.1,
            "lease_time": 3,
            "shutdown_timeout": 10,
            **config,
        }
        name = f"conformance-{uuid.uuid4().hex}"
        with Aggregator(
            name, self.redis_url(), config=AggregationConfig(**settings), sink=sink
        ) as agg:
            agg.add_tasks(
                Task("x", n, group) for group, tasks in wanted.items() for n in range(len(tasks))
            )
            yield agg

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[DeliverySink]:
        """Opens a sink as a flusher does, and closes it."""
        sink = self.make_sink()
        assert isinstance(sink, DeliverySink)
        client = endpoint_of(self.redis_url()).asyncio()
        try:
            context = SinkContext(Keyspace("conformance", 2), AsyncTransport(client, _TIMEOUT))
            await _within_timeout(sink.open(context))
            try:
                yield sink
            finally:
                await _within_timeout(sink.close())
        finally:
            await aclose(client)

    def _run(self, check: Callable[[], Awaitable[T]]) -> T:
        """Runs a check of deliveries; skips the test if the sink is no `DeliverySink`."""
        if not isinstance(self.make_sink(), DeliverySink):
            raise unittest.SkipTest("the sink is no DeliverySink")

        async def run() -> T:
            return await check()

        return asyncio.run(run())

    def _received(self) -> list[Received]:
        async def read() -> Sequence[Received]:
            return await _result_of(self.received())

        return list(asyncio.run(read()))

    def _await_received(self, count: int) -> list[Received]:
        """Waits for at least `count` batches; fails after `patience` seconds."""
        deadline = time.monotonic() + self.patience
        while True:
            found = self._received()
            if len(found) >= count or time.monotonic() >= deadline:
                assert len(found) >= count, f"{len(found)} of {count} batches were enqueued"
                return found
            time.sleep(0.02)


def _await_idle(agg: Aggregator) -> None:
    assert agg.wait_until_idle(_TIMEOUT), f"batches are left: {agg.get_batches()}"


def _merged(number: int, suffix: str = "") -> MergedTask:
    """Makes a merged task with a batch id in the form of real ones."""
    batch_id = f"{0x18F00000000 + number:012x}-7-{number:08x}{suffix}"
    return MergedTask(batch_id, "group", 1, Task("x", {"of": batch_id}, "group"))


async def _within_timeout(work: Awaitable[T]) -> T:
    """Returns the result of an awaitable; raises `TimeoutError` if it takes too long."""
    return await asyncio.wait_for(work, _TIMEOUT)


async def _result_of(value: T | Awaitable[T]) -> T:
    if inspect.isawaitable(value):
        result: T = await value
        return result
    return value


@cache
def _server() -> EmbeddedRedis:
    server = EmbeddedRedis()
    server.start()
    atexit.register(server.close)
    return server
