"""Policies: which limits count for a task."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisagg import AggregationConfig, Task
from redisagg.errors import InvalidConfig, KeyConflict
from redisagg.policies import Limits, Policies, Policy, check_pattern, limits_for

_CONFIG = AggregationConfig(group_grace_period=10, group_max_delay=20, group_max_size=30)
_POLICIES = Policies(
    {
        "*": Policy(priority=1),
        "digest:*": Policy(grace_period=1, max_size=5),
        "digest:*:eu": Policy(grace_period=2),
        "digest:vip": Policy(max_delay=timedelta(seconds=3), priority=9),
    }
)


def _limits(group: Any, **own: Any) -> Limits:
    return limits_for(Task("t", None, group, **own), _POLICIES, _CONFIG)


# --- the order ------------------------------------------------------------------------------------


def test_without_policies_the_settings_count() -> None:
    assert limits_for(Task("t", None, "g"), Policies({}), _CONFIG) == (10_000, 20_000, 30, 0)


def test_the_longest_pattern_comes_first_for_each_limit() -> None:
    assert _limits("other") == Limits(10_000, 20_000, 30, 1)
    assert _limits("digest:7") == Limits(1_000, 20_000, 5, 1)
    assert _limits(("digest", 7, "eu")) == Limits(2_000, 20_000, 5, 1)
    assert _limits("digest:vip") == Limits(1_000, 3_000, 5, 9)


def test_what_a_task_sets_comes_before_policies() -> None:
    own = {"grace_period": 0.5, "max_delay": 0.6, "max_size": 7, "priority": -8}
    assert _limits("digest:vip", **own) == Limits(500, 600, 7, -8)
    assert _limits("digest:vip", max_size=7) == Limits(1_000, 3_000, 7, 9)


@pytest.mark.parametrize("order", [1, -1])
def test_patterns_of_equal_length_have_an_order(order: int) -> None:
    both = [("a*", Policy(max_size=1)), ("*b", Policy(max_size=2))]
    limits = limits_for(Task("t", None, "ab"), Policies(dict(both[::order])), _CONFIG)
    assert limits.max_size == 2


# --- patterns -------------------------------------------------------------------------------------


@given(st.text("ab*", min_size=1, max_size=6), st.text("ab*", max_size=8))
def test_a_star_stands_for_any_characters(pattern: str, group: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), group) is not None
    found = Policies({pattern: Policy(max_size=7)}).limits_of(group)
    assert found == ({"max_size": 7} if expected else {})


@pytest.mark.parametrize(("pattern", "group"), [("a[bc]", "ab"), ("a?", "ab"), ("a.*", "ab")])
def test_nothing_else_is_special(pattern: str, group: str) -> None:
    policies = Policies({pattern: Policy(max_size=7)})
    assert not policies.limits_of(group)
    assert policies.limits_of(pattern)


def test_a_pattern_with_many_stars_is_quick() -> None:
    policies = Policies({"*a" * 250 + "b": Policy(max_size=7)})
    assert not policies.limits_of("a" * 512)


@pytest.mark.parametrize("pattern", ["", "x" * 513, "\ud800", 7, None, b"digest:*"])
def test_what_is_no_pattern_is_refused(pattern: object) -> None:
    with pytest.raises(InvalidConfig, match="pattern"):
        check_pattern(pattern)
    assert check_pattern("digest:*") == "digest:*"


# --- the stored form ------------------------------------------------------------------------------


@given(
    st.builds(
        Policy,
        grace_period=st.floats(0.001, 1e6),
        max_delay=st.none() | st.floats(0.001, 1e6),
        max_size=st.none() | st.integers(1, 1_000_000),
        priority=st.none() | st.integers(-1000, 1000),
    )
)
def test_a_stored_policy_comes_back(policy: Policy) -> None:
    assert Policy.from_stored(policy.stored()) == policy


def test_the_stored_form_is_json() -> None:
    assert Policy(grace_period=60, max_size=5).stored() == b'{"grace_period":60.0,"max_size":5}'


def test_limits_of_a_later_release_are_left_out() -> None:
    assert Policy.from_stored(b'{"max_size":5,"max_stars":7}') == Policy(max_size=5)
    assert Policy.from_stored(b'{"max_stars":7}') is None


@pytest.mark.parametrize("stored", [b"", b"7", b"[]", b"\xff", b'{"max_size":0}', b"[" * 10**5])
def test_what_is_no_policy_is_refused(stored: bytes) -> None:
    with pytest.raises(KeyConflict, match="policy"):
        Policy.from_stored(stored)


@pytest.mark.parametrize(
    "limits",
    [{}, {"grace_period": 0}, {"max_delay": "1"}, {"max_size": 0}, {"priority": 1001}],
    ids=str,
)
def test_bad_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(limits), "without limits")):
        Policy(**limits)
