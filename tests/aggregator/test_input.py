"""Input of every shape is stored and read back unchanged, or is a clear error."""

from __future__ import annotations

import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from redisagg import Aggregator, Task
from redisagg.errors import InvalidGroupKey, InvalidTask, PayloadError
from redisagg.payload import pack, to_json, unpack
from redisagg.protocol.keys import Keyspace
from redisagg.task import group_key_text
from redisagg.testing.embedded import EmbeddedRedis
from tests.support import shapes
from tests.support.aggregators import Make
from tests.support.tasks import enqueued, numbered, payloads, quick_config

SETTINGS = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def aggregator(redis_url: str) -> Iterator[Aggregator]:
    """An aggregator whose flusher runs."""
    with Aggregator("fuzz", redis_url, config=quick_config(shutdown_timeout=1)) as aggregator:
        yield aggregator


def test_groups_and_payloads_of_every_shape_are_enqueued_unchanged(
    aggregator: Aggregator, sync_redis: redis.Redis
) -> None:
    tasks = st.lists(
        st.tuples(shapes.group_keys, shapes.payloads, st.none() | shapes.any_text), max_size=8
    )

    @settings(SETTINGS, max_examples=60)
    @given(tasks)
    def run(drawn: list[tuple[Any, Any, str | None]]) -> None:
        expected: dict[str, dict[str, Any]] = defaultdict(dict)
        for key, payload, task_id in drawn:
            try:
                task = Task("fuzz", payload, key, id=task_id)
                group = group_key_text(key)
                aggregator.add_task(task)
            except InvalidTask:  # too long, say
                continue
            # A task whose id waits already is not added.
            expected[group].setdefault(task.id, shapes.as_stored(payload))
        aggregator.flush_all()
        assert aggregator.wait_until_idle(10)
        found: dict[str, list[Any]] = defaultdict(list)
        for batch in enqueued(aggregator):
            found[batch.group] += batch.payload["payloads"]
        assert found == {group: list(ids.values()) for group, ids in expected.items()}
        assert aggregator.stats().batches_dead == 0
        sync_redis.delete("fuzz-batches")

    run()
    ours = re.compile(rb"redisagg:\{fuzz(:\d)?\}:(state|meta|flushers|status|call:\w+)")
    left: Any = sync_redis.keys("*")
    assert [key for key in left if not ours.fullmatch(key)] == []


@settings(SETTINGS, max_examples=300)
@example(math.inf)
@example({0: None, "0": None})
@given(shapes.payloads)
def test_a_payload_comes_back_as_documented(payload: Any) -> None:
    assert unpack(pack(payload)) == shapes.as_stored(payload)
    try:
        assert isinstance(to_json(payload), str)
    except PayloadError as error:
        # JSON knows no infinity, and the keys 1 and "1" are the same; most payloads have a form.
        assert re.search("float|two keys", str(error))  # noqa: PT017


@settings(SETTINGS, max_examples=300)
@given(st.binary(max_size=60) | shapes.payloads.map(lambda value: pack(value)[:-1]))
def test_foreign_bytes_are_a_value_or_a_value_error(packed: bytes) -> None:
    try:
        value = unpack(packed)
    except ValueError:
        return
    assert pack(value)


@pytest.mark.parametrize("code", [4, 7, 8])
def test_nested_extensions_do_not_overflow_the_stack(code: int) -> None:
    """The decoder calls itself for each level of them."""
    packed = msgpack.packb(1)
    for _ in range(1000):
        packed = msgpack.packb(msgpack.ExtType(code, b"\x91" + packed))
    with pytest.raises(ValueError, match="nested"):
        unpack(packed)


def test_nested_sets_are_refused_before_they_are_stored() -> None:
    value: Any = frozenset([1])
    for depth in range(2, 20):
        value = frozenset([value])
        if depth <= 8:
            assert unpack(pack(value)) == value
        else:
            with pytest.raises(PayloadError, match="nested more than 8 deep"):
                pack(value)


def test_lists_may_be_nested_as_deep_as_documented(aggregator: Aggregator) -> None:
    value: Any = 1
    for _ in range(128):
        value = [value]
    aggregator.add_task(Task("fuzz", value, "deep"))
    aggregator.flush_all()
    assert aggregator.wait_until_idle(10)
    assert payloads(enqueued(aggregator)) == [value]


@pytest.mark.parametrize(
    "key", ["", (), shapes.EMOJI * 129, "x" * 513, "\ud800", 1.5, None, b"x", True, ["a"], ("", [])]
)
def test_wrong_group_keys_are_refused(key: Any) -> None:
    with pytest.raises(InvalidGroupKey):
        group_key_text(key)


def test_stored_bytes_that_are_no_task_stop_no_other_task(
    aggregator: Aggregator, redis_server: EmbeddedRedis
) -> None:
    """Entries of a group that are no task go to the dead letters, and the others are enqueued."""
    entry = st.binary(max_size=80) | st.builds(
        lambda head, size, rest: head + bytes([size]) + rest,
        *(st.binary(min_size=6, max_size=6), st.integers(0, 255), st.binary(max_size=40)),
    )
    number = 0

    @settings(SETTINGS, max_examples=40)
    @given(st.lists(entry, min_size=1, max_size=4))
    def run(foreign: list[bytes]) -> None:
        nonlocal number
        number += 1
        group = f"g{number}"
        aggregator.add_tasks(numbered(group, 5))
        aggregator.add_tasks(numbered("other", 2))
        _, tasks, _ = Keyspace("fuzz", 2).place(group.encode())
        for place, each in enumerate(foreign):
            client.execute_command("LSET", tasks, place, each)
        aggregator.flush_all()
        assert aggregator.wait_until_idle(10)
        batches = enqueued(aggregator)
        mine = [batch for batch in batches if batch.group == group]
        assert payloads(mine)[-5 + len(foreign) :] == list(range(len(foreign), 5))
        assert payloads([batch for batch in batches if batch.group == "other"]) == [0, 1]
        client.delete("fuzz-batches")

    with redis_server.client() as client:
        run()


@pytest.mark.parametrize("format", ["msgpack", "json"])
@pytest.mark.parametrize("foreign", [b"", b"\xc1", b"{", b"\x80", b"[1]", b"null"])
def test_foreign_entries_in_a_queue_are_left_out_and_named(
    redis_url: str, sync_redis: redis.Redis, format: str, foreign: bytes
) -> None:
    sync_redis.rpush("list", foreign)
    sync_redis.xadd("queue", {"payload": foreign, b"\xff": foreign}, id="1-2")
    for kind, key, place in (("stream", "queue", "1-2"), ("list", "list", "0")):
        sink = f"{kind}://{key}?format={format}"
        with contextlib.closing(Aggregator("fuzz", redis_url, sink=sink)) as aggregator:
            page = aggregator.read_sink()
            assert page.batches == []
            [named] = page.unreadable
            assert named.startswith(f"b'{key}' {place}: ")
            assert aggregator.read_sink(page.cursor).unreadable == []


@pytest.mark.parametrize("collection", [list, iter])
def test_the_error_of_a_task_names_its_index(make: Make, collection: Any) -> None:
    tasks = [*numbered("g", 2), Task("t", object(), "g")]
    with pytest.raises(PayloadError, match=r"^tasks\[2\]: the payload holds a builtins.object"):
        make().add_tasks(collection(tasks))


class _Model:
    """As a model of pydantic."""

    def model_dump(self) -> dict[str, Any]:
        return {"a": [1]}


class _Struct:
    """As a struct of msgspec."""

    __struct_fields__ = ("x",)
    x = _Model()


class LazyString:
    """As that of Flask-Babel."""

    def __str__(self) -> str:
        return "lazy"


def test_a_merge_function_gets_models_and_large_numbers_as_builtins(make_both: Make) -> None:
    given: list[Any] = []

    def merge(group: str, tasks: list[Task]) -> None:
        given.extend(task.payload for task in tasks)

    agg = make_both(group_aggregator=merge)
    agg.add_task(Task("t", _Model(), "g"))
    agg.add_tasks(Task("t", each, "g") for each in (_Struct(), LazyString(), 2**70, -(2**64)))
    with agg:
        agg.flush("g")
        assert agg.wait_until_idle(10)
    assert given == [{"a": [1]}, {"x": {"a": [1]}}, "lazy", 2**70, -(2**64)]
