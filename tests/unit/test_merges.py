"""The ready-made merge functions."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisagg import AggregationConfig, Task, merges
from redisagg.errors import InvalidConfig, MergeError
from redisagg.merge_function import is_async, wants_info
from tests.support.markdown import code_blocks, read, rows, section

_ids = iter(range(10**9))


def _task(payload: Any, type_: str = "a") -> Task:
    return Task(type_, payload, "g", id=f"task-{next(_ids)}")


def _merge(function: Any, tasks: list[Task], *info: Any) -> Any:
    merged = function("g", tasks, *info)
    return asyncio.run(merged) if is_async(function) else merged


async def _joined(group: str, tasks: list[Task]) -> Task:
    return Task("joined", [task.payload for task in tasks])


def _with_info(group: str, tasks: list[Task], info: Any) -> Task:
    return Task("informed", [info, len(tasks)])


_informed: Any = _with_info


def _none(group: str, tasks: list[Task]) -> None: ...


def _last_digit(task: Task) -> int:
    return int(task.payload) % 10


_STATUS = [
    _task({"order": 1, "status": "new"}),
    _task({"order": 2, "status": "new"}),
    _task({"order": 1, "status": "paid"}),
    _task({"order": 3, "status": "new"}),
    _task({"order": 1, "status": "sent"}),
]


# --- each of them ---------------------------------------------------------------------------------


def test_collect_keeps_the_order() -> None:
    merged = merges.collect("g", [Task("mail", 1, "g"), Task("other", 2, "g")])
    assert (merged.type, merged.group_key) == ("mail:aggregated", "g")
    assert merged.payload == {"group": "g", "count": 2, "payloads": [1, 2]}


def test_latest_keeps_the_newest_task() -> None:
    assert _merge(merges.latest(), _STATUS) == [_STATUS[4]]


def test_latest_keeps_the_newest_task_of_each_value() -> None:
    assert _merge(merges.latest(by="order"), _STATUS) == [_STATUS[1], _STATUS[3], _STATUS[4]]


def test_unique_keeps_the_oldest_task_of_each_value() -> None:
    assert _merge(merges.unique(by="order"), _STATUS) == [_STATUS[0], _STATUS[1], _STATUS[3]]


@given(st.lists(st.integers(0, 99)))
def test_a_function_chooses_as_a_dict_would(numbers: list[int]) -> None:
    tasks = [_task(number) for number in numbers]
    newest = {number % 10: number for number in numbers}
    oldest = {number % 10: number for number in reversed(numbers)}
    kept = _merge(merges.latest(by=_last_digit), tasks)
    assert {task.payload % 10: task.payload for task in kept} == newest
    assert len(kept) == len(newest)
    kept = _merge(merges.unique(by=_last_digit), tasks)
    assert {task.payload % 10: task.payload for task in kept} == oldest
    places = [tasks.index(task) for task in kept]
    assert places == sorted(places)


def test_count_counts() -> None:
    merged = _merge(merges.count(), _STATUS)
    assert (merged.type, merged.payload) == ("a:aggregated", {"group": "g", "count": 5})


@pytest.mark.parametrize(
    ("values", "joined"),
    [([[1, 2], [], [3]], [1, 2, 3]), (["a\n", "b\n"], "a\nb\n"), ([b"a", b"", b"b"], b"ab")],
    ids=["lists", "strings", "bytes"],
)
def test_concat_joins_a_field(values: list[Any], joined: Any) -> None:
    merged = _merge(merges.concat("rows"), [_task({"rows": value, "x": 1}) for value in values])
    assert merged.payload == {"group": "g", "count": len(values), "rows": joined}


def test_by_type_merges_each_type_on_its_own() -> None:
    function = merges.by_type(
        {
            "sms": merges.latest(),
            "mail": merges.collect,
            "log": _none,
            "push": merges.unique(by="n"),
        }
    )
    tasks = [
        _task(1, "mail"),
        *(_task(2, "sms"), _task(3, "log"), _task(4, "mail"), _task(5, "sms")),
        *(_task({"n": 1}, "push"), _task({"n": 2}, "push")),
    ]
    mail, *others = _merge(function, tasks)
    assert mail.payload == {"group": "g", "count": 2, "payloads": [1, 4]}
    assert others == [tasks[4], tasks[5], tasks[6]]


def test_by_type_has_a_function_for_the_rest() -> None:
    function = merges.by_type({"mail": _none}, otherwise=merges.count())
    merged = _merge(function, [_task(1, "mail"), _task(1, "x"), _task(1, "y"), _task(1, "x")])
    assert [(task.type, task.payload["count"]) for task in merged] == [
        ("x:aggregated", 2),
        ("y:aggregated", 1),
    ]


# --- combined -------------------------------------------------------------------------------------


def test_what_was_kept_goes_to_the_next_function() -> None:
    merged = _merge(merges.latest(by="order", then=merges.collect), _STATUS)
    assert [each["status"] for each in merged.payload["payloads"]] == ["new", "new", "sent"]


@pytest.mark.parametrize(
    "function",
    [
        merges.unique(by="order", then=_joined),
        merges.by_type({"a": merges.latest(then=_joined), "b": merges.count()}),
        merges.by_type({"b": merges.count()}, otherwise=_joined),
    ],
    ids=["unique", "by_type", "otherwise"],
)
def test_async_functions_make_async_functions(function: Any) -> None:
    assert is_async(function)
    merged = _merge(function, [*_STATUS, _task({"order": 9}, "b")])
    several = merged if isinstance(merged, list) else [merged]
    assert "joined" in [task.type for task in several]


def test_plain_functions_make_plain_functions() -> None:
    for function in (merges.latest(), merges.by_type({"a": merges.count()}), merges.concat("x")):
        assert not is_async(function)


def test_information_about_the_batch_reaches_those_who_want_it() -> None:
    function = merges.by_type(
        {"a": merges.latest(by="order", then=_informed), "b": merges.count()}, otherwise=_informed
    )
    assert wants_info(function)
    merged = _merge(function, [*_STATUS, _task(1, "b"), _task(2, "c")], "info")
    assert [task.payload for task in merged] == [
        ["info", 3],
        {"group": "g", "count": 1},
        ["info", 1],
    ]


def test_nobody_else_is_given_information_about_the_batch() -> None:
    functions = [merges.collect, merges.latest(), merges.unique(by="x", then=merges.collect)]
    functions += [merges.count(), merges.concat("x"), merges.by_type({"a": merges.count()})]
    assert not any(map(wants_info, functions))


@pytest.mark.parametrize(
    "function",
    [
        merges.collect,
        merges.latest(),
        merges.latest(by="order", then=merges.collect),
        merges.latest(by="order", then=_joined),
        merges.unique(by=lambda task: task.payload["order"]),
        merges.count(),
        merges.by_type({"a": merges.unique(by="order"), "b": _joined}, otherwise=_informed),
    ],
    ids=range(7),
)
def test_they_are_merge_functions(function: Any) -> None:
    AggregationConfig(group_aggregator=function)
    if "<lambda>" in repr(function):
        return
    restored = pickle.loads(pickle.dumps(function))
    assert type(restored) is type(function)
    if restored is not function:
        assert restored == function


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", [merges.latest, merges.unique, merges.count, merges.concat, merges.by_type]
)
def test_a_maker_that_was_not_called_is_refused(function: Any) -> None:
    with pytest.raises(InvalidConfig, match="call it if it returns the merge function"):
        AggregationConfig(group_aggregator=function)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: merges.latest(by=5), "by must be a field"),  # type: ignore[arg-type]
        (lambda: merges.unique(by=None), "by must be a field"),  # type: ignore[arg-type]
        (lambda: merges.latest(then="x"), "then must be a function"),  # type: ignore[arg-type]
        (lambda: merges.unique(by="x", then=merges.count), "then .*takes no positional"),  # type: ignore[arg-type]
        (lambda: merges.concat("count"), "other than 'group' and 'count'"),
        (lambda: merges.concat(b"rows"), "must be a str"),  # type: ignore[arg-type]
        (lambda: merges.by_type({}), "takes a dict"),
        (lambda: merges.by_type([merges.count()]), "takes a dict"),  # type: ignore[arg-type]
        (lambda: merges.by_type({1: merges.count()}), "task type must be"),  # type: ignore[dict-item]
        (lambda: merges.by_type({"a": merges.count}), "function for 'a' .*takes no positional"),  # type: ignore[dict-item]
        (lambda: merges.by_type({"a": _none}, otherwise=5), "otherwise must be"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_refused(make: Any, says: str) -> None:
    with pytest.raises(InvalidConfig, match=says):
        make()


@pytest.mark.parametrize(
    ("function", "payloads", "says"),
    [
        (merges.latest(by="order"), [{"order": 1}, {}], "task {} has no field 'order'"),
        (merges.unique(by="order"), [{"order": 1}, "text"], "task {} has no field 'order'"),
        (merges.unique(by="x"), [{"x": 1}, {"x": [1]}], "task {} is a list, which has no hash"),
        (merges.concat("x"), [{"x": [1]}, {"x": "1"}], "of task {} is a str; concat joins"),
        (merges.concat("x"), [{"x": "1"}, None], "task {} has no field 'x'"),
        (merges.by_type({"b": merges.count()}), [1, 2], "no merge function for tasks of type 'a'"),
    ],
)
def test_a_task_that_does_not_fit_fails_the_merge(
    function: Any, payloads: list[Any], says: str
) -> None:
    tasks = [_task(payload) for payload in payloads]
    with pytest.raises(MergeError) as caught:
        function("g", tasks)
    assert says.format(repr(tasks[1].id)) in str(caught.value)


# --- docs/merges.md -------------------------------------------------------------------------------


def _documented(heading: str) -> Any:
    [block] = code_blocks(section(read("docs/merges.md"), heading), "python")
    names: dict[str, Any] = {}
    exec(compile(block, "docs/merges.md", "exec"), names)
    return names["config"].group_aggregator


def test_the_documented_digest() -> None:
    texts = [("a", 1), ("b", 2), ("a", 1)]
    sent = [_task({"event": event, "text": text}, "notification") for text, event in texts]
    resets = [_task({"link": link}, "password:reset") for link in "xy"]
    mail, reset = _merge(_documented("A digest"), [*sent, *resets])
    assert (mail.type, mail.payload) == ("mail:digest", {"user": "g", "texts": ["a", "b"]})
    assert reset is resets[1]


def test_the_documented_bulk_insert() -> None:
    merged = _merge(_documented("A bulk insert"), [_task({"rows": [n, n]}) for n in (1, 2)])
    assert merged.payload == {"group": "g", "count": 2, "rows": [1, 1, 2, 2]}


def test_the_documented_search_refresh() -> None:
    changes = [_task({"item": n % 2, "price": n}) for n in range(5)]
    merged = _merge(_documented("A search refresh"), changes)
    assert merged.payload == {"index": "g", "items": [changes[3].payload, changes[4].payload]}


def test_the_documented_function_of_ones_own() -> None:
    assert _merge(_documented("Writing your own"), [_task(1)]) is None


def test_the_table_of_merge_functions_is_complete() -> None:
    table = rows(section(read("docs/merges.md"), "Ready-made functions"))
    names = [first.strip("`").removeprefix("merges.").partition("(")[0] for first, _ in table]
    assert sorted([*names, "By"]) == sorted(merges.__all__)
