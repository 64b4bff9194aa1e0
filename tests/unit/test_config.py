"""Settings and their checks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from redisagg import (
    AggregationConfig,
    Aggregator,
    AsyncAggregator,
    default_aggregation_config,
)
from redisagg.errors import InvalidConfig


def test_the_defaults_are_as_documented() -> None:
    config = default_aggregation_config()
    assert config == AggregationConfig()
    assert (config.group_grace_period, config.group_max_delay) == (120.0, 600.0)
    assert (config.group_max_size, config.partitions) == (20, 16)
    assert config.max_task_bytes == 1024 * 1024


def test_durations_are_kept_as_seconds() -> None:
    config = default_aggregation_config(group_grace_period=timedelta(minutes=1), merge_timeout=2)
    assert (config.group_grace_period, config.merge_timeout) == (60.0, 2.0)


@pytest.mark.parametrize(
    "setting",
    [
        {"group_grace_period": 0},
        {"group_grace_period": -1},
        {"group_max_delay": float("nan")},
        {"group_max_delay": "60"},
        {"group_max_size": 0},
        {"group_max_size": True},
        {"group_max_bytes": 0},
        {"group_max_bytes": 2**41},
        {"group_max_weight": 1.5},
        {"group_min_interval": 0},
        {"group_leading": True},
        {"group_leading": 1, "group_min_interval": 5},
        {"group_grace_period": None, "group_max_delay": None},
        {"partitions": 0},
        {"partitions": 4097},
        {"concurrency": 1.5},
        {"max_attempts": 0},
        {"max_task_bytes": 0},
        {"max_merged_bytes": 1023},
        {"max_merged_bytes": 2**30},
        {"lease_time": 0.05},
        {"linger": -1},
        {"executor": "fork"},
        {"on_task_failure": "drop"},
        {"min_replicas": -1},
        {"min_replicas": True},
        {"wait_for_fsync": 1},
        {"replica_timeout": 0},
        {"replica_timeout": 31, "min_replicas": 1},
        {"group_aggregator": "combine"},
    ],
    ids=str,
)
def test_bad_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(setting))):
        AggregationConfig(**setting)


@pytest.fixture(params=[Aggregator, AsyncAggregator])
def face(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("name", ["", "a b", "a{b}", "-a", "x" * 65, "é", "\ud800", 7, None, b"a"])
def test_bad_names_are_refused(face: Any, name: Any) -> None:
    with pytest.raises(InvalidConfig, match="name"):
        face(name)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("redis", 7),
        ("redis", "http://localhost"),
        ("redis", "redis+sentinel://localhost:26379"),
        ("redis", "redis://\ud800"),
        ("redis", "redis+cluster://\ud800:7000"),
        ("redis", "\ud800"),
        ("redis", b"redis://localhost"),
        ("config", {}),
        ("sink", 7),
        ("sink", "nowhere://x"),
        ("sink", "stream://"),
        ("sink", "stream://a{b}"),
        ("sink", "stream://a?what=1"),
        ("sink", "stream://a?maxlen=many"),
        ("sink", "list://a?format=xml"),
        ("sink", "stream://\ud800"),
        ("sink", "\ud800"),
        ("sink", b"stream://a"),
    ],
)
def test_bad_arguments_are_refused(face: Any, argument: str, value: Any) -> None:
    with pytest.raises(InvalidConfig):
        face("a", **{argument: value})
