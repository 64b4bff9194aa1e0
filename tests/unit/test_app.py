"""`App` without a server: what the decorator makes, import strings, pickle."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redisagg import AggregationConfig, Aggregator, App, AsyncAggregator, BatchInfo, Settings, Task
from redisagg.app.aggregator import TaskFields
from redisagg.app.running import aggregators_of
from redisagg.app.selection import select
from redisagg.app.targets import load
from redisagg.errors import InvalidConfig, SinkError
from redisagg.merge_function import wants_info
from redisagg.sinks import StreamSink

app = App("redis://nowhere:1/0", settings=Settings(config=AggregationConfig(group_max_size=50)))


@app.aggregator("emails", group_grace_period=60, partitions=2)
def digest(group: str, tasks: list[Task]) -> Task:
    """One mail for all."""
    return Task("digest", [group, len(tasks)])


@app.aggregator("numbers", executor="process", sink=StreamSink("numbers"))
def add_up(group: str, tasks: list[Task]) -> Task:
    return Task("sum", sum(task.payload for task in tasks))


@app.aggregator("infos", executor="process")
def with_info(group: str, tasks: list[Task], info: BatchInfo) -> Task:
    return Task("info", info.reason)


@app.aggregator("searches", executor="process")
async def refresh(group: str, tasks: list[Task]) -> None:
    """Refreshes."""


def merge(group: str, tasks: list[Task]) -> None:
    """Is decorated by tests."""


class Holder:
    """Has an aggregator as its attribute."""

    @app.aggregator("held")
    @staticmethod
    def held(group: str, tasks: list[Task]) -> None:
        """Merges nothing."""


def test_the_decorator_makes_an_aggregator_that_can_be_called() -> None:
    assert isinstance(digest, Aggregator)
    assert digest.name == "emails"
    assert (digest.config.group_grace_period, digest.config.group_max_size) == (60, 50)
    assert digest("g", [Task("a", 1), Task("a", 2)]).payload == ["g", 2]
    assert (digest.__name__, digest.__doc__) == ("digest", "One mail for all.")
    assert list(inspect.signature(digest).parameters) == ["group", "tasks"]
    assert app.aggregators["emails"] is digest
    assert add_up.sink is not digest.sink


def test_the_twin_for_asyncio_is_the_same_aggregator() -> None:
    twin = digest.asyncio
    assert isinstance(twin, AsyncAggregator)
    assert digest.asyncio is twin
    assert (twin.name, twin.config, twin.sink) == (digest.name, digest.config, digest.sink)
    assert twin.observers is digest.observers


def test_aggregators_share_a_client() -> None:
    assert digest._transport.client is add_up._transport.client
    other = App("redis://elsewhere:1/0").aggregator("emails")(merge)
    assert other._transport.client is not digest._transport.client


def test_the_fields_of_an_add_are_those_of_a_task() -> None:
    fields = set(inspect.signature(Task).parameters) - {"payload", "group_key"}
    assert set(TaskFields.__annotations__) == fields


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a b", {}),
        ("ok", {"group_max_size": 0}),
        ("ok", {"unknown": 1}),
        ("ok", {"group_aggregator": merge}),
        ("ok", {"sink": "nowhere://"}),
        ("emails", {}),  # there is one
    ],
)
def test_wrong_arguments_of_the_decorator(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises((InvalidConfig, SinkError)):
        app.aggregator(name, **settings)(merge)


@pytest.mark.parametrize("function", [3, lambda: None, lambda group: None])
def test_what_is_no_merge_function_is_refused(function: Any) -> None:
    with pytest.raises(InvalidConfig):
        app.aggregator("ok")(function)


@pytest.mark.parametrize(
    "wrong", [{"settings": {}}, {"include": "shop.emails"}, {"include": [3]}, {"url": "http://x"}]
)
def test_wrong_arguments_of_an_app(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        App(**wrong)


def test_other_settings_reach_the_aggregators_that_exist() -> None:
    app = App("redis://one:1/0", settings=Settings(config=AggregationConfig(group_max_size=7)))
    plain = app.aggregator("plain")(merge)
    own = app.aggregator("own", group_max_size=3, sink="list://mine")(merge)
    batched: Any = app.batched("embed", max_size=5, spread=16)(len)  # type: ignore[arg-type]
    twin = plain.asyncio
    config = AggregationConfig(group_max_size=9, partitions=4)
    app.configure(Settings(url="redis://two:2/0", sink="list://all", config=config))
    assert app.settings.url == "redis://two:2/0"
    assert [each.config.group_max_size for each in (plain, own)] == [9, 3]
    assert [each.sink.name for each in (plain, own)] == ["all", "mine"]  # type: ignore[union-attr]
    assert plain.config.group_aggregator is merge
    assert plain.asyncio is not twin
    assert plain._transport.client is own._transport.client
    assert plain._namespace.endpoint == Aggregator("x", "redis://two:2/0")._namespace.endpoint
    batched._task("text")
    assert len(batched._lanes._groups) == 4  # one in each partition that there is now
    assert plain("a", []) is None


def test_settings_that_an_app_refuses() -> None:
    app = App("redis://one:1/0")
    app.aggregator("own", lease_time=1)(merge)
    with pytest.raises(InvalidConfig):
        app.configure({})  # type: ignore[arg-type]
    first = app.aggregator("first")(merge)
    app.aggregator("held", max_pending_tasks=16)(merge)
    before = first._namespace
    with pytest.raises(InvalidConfig, match="max_pending_tasks"):
        app.configure(Settings(config=AggregationConfig(partitions=32)))
    assert first._namespace is before


def test_a_module_that_is_reloaded_replaces_its_aggregators() -> None:
    own = App()
    first = own.aggregator("x")(merge)
    second = own.aggregator("x")(merge)
    assert own.aggregators == {"x": second} != {"x": first}
    with pytest.raises(InvalidConfig, match=r"'x' already, of tests\.unit\.test_app\.merge"):
        own.aggregator("x")(Holder.held.__wrapped__)


# --- pickle --------------------------------------------------------------------------------------


def test_pickled_by_name() -> None:
    for each in (digest, add_up, refresh, Holder.held, app):
        assert pickle.loads(pickle.dumps(each)) is each
    with pytest.raises(pickle.PicklingError, match="top level"):
        pickle.dumps(App().aggregator("x")(merge))
    with pytest.raises(pickle.PicklingError, match="top level"):
        pickle.dumps(App())


def _called(aggregator: Any) -> tuple[str, Any]:
    return aggregator.name, aggregator("g", [Task("a", 1), Task("a", 2)]).payload


def test_another_process_unpickles_it() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_called, (digest,)) == ("emails", ["g", 2])
        function = add_up.config.group_aggregator  # as a process that merges gets it
        merged: Any = pool.apply(function, ("g", [Task("a", 1), Task("a", 2)]))
        assert merged.payload == 3
    assert wants_info(with_info.config.group_aggregator)
    assert not wants_info(function)


def test_a_merge_in_a_process_needs_a_function_with_a_place() -> None:
    def local(group: str, tasks: list[Task]) -> None:
        """Has no place."""

    with pytest.raises(InvalidConfig, match="top level"):
        App().aggregator("x", executor="process")(local)


# --- import strings ------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package whose modules import each other; returns its name."""
    name = "shop_of_test_app"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "batching.py").write_text(
        "from redisagg import App\n"
        f"app = App('redis://nowhere:1', include=['{name}.emails', '{name}.search'])\n"
    )
    (package / "emails.py").write_text(
        f"from {name}.batching import app\n"
        "@app.aggregator('emails')\ndef digest(group, tasks): return None\n"
    )
    (package / "search.py").write_text(
        f"from {name}.batching import app\nfrom {name} import emails\nassert app.aggregators\n"
        "@app.aggregator('search')\ndef refresh(group, tasks): return None\n"
    )
    (package / "broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for each in [each for each in sys.modules if each.split(".")[0] == name]:
        del sys.modules[each]


def test_an_app_imports_what_it_includes_when_it_is_asked(shop: str) -> None:
    found = load(f"{shop}.batching:app")
    assert f"{shop}.emails" not in sys.modules
    assert list(found.aggregators) == ["emails", "search"]


def test_modules_of_an_app_can_be_imported_in_any_order(shop: str) -> None:
    assert load(f"{shop}.search:refresh").name == "search"
    assert set(load(f"{shop}.batching:app").aggregators) == {"emails", "search"}


def test_an_included_module_that_is_missing_is_named(shop: str) -> None:
    for each in (f"{shop}.broken", f"{shop}.missing"):
        with pytest.raises(InvalidConfig, match=f"'{each}', which is in include, can't be"):
            App(include=[each]).aggregators  # noqa: B018 -- the property imports


@pytest.mark.parametrize("target", ["", "a", ":x", "json:", "json:x", "nomodule:x", "json:a.b"])
def test_import_strings_that_lead_nowhere(target: str) -> None:
    with pytest.raises(InvalidConfig):
        load(target)


def test_targets_of_several_kinds(shop: str) -> None:
    own = Aggregator("own")
    later = AsyncAggregator("later")
    targets = [own, f"{shop}.batching:app", load(f"{shop}.emails:digest"), later, own]
    found = select(aggregators_of(targets), ())
    assert [each.name for each in found] == ["own", "emails", "search", "later"]
    assert select(found, ["later", "own"]) == [own, later]
    assert select(found, "own") == [own]


def test_targets_that_are_refused() -> None:
    for wrong in (3, "json:dumps"):
        with pytest.raises(InvalidConfig, match="give an App"):
            list(aggregators_of([wrong]))  # type: ignore[list-item]
    with pytest.raises(InvalidConfig, match=r"no aggregator 'emial'.*'emails'"):
        select(app.aggregators.values(), ["emial"])
    with pytest.raises(InvalidConfig, match="include"):
        select([], ())
    with pytest.raises(InvalidConfig, match="two aggregators have the name 'one'"):
        select([Aggregator("one"), Aggregator("one")], ())
    select([Aggregator("one"), Aggregator("one", "redis://elsewhere")], ())
