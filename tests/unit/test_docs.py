"""The facts in the documentation are those of the code and of the benchmark results."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

import redisagg
from benchmarks import report
from redisagg import AggregationConfig, Aggregator, AsyncAggregator, errors
from redisagg.merges import collect
from redisagg.protocol.keys import Keyspace, PartitionKeys
from tests.support.markdown import CHECKOUT, code_blocks, each_page, read, rows, section

RESULTS = "docs/benchmarks/README.md"

# README's rows of figures: the section of the results, and the rows of redisagg and Asynq in it.
HEADLINES = {
    "adds/s, 256 coroutines (Asynq: 32 goroutines)": (
        "Adds",
        "redisagg, 256 coroutines",
        "Asynq, 32 goroutines",
    ),
    "tasks/s, drained in groups of 100": ("Drain, groups of 100", "redisagg", "Asynq"),
    "milliseconds from a full group to its queue entry": (
        "Latency of a full group",
        "idle, p50",
        "Asynq, p50",
    ),
}


# --- figures -------------------------------------------------------------------------------------


def test_the_headline_figures_are_those_of_the_results() -> None:
    results = read(RESULTS)
    expected = []
    for label, (heading, *names) in HEADLINES.items():
        medians = {row[0]: row[1] for row in rows(section(results, heading))}
        expected.append([label, *(medians[name] for name in names)])
    assert rows(section(read("README.md"), "Performance")) == expected


def test_the_results_have_the_introduction_of_the_report() -> None:
    generated = report.markdown([], [], report.Run("COMMAND", "MACHINE"))
    _, _, introduction = generated.partition("Machine: MACHINE.\n")
    assert introduction.strip()
    assert introduction in read(RESULTS)


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "docs/settings.md"])
def test_no_other_figures_stand_beside_the_results(page: str) -> None:
    text = read(page)
    if page == "README.md":
        text = text.replace(section(text, "Performance"), "")
    rates = r"\d ?(?:[a-z]+/s\b|[a-z]+ (?:per|a) second|ms\b|bytes over)"
    assert re.findall(rf"[^\n]*{rates}[^\n]*", text) == []


# --- settings ------------------------------------------------------------------------------------


def test_the_table_of_settings_is_complete() -> None:
    table = rows(section(read("docs/settings.md"), "The aggregator"))
    documented = [(name.strip("`"), _value(default)) for name, default, *_ in table]
    actual = [(field.name, field.default) for field in fields(AggregationConfig)]
    assert documented == actual
    assert [type(default) is bool for _, default in documented] == [
        type(default) is bool for _, default in actual
    ]


def test_the_table_says_who_reads_a_setting() -> None:
    def reads(name: str, *places: str) -> bool:
        paths = [path for place in places for path in (CHECKOUT / "redisagg").glob(place)]
        assert paths
        return any(re.search(rf"config\.{name}\b", path.read_text("utf-8")) for path in paths)

    for cell, _, who, _ in rows(section(read("docs/settings.md"), "The aggregator")):
        name = cell.strip("`")
        assert who in ("producers", "flushers", "both"), name
        if who == "producers":
            assert not reads(name, "flusher/**/*.py"), name
        if who == "flushers":
            assert not reads(name, "producer/*.py", "protocol/entries.py"), name


def _value(cell: str) -> object:
    """The value of a default in backticks."""
    text = cell.removeprefix("`").removesuffix("`")
    return collect if text == "merges.collect" else ast.literal_eval(text)


@each_page
def test_examples_use_settings_that_exist(page: Path) -> None:
    known = {field.name for field in fields(AggregationConfig)}
    for block in code_blocks(page.read_text("utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "AggregationConfig":
                assert {keyword.arg for keyword in node.keywords} <= known


# --- timelines -----------------------------------------------------------------------------------


def test_the_rules_of_the_table_exist() -> None:
    text = read("docs/timing.md")
    table = rows(text[: text.index("## ")])
    named = {name for row in table for name in re.findall(r"`(\w+)`", " ".join(row[1:]))}
    known = {field.name for field in [*fields(AggregationConfig), *fields(redisagg.Task)]}
    assert named <= known


def test_the_timelines_are_those_of_their_script() -> None:
    drawn = runpy.run_path(str(CHECKOUT / "docs" / "timelines.py"))
    pictures = {f"{each.name}.svg": each.svg() for each in drawn["TIMELINES"]}
    stored = {path.name: path.read_text("utf-8") for path in drawn["FOLDER"].iterdir()}
    assert stored == pictures, "run `python docs/timelines.py`"
    shown = read("docs/timing.md") + read("docs/concepts.md")
    assert all(f"(timelines/{name})" in shown for name in pictures)


# --- code blocks ---------------------------------------------------------------------------------


@each_page
def test_examples_import_names_that_exist(page: Path) -> None:
    missing = []
    for block in code_blocks(page.read_text("utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("redisagg."):
                module = import_module(str(node.module))
                names = {*dir(module), *getattr(module, "__annotations__", ())}  # or made when used
                missing += [each.name for each in node.names if each.name not in names]
    assert missing == []


# --- README --------------------------------------------------------------------------------------


def test_the_readme_has_one_example_which_makes_its_aggregator() -> None:
    [block] = code_blocks(read("README.md"), "python")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)  # connects to nothing yet
    merged = names["digest"]("user:42", [redisagg.Task("a", {"text": "hi"}, "user:42")])  # type: ignore[operator]
    assert merged.payload == {"user": "user:42", "texts": ["hi"]}


def test_the_readme_has_one_picture_and_two_commands() -> None:
    text = read("README.md")
    assert re.findall(r"^!\[.*?\]\(([^)]+)\)$", text, re.MULTILINE) == ["docs/overview.svg"]
    assert len(code_blocks(text, "sh")) == 2
    assert len(text.splitlines()) < 100


# --- calls ---------------------------------------------------------------------------------------


def test_the_methods_in_the_table_of_calls_exist() -> None:
    called = set(re.findall(r"\bagg\.(\w+)\(", read("docs/calls.md")))
    assert called >= {"add_task", "get_group", "requeue_dead_letter"}
    for face in (Aggregator, AsyncAggregator):
        assert [name for name in sorted(called) if not hasattr(face, name)] == []


# --- errors --------------------------------------------------------------------------------------


def test_the_table_of_errors_is_complete() -> None:
    text = read("docs/errors.md")
    table = rows(text[: text.index("## ")])
    documented = [(name.strip("`"), re.findall(r"`(\w+)`", bases)) for name, bases, *_ in table]
    actual = [
        (name, [base.__name__ for base in kind.__bases__])
        for name, kind in vars(errors).items()
        if inspect.isclass(kind)
        and issubclass(kind, Exception)
        and kind.__module__ == errors.__name__
        and not name.startswith("_")
    ]
    assert documented == actual
    assert all(len(row) == 5 and all(row) for row in table)


# --- keys ----------------------------------------------------------------------------------------


def test_the_key_tables_are_complete() -> None:
    keys = section(read("ARCHITECTURE.md"), "Keys")
    namespace, partition, state = keys.split("\n\n|")[1:]
    keyspace = Keyspace("n", 1)
    prefix = "redisagg:{n}:"
    known = [keyspace.meta, keyspace.policies, keyspace.flushers, keyspace.status]
    known += [keyspace.permits, keyspace.samples, keyspace.history]
    known += [keyspace.wake_channel, keyspace.answers_channel]
    assert [f"{prefix}{name}".encode() for name in _names(namespace)] == known
    plain = set(PartitionKeys.__annotations__) - {"number", "label", "slot"}
    with_name = {"tasks:GROUP", "ids:GROUP", "permits:GROUP"}
    with_name |= {"dead:BATCH", "result:BATCH", "call:PRODUCER", "answer:LENGTH:GROUP:ID"}
    assert set(_names(partition)) == plain | with_name
    for name in _names(state):
        scripts = (path.read_text("utf-8") for path in (CHECKOUT / "lua").rglob("*.lua"))
        assert any(f"'{name}'" in script for script in scripts), name


def _names(table: str) -> list[str]:
    """The names in backticks in the first column."""
    return [name for first, *_ in rows("|" + table) for name in re.findall(r"`([^`]+)`", first)]
