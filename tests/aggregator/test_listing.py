"""`find_groups`: groups searched and sorted in pages, each of which looks at a bounded number."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgpack
import pytest
import redis

from redisagg import Aggregator, GroupList, GroupState, Task
from redisagg.errors import InvalidConfig
from redisagg.operations import listing
from redisagg.protocol.keys import Keyspace
from tests.support.aggregators import Make
from tests.support.tasks import numbered

ORDERS = ("due", "size", "age", "any")


@pytest.fixture
def few_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page looks at few groups, as it does if there are a million."""
    monkeypatch.setattr(listing, "_EXAMINED", 120)
    monkeypatch.setattr(listing, "_RANKED", 120)
    monkeypatch.setattr(listing, "_CALL_GROUPS", 20)
    monkeypatch.setattr(listing, "_CALL_RECORDS", 20)
    monkeypatch.setattr(listing, "_FIRST_COUNT", 20)


def pages(agg: Aggregator, **how: Any) -> Iterator[GroupList]:
    """All pages, one after the other."""
    cursor = None
    for _ in range(1_000):
        page = agg.find_groups(cursor=cursor, **how)
        yield page
        if (cursor := page.cursor) is None:
            return
    raise AssertionError("there is no last page")


def found(agg: Aggregator, **how: Any) -> list[GroupState]:
    return [state for page in pages(agg, **how) for state in page.states]


def keys(states: list[GroupState]) -> list[str]:
    return [state.group_key for state in states]


def fill(agg: Aggregator, groups: int = 300) -> list[str]:
    """Adds groups that are due one second after the other, every tenth at once; returns them."""
    names = [f"{'vip' if n % 7 == 0 else 'user'}:{n}" for n in range(groups)]
    for n, name in enumerate(names):
        size = 1 + n * 37 % 11
        agg.add_tasks(numbered(name, size, grace_period=100 + n, max_delay=9_000, max_size=100))
    for name in names[::10]:
        agg.flush(name)
    return names


def test_all_groups_are_found_once_in_each_order(make_both: Make) -> None:
    agg = make_both(partitions=3)
    names = fill(agg, 120)
    for order in ORDERS:
        read = list(pages(agg, order=order, limit=25))
        shown = [state.group_key for page in read for state in page.states]
        assert len(shown) == len(set(shown))
        assert set(shown) == set(names)
        if order != "any":
            assert all(len(page.states) == 25 for page in read[:4])
            assert all(page.exact for page in read)
    assert agg.find_groups(limit=1, tasks=True).states[0].tasks
    assert agg.find_groups(limit=1).states[0].tasks is None


@pytest.mark.parametrize("limit", [1, 7, 40, 1_000])
def test_groups_are_sorted_by_due_time_across_pages(make: Make, limit: int) -> None:
    agg = make(partitions=3)
    names = fill(agg, 80)
    shown = keys(found(agg, limit=limit))
    assert set(shown[:8]) == set(names[::10])  # some of them in the same ms
    assert shown[8:] == [name for n, name in enumerate(names) if n % 10]


def test_many_groups_of_the_same_moment_are_all_found(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(partitions=2)
    names = {f"g{n}" for n in range(200)}
    agg.add_tasks(Task("test", 0, name, max_size=9) for name in names)
    client: Any = sync_redis
    for p in Keyspace("tests", 2).partitions:
        client.zadd(p.due, dict.fromkeys(client.zrange(p.due, 0, -1), 1 << 41))
    shown = keys(found(agg, limit=7))
    assert len(shown) == 200
    assert set(shown) == names


def test_a_page_goes_on_behind_a_group_that_is_gone(make: Make) -> None:
    agg = make(partitions=1)
    names = fill(agg, 40)[1:10]
    first = agg.find_groups(limit=8)
    assert first.states[-1].group_key == names[3]
    agg.cancel_group(names[3])
    assert keys(agg.find_groups(limit=3, cursor=first.cursor).states) == names[4:7]


def test_groups_are_sorted_by_size_and_age(make_both: Make) -> None:
    agg = make_both(partitions=3)
    fill(agg, 60)
    sizes = [state.size for state in found(agg, order="size", limit=9)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 60
    ages = [state.first_task_at for state in found(agg, order="age", limit=9)]
    assert all(
        one is not None and other is not None and one <= other for one, other in pairwise(ages)
    )


@pytest.mark.parametrize("order", ORDERS)
def test_a_prefix_is_searched_in_each_order(make: Make, order: str) -> None:
    agg = make(partitions=3)
    names = fill(agg, 100)
    wanted = [name for name in names if name.startswith("vip:")]
    states = found(agg, prefix="vip:", order=order, limit=4)
    assert sorted(keys(states)) == sorted(wanted)
    if order == "due":
        assert set(keys(states)[:2]) == {"vip:0", "vip:70"}
    assert found(agg, prefix="nobody", order=order) == []


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("prefix", ["*", "?a", "[a]", "a\\", "^", "a-", "grüße", "\x00"])
def test_characters_of_patterns_stand_for_themselves(make: Make, order: str, prefix: str) -> None:
    agg = make(partitions=2)
    agg.add_tasks(Task("test", 0, name) for name in (prefix + "x", "aax", "a", "x", prefix + "y"))
    assert sorted(keys(found(agg, prefix=prefix, order=order))) == [prefix + "x", prefix + "y"]


@pytest.mark.parametrize("order", ORDERS)
def test_the_group_with_the_key_itself_comes_first_and_once(make: Make, order: str) -> None:
    agg = make(partitions=3)
    agg.add_tasks(task for n in range(30) for task in numbered(f"a{n}", 2, grace_period=5))
    agg.add_tasks(numbered("a", 1, grace_period=900))
    shown = keys(found(agg, prefix="a", order=order, limit=5))
    assert shown[0] == "a"
    assert len(shown) == len(set(shown)) == 31


@pytest.mark.usefixtures("few_a_page")
@pytest.mark.parametrize("prefix", ["", "vip:", "vip:29"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_page_looks_at_a_bounded_number_of_groups(make: Make, order: str, prefix: str) -> None:
    agg = make(partitions=2)
    names = [name for name in fill(agg) if name.startswith(prefix)]
    read = list(pages(agg, prefix=prefix, order=order, limit=10))
    shown = [state for page in read for state in page.states]
    assert max(page.examined for page in read) <= 300
    assert len(shown) == len({state.group_key for state in shown})
    if order in ("due", "any"):
        assert {state.group_key for state in shown} == set(names)
        return
    # Each page has the first groups of a part of all.
    assert not any(page.exact for page in read)
    every = agg.get_groups().values()

    def rank(state: GroupState) -> float:
        return -state.size if order == "size" else state.first_task_at or 0.0

    best = sorted(rank(state) for state in every if state.group_key in names)[:10]
    assert sorted(map(rank, shown))[:10] == best
    for page in read:
        assert list(map(rank, page.states)) == sorted(map(rank, page.states))


@pytest.mark.usefixtures("few_a_page")
def test_a_page_ends_where_all_partitions_were_looked_at(make: Make) -> None:
    """One partition has many groups before the next match, the other has matches only."""
    agg = make(partitions=2)
    first, second = Keyspace("tests", 2).partitions

    def of(partition: Any, prefix: str) -> list[str]:
        names = (f"{prefix}{n}" for n in range(2_000))
        place = Keyspace("tests", 2).partition_of
        return [each for each in names if place(each.encode()).number == partition.number]

    others, wanted = of(first, "x")[:300], of(second, "vip:")[:60]
    for names in (others, wanted):
        agg.add_tasks(
            Task("test", 0, name, grace_period=100 + 900 * n / len(names), max_delay=9_000)
            for n, name in enumerate(names)
        )
    read = list(pages(agg, prefix="vip:", limit=50))
    assert len(read) > 2
    assert [state.group_key for page in read for state in page.states] == wanted


def test_groups_in_no_index_come_last(make: Make) -> None:
    agg = make(partitions=2, group_max_size=3)
    fill(agg, 20)
    agg.pause("user:1")
    agg.pause()
    agg.start()
    shown = found(agg, limit=6)
    assert [state.group_key for state in shown][-1] == "user:1"
    assert len(shown) == 20
    assert shown[-1].paused


def test_what_redisagg_did_not_write_is_left_out(
    make: Make, sync_redis: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    agg = make(partitions=2)
    fill(agg, 40)
    client: Any = sync_redis
    first, second = Keyspace("tests", 2).partitions
    name = client.hkeys(first.groups)[0]
    client.hset(first.groups, name, b"foreign")
    for key in (second.groups, second.due):
        client.delete(key)
        client.set(key, "foreign")
    left = {each.decode() for each in client.hkeys(first.groups)} - {name.decode()}
    for order in ("size", "age", "any"):
        assert set(keys(found(agg, order=order, limit=5))) == left
    caplog.clear()
    assert set(keys(found(agg, limit=5))) == left
    assert "are left out" in caplog.text


def test_wrong_arguments_are_named(make_both: Make) -> None:
    agg = make_both()
    fill(agg, 20)
    for how, text in (
        ({"limit": 0}, "limit"),
        ({"limit": 1_001}, "limit"),
        ({"order": "name"}, "order"),
        ({"prefix": b"a"}, "prefix"),
        ({"prefix": "a" * 513}, "prefix"),
        ({"prefix": "\ud800"}, "prefix"),
        ({"cursor": 7}, "cursor"),
        ({"cursor": ""}, "cursor"),
        ({"cursor": "é"}, "cursor"),
    ):
        wrong: Any = how
        with pytest.raises(InvalidConfig, match=text):
            agg.find_groups(**wrong)


def test_a_cursor_of_another_listing_is_refused(make: Make) -> None:
    agg = make()
    fill(agg, 20)
    cursor = agg.find_groups(limit=5).cursor
    with pytest.raises(InvalidConfig, match="cursor"):
        agg.find_groups(order="size", cursor=cursor)
    for values in (
        ["due", 3, 0, 0, b"", b""],
        ["due", 0, 4_096, 0, b"", b""],
        ["due", 0, -1, 0, b"", b""],
        ["due", 0, 0, 2.0, b"", b""],
        ["due", 0, 0, 0, b"nan", b""],
        ["due", 0, 0, 0, b"x", b""],
        ["due", 0, 0, 0, b"1", "a"],
        ["due", 0, 0, 0, b"1", b"", 0],
        "due",
    ):
        text = base64.urlsafe_b64encode(msgpack.packb(values)).decode()
        with pytest.raises(InvalidConfig, match="cursor"):
            agg.find_groups(cursor=text)
    for cursors in (b"x", [0], [0, -1], [0, 0.5], [0, 2**64 - 1, 0], 7, "ab"):
        packed = cursors if isinstance(cursors, bytes) else msgpack.packb(cursors)
        text = base64.urlsafe_b64encode(msgpack.packb(["size", 5, 0, 0, b"", packed])).decode()
        with pytest.raises(InvalidConfig, match="cursor"):
            agg.find_groups(order="size", cursor=text)
